//! Disks that are really full: small file systems, mounted for the test. A full disk is a state, not a crash. And other
//! limits of the system: file sizes, descriptors, memory, time to run.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/server.rs"]
mod server;

use faults::{Client, ext4, figures, prlimit, start_serving};
use server::{Http, Mounted, Server, has, skip};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CONFIG: &str = "ingester: {wal: {compression: none}}\n";
/// Blocks are sealed and segments retired within a few megabytes.
const SMALL: &str =
    "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, wal: {segment_size: 1MB, max_size: 4MB}}\n";
/// Pushes go on within this of space coming back.
const RESUMES: Duration = Duration::from_secs(1);

/// Takes what is free on the file system; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(&self.0).unwrap();
        for step in [1 << 20, 4096, 512, 1] {
            let bytes = vec![7; step];
            while file.write(&bytes).is_ok() {}
        }
        // Delayed allocation may say so only here.
        let _ = file.sync_all();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Pushes while something is taken; the disk stays full although the server gives some back now and then.
fn push_until_full(client: &mut Client, http: &mut Http, fill: impl Fn()) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut refused_since = None;
    loop {
        assert!(Instant::now() < deadline, "the disk does not get full");
        fill();
        if client.push(http, 50_000) == Some(503) {
            let since = *refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() > Duration::from_secs(1) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        } else {
            refused_since = None;
        }
    }
}

fn mount(arguments: &[&str], at: &Path) {
    let mut command = Command::new("mount");
    assert!(command.args(arguments).arg(at).status().unwrap().success(), "mount {arguments:?}");
}

/// Full, restarted while full, killed while full, and free again.
fn fills_up_and_resumes(dir: &Path, data: &Path) {
    let mut client = Client::default();
    let server = start_serving(dir, CONFIG);
    let mut http = server.http();
    for _ in 0..20 {
        assert_eq!(client.push(&mut http, 100), Some(204));
    }
    let sizes: Vec<u64> =
        std::fs::read_dir(data.join("wal")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    assert!(sizes.iter().all(|len| *len <= 4 << 20), "segments do not fit a small disk: {sizes:?}");
    assert!(server.log_tail().contains("the disk is small"), "{}", server.log_tail());

    let filler = Filler(data.join("filler"));
    push_until_full(&mut client, &mut http, || filler.fill());
    client.refused_at_once(&mut http);
    client.ledger.check(&mut http);
    assert_eq!(http.get("/livez").unwrap().0, 200);
    let (status, body) = http.get("/ready").unwrap();
    println!("/ready on a full disk: {status} {}", String::from_utf8_lossy(&body).trim());
    assert!(String::from_utf8_lossy(&body).contains("space"), "/ready does not tell of the disk");
    assert_eq!(server.terminate(), Some(0), "a stop works on a full disk");

    let server = start_serving(dir, CONFIG);
    filler.fill();
    let mut http = server.http();
    client.ledger.check(&mut http);
    push_until_full(&mut client, &mut http, || filler.fill());
    server.kill();

    let server = start_serving(dir, CONFIG);
    let mut http = server.http();
    client.ledger.check(&mut http);
    push_until_full(&mut client, &mut http, || filler.fill());
    client.refused_at_once(&mut http);

    drop(filler);
    // Where it comes back with the next commit only (btrfs): now.
    assert!(Command::new("sync").arg("-f").arg(data).status().unwrap().success());
    let freed = Instant::now();
    while client.push(&mut http, 100) != Some(204) {
        assert!(
            freed.elapsed() < Duration::from_secs(10),
            "pushes do not go on by themselves; log: {}",
            server.log_tail()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "pushes went on {:?} after space came back; {} lines acknowledged",
        freed.elapsed(),
        client.ledger.acked.len()
    );
    assert!(freed.elapsed() < RESUMES, "{:?}", freed.elapsed());
    // What is left of a segment may take a push before there is another: that too is looked for within this time.
    std::thread::sleep(RESUMES.saturating_sub(freed.elapsed()));
    for _ in 0..50 {
        let answer = client.push(&mut http, 20_000);
        let mut ready = || String::from_utf8_lossy(&http.get("/ready").unwrap().1).into_owned();
        assert_eq!(answer, Some(204), "{:?} after space came back: {}", freed.elapsed(), ready());
    }
    server.kill();
    let server = start_serving(dir, CONFIG);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_full_tmpfs_is_a_state() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=24m", "tmpfs"], &data) else { return };
    fills_up_and_resumes(tmp.path(), &data);
    let log = std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    assert!(log.contains("file_system=tmpfs") && log.contains("it is in memory"), "nobody says that this is no disk");
}

#[test]
fn a_full_ext4_is_a_state() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(_mounted) = ext4(tmp.path(), 64 << 20, &[]) else { return };
    fills_up_and_resumes(tmp.path(), &tmp.path().join("data"));
}

/// A file system that copies on write, with these bytes.
fn btrfs(dir: &Path, bytes: u64) -> Option<Mounted> {
    if !has("mkfs.btrfs") || !has("btrfs") {
        skip("btrfs-progs are not installed");
        return None;
    }
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(bytes).unwrap();
    // Data and metadata share their space, as is usual for a small one.
    let made = Command::new("mkfs.btrfs").args(["-q", "-f", "--mixed"]).arg(&image).status().unwrap();
    assert!(made.success());
    Mounted::new(&["-o", "loop", image.to_str().unwrap()], &dir.join("data"))
}

#[test]
fn a_full_btrfs_is_a_state() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(_mounted) = btrfs(tmp.path(), 96 << 20) else { return };
    fills_up_and_resumes(tmp.path(), &tmp.path().join("data"));
}

