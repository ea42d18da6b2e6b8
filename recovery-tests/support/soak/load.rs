//! The load: writers of several tenants and formats, and what they share.

use super::ledger::Ledger;
use super::push::{FLOODER, Format, Push, TENANTS, WRITERS};
use crate::server::Http;
use crate::support::{gzip, snappy};
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use timberline::api::pb::httpgrpc::{HttpResponse, RpcStatus};
use timberline::api::pb::logproto::PushRequest;
use timberline::api::pb::logproto::pusher_client::PusherClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two pushes of a writer, unless it hurries: about 2 MB of lines a second in all.
const PACE: Duration = Duration::from_millis(50);
/// After a push that was not taken.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of lines in one epoch: a read must be able to show it.
const EPOCH: u64 = 48 << 20;
/// Violations that are kept in words.
const TOLD: usize = 50;

/// What writers, faults and the sampler share.
pub struct Field {
    pub ledger: Mutex<Ledger>,
    pub corpus: Vec<String>,
    /// Of the HTTP and of the gRPC listener.
    pub addr: String,
    pub grpc: String,
    /// The running process, or 0.
    pub pid: AtomicU32,
    /// Number of the process.
    pub life: AtomicU32,
    pub epoch: AtomicU32,
    epoch_bytes: AtomicU64,
    next_push: AtomicU64,
    /// No pause between pushes.
    pub hurry: AtomicBool,
    pub stop: AtomicBool,
    wrong: Mutex<(u64, Vec<String>)>,
    /// Limits of time are so many times longer: the machine has other work.
    pub busy: u32,
}

impl Field {
    pub fn new(corpus: Vec<String>, (http, grpc): (u16, u16), busy: u32) -> Self {
        Self {
            ledger: Mutex::default(),
            corpus,
            addr: format!("127.0.0.1:{http}"),
            grpc: format!("127.0.0.1:{grpc}"),
            pid: AtomicU32::new(0),
            life: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            epoch_bytes: AtomicU64::new(0),
            next_push: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
            busy,
        }
    }

    /// Notes what must not be.
    pub fn wrong(&self, what: String) {
        eprintln!("VIOLATION: {what}");
        let mut wrong = self.wrong.lock();
        wrong.0 += 1;
        if wrong.1.len() < TOLD {
            wrong.1.push(what);
        }
    }

    /// How many violations there were, and the first of them.
    pub fn violations(&self) -> (u64, Vec<String>) {
        self.wrong.lock().clone()
    }

    /// Lines from now on are read back apart from those before; returns the epoch that ends.
    pub fn next_epoch(&self) -> u32 {
        self.epoch_bytes.store(0, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// The next push of a writer whose last one had this time.
    pub fn new_push(&self, writer: u16, last: &mut i64) -> Push {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Lines of one push are less than a microsecond apart.
        *last = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(*last + 1000);
        let epoch = self.epoch.load(Ordering::Relaxed);
        Push { id: self.next_push.fetch_add(1, Ordering::Relaxed), at: *last, epoch, writer }
    }

    /// Sends a push, and notes the answer.
    pub fn send(&self, sender: &mut Sender, push: &Push) -> Option<u16> {
        let life = || self.life.load(Ordering::SeqCst);
        let message = push.message(&self.corpus);
        let bytes = message.streams.iter().flat_map(|s| &s.entries).map(|e| e.line.len() as u64).sum();
        self.ledger.lock().begin(push, life());
        let answer = sender.send(TENANTS[push.tenant()], message, || push.json(&self.corpus).to_string());
        let status = answer.as_ref().map(|(status, _)| *status);
        self.ledger.lock().end(push, bytes, status, life());
        let is_known = matches!(status, None | Some(204 | 503)) || push.writer == FLOODER && status == Some(429);
        if let Some((status, text)) = answer.filter(|_| !is_known) {
            self.wrong(format!("push {} of writer {} was answered {status}: {text:.200}", push.id, push.writer));
        }
        let full = self.epoch_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > EPOCH;
        if full && push.epoch == self.epoch.load(Ordering::Relaxed) {
            self.next_epoch();
        }
        status
    }

    /// Pushes until told to stop. What is not taken comes again, mostly.
    fn write(&self, writer: u16) {
        let (mut sender, mut last) = (Sender::new(self, writer), 0);
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let push = self.new_push(writer, &mut last);
            let again = !push.id.is_multiple_of(4);
            while self.send(&mut sender, &push) != Some(204) && again && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(PAUSE);
            }
            let now = Instant::now();
            if self.hurry.load(Ordering::Relaxed) {
                // What was pushed in a hurry is not rested for later.
                next = now;
                continue;
            }
            // No burst after a fault: who was kept waiting goes on from now.
            next = (next + PACE).max(now - PACE);
            std::thread::sleep(next.saturating_duration_since(now));
        }
    }
}

pub fn writers(field: &Arc<Field>) -> Vec<JoinHandle<()>> {
    let start = |writer| {
        let field = field.clone();
        std::thread::spawn(move || field.write(writer))
    };
    (0..WRITERS).map(start).collect()
}

/// A connection that stays open, in the format of a writer.
pub enum Sender {
    Http(Http, Format),
    Grpc(tokio::runtime::Runtime, PusherClient<Channel>),
}

impl Sender {
    pub fn new(field: &Field, writer: u16) -> Self {
        let format = Format::of(writer);
        if format != Format::Grpc {
            let mut http = Http::new(&field.addr);
            http.timeout = PATIENCE;
            return Self::Http(http, format);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("http://{}", field.grpc)).expect("an address");
        let client = runtime.block_on(async { PusherClient::new(endpoint.connect_lazy()) });
        Self::Grpc(runtime, client)
    }

    /// Status and text of the answer, if there is one. The push comes in both forms.
    fn send(&mut self, tenant: &str, push: PushRequest, json: impl Fn() -> String) -> Option<(u16, String)> {
        match self {
            Self::Http(http, format) => {
                let (body, headers): (_, &[_]) = match format {
                    Format::Json => (json().into_bytes(), &[("Content-Type", "application/json")]),
                    Format::Gzip => {
                        (gzip(json().as_bytes()), &[("Content-Type", "application/json"), ("Content-Encoding", "gzip")])
                    }
                    Format::Snappy | Format::Grpc => (snappy(&push), &[("Content-Type", "application/x-protobuf")]),
                };
                let headers = [&[("X-Scope-OrgID", tenant)], headers].concat();
                let (status, text) = http.send("POST", "/loki/api/v1/push", &headers, &body).ok()?;
                Some((status, String::from_utf8_lossy(&text).into_owned()))
            }
            Self::Grpc(runtime, client) => {
                let mut request = Request::new(push);
                request.metadata_mut().insert("x-scope-orgid", tenant.parse().ok()?);
                let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, client.push(request)).await });
                match answer.ok()? {
                    Ok(_) => Some((204, String::new())),
                    Err(status) => http_status(&status),
                }
            }
        }
    }
}

/// The HTTP status in an error of gRPC; none is in those of the connection.
fn http_status(status: &Status) -> Option<(u16, String)> {
    let details = RpcStatus::decode(status.details()).ok()?;
    let answer = HttpResponse::decode(details.details.first()?.value.clone()).ok()?;
    Some((u16::try_from(answer.code).ok()?, status.message().to_string()))
}
