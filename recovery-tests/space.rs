//! Disks that are really full: small file systems, mounted for the test. A full disk is a state, not a crash.

#[path = "support/server.rs"]
mod server;

use server::{Http, Ledger, Mounted, Server, has, skip};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CONFIG: &str = "ingester: {wal: {compression: none}}\n";
/// A refusal for lack of space does not wait for the disk.
const AT_ONCE: Duration = Duration::from_millis(700);

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

/// Numbers lines, so that each is different.
#[derive(Default)]
struct Client {
    ledger: Ledger,
    next: i64,
}

impl Client {
    /// Pushes one line of about this many bytes.
    fn push(&mut self, http: &mut Http, len: usize) -> Option<u16> {
        self.next += 1;
        let line = format!("line {} {}", self.next, "x".repeat(len));
        self.ledger.push(http, "s", 1_700_000_000_000_000_000 + self.next, &line)
    }

    /// Pushes while something is taken; the disk stays full although the server gives some back now and then.
    fn push_until_full(&mut self, http: &mut Http, filler: &Filler) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut refused_since = None;
        loop {
            assert!(Instant::now() < deadline, "the disk does not get full");
            filler.fill();
            if self.push(http, 50_000) == Some(503) {
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

    fn refused_at_once(&mut self, http: &mut Http) {
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(self.push(http, 100), Some(503));
            assert!(started.elapsed() < AT_ONCE, "a refusal took {:?}", started.elapsed());
            assert!(http.headers.contains("retry-after: "), "{}", http.headers);
        }
    }
}

/// Starts on a disk that may be full: serving is what counts, `/ready` may tell of the disk.
fn start_serving(dir: &Path) -> Server {
    let mut server = Server::spawn(dir, CONFIG, &[]);
    server.wait_for("/loki/api/v1/labels");
    server
}

/// Full, restarted while full, killed while full, and free again.
fn fills_up_and_resumes(dir: &Path, data: &Path) {
    let mut client = Client::default();
    let server = start_serving(dir);
    let mut http = server.http();
    for _ in 0..20 {
        assert_eq!(client.push(&mut http, 100), Some(204));
    }
    let sizes: Vec<u64> =
        std::fs::read_dir(data.join("wal")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    assert!(sizes.iter().all(|len| *len <= 4 << 20), "segments do not fit a small disk: {sizes:?}");
    assert!(server.log_tail().contains("the disk is small"), "{}", server.log_tail());

    let filler = Filler(data.join("filler"));
    client.push_until_full(&mut http, &filler);
    client.refused_at_once(&mut http);
    client.ledger.check(&mut http);
    assert_eq!(http.get("/livez").unwrap().0, 200);
    let (status, body) = http.get("/ready").unwrap();
    println!("/ready on a full disk: {status} {}", String::from_utf8_lossy(&body).trim());
    assert!(String::from_utf8_lossy(&body).contains("space"), "/ready does not tell of the disk");
    assert_eq!(server.terminate(), Some(0), "a stop works on a full disk");

    let server = start_serving(dir);
    filler.fill();
    let mut http = server.http();
    client.ledger.check(&mut http);
    client.push_until_full(&mut http, &filler);
    server.kill();

    let server = start_serving(dir);
    let mut http = server.http();
    client.ledger.check(&mut http);
    client.push_until_full(&mut http, &filler);
    client.refused_at_once(&mut http);

    drop(filler);
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
    assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
    for _ in 0..50 {
        assert_eq!(client.push(&mut http, 20_000), Some(204));
    }
    server.kill();
    let server = start_serving(dir);
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_full_tmpfs_is_a_state() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=24m", "tmpfs"], &data) else { return };
    fills_up_and_resumes(tmp.path(), &data);
}

#[test]
fn a_full_ext4_is_a_state() {
    if !has("mkfs.ext4") {
        return skip("mkfs.ext4 is not installed");
    }
    let tmp = tempfile::tempdir().unwrap();
    let (data, image) = (tmp.path().join("data"), tmp.path().join("image"));
    File::create(&image).unwrap().set_len(48 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).status().unwrap();
    assert!(made.success());
    let Some(_mounted) = Mounted::new(&["-o", "loop", image.to_str().unwrap()], &data) else { return };
    fills_up_and_resumes(tmp.path(), &data);
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
        let server = start_serving(tmp.path());
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
    let server = start_serving(tmp.path());
    client.ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}
