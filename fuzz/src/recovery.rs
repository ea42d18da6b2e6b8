//! A start on a data directory that was changed: nothing that was not there, and the same again at the next start.

use super::choices::Choices;
use super::content::{Content, Image, PAGE};
use super::disk::{Schedule, SimDisk};
use super::seeds::testdata;
use prometheus::{CounterVec, Opts, Registry};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use timberline::chunk::{Encoding, Selection, select_readable};
use timberline::fs::Fs;
use timberline::ingester::*;
use timberline::model::Tenant;
use timberline::wal::{Codec, SyncMode};

/// The volume of the golden logs.
const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(0x7469_6d62_6572_6c69_6e65_0000_0000_0001);
const SEGMENT: u64 = 64 << 10;
const TENANT: &str = "tenant-a";
/// Starting for good has a thread for everything: one input in so many does.
const LIVE: u8 = 16;

/// Labels, timestamp, line and metadata of each line, with its number among equal ones.
type Lines = BTreeSet<(String, i64, Vec<u8>, Vec<(String, String)>, usize)>;

/// A data directory that is whole.
struct Whole {
    image: Image,
    lines: Lines,
    /// File and page of what is not zero, and the files by name.
    pages: Vec<(Arc<Path>, usize)>,
    files: Vec<Arc<Path>>,
}

impl Whole {
    fn of(name: &str) -> Self {
        let json = serde_json::to_string(&Identity { format_version: 1, volume: VOLUME }).expect("JSON");
        let identity = format!("{json}\n{:08x}\n", crc32fast::hash(json.as_bytes()));
        let mut image = Image::default();
        image.files.insert(Path::new("/data/identity").into(), Arc::new(Content::of(identity.as_bytes())));
        let (mut pages, mut files) = (Vec::new(), Vec::new());
        for dir in ["wal", "blocks"] {
            for (name, bytes) in super::seeds::files(&testdata().join("golden").join(name).join(dir)) {
                let path: Arc<Path> = Path::new("/").join(dir).join(name).into();
                let used = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0));
                pages.extend(used.map(|(n, _)| (path.clone(), n)));
                image.files.insert(path.clone(), Arc::new(Content::of(&bytes)));
                files.push(path);
            }
        }
        let (lines, report) = start(Arc::new(image.clone())).expect("a golden log");
        assert_eq!((report.damaged_places, report.lost_lines), (0, 0), "a golden log is whole");
        assert!(lines.len() > 50, "a golden log has lines");
        Self { image, lines, pages, files }
    }
}

/// What is done to one of the golden directories.
pub fn recovery(input: &[u8]) {
    thread_local! {
        static WHOLE: OnceCell<[Whole; 2]> = const { OnceCell::new() };
    }
    WHOLE.with(|whole| {
        let all = whole.get_or_init(|| ["v1", "v1-blocks"].map(Whole::of));
        let mut choices = Choices::new(input);
        let what = choices.byte();
        check(&all[usize::from(what & 1)], &mut choices, what / 2 % LIVE == 1);
    });
}

fn check(whole: &Whole, choices: &mut Choices<'_>, live: bool) {
    let mut image = whole.image.clone();
    for _ in 0..8 {
        if choices.is_empty() {
            break;
        }
        change(whole, &mut image, choices);
    }
    // What cannot be started on is left as it is.
    let Ok((lines, report)) = start(Arc::new(image.clone())) else { return };
    let phantom = lines.difference(&whole.lines).next();
    assert!(phantom.is_none(), "a line that nobody has sent, or one that is doubled: {phantom:?}");
    let Ok((again, second)) = start(Arc::new(image.clone())) else {
        panic!("a start that was possible is not any more")
    };
    assert_eq!(again, lines, "a second look");
    assert_eq!((second.lost_lines, second.damaged_places), (report.lost_lines, report.damaged_places));
    if live {
        let disk = SimDisk::new(image, Schedule::Late, 1);
        disk.run_freely();
        if go_live(disk.next_process()) {
            let (after, _) = start(Arc::new(disk.seen())).expect("a start after a start");
            assert_eq!(after, lines, "the start after a start");
        }
    }
}

