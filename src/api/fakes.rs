//! Backends for the tests of routes and listeners.

use super::decode::Budget;
use super::{Api, ApiConfig, Backends, ReadCall, Reader, Status};
use crate::distributor::{BoxFuture, Pusher};
use crate::model::{PushError, PushRequest, Tenant};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// Label text, timestamp, line and metadata.
pub type PushedEntry = (String, i64, String, Vec<(String, String)>);

/// A push in a form that is easy to compare.
#[derive(Debug, PartialEq, Eq)]
pub struct Pushed {
    pub tenant: String,
    pub entries: Vec<PushedEntry>,
}

#[derive(Clone)]
pub enum Answer {
    Result(Result<(), PushError>),
    Panic(&'static str),
}

pub struct FakePusher {
    pub pushed: Mutex<Vec<Pushed>>,
    pub answer: Mutex<Answer>,
    /// Pushes wait for a permit.
    pub gate: Semaphore,
    pub waiting: AtomicUsize,
}

impl Pusher for FakePusher {
    fn push(&self, tenant: Tenant, request: PushRequest, _: &'static str) -> BoxFuture<'_, Result<(), PushError>> {
        Box::pin(async move {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _pass = self.gate.acquire().await.unwrap();
            let answer = self.answer.lock().clone();
            match answer {
                Answer::Panic(message) => panic!("{message}"),
                Answer::Result(result) => {
                    self.pushed.lock().push(readable(&tenant, &request));
                    result
                }
            }
        })
    }
}

fn readable(tenant: &Tenant, request: &PushRequest) -> Pushed {
    let text = |span: crate::model::Span| String::from_utf8_lossy(span.of(&request.arena)).into_owned();
    let mut entries = Vec::new();
    for stream in &request.streams {
        for entry in &request.entries[stream.entries.start as usize..stream.entries.end as usize] {
            let metadata = &request.metadata[entry.metadata.start as usize..entry.metadata.end as usize];
            let metadata = metadata.iter().map(|m| (text(m.name), text(m.value))).collect();
            entries.push((text(stream.labels), entry.timestamp, text(entry.line), metadata));
        }
    }
    Pushed { tenant: tenant.to_string(), entries }
}

/// Answers with what it was asked.
pub struct FakeReader;

impl Reader for FakeReader {
    fn handle(
        &self,
        tenant: &Tenant,
        call: ReadCall,
        params: &[(String, String)],
        encoding_flags: Option<&str>,
    ) -> Result<Vec<u8>, (u16, String)> {
        match params.iter().find(|(name, _)| name == "query").map(|(_, value)| value.as_str()) {
            Some("panic") => panic!("a reader panics"),
            Some("bad") => return Err((400, "parse error at line 1".into())),
            Some("slow") => std::thread::sleep(std::time::Duration::from_millis(300)),
            _ => (),
        }
        Ok(format!("{tenant} {call:?} {params:?} {encoding_flags:?}").into_bytes())
    }
}

pub struct FakeStatus {
    pub ready: Mutex<Result<String, String>>,
    pub accepts: Mutex<Result<(), PushError>>,
    pub level: Mutex<String>,
}

impl Status for FakeStatus {
    fn ready(&self) -> Result<String, String> {
        self.ready.lock().clone()
    }

    fn accepts_pushes(&self) -> Result<(), PushError> {
        self.accepts.lock().clone()
    }

    fn config_yaml(&self) -> String {
        "target: all\n".into()
    }

    fn services(&self) -> String {
        "ingester => Running".into()
    }

    fn ring_json(&self) -> String {
        r#"{"shards":[]}"#.into()
    }

    fn overview_json(&self) -> String {
        r#"{"ready":true}"#.into()
    }

    fn log_level(&self) -> String {
        self.level.lock().clone()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        if level != "debug" {
            return Err(format!("unrecognized log level {level:?}"));
        }
        *self.level.lock() = level.into();
        Ok(())
    }
}

pub struct Fake {
    pub api: Arc<Api>,
    pub pusher: Arc<FakePusher>,
    pub status: Arc<FakeStatus>,
    pub budget: Arc<Budget>,
}

/// An API over fakes, with a budget of 64 MiB and authentication on.
pub fn fake(change: impl FnOnce(&mut ApiConfig)) -> Fake {
    let pusher = Arc::new(FakePusher {
        pushed: Mutex::default(),
        answer: Mutex::new(Answer::Result(Ok(()))),
        gate: Semaphore::new(1000),
        waiting: AtomicUsize::new(0),
    });
    let status = Arc::new(FakeStatus {
        ready: Mutex::new(Ok("ready".into())),
        accepts: Mutex::new(Ok(())),
        level: Mutex::new("info".into()),
    });
    let backends = Backends {
        pusher: pusher.clone(),
        grpc_pusher: pusher.clone(),
        reader: Arc::new(FakeReader),
        status: status.clone(),
    };
    let mut config = ApiConfig::new(Tenant::new("fake").unwrap());
    change(&mut config);
    let budget = Budget::new(64 << 20);
    let api = Api::new(backends, Arc::clone(&budget), config, prometheus::Registry::new()).unwrap();
    Fake { api, pusher, status, budget }
}
