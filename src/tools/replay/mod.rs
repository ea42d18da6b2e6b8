//! `replay`: pushes the lines of a log to a server, and goes on where an earlier run was interrupted.
//!
//! Lines are gathered into rounds: a push for each tenant. Only when a server has taken all pushes of a round, its end is
//! written to the resume file. So a run that ends anywhere repeats a round at most, and servers store equal lines once.

mod client;
mod resume;

use crate::api::pb::logproto::{EntryAdapter, LabelPairAdapter, PushRequest, StreamAdapter, Timestamp};
use crate::inspect::args::{Mapping, Rate, ReplayArgs};
use crate::inspect::cli::Dirs;
use crate::inspect::entries::{EntryPlace, Line, walk};
use crate::inspect::output::{Cell, Row, Shape};
use crate::inspect::{Finding, InspectError, Progress, Report, log, say};
use client::{Client, Outcome};
use prost::Message;
use prost::bytes::Bytes;
use resume::Resume;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// First and longest wait before a push is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The server is believed if it asks for a longer wait, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Rounds have so many full pushes, at most.
const PUSHES: u64 = 4;

/// Replays.
///
/// # Errors
/// The log cannot be read, or the server does not take its lines.
pub fn run(args: &ReplayArgs, dirs: &Dirs, mut progress: Progress) -> Result<Report, InspectError> {
    let mut replay = Replay::new(args)?;
    let judged = log::judge(dirs, &mut progress)?;
    let mut resume = Resume::open(args, &judged)?;
    walk(&args.filter, args.all, &judged, &mut progress, &mut |line| {
        if resume.has(line.place) {
            replay.skipped += 1;
        } else if replay.round.takes(line, args) {
            replay.round.add(line, &args.tenant_map);
        } else {
            replay.send(&mut resume)?;
            replay.round.add(line, &args.tenant_map);
        }
        Ok(true)
    })?;
    replay.send(&mut resume)?;
    let next = format!("wal-inspect verify {dirs}; every line that can be read was replayed");
    let sections = vec![("replay", Shape::One, vec![replay.row(judged.is_sound())])];
    Ok(Report { sections, found: (!judged.is_sound() || replay.round.nameless > 0).then(|| Finding::damage(next)) })
}

/// Lines on their way.
#[derive(Default)]
struct Round {
    pushes: BTreeMap<String, Push>,
    bytes: u64,
    lines: u64,
    last: Option<EntryPlace>,
    /// Lines of streams without a definition.
    nameless: u64,
}

#[derive(Default)]
struct Push {
    streams: Vec<StreamAdapter>,
    /// Places of the streams, by id.
    known: HashMap<u64, usize>,
    bytes: u64,
    lines: u64,
}

impl Round {
    /// Is there room for the line?
    fn takes(&self, line: &Line<'_>, args: &ReplayArgs) -> bool {
        let (size, limit) = (size(line), args.batch_size.0);
        let push = self.pushes.get(tenant(line, &args.tenant_map)).map_or(0, |p| p.bytes);
        self.bytes == 0 || push + size <= limit && self.bytes + size <= limit.saturating_mul(PUSHES)
    }

    fn add(&mut self, line: &Line<'_>, map: &[Mapping]) {
        self.last = Some(line.place);
        let Some(stream) = line.stream else {
            self.nameless += 1;
            return;
        };
        let push = self.pushes.entry(tenant(line, map).to_string()).or_default();
        let place = *push.known.entry(line.id).or_insert_with(|| {
            let labels = Bytes::copy_from_slice(stream.labels.text().as_bytes());
            push.streams.push(StreamAdapter { labels, entries: Vec::new(), hash: stream.labels.hash() });
            push.streams.len() - 1
        });
        if let Some(stream) = push.streams.get_mut(place) {
            stream.entries.push(entry(line));
        }
        for (bytes, lines) in [(&mut push.bytes, &mut push.lines), (&mut self.bytes, &mut self.lines)] {
            *bytes += size(line);
            *lines += 1;
        }
    }
}

fn tenant<'a>(line: &Line<'a>, map: &'a [Mapping]) -> &'a str {
    map.iter().find(|m| m.old == line.tenant).map_or(line.tenant, |m| &m.new)
}

/// About the bytes of a line in a push.
fn size(line: &Line<'_>) -> u64 {
    let metadata: usize = line.metadata.iter().map(|(n, v)| n.len() + v.len() + 8).sum();
    (line.line.len() + metadata + 24) as u64
}