/// Changes a file, or which of them there are.
fn change(whole: &Whole, image: &mut Image, choices: &mut Choices<'_>) {
    let action = choices.byte() % 10;
    let (path, page) = &whole.pages[choices.short() % whole.pages.len()];
    let other = &whole.files[usize::from(choices.byte()) % whole.files.len()];
    let Some(content) = image.files.get(path) else { return };
    let mut content = Content::clone(content);
    let at = page * PAGE + choices.short() % PAGE;
    match action {
        0..=2 => edit(&mut content, at, 1, |bytes| bytes[0] ^= 1 << (choices.byte() % 8)),
        3 => edit(&mut content, at / 512 * 512, 512, |bytes| bytes.fill(0)),
        4 => edit(&mut content, page * PAGE, PAGE, |bytes| bytes.fill(0)),
        5 => content.set_len(at as u64),
        6 => {
            let (from, page) = &whole.pages[choices.short() % whole.pages.len()];
            let mut bytes = vec![0; PAGE];
            let n = image.files.get(from).map_or(0, |c| c.read((page * PAGE) as u64, &mut bytes));
            edit(&mut content, at / PAGE * PAGE, n, |to| to.copy_from_slice(&bytes[..to.len()]));
        }
        7 => {
            image.files.remove(path);
            return;
        }
        // A file in the place of another one, or both in each other's.
        8 => {
            image.files.insert(other.clone(), Arc::new(content));
            return;
        }
        _ => {
            if let Some(theirs) = image.files.insert(other.clone(), Arc::new(content)) {
                image.files.insert(path.clone(), theirs);
            }
            return;
        }
    }
    image.files.insert(path.clone(), Arc::new(content));
}

/// Changes bytes, as far as they are there.
fn edit(content: &mut Content, at: usize, len: usize, change: impl FnOnce(&mut [u8])) {
    let mut bytes = vec![0; len];
    let n = content.read(at as u64, &mut bytes);
    if n > 0 {
        change(&mut bytes[..n]);
        content.put(at as u64, &bytes[..n]);
    }
}

fn config(fs: Arc<dyn Fs>) -> IngesterConfig {
    IngesterConfig {
        fs,
        data_dir: "/data".into(),
        wal_dir: "/wal".into(),
        blocks_dir: "/blocks".into(),
        quarantine_dir: "/quarantine".into(),
        refuse_damage: false,
        wal_max_size: 1 << 30,
        blocks_max_size: 1 << 30,
        require_data: false,
        segment_size: SEGMENT,
        sync: SyncMode::Always,
        wal_codec: Codec::None,
        queue_bytes: 1 << 20,
        queue_timeout: Duration::from_millis(300),
        chunk_block_size: 64 << 10,
        chunk_target_size: 1 << 20,
        chunk_encoding: Encoding::Snappy,
        max_chunk_age: Duration::from_secs(7200),
        sync_period: Duration::ZERO,
        sync_min_utilization: 0.1,
        max_returned_stream_errors: 10,
        heads_budget: 64 << 20,
        metadata_budget: 64 << 20,
        cluster: Cluster { ingesters: 1, replication_factor: 1 },
        threads: 1,
    }
}

fn replay(fs: Arc<dyn Fs>) -> Result<Replayed, StartError> {
    thread_local! {
        static METRICS: IngesterMetrics = metrics();
    }
    Ingester::<NilRecord>::replay(config(fs), Arc::default(), METRICS.with(Clone::clone), &Progress::default())
}

fn metrics() -> IngesterMetrics {
    let counter = |name: &str| {
        let labels = ["reason", "tenant", "retention_hours", "policy", "format"];
        CounterVec::new(Opts::new(name, name), &labels).expect("a legal name")
    };
    IngesterMetrics::new(&Registry::new(), (counter("a"), counter("b"))).expect("an empty registry")
}

/// What a start finds, as a query reads it past what is damaged.
fn start(fs: Arc<dyn Fs>) -> Result<(Lines, RecoveryReport), StartError> {
    let replayed = replay(fs)?;
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
    let tenant = Tenant::new(TENANT).expect("a legal name");
    let mut out = Lines::new();
    for stream in replayed.ingester().streams(&tenant, &[], i64::MIN, i64::MAX) {
        let parts = stream.parts(all.start, all.end);
        for e in select_readable(&parts, &all, &mut |_, _| true, &mut Vec::new()) {
            let mut line = (stream.labels().text().to_string(), e.timestamp, e.line.to_vec(), e.metadata, 0);
            while !out.insert(line.clone()) {
                line.4 += 1;
            }
        }
    }
    Ok((out, replayed.report))
}

/// Starts for good and stops: the end of the log is written again, and losses are settled.
fn go_live(fs: Arc<dyn Fs>) -> bool {
    let Ok(replayed) = replay(fs) else { return false };
    let live = replayed.go_live(Box::new(|_| {}));
    live.map(|live| live.stop()).is_ok()
}
