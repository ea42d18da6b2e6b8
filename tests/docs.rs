//! What the documents say is what the program does: metrics, local links.

#[path = "../recovery-tests/support/server.rs"]
mod server;
#[path = "support/source.rs"]
mod source;

use server::Server;
use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

fn is_metric(text: &str) -> bool {
    let families = ["loki_", "timberline_", "prometheus_", "process_"];
    families.iter().any(|f| text.starts_with(f)) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Names in the first column of the tables of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(source::root().join("docs/metrics.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    cells.map(|(name, _)| name.to_string()).filter(|name| is_metric(name)).collect()
}

/// Names that the program registers.
fn registered() -> BTreeSet<String> {
    let sources = source::all();
    let texts = sources.iter().flat_map(|s| s.text.split('"'));
    texts.filter(|text| is_metric(text)).map(str::to_string).collect()
}

#[test]
fn every_metric_of_the_source_is_documented_and_no_other() {
    let (documented, registered) = (documented(), registered());
    assert!(registered.len() > 30, "only {} metrics were found", registered.len());
    let missing: Vec<_> = registered.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&registered).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in docs/metrics.md: {missing:?}; only there: {gone:?}");
}

#[test]
fn every_metric_of_a_running_server_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let body = format!("{{\"streams\":[{{\"stream\":{{\"app\":\"docs\"}},\"values\":[[\"{now}\",\"a line\"]]}}]}}");
    assert_eq!(server.http().post_json("/loki/api/v1/push", &body).unwrap().0, 204);
    let (status, scraped) = server.http().get("/metrics").unwrap();
    assert_eq!(status, 200);
    let scraped = String::from_utf8(scraped).unwrap();
    let names = scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let names: BTreeSet<String> = names.map(str::to_string).collect();
    assert!(names.contains("loki_ingester_wal_records_logged_total"), "{scraped}");
    let documented = documented();
    let missing: Vec<_> = names.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    assert_eq!(server.terminate(), Some(0));
}

/// Files that the documents link to exist.
#[test]
fn local_links_lead_somewhere() {
    let root = source::root();
    let docs = fs::read_dir(root.join("docs")).unwrap().chain(fs::read_dir(root.join("docs/adr")).unwrap());
    let top = fs::read_dir(root).unwrap();
    let pages = docs.chain(top).map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md"));
    let mut broken = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            let local = !target.is_empty() && !target.contains("://");
            if local && !page.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
