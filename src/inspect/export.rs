//! `export`: every line once, as JSON that other programs read. Lines come in the order of [`super::entries`].

use super::command::{Stream, Streams};
use super::entries::{Filter, Line, walk};
use super::error::InspectError;
use super::log::Judged;
use super::output::{hex, rfc3339};
use super::progress::Progress;
use super::say;
use crate::fs::{File, Fs, RealFs, temporary_name, write_all_at};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `export` writes, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// A JSON object for each line, or one push in Loki's JSON format (of one tenant)
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: ExportFormat,
    /// A new file, synced before the command ends; compressed if its name ends in .zst or .gz. Standard output if left out
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, requires = "to")]
    pub force: bool,
    /// Also records above the durable end (in flight, or kept by the next recovery)
    #[arg(long)]
    pub tail: bool,
    /// Which lines
    #[command(flatten)]
    pub filter: Filter,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// One document, as Loki's push API takes it.
    Loki,
}

/// Writes the lines; `true` if the log is sound and nothing was changed or left out.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(
    args: &ExportArgs,
    judged: &Judged,
    out: W,
    progress: &mut Progress,
) -> Result<bool, InspectError> {
    if args.format == ExportFormat::Loki {
        one_tenant(&args.filter, &Streams::of(judged))?;
    }
    let counts = match &args.to {
        None => write_lines(args, judged, progress, out, |mut out| out.flush())?,
        Some(path) => {
            let file = NewFile::create(path, args.force)?;
            let out = BufWriter::with_capacity(256 << 10, file);
            let into_file =
                |out: BufWriter<NewFile>| out.into_inner().map_err(io::IntoInnerError::into_error)?.finish();
            let name = path.to_string_lossy();
            if name.ends_with(".zst") {
                let encoder = zstd::stream::write::Encoder::new(out, 0).map_err(InspectError::Output)?;
                write_lines(args, judged, progress, encoder, |encoder| into_file(encoder.finish()?))?
            } else if name.ends_with(".gz") {
                let encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                write_lines(args, judged, progress, encoder, |encoder| into_file(encoder.finish()?))?
            } else {
                write_lines(args, judged, progress, out, into_file)?
            }
        }
    };
    if args.to.is_some() {
        say(&format!("{} lines were exported", counts.lines));
    }
    counts.tell();
    Ok(judged.is_sound() && counts.are_whole())
}

/// What was written, and what could not be.
#[derive(Default)]
struct Counts {
    lines: u64,
    /// No definition of their stream survives.
    nameless: u64,
    /// Not UTF-8, which Loki's JSON cannot hold.
    replaced: u64,
}

impl Counts {
    fn are_whole(&self) -> bool {
        self.nameless == 0 && self.replaced == 0
    }

    fn tell(&self) {
        if self.nameless > 0 {
            say(&format!("{} lines are left out: no definition of their stream survives", self.nameless));
        }
        if self.replaced > 0 {
            say(&format!(
                "{} lines are not UTF-8: U+FFFD is in the place of what is not; jsonl keeps the bytes",
                self.replaced
            ));
        }
    }
}

/// A push is of one tenant.
fn one_tenant(filter: &Filter, streams: &Streams) -> Result<(), InspectError> {
    let wanted = streams.all().filter(|(id, s)| filter.wanted.has_stream(*id, &s.tenant, Some(s)));
    let tenants: BTreeSet<&str> = wanted.map(|(_, s)| s.tenant.as_str()).collect();
    if tenants.len() <= 1 {
        return Ok(());
    }
    let some: Vec<&str> = tenants.iter().copied().take(5).collect();
    Err(InspectError::Tool {
        what: format!("a push is of one tenant, and these lines are of {}: {}", tenants.len(), some.join(", ")),
        next: "the same command with --tenant NAME, once for each".to_string(),
        code: 2,
    })
}

fn write_lines<W: Write>(
    args: &ExportArgs,
    judged: &Judged,
    progress: &mut Progress,
    mut out: W,
    finish: impl FnOnce(W) -> io::Result<()>,
) -> Result<Counts, InspectError> {
    let mut counts = Counts::default();
    let mut push = Push { stream: None };
    if args.format == ExportFormat::Loki {
        out.write_all(b"{\"streams\":[").map_err(InspectError::Output)?;
    }
    walk(&args.filter, args.tail, judged, progress, &mut |line| {
        let written = match args.format {
            ExportFormat::Jsonl => object(&mut out, line),
            ExportFormat::Loki => push.line(&mut out, line, &mut counts),
        };
        written.map_err(InspectError::Output)?;
        counts.lines += 1;
        Ok(true)
    })?;
    let ended = if args.format == ExportFormat::Loki { push.end(&mut out) } else { Ok(()) };
    counts.lines -= counts.nameless;
    ended.and_then(|()| finish(out)).map_err(InspectError::Output)?;
    Ok(counts)
}

