//! Admission: limits against applied state, reservations, the record. Nothing that it does is visible to reads; what it
//! reserved is given back when the push fails.

use super::commit::{Payload, refusal};
use super::instance::{Instance, Refused};
use super::{Ingester, Live, Stream};
use crate::model::{Amount, Entry, Limits, Push, PushError, PushStream, Tenant};
use crate::planted::{Bug, is};
use crate::wal::{Append, EntriesBuilder, EntriesRecord, SMALL_PART, Unavailable};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A stream's part of a push that passed the limits.
struct Admitted {
    stream: Arc<Stream>,
    entries: Vec<Entry>,
    /// Cost and burst of what was taken from the stream's rate limit.
    taken: (f64, f64),
}

impl Admitted {
    /// Has it so few bytes of lines that they will long be needed from the log?
    fn is_small(&self) -> bool {
        self.taken.0 < SMALL_PART as f64
    }
}

impl Ingester<Live> {
    /// Stores the streams with these indices: returns when what was stored is on disk and visible.
    ///
    /// # Errors
    /// What was refused and why, for all streams together. Lines that passed are stored although others were refused;
    /// with 503 nothing was stored.
    pub async fn push(&self, tenant: &Tenant, push: Arc<Push>, streams: &[u32]) -> Result<(), PushError> {
        if let Some(why) = self.refuses() {
            return Err(PushError::unavailable(why));
        }
        let limits = self.state.overrides.of(tenant).clone();
        let instance = self.state.instance(tenant);
        self.check_share(&instance, &limits, &push, streams)?;
        let size = size_of(&push, streams);
        let room = self.wait_for_room(size).await?;
        let (admitted, rejected) = self.admit(&instance, &limits, &push, streams);
        let stored = if admitted.is_empty() { Ok(()) } else { self.store(instance, &push, admitted, size, room).await };
        // 503 is told alone: with it, nothing was stored, and the client sends everything again.
        stored?;
        rejected.into_result()
    }

    /// One tenant must not fill the disk for all. What it has in heads is bounded, and may still become blocks.
    fn check_share(&self, tenant: &Instance, limits: &Limits, push: &Push, streams: &[u32]) -> Result<(), PushError> {
        let (limit, held) = (limits.max_blocks_size_per_user, tenant.blocks.bytes());
        if limit == 0 || (held as u64) < limit {
            return Ok(());
        }
        for stream in streams.iter().filter_map(|i| push.streams.get(*i as usize)) {
            let entries = push.entries_of(stream);
            let refused = Amount { lines: entries.len() as u64, bytes: cost(push, entries) };
            self.discard("max_blocks_size_per_user", &tenant.tenant, push, stream, refused);
        }
        Err(PushError::rate_limited(format!(
            "the tenant's blocks take {held} bytes of the disk, and limits_config.max_blocks_size_per_user allows {limit}: they \
             leave it when they are in the object store; raise the limit, or push less, user: '{}'",
            tenant.tenant
        )))
    }

