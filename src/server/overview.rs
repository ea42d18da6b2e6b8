//! `GET /api/v1/status`: durability, budgets, recovery, damage and traffic on one page, in JSON. It holds labels and counts, never lines.

use super::config::units::Word;
use super::status::{ProcessStatus, durability_note};
use crate::fs::RealFs;
use crate::ingester::{BusyStream, RecoveryReport};
use crate::model::{Agents, Amount, Busy, Recent, RefusedStream, Tenant, TenantReason, TenantStream};
use crate::wal::{QUARANTINE_BUDGET, Quarantine};
use serde_json::{Map, Value, json};

/// Streams and tenants of each list.
const TOP: usize = 10;
/// Names of reports.
const REPORTS: usize = 20;

/// The page.
pub(super) fn overview(status: &ProcessStatus) -> Value {
    let ingester = status.ingester.get();
    let figures = ingester.map(|i| i.status());
    let figure = |value: Option<Value>| value.unwrap_or(Value::Null);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": status.not_ready().is_none(),
        "not_ready": status.not_ready(),
        "pushes_refused": figures.as_ref().and_then(|f| f.refuses.clone()),
        "durability": durability(status, figure(figures.as_ref().map(|f| json!(f.syncs)))),
        "wal": figure(figures.as_ref().map(|f| json!(f.wal))),
        "blocks": figure(figures.as_ref().map(|f| json!(f.blocks))),
        "memory": figure(figures.as_ref().map(|f| json!(f.memory))),
        "scrub": figure(figures.as_ref().map(|f| json!(f.scrub))),
        "recovery": figure(status.report.lock().as_ref().map(recovery)),
        "damage": if status.runs_ingester() { damage(status) } else { Value::Null },
        "streams": {
            "by_rate": ingester.map(|i| i.busiest_streams(TOP)).unwrap_or_default().iter().map(stream).collect::<Vec<_>>(),
            "by_rejection": status.traffic.top_refused_streams(TOP).iter().map(refused_stream).collect::<Vec<_>>(),
        },
        "tenants": {
            "by_rate": status.traffic.top_tenants(TOP).iter().map(tenant).collect::<Vec<_>>(),
            "by_rejection": status.traffic.top_refused(TOP).iter().map(refused).collect::<Vec<_>>(),
        },
    })
}

/// How sure an answer is, and how long it takes.
fn durability(status: &ProcessStatus, syncs: Value) -> Value {
    let mut out = Map::new();
    out.insert("mode".into(), status.config.ingester.wal.sync.as_str().into());
    out.insert("note".into(), durability_note(&status.config).into());
    if let Value::Object(syncs) = syncs {
        out.extend(syncs);
    }
    out.into()
}

/// What the last start found.
fn recovery(report: &RecoveryReport) -> Value {
    json!({
        "seconds": report.seconds,
        "read_seconds": report.read_seconds,
        "segments": report.segments,
        "bytes": report.bytes,
        "streams": report.streams,
        "lines": report.lines,
        "block_lines": report.block_lines,
        "block_bytes": report.block_bytes,
        "damaged_places": report.damaged_places,
        "lost_lines": report.lost_lines,
        "lost_lines_at_least": report.at_least,
        "losses": report.losses,
        "unresolved_records": report.unresolved,
        "unattributed_lines": report.unattributed_lines,
        "quarantine_failed": report.quarantine_failed,
    })
}

/// What the quarantine holds.
fn damage(status: &ProcessStatus) -> Value {
    let dir = status.config.quarantine_dir();
    let quarantine = match Quarantine::read(&RealFs, &dir) {
        Ok(quarantine) => quarantine,
        Err(error) => return json!({"quarantine": dir, "error": error.to_string()}),
    };
    json!({
        "quarantine": dir,
        "bytes": quarantine.bytes,
        "max_bytes": QUARANTINE_BUDGET,
        "reports": quarantine.reports.len(),
        "unacknowledged": quarantine.unread.len(),
        "unacknowledged_reports": quarantine.unread.iter().take(REPORTS).collect::<Vec<_>>(),
        "largest_loss": quarantine.reports.values().map(|r| r.lines_missing).max().unwrap_or(0),
        "largest_loss_at_least": quarantine.reports.values().any(|r| r.at_least),
    })
}

/// An object with a rate, and with what else is told.
fn rate(recent: &Recent, more: Value) -> Value {
    let rounded = |n: f64| (n * 1000.0).round() / 1000.0;
    let mut out = if let Value::Object(more) = more { more } else { Map::new() };
    out.insert("lines_per_second".into(), rounded(recent.lines_per_second()).into());
    out.insert("bytes_per_second".into(), rounded(recent.bytes_per_second()).into());
    out.into()
}

fn stream(busy: &BusyStream) -> Value {
    rate(&busy.recent, json!({"tenant": busy.tenant(), "stream": busy.stream.labels().text()}))
}

fn tenant(busy: &Busy<Tenant, ()>) -> Value {
    rate(&busy.recent, total(busy.total, json!({"tenant": busy.key.as_str()})))
}

fn refused(busy: &Busy<TenantReason, Agents>) -> Value {
    let (tenant, reason) = &busy.key;
    let about = json!({"tenant": tenant.as_str(), "reason": reason, "user_agents": agents(&busy.more)});
    rate(&busy.recent, total(busy.total, about))
}

fn refused_stream(busy: &Busy<TenantStream, RefusedStream>) -> Value {
    let ((tenant, labels), RefusedStream { reason, agents: by }) = (&busy.key, &busy.more);
    let about = json!({"tenant": tenant.as_str(), "stream": labels, "last_reason": reason, "user_agents": agents(by)});
    rate(&busy.recent, total(busy.total, about))
}

fn total(total: Amount, mut about: Value) -> Value {
    if let Value::Object(about) = &mut about {
        about.insert("lines".into(), total.lines.into());
        about.insert("bytes".into(), total.bytes.into());
    }
    about
}

fn agents(agents: &Agents) -> Value {
    let most = agents.most();
    let most = most.iter().map(|(agent, refusals)| json!({"user_agent": agent.as_str(), "refusals": refusals}));
    json!({"last": agents.last.as_str(), "most": most.collect::<Vec<_>>()})
}