fn object<W: Write>(out: &mut W, line: &Line<'_>) -> io::Result<()> {
    out.write_all(b"{\"tenant\":")?;
    serde_json::to_writer(&mut *out, line.tenant)?;
    out.write_all(b",\"labels\":")?;
    match line.stream {
        Some(stream) => labels(out, stream)?,
        None => out.write_all(b"null")?,
    }
    write!(out, ",\"timestamp\":\"{}\",", rfc3339(line.timestamp))?;
    match std::str::from_utf8(line.line) {
        Ok(text) => {
            out.write_all(b"\"line\":")?;
            serde_json::to_writer(&mut *out, text)?;
        }
        Err(_) => write!(out, "\"line_hex\":\"{}\"", hex(line.line))?,
    }
    out.write_all(b",\"metadata\":")?;
    pairs(out, line.metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())))?;
    out.write_all(b"}\n")
}

fn labels<W: Write>(out: &mut W, stream: &Stream) -> io::Result<()> {
    pairs(out, stream.labels.pairs().iter().map(|(n, v)| (&**n, &**v)))
}

fn pairs<'a, W: Write>(out: &mut W, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> io::Result<()> {
    out.write_all(b"{")?;
    for (i, (name, value)) in pairs.enumerate() {
        out.write_all(if i == 0 { b"" } else { b"," })?;
        serde_json::to_writer(&mut *out, name)?;
        out.write_all(b":")?;
        serde_json::to_writer(&mut *out, value)?;
    }
    out.write_all(b"}")
}

/// Loki's JSON: lines of one stream that follow one another are together; a stream may come more than once.
struct Push {
    stream: Option<u64>,
}

impl Push {
    fn line<W: Write>(&mut self, out: &mut W, line: &Line<'_>, counts: &mut Counts) -> io::Result<()> {
        let Some(stream) = line.stream else {
            counts.nameless += 1;
            return Ok(());
        };
        if self.stream == Some(line.id) {
            out.write_all(b",\n")?;
        } else {
            out.write_all(if self.stream.is_some() { b"]},\n" } else { b"\n" })?;
            out.write_all(b"{\"stream\":")?;
            labels(out, stream)?;
            out.write_all(b",\"values\":[\n")?;
            self.stream = Some(line.id);
        }
        let text = String::from_utf8_lossy(line.line);
        counts.replaced += u64::from(matches!(text, Cow::Owned(_)));
        write!(out, "[\"{}\",", line.timestamp)?;
        serde_json::to_writer(&mut *out, &*text)?;
        if !line.metadata.is_empty() {
            out.write_all(b",")?;
            pairs(out, line.metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())))?;
        }
        out.write_all(b"]")
    }

    fn end<W: Write>(&self, out: &mut W) -> io::Result<()> {
        out.write_all(if self.stream.is_some() { b"]}\n]}\n" } else { b"]}\n" })
    }
}

/// A file that gets its name when it is whole and durable.
struct NewFile {
    file: Arc<dyn File>,
    at: u64,
    path: PathBuf,
    replace: bool,
}

impl NewFile {
    fn create(path: &Path, replace: bool) -> Result<Self, InspectError> {
        if !replace && path.symlink_metadata().is_ok() {
            return Err(InspectError::Tool {
                what: format!("{} is there already", path.display()),
                next: "the same command with another name, or with --force to replace the file".to_string(),
                code: 2,
            });
        }
        let temporary = temporary_name(path);
        match RealFs.remove(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(InspectError::io("remove", &temporary)(e)),
            _ => {}
        }
        let file = RealFs.create_new(&temporary).map_err(InspectError::io("create", &temporary))?;
        Ok(Self { file, at: 0, path: path.to_path_buf(), replace })
    }

    fn finish(self) -> io::Result<()> {
        self.file.sync_data()?;
        let temporary = temporary_name(&self.path);
        if self.replace {
            RealFs.rename(&temporary, &self.path)?;
        } else {
            // A rename would replace what came under this name meanwhile.
            RealFs.hard_link(&temporary, &self.path)?;
        }
        RealFs.sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_all_at(&*self.file, self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    /// The temporary name goes, whether or not the file has got its own.
    fn drop(&mut self) {
        let _ = RealFs.remove(&temporary_name(&self.path));
    }
}