    /// Waits for room in the queue and in the heads, up to `queue_timeout`.
    async fn wait_for_room(&self, size: usize) -> Result<OwnedSemaphorePermit, PushError> {
        let state = &self.state;
        // An empty queue admits any push.
        let permits = u32::try_from(size.clamp(1, state.config.queue_bytes)).unwrap_or(u32::MAX);
        let wait = async {
            loop {
                let sealed = state.heads_sealed.notified();
                if !state.heads_full() {
                    return state.in_flight.clone().acquire_many_owned(permits).await.map_err(|_| Unavailable::Stopped);
                }
                // A full disk is told at once: nothing moves until there is space.
                if let Some(why) = self.log.blocks.starved() {
                    return Err(Unavailable::DiskFull(why));
                }
                sealed.await;
            }
        };
        match tokio::time::timeout(state.config.queue_timeout, wait).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(why)) => Err(refusal(&why)),
            Err(_elapsed) => Err(refusal(&Unavailable::QueueFull)),
        }
    }

    fn admit(&self, instance: &Instance, limits: &Limits, push: &Push, streams: &[u32]) -> (Vec<Admitted>, Rejected) {
        let (mut admitted, mut rejected) = (Vec::with_capacity(streams.len()), Rejected::default());
        let limit = self.stream_limit(limits);
        for stream in streams.iter().filter_map(|i| push.streams.get(*i as usize)) {
            match instance.reserve(&stream.labels, limit, &self.state) {
                Ok(reserved) => match self.admit_stream(instance, limits, push, stream, &reserved, &mut rejected) {
                    Some(ok) => admitted.push(ok),
                    None => instance.release(&reserved),
                },
                Err(refused) => {
                    let entries = push.entries_of(stream);
                    let (reason, error) = match refused {
                        Refused::StreamLimit => ("stream_limit", stream_limit_error(stream, &instance.tenant)),
                        Refused::Memory => ("memory_budget", self.memory_error(stream)),
                    };
                    let refused = Amount { lines: entries.len() as u64, bytes: cost(push, entries) };
                    self.discard(reason, &instance.tenant, push, stream, refused);
                    rejected.add(error);
                }
            }
        }
        (admitted, rejected)
    }

    fn memory_error(&self, stream: &PushStream) -> PushError {
        PushError::rate_limited(format!(
            "no new stream can be created: streams and blocks take {} bytes of memory, near the {} that \
             ingester.memory_budget leaves them; raise it, or reduce the number of streams; stream {}",
            self.state.metadata.bytes(),
            self.state.config.metadata_budget,
            stream.labels.text()
        ))
    }

    /// This ingester's share of the tenant's streams; 0 for no limit. Loki's rule: the smaller of the local limit and of
    /// the global one divided by the ingesters and multiplied by the copies.
    fn stream_limit(&self, limits: &Limits) -> usize {
        let cluster = self.state.config.cluster;
        let global = limits.max_global_streams_per_user * cluster.replication_factor.max(1);
        let share = global.div_ceil(cluster.ingesters.max(1));
        match (limits.max_streams_per_user, share) {
            (0, share) => share,
            (local, 0) => local,
            (local, share) => local.min(share),
        }
    }

    fn admit_stream(
        &self,
        instance: &Instance,
        limits: &Limits,
        push: &Push,
        stream: &PushStream,
        reserved: &Arc<Stream>,
        rejected: &mut Rejected,
    ) -> Option<Admitted> {
        let entries = push.entries_of(stream);
        let mut refusals = Refusals::new(self.state.config.max_returned_stream_errors);
        let in_window = self.in_window(reserved, entries, &mut refusals);
        if refusals.count > 0 {
            let refused = Amount { lines: refusals.count as u64, bytes: refusals.bytes };
            self.discard("too_far_behind", &instance.tenant, push, stream, refused);
        }
        let total = cost(push, &in_window);
        let (rate, burst) =
            (limits.per_stream_rate_limit, limits.per_stream_rate_limit_burst.max(limits.per_stream_rate_limit));
        let taken = in_window.is_empty() || reserved.rate.lock().take(total as f64, rate, burst, Instant::now());
        if !taken {
            let refused = Amount { lines: in_window.len() as u64, bytes: total };
            self.discard("per_stream_rate_limit", &instance.tenant, push, stream, refused);
            let reason = rate_limit_reason(rate, stream, total);
            in_window.iter().for_each(|e| refusals.add(e, &reason, 429));
        }
        if let Some(error) = refusals.into_error(&instance.tenant, stream, entries.len()) {
            rejected.add(error);
        }
        (taken && !in_window.is_empty()).then(|| Admitted {
            stream: reserved.clone(),
            entries: in_window,
            taken: (total as f64, burst),
        })
    }

    /// Entries that are not further than half of `max_chunk_age` behind the newest applied line, or a newer one of this
    /// push.
    fn in_window(&self, stream: &Stream, entries: &[Entry], refusals: &mut Refusals) -> Vec<Entry> {
        let window = i64::try_from(self.state.config.max_chunk_age.as_nanos() / 2).unwrap_or(i64::MAX);
        let mut newest = stream.newest();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let oldest = newest.map_or(i64::MIN, |n| n.saturating_sub(window));
            if entry.timestamp < oldest {
                let reason = format!(
                    "entry too far behind, entry timestamp is: {}, oldest acceptable timestamp is: {}",
                    rfc3339(entry.timestamp),
                    rfc3339(oldest)
                );
                refusals.add(entry, &reason, 400);
                continue;
            }
            newest = Some(newest.map_or(entry.timestamp, |n| n.max(entry.timestamp)));
            kept.push(entry.clone());
        }
        kept
    }

    /// Encodes the record, hands it to the log, and waits until it is applied.
    async fn store(
        &self,
        instance: Arc<Instance>,
        push: &Push,
        mut admitted: Vec<Admitted>,
        size: usize,
        room: OwnedSemaphorePermit,
    ) -> Result<(), PushError> {
        admitted.sort_by_key(|a| !a.is_small());
        #[allow(unused_mut, reason = "a planted bug changes it")]
        let mut record = self.encode(&instance.tenant, push, &admitted, size);
        let (ack, answer) = oneshot::channel();
        #[cfg(feature = "planted-bugs")]
        super::planted::memory_before_log(
            &self.state,
            &mut record,
            &admitted.iter().map(|a| a.stream.clone()).collect::<Vec<_>>(),
        );
        #[cfg(feature = "planted-bugs")]
        if super::planted::was_sent_before(record.raw()) {
            return Ok(());
        }
        let (mut streams, mut logs, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for a in admitted {
            logs.push(a.stream.log.clone());
            streams.push(a.stream);
            taken.push(a.taken);
        }
        let append = Append { record, streams: logs, payload: Payload { instance, streams, taken, ack, room } };
        #[cfg(feature = "planted-bugs")]
        if is(Bug::AckBeforeWrite) {
            super::planted::write_later(self.log.wal.clone(), append);
            return Ok(());
        }
        if let Err((why, append)) = self.log.wal.append(append) {
            append.payload.fail(&why);
        }
        answer.await.unwrap_or_else(|_| Err(refusal(&Unavailable::Stopped)))
    }

    fn encode(&self, tenant: &Tenant, push: &Push, admitted: &[Admitted], size: usize) -> EntriesRecord {
        let mut builder = EntriesBuilder::new(size);
        let small = admitted.partition_point(Admitted::is_small);
        for (n, a) in admitted.iter().enumerate() {
            if n == small {
                builder.cut();
            }
            builder.stream(a.stream.log.id);
            for entry in &a.entries {
                let pairs = push.metadata_of(entry).iter();
                let metadata = pairs.map(|p| (p.name.of(&push.arena), p.value.of(&push.arena)));
                builder.entry(entry.timestamp, entry.line.of(&push.arena), metadata);
            }
        }
        let tenant = if is(Bug::TenantMixedUp) { "a" } else { tenant.as_str() };
        builder.finish(tenant, self.state.config.wal_codec)
    }

    fn discard(&self, reason: &'static str, tenant: &Tenant, push: &Push, stream: &PushStream, refused: Amount) {
        // As Loki's ingester: it knows no format and no policy.
        let labels = [reason, tenant.as_str(), "", "", ""];
        let metrics = &self.state.metrics;
        metrics.discarded_samples.with_label_values(&labels).inc_by(refused.lines as f64);
        metrics.discarded_bytes.with_label_values(&labels).inc_by(refused.bytes as f64);
        metrics.traffic.refused(tenant, reason, refused, &push.agent);
        metrics.traffic.refused_stream(tenant, stream.labels.text(), reason, refused, &push.agent);
    }

    /// Writes what waits, syncs, tells so on disk. Later pushes get 503.
    pub fn stop(&self) {
        self.log.stop();
    }

    /// Why pushes are refused at the moment, if they are.
    pub fn refuses(&self) -> Option<String> {
        if let Some(why) = self.log.wal.unavailable() {
            return Some(why.to_string());
        }
        let starved = self.log.blocks.starved().filter(|_| self.state.heads_full());
        if let Some(why) = starved {
            return Some(Unavailable::DiskFull(why).to_string());
        }
        let metadata = self.state.metadata.bytes();
        if metadata >= self.state.config.metadata_budget {
            return Some(format!(
                "streams and blocks take {metadata} bytes of memory, more than the {} that ingester.memory_budget leaves \
                 them: raise it",
                self.state.config.metadata_budget
            ));
        }
        let store = self.log.blocks.store();
        store.is_full().then(|| {
            format!(
                "the block log is as large as ingester.blocks.max_size allows ({} bytes), and blocks are never removed \
                 yet: raise ingester.blocks.max_size, and add disk if there is no space for it",
                store.max_size()
            )
        })
    }
}

