//! A start on a data directory that was changed: nothing that was not there, and the same again at the next start.

use super::choices::Choices;
use super::content::{Content, Image, PAGE};
use super::disk::{Schedule, SimDisk};
use super::seeds::testdata;
use prometheus::{CounterVec, Opts, Registry};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use timberline::chunk::{Encoding, Selection, select_readable};
use timberline::fs::Fs;
use timberline::ingester::*;
use timberline::model::{LabelSet, Metadata, Tenant};
use timberline::wal::*;

/// The volume of the golden logs.
const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(0x7469_6d62_6572_6c69_6e65_0000_0000_0001);
const SEGMENT: u64 = 64 << 10;
const TENANT: &str = "tenant-a";
/// Starting for good has a thread for everything: one input in so many does.
const LIVE: u8 = 16;

/// Labels, timestamp, line and metadata of each line, with its number among equal ones.
type Lines = BTreeSet<(String, i64, Vec<u8>, Metadata, usize)>;

/// A data directory that is whole.
struct Whole {
    image: Image,
    /// All that was sent. Some of it was never acknowledged, and comes back when what says so is damaged.
    sent: Lines,
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
        let (mut sent, report) = start(Arc::new(image.clone())).expect("a golden log");
        assert_eq!((report.damaged_places, report.lost_lines), (0, 0), "a golden log is whole");
        assert!(sent.len() > 50, "a golden log has lines");
        sent.extend(logged(&image));
        Self { image, sent, pages, files }
    }
}

/// The lines of all sound records of the write-ahead log, those that do not count included.
fn logged(image: &Image) -> Lines {
    let files: Vec<Vec<u8>> = image.files.values().map(|content| content.to_vec()).collect();
    let scans = files.iter().filter_map(|file| Some((file, scan_segment(file).ok()?)));
    let records: Vec<(&Vec<u8>, RecordScan)> = scans
        .flat_map(|(file, scan)| scan.groups.into_iter().flat_map(|g| g.records).map(move |r| (file, r)))
        .collect();
    let of_kind = |kind| records.iter().filter(move |(_, r)| r.head.known_kind() == Some(kind));
    let series = of_kind(Kind::Series)
        .filter_map(|(file, r)| decode_control::<Vec<SeriesDef>>(&r.head, r.head.body(file, r.offset)).ok());
    let labels: HashMap<u64, String> =
        series.flatten().map(|d| (d.id, LabelSet::new(d.labels).text().to_string())).collect();
    // A copy of a record is the same; what failed may have a place that others took.
    let mut distinct = BTreeSet::new();
    for (file, r) in of_kind(Kind::Entries) {
        let tables = Tables::decode(r.head.tables(file, r.offset)).expect("a golden record");
        let raw = decompress_body(&r.head, r.head.body(file, r.offset)).expect("a golden record");
        let view = BodyView::new(&raw).expect("a golden record");
        let mut begin = 0;
        for row in tables.rows {
            for (seq, entry) in (row.first_seq..).zip(view.part(begin, &row).expect("a golden record").flatten()) {
                let text = |n: u32| String::from_utf8_lossy(view.symbols()[n as usize]).into_owned();
                let metadata = entry.metadata().map(|(n, v)| (text(n), text(v))).collect();
                let line = (labels[&row.stream].clone(), entry.timestamp, entry.line.to_vec(), metadata);
                distinct.insert((row.stream, seq, line));
            }
            begin += row.part_len as usize;
        }
    }
    let mut out = Lines::new();
    for (_, _, (labels, timestamp, line, metadata)) in distinct {
        add(&mut out, labels, timestamp, line, metadata);
    }
    out
}

/// Adds a line with the number that it has among equal ones.
fn add(lines: &mut Lines, labels: String, timestamp: i64, line: Vec<u8>, metadata: Metadata) {
    let mut line = (labels, timestamp, line, metadata, 0);
    while !lines.insert(line.clone()) {
        line.4 += 1;
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
    let phantom = lines.difference(&whole.sent).next();
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
            add(&mut out, stream.labels().text().to_string(), e.timestamp, e.line.to_vec(), e.metadata);
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