/// EDQUOT is a full disk as well: refused at once, also after kill -9, and taken again when the quota is raised.
#[test]
fn a_quota_is_a_full_disk() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = btrfs(tmp.path(), 256 << 20) else { return };
    let run = |args: &[&str], at: &Path| {
        let out = Command::new("btrfs").args(args).arg(at).output().unwrap();
        assert!(out.status.success(), "btrfs {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(&["quota", "enable"], &data);
    // 0/5 is the whole file system.
    run(&["qgroup", "limit", "24M", "0/5"], &data);
    let mut client = Client::default();
    let mut server = start_serving(tmp.path(), SMALL);
    let mut http = server.http();
    push_until_full(&mut client, &mut http, || ());
    client.refused_at_once(&mut http);
    let (_, body) = http.get("/ready").unwrap();
    assert!(String::from_utf8_lossy(&body).contains("quota"), "{}", String::from_utf8_lossy(&body));
    client.ledger.check(&mut http);
    for _ in 0..3 {
        server.kill();
        server = start_serving(tmp.path(), SMALL);
        http = server.http();
        client.ledger.check(&mut http);
        push_until_full(&mut client, &mut http, || ());
    }
    run(&["qgroup", "limit", "100M", "0/5"], &data);
    let resumed = client.push_until_taken(&mut http, Duration::from_secs(10)).unwrap();
    assert!(resumed < RESUMES, "pushes went on only after {resumed:?}");
    for _ in 0..50 {
        assert_eq!(client.push(&mut http, 20_000), Some(204));
    }
    server.kill();
    let server = start_serving(tmp.path(), SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// Names and sizes of the files of both logs.
fn files(data: &Path) -> BTreeMap<String, u64> {
    let all = ["wal", "blocks"].iter().flat_map(|d| std::fs::read_dir(data.join(d)).unwrap());
    all.map(|e| e.unwrap()).map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())).collect()
}

/// What statvfs(3) says is free: blocks and inodes.
fn free(data: &Path) -> (u64, u64) {
    let out = Command::new("stat").args(["-f", "-c", "%a %d"]).arg(data).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Takes every inode, then every byte.
fn fill_inodes_and_bytes(data: &Path, filler: &Filler) {
    std::fs::create_dir_all(data.join("empty")).unwrap();
    let _ = File::options().create(true).append(true).open(&filler.0);
    let next = std::fs::read_dir(data.join("empty")).unwrap().count();
    let _ = (next..100_000).take_while(|n| File::create_new(data.join(format!("empty/{n}"))).is_ok()).count();
    filler.fill();
}

/// Not a byte and not an inode: it starts, is ready, reads, and does not grow, a hundred times; each run is killed.
#[test]
fn a_hundred_starts_without_a_byte_or_an_inode() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = ext4(tmp.path(), 64 << 20, &["-N", "128"]) else { return };
    let started = Instant::now();
    let mut client = Client::default();
    let filler = Filler(data.join("filler"));
    let server = start_serving(tmp.path(), SMALL);
    let mut http = server.http();
    for _ in 0..40 {
        client.push_until_taken(&mut http, Duration::from_secs(5)).unwrap();
        client.push(&mut http, 50_000);
    }
    push_until_full(&mut client, &mut http, || fill_inodes_and_bytes(&data, &filler));
    client.refused_at_once(&mut http);
    client.ledger.check(&mut http);
    server.kill();
    fill_inodes_and_bytes(&data, &filler);
    assert_eq!(free(&data), (0, 0), "blocks and inodes are left");
    let (mut sizes, mut slowest, mut taken) = (Vec::new(), Duration::ZERO, 0);
    for round in 0..100 {
        let at = Instant::now();
        let server = Server::start(tmp.path(), SMALL, &[]);
        slowest = slowest.max(at.elapsed());
        let mut http = server.http();
        client.ledger.check(&mut http);
        taken += usize::from(client.push(&mut http, 100) == Some(204));
        server.kill();
        fill_inodes_and_bytes(&data, &filler);
        sizes.push(files(&data));
        assert!(sizes[round].values().sum::<u64>() <= sizes[0].values().sum(), "start {round}: {:?}", sizes[round]);
        assert!(sizes[round].len() <= sizes[0].len(), "start {round}: {:?}", sizes[round]);
    }
    let server = Server::start(tmp.path(), SMALL, &[]);
    let mut http = server.http();
    push_until_full(&mut client, &mut http, || fill_inodes_and_bytes(&data, &filler));
    std::fs::remove_dir_all(data.join("empty")).unwrap();
    drop(filler);
    let resumed = client.push_until_taken(&mut http, Duration::from_secs(10)).unwrap();
    println!("100 starts, the slowest {slowest:?}; {taken} pushes taken meanwhile; pushes went on after {resumed:?}");
    assert!(resumed < RESUMES, "{resumed:?}");
    client.ledger.check(&mut http);
    assert_eq!(server.terminate(), Some(0));
    client.ledger.check(&mut Server::start(tmp.path(), SMALL, &[]).http());
    let counts = [
        ("starts", 100),
        ("acked", client.ledger.acked.len()),
        ("slowest_start_ms", slowest.as_millis() as usize),
        ("resumed_after_ms", resumed.as_millis() as usize),
        ("lost", 0),
    ];
    figures("full_disk", started, &counts);
}

/// Pushes while a limit holds, then lifts it: 503 meanwhile, reads go on, and pushes come back by themselves.
fn refuses_and_resumes(dir: &Path, limit: impl Fn(&Server), lift: impl Fn(&Server)) {
    let mut client = Client::default();
    let server = start_serving(dir, SMALL);
    let mut http = server.http();
    for _ in 0..10 {
        assert_eq!(client.push(&mut http, 50_000), Some(204));
    }
    limit(&server);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut refused = 0;
    while refused < 5 {
        assert!(Instant::now() < deadline, "pushes are not refused");
        match client.push(&mut http, 50_000) {
            Some(204) => refused = 0,
            Some(503) => refused += 1,
            other => panic!("{other:?}; log: {}", server.log_tail()),
        }
    }
    client.refused_at_once(&mut http);
    client.ledger.check(&mut http);
    assert_eq!(http.get("/livez").unwrap().0, 200);
    lift(&server);
    let resumed = client.push_until_taken(&mut http, Duration::from_secs(10)).unwrap_or_else(|why| {
        panic!("{why}; log: {}", server.log_tail());
    });
    println!("pushes went on after {resumed:?}; {} acknowledged", client.ledger.acked.len());
    assert!(resumed < RESUMES, "{resumed:?}");
    client.ledger.check(&mut http);
    server.kill();
    let server = start_serving(dir, SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// `RLIMIT_FSIZE`: the signal that comes with it does not end the process, and EFBIG is as a full disk.
#[test]
fn a_file_size_limit_is_a_full_disk() {
    if !has("prlimit") {
        return skip("prlimit is not installed");
    }
    let tmp = tempfile::tempdir().unwrap();
    refuses_and_resumes(tmp.path(), |s| prlimit(s, "--fsize=300000:"), |s| prlimit(s, "--fsize=unlimited:"));
}

/// As ext4 does after an error on its disk (`errors=remount-ro`), and as an operator does: `remount,rw` is all it takes.
#[test]
fn a_read_only_remount_under_load_is_a_full_disk() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = ext4(tmp.path(), 64 << 20, &[]) else { return };
    // Files that are open for writing forbid an orderly remount; sysrq and errors do not ask.
    let shut = |_: &Server| {
        let status =
            Command::new("mount").args(["-o", "remount,ro"]).arg(&data).stderr(Stdio::null()).status().unwrap();
        if !status.success() {
            mount(&["-o", "remount,abort"], &data);
        }
    };
    let mut client = Client::default();
    let server = start_serving(tmp.path(), SMALL);
    let mut http = server.http();
    for _ in 0..10 {
        assert_eq!(client.push(&mut http, 50_000), Some(204));
    }
    shut(&server);
    let answers: Vec<_> = (0..5).map(|_| client.push(&mut http, 50_000)).collect();
    println!("after the remount: {answers:?}");
    assert!(!answers.contains(&Some(204)), "a push was taken on a read-only disk: {answers:?}");
    if answers.iter().all(|a| *a == Some(503)) {
        client.ledger.check(&mut http);
        server.kill();
    } else {
        assert_eq!(server.wait(Duration::from_secs(2)), Some(74), "neither refused nor ended");
    }
    // An aborted journal is replayed by the next mount only.
    assert!(Command::new("umount").arg(&data).status().unwrap().success());
    mount(&["-o", "loop", tmp.path().join("image").to_str().unwrap()], &data);
    let server = start_serving(tmp.path(), SMALL);
    let mut http = server.http();
    client.ledger.check(&mut http);
    assert_eq!(client.push(&mut http, 100), Some(204));
    assert_eq!(server.terminate(), Some(0));
}

/// The data directory goes away under the server: no ack of what the next start will not find there.
fn no_ack_without_a_place(dir: &Path, client: &mut Client, take_away: impl Fn()) {
    let server = start_serving(dir, SMALL);
    let mut http = server.http();
    for _ in 0..10 {
        assert_eq!(client.push(&mut http, 50_000), Some(204));
    }
    take_away();
    let answers: Vec<_> = (0..5).map(|_| client.push(&mut http, 50_000)).collect();
    println!("after it went: {answers:?}");
    assert!(!answers.contains(&Some(204)), "a push was acknowledged that no start will find: {answers:?}");
    assert_eq!(server.wait(Duration::from_secs(5)), Some(74));
    let log = std::fs::read_to_string(dir.join("server.log")).unwrap();
    assert!(log.contains("unmounted, moved or replaced"), "the log does not tell why it ended");
}

#[test]
fn a_data_directory_that_is_unmounted_ends_the_process() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = ext4(tmp.path(), 64 << 20, &[]) else { return };
    let mut client = Client::default();
    no_ack_without_a_place(tmp.path(), &mut client, || {
        assert!(Command::new("umount").arg("-l").arg(&data).status().unwrap().success());
    });
    mount(&["-o", "loop", tmp.path().join("image").to_str().unwrap()], &data);
    let server = start_serving(tmp.path(), SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// Also when another one with the same names is there by then.
#[test]
fn a_data_directory_that_is_replaced_ends_the_process() {
    let tmp = tempfile::tempdir().unwrap();
    let (data, away) = (tmp.path().join("data"), tmp.path().join("away"));
    let mut client = Client::default();
    no_ack_without_a_place(tmp.path(), &mut client, || {
        std::fs::rename(&data, &away).unwrap();
        assert!(Command::new("cp").arg("-a").args([&away, &data]).status().unwrap().success());
    });
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    let server = start_serving(tmp.path(), SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// Stopped as a virtual machine is that moves: nothing is acknowledged meanwhile, and afterwards everything goes on.
#[test]
fn a_process_that_is_stopped_for_a_while_goes_on() {
    let pause = Duration::from_secs(if faults::is_full() { 30 } else { 3 });
    let tmp = tempfile::tempdir().unwrap();
    let server = start_serving(tmp.path(), SMALL);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let run = |n: i64| {
            let (mut http, mut client) = (server.http(), Client::from(n * 1_000_000));
            http.timeout = Duration::from_secs(90);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.push(&mut http, 5000);
            }
            client
        };
        let clients: Vec<_> = (0..4).map(|n| scope.spawn(move || run(n))).collect();
        std::thread::sleep(Duration::from_millis(300));
        server.signal("STOP");
        let from = faults::now();
        std::thread::sleep(pause);
        let until = faults::now();
        server.signal("CONT");
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let clients: Vec<Client> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        // What was on its way to the client when the process was stopped arrives within a moment.
        let during = |p: &faults::Pushed| p.status == Some(204) && p.answered > from + 0.2 && p.answered < until;
        assert!(!clients.iter().flat_map(|c| &c.pushes).any(during), "a stopped process has acknowledged something");
        assert!(clients.iter().all(|c| c.pushes.last().is_some_and(|p| p.status == Some(204) && p.answered > until)));
        clients
    });
    let mut all = server::Ledger::default();
    clients.into_iter().for_each(|c| all.merge(c.ledger));
    all.check(&mut server.http());
    server.kill();
    all.check(&mut start_serving(tmp.path(), SMALL).http());
}

/// Memory that is not given ends the process or a request, and nothing that was acknowledged.
#[test]
fn a_process_that_gets_no_memory_loses_nothing() {
    if !has("prlimit") {
        return skip("prlimit is not installed");
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut client = Client::default();
    let mut ended = 0;
    for more in [0, 1, 3, 8, 20, 50] {
        let mut server = start_serving(tmp.path(), SMALL);
        let mut http = server.http();
        client.ledger.check(&mut http);
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).unwrap().trim().trim_end_matches(" kB");
        let limit = size.parse::<u64>().unwrap() * 1024 + (more << 20);
        prlimit(&server, &format!("--as={limit}:"));
        let lost = (0..60).any(|_| client.push(&mut http, 200_000).is_none());
        let deadline = Instant::now() + Duration::from_secs(3);
        while lost && server.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{more} MB more: connection lost: {lost}, ended: {:?}", server.ended());
        ended += usize::from(server.ended().is_some());
        server.kill_in_place();
    }
    println!("{ended} of 6 processes ended for lack of memory; {} acknowledged", client.ledger.acked.len());
    assert!(ended > 0, "memory was never short");
    let server = start_serving(tmp.path(), SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// Path, size, time of change and content of each file.
fn everything(dir: &Path, into: &mut BTreeMap<PathBuf, (std::time::SystemTime, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            everything(&entry.path(), into);
        } else {
            into.insert(entry.path(), (metadata.modified().unwrap(), std::fs::read(entry.path()).unwrap()));
        }
    }
}

/// A second process on the directory says why it ends, and has changed nothing, not even a time.
#[test]
fn a_second_process_touches_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let first = start_serving(tmp.path(), SMALL);
    let (mut client, mut http) = (Client::default(), first.http());
    for _ in 0..30 {
        client.push_until_taken(&mut http, Duration::from_secs(5)).unwrap();
        client.push(&mut http, 50_000);
    }
    // The watermark, and blocks that are on their way.
    std::thread::sleep(Duration::from_millis(700));
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    everything(&data, &mut before);
    let second = Server::spawn(tmp.path(), SMALL, &[]);
    assert_eq!(second.wait(Duration::from_secs(10)), Some(1));
    assert!(
        first.log_tail().contains(&format!("in use by another process (pid {})", first.pid())),
        "{}",
        first.log_tail()
    );
    everything(&data, &mut after);
    let changed = before.iter().filter(|(path, was)| after.get(*path) != Some(*was)).map(|(path, _)| path);
    assert_eq!(changed.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert_eq!(before.len(), after.len());
    client.push_until_taken(&mut http, Duration::from_secs(5)).unwrap();
    client.ledger.check(&mut http);
    assert_eq!(first.terminate(), Some(0));
}

/// Connections eat all descriptors: whoever is connected is served or refused, and afterwards everything goes on.
#[test]
fn a_process_without_descriptors_takes_or_refuses_and_recovers() {
    if !has("prlimit") {
        return skip("prlimit is not installed");
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut client = Client::default();
    let server = start_serving(tmp.path(), SMALL);
    let mut http = server.http();
    assert_eq!(client.push(&mut http, 100), Some(204));
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    prlimit(&server, &format!("--nofile={}:", open + 20));
    let eaten: Vec<_> = (0..200).map_while(|_| std::net::TcpStream::connect(&server.addr).ok()).collect();
    let mut answers = BTreeMap::new();
    // More than fits the prepared segments: rotation and sealing need descriptors.
    for _ in 0..80 {
        *answers.entry(client.push(&mut http, 50_000)).or_insert(0) += 1;
    }
    println!("{} idle connections; answers without descriptors: {answers:?}", eaten.len());
    assert!(!answers.contains_key(&None), "the connection was lost; log: {}", server.log_tail());
    drop(eaten);
    prlimit(&server, "--nofile=1024:");
    client.push_until_taken(&mut http, Duration::from_secs(5)).unwrap();
    client.ledger.check(&mut server.http());
    server.kill();
    let server = start_serving(tmp.path(), SMALL);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// Each kill leaves a tail that the next start must write again, and there is no byte left to make a segment for it.
#[test]
fn kills_on_a_full_disk_never_keep_it_from_starting() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"], &data) else { return };
    let mut client = Client::default();
    let filler = Filler(data.join("filler"));
    let mut taken = Vec::new();
    for round in 0..6 {
        let server = start_serving(tmp.path(), CONFIG);
        let mut http = server.http();
        client.ledger.check(&mut http);
        if round == 0 {
            while client.push(&mut http, 100) != Some(204) {}
            std::thread::sleep(Duration::from_millis(300));
        }
        filler.fill();
        // Killed within 50 ms of an ack: no watermark tells yet that it is durable.
        taken.push(client.push(&mut http, 100) == Some(204));
        server.kill();
    }
    println!("taken on the full disk, round by round: {taken:?}");
    let server = start_serving(tmp.path(), CONFIG);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}