/// Line and metadata bytes, as Loki's per-stream limit counts them.
fn cost(push: &Push, entries: &[Entry]) -> u64 {
    let pairs = |e: &Entry| push.metadata_of(e).iter().map(|p| u64::from(p.name.len + p.value.len)).sum::<u64>();
    entries.iter().map(|e| u64::from(e.line.len) + pairs(e)).sum()
}

/// About the bytes of the record's body.
fn size_of(push: &Push, streams: &[u32]) -> usize {
    let chosen = streams.iter().filter_map(|i| push.streams.get(*i as usize));
    chosen.flat_map(|s| push.entries_of(s)).map(|e| e.line.len as usize + 8).sum()
}

fn rfc3339(nanos: i64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As Go's `time.Time.String` in UTC.
fn go_time(nanos: i64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

fn rate_limit_reason(rate: f64, stream: &PushStream, total: u64) -> String {
    format!(
        "Per stream rate limit exceeded (limit: {}/sec) while attempting to ingest for stream '{}' totaling {}, consider \
         splitting a stream via additional labels or contact your Loki administrator to see if the limit can be increased",
        byte_size(rate as u64),
        stream.labels.text(),
        byte_size(total)
    )
}

/// As Loki's flagext.ByteSize prints: `3MB`, `1536KB`, `900B`.
fn byte_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")] {
        if bytes >= unit {
            let value = bytes as f64 / unit as f64;
            return format!("{}{name}", (value * 10.0).round() / 10.0);
        }
    }
    format!("{bytes}B")
}