fn entry(line: &Line<'_>) -> EntryAdapter {
    let pair = |(name, value): &(String, String)| LabelPairAdapter {
        name: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    EntryAdapter {
        timestamp: Some(Timestamp {
            seconds: line.timestamp.div_euclid(1_000_000_000),
            nanos: line.timestamp.rem_euclid(1_000_000_000) as i32,
        }),
        line: Bytes::copy_from_slice(line.line),
        structured_metadata: line.metadata.iter().map(pair).collect(),
    }
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    client: Client,
    runtime: Runtime,
    round: Round,
    /// Before this the rate leaves no room for another push.
    free: Instant,
    started: Instant,
    skipped: u64,
    lines: u64,
    bytes: u64,
    pushes: u64,
    retries: u64,
}

impl<'a> Replay<'a> {
    fn new(args: &'a ReplayArgs) -> Result<Self, InspectError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(InspectError::Output)?;
        let (round, now) = (Round::default(), Instant::now());
        let client = Client::new(&args.to, args.ca_file.as_deref())?;
        let (skipped, lines, bytes, pushes, retries) = (0, 0, 0, 0, 0);
        Ok(Self { args, client, runtime, round, free: now, started: now, skipped, lines, bytes, pushes, retries })
    }

    /// Pushes the round, and remembers that.
    fn send(&mut self, resume: &mut Resume) -> Result<(), InspectError> {
        let nameless = self.round.nameless;
        let round = std::mem::replace(&mut self.round, Round { nameless, ..Round::default() });
        for (tenant, push) in round.pushes {
            self.push(&tenant, push, resume)?;
        }
        match round.last {
            Some(last) => resume.advance(last, self.lines),
            None => Ok(()),
        }
    }

    fn push(&mut self, tenant: &str, push: Push, resume: &Resume) -> Result<(), InspectError> {
        let message = PushRequest { streams: push.streams, format: String::new() }.encode_to_vec();
        let body = snap::raw::Encoder::new().compress_vec(&message).map_err(|e| InspectError::Output(e.into()))?;
        let body = Bytes::from(body);
        std::thread::sleep(self.free.saturating_duration_since(Instant::now()));
        let (began, mut backoff) = (Instant::now(), BACKOFF.0);
        loop {
            let (why, wait) = match self.runtime.block_on(self.client.push(tenant, body.clone())) {
                Outcome::Stored => break,
                Outcome::Busy(why, wait) => (why, wait),
                Outcome::Refused(why) => return Err(refused(tenant, &why, resume)),
            };
            if began.elapsed() >= self.args.give_up_after {
                return Err(given_up(&why, self.args.give_up_after, resume));
            }
            let wait = wait.map_or(backoff, |wait| wait.min(LONGEST_WAIT));
            say(&format!("{why}; again in {:.1} s", wait.as_secs_f64()));
            std::thread::sleep(wait);
            backoff = (backoff * 2).min(BACKOFF.1);
            self.retries += 1;
        }
        self.pushes += 1;
        self.lines += push.lines;
        self.bytes += push.bytes;
        self.free = Instant::now() + self.takes(push.lines, push.bytes);
        Ok(())
    }

    /// How long so much takes at the wanted rate.
    fn takes(&self, lines: u64, bytes: u64) -> Duration {
        let seconds = match self.args.rate {
            None => 0.0,
            Some(Rate::Lines(rate)) => lines as f64 / rate as f64,
            Some(Rate::Bytes(rate)) => bytes as f64 / rate as f64,
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn row(&self, sound: bool) -> Row {
        vec![
            ("verdict", if sound { "sound" } else { "damaged" }.into()),
            ("lines", self.lines.into()),
            ("bytes", Cell::Size(self.bytes)),
            ("pushes", self.pushes.into()),
            ("retries", self.retries.into()),
            ("lines_done_before", self.skipped.into()),
            ("lines_without_stream", self.round.nameless.into()),
            ("seconds", format!("{:.1}", self.started.elapsed().as_secs_f64()).into()),
        ]
    }
}

fn again(resume: &Resume) -> &'static str {
    if resume.is_kept() {
        "the same command again, which goes on behind what the server has"
    } else {
        "the same command again, with --resume FILE so that it goes on where it was interrupted from then on"
    }
}

fn refused(tenant: &str, why: &str, resume: &Resume) -> InspectError {
    let what = format!("the server refused lines of tenant {tenant}, and trying again does not help: {why}");
    let next = format!(
        "change what the server says (old lines: limits_config.reject_old_samples, and the out-of-order window), or leave \
         these lines out (--since, -m); then {}",
        again(resume)
    );
    InspectError::Tool { what, next, code: 3 }
}

fn given_up(why: &str, after: Duration, resume: &Resume) -> InspectError {
    let what = format!("given up after {} s (--give-up-after): {why}", after.as_secs());
    InspectError::Tool { what, next: format!("look at the server; then {}", again(resume)), code: 3 }
}
