//! How far a replay is, in a file: a line of JSON that is replaced as a whole and synced.

use crate::codec::crc32;
use crate::fs::{RealFs, replace_durably};
use crate::inspect::args::ReplayArgs;
use crate::inspect::entries::EntryPlace;
use crate::inspect::log::Judged;
use crate::inspect::{InspectError, say};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

const VERSION: u32 = 1;
/// Such a file is a few hundred bytes.
const MAX_LEN: u64 = 64 << 10;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Identity of the data directory.
    volume: String,
    /// The server.
    to: String,
    /// Which lines, and whose they become.
    what: String,
    /// State of the log. When it changes, lines change their places.
    state: String,
    /// The server has all lines up to this one.
    last: Option<EntryPlace>,
    /// How many they were.
    lines: u64,
}

/// How far a replay is.
pub struct Resume {
    path: Option<PathBuf>,
    content: Content,
    /// Lines that earlier runs have pushed.
    before: u64,
    /// Where this run begins.
    from: Option<EntryPlace>,
}

impl Resume {
    /// Reads the file, if one is asked for and there.
    ///
    /// # Errors
    /// It cannot be read, or is of another replay.
    pub fn open(args: &ReplayArgs, judged: &Judged) -> Result<Self, InspectError> {
        let fresh = Content {
            version: VERSION,
            volume: judged.volume.map_or_else(String::new, |v| v.to_string()),
            to: args.to.clone(),
            what: format!("{:?} {:?} all: {}", args.filter, args.tenant_map, args.all),
            state: state(judged),
            last: None,
            lines: 0,
        };
        let Some(path) = args.resume.clone() else {
            return Ok(Self { path: None, content: fresh, before: 0, from: None });
        };
        let text = match std::fs::metadata(&path)
            .and_then(|m| if m.len() > MAX_LEN { Err(too_long()) } else { std::fs::read(&path) })
        {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: Some(path), content: fresh, before: 0, from: None });
            }
            Err(e) => return Err(InspectError::io("read", &path)(e)),
        };
        let other = |why: &str| InspectError::Tool {
            what: format!("{} is of another replay: {why}", path.display()),
            next: "the command that made it, or another file with --resume".to_string(),
            code: 2,
        };
        let known: Content = serde_json::from_slice(&text).map_err(|e| other(&format!("it does not decode ({e})")))?;
        if known.version != VERSION {
            return Err(other("it is of another version of this program"));
        }
        if known.volume != fresh.volume {
            return Err(other("it tells of another data directory"));
        }
        if known.to != fresh.to {
            return Err(other(&format!("it tells of the server {}", known.to)));
        }
        if known.what != fresh.what {
            return Err(other("it tells of other lines (times such as 15m move: give them as RFC 3339)"));
        }
        if known.state != fresh.state {
            say(
                "the log has changed since the replay was interrupted: beginning again; the server stores equal lines once",
            );
            return Ok(Self { path: Some(path), content: fresh, before: 0, from: None });
        }
        let (before, from) = (known.lines, known.last);
        Ok(Self { path: Some(path), content: known, before, from })
    }

    /// Did an earlier run push the line in this place?
    pub fn has(&self, place: EntryPlace) -> bool {
        self.from.is_some_and(|from| place <= from)
    }

    /// Is there a file?
    pub fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    /// The server has all lines up to this one; `lines` are those of this run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn advance(&mut self, last: EntryPlace, lines: u64) -> Result<(), InspectError> {
        let Some(path) = &self.path else { return Ok(()) };
        self.content.last = Some(last);
        self.content.lines = self.before + lines;
        let failed = || InspectError::io("write", path);
        let text = serde_json::to_string(&self.content).map_err(|e| failed()(e.into()))?;
        replace_durably(&RealFs, path, format!("{text}\n").as_bytes()).map_err(failed())
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is too long for a resume file")
}

/// Changes with what the logs hold.
fn state(judged: &Judged) -> String {
    let blocks: Vec<(u64, u64)> = judged.blocks.facts.iter().map(|f| (f.number, f.end)).collect();
    let segments: Vec<(u64, u64)> = judged.facts.iter().map(|f| (f.number, f.used)).collect();
    let parts = format!("{blocks:?} {segments:?} {:?}", judged.plan.first_lsn);
    format!("{}-{:08x}", judged.plan.durable_lsn, crc32(&[parts.as_bytes()]))
}