fn stream_limit_error(stream: &PushStream, tenant: &Tenant) -> PushError {
    PushError::rate_limited(format!(
        "maximum active stream limit exceeded when trying to create stream {}, reduce the number of active streams (reduce \
         labels or reduce label values), or contact your Loki administrator to see if the limit can be increased, user: '{tenant}'",
        stream.labels.text()
    ))
}

/// Refused entries of one stream; the text is Loki's.
struct Refusals {
    shown: Vec<String>,
    limit: usize,
    count: usize,
    bytes: u64,
    status: u16,
}

impl Refusals {
    fn new(limit: usize) -> Self {
        Self { shown: Vec::new(), limit, count: 0, bytes: 0, status: 400 }
    }

    fn add(&mut self, entry: &Entry, reason: &str, status: u16) {
        self.count += 1;
        self.bytes += u64::from(entry.line.len);
        self.status = self.status.max(status);
        if self.shown.len() < self.limit {
            self.shown.push(format!("entry with timestamp {} ignored, reason: '{reason}'", go_time(entry.timestamp)));
        }
    }

    fn into_error(self, tenant: &Tenant, stream: &PushStream, total: usize) -> Option<PushError> {
        if self.count == 0 {
            return None;
        }
        let shown: String = self.shown.iter().map(|s| format!("{s},\n")).collect();
        let (count, labels) = (self.count, stream.labels.text());
        let message = format!("{shown}user '{tenant}', total ignored: {count} out of {total} for stream: {labels}");
        Some(if self.status == 429 { PushError::rate_limited(message) } else { PushError::bad_request(message) })
    }
}

/// Bytes of texts that one answer carries; the streams behind them are counted. Labels may have tens of kilobytes, and a
/// push many thousands of streams.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// All rejections of a push in one answer: the gravest status, and every text that fits.
#[derive(Default)]
struct Rejected {
    gravest: Option<PushError>,
    text: String,
    hidden: usize,
}

impl Rejected {
    fn add(&mut self, mut error: PushError) {
        let message = std::mem::take(&mut error.message);
        if self.text.is_empty() {
            self.text = message;
        } else if self.text.len() + message.len() <= MAX_TEXT_BYTES {
            self.text.push('\n');
            self.text.push_str(&message);
        } else {
            self.hidden += 1;
        }
        if self.gravest.as_ref().is_none_or(|g| g.severity() < error.severity()) {
            self.gravest = Some(error);
        }
    }

    fn into_result(self) -> Result<(), PushError> {
        let Some(gravest) = self.gravest else { return Ok(()) };
        let more = match self.hidden {
            0 => String::new(),
            n => format!("\nand {n} more streams, whose errors find no room here"),
        };
        Err(PushError { message: self.text + &more, ..gravest })
    }
}
