//! An ingester in another process.

use super::status;
use crate::api::pb::logproto::pusher_client::PusherClient;
use crate::api::pb::logproto::{EntryAdapter, LabelPairAdapter, PushRequest, StreamAdapter, Timestamp};
use crate::api::tenancy::{AGENT, ORG_ID};
use crate::distributor::{BoxFuture, IngesterClient};
use crate::model::{Agent, Entry, Push, PushError, Span, Tenant};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// How often an idle connection is probed, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach ingesters (`ingester_client`).
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// For a connection to be made. Default 5 s.
    pub connect_timeout: Duration,
    /// For one push (`ingester_client.remote_timeout`). Default 5 s.
    pub remote_timeout: Duration,
    /// For one health check. Default 1 s.
    pub health_timeout: Duration,
    /// Largest message in bytes. Default 100 MiB.
    pub max_send_msg_size: usize,
    /// TLS towards ingesters, if they have it.
    pub tls: Option<ClientTls>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            remote_timeout: Duration::from_secs(5),
            health_timeout: Duration::from_secs(1),
            max_send_msg_size: 100 << 20,
            tls: None,
        }
    }
}

/// Files of TLS towards ingesters (`ingester_client.grpc_client_config`).
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Authorities that signed the certificates of ingesters (`tls_ca_path`), PEM.
    pub ca_file: PathBuf,
    /// Own certificate and key (`tls_cert_path`, `tls_key_path`), PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the certificates (`tls_server_name`); that of the address if not set.
    pub server_name: Option<String>,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is no `host:port`.
    #[error("ingester address {address:?}: {source}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// A file of [`ClientTls`].
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The files do not fit.
    #[error("TLS towards ingesters: {0}")]
    Tls(tonic::transport::Error),
}

/// An ingester in another process, over `logproto.Pusher`. One HTTP/2 connection, made when first needed and again when
/// it was lost.
#[derive(Clone, Debug)]
pub struct GrpcIngesterClient {
    channel: Channel,
    config: Arc<ClientConfig>,
}

impl GrpcIngesterClient {
    /// A client of the ingester at `address` (`host:port`). Does not connect. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`]; that the ingester is not there shows when it is used.
    pub fn new(address: &str, config: ClientConfig) -> Result<Self, ClientError> {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|source| ClientError::Address { address: address.into(), source })?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let endpoint = match &config.tls {
            Some(tls) => endpoint.tls_config(tls_config(tls)?).map_err(ClientError::Tls)?,
            None => endpoint,
        };
        Ok(Self { channel: endpoint.connect_lazy(), config: Arc::new(config) })
    }

    /// Asks whether the ingester serves.
    ///
    /// # Errors
    /// Why it does not, or that it did not answer within [`ClientConfig::health_timeout`].
    pub async fn health(&self) -> Result<(), String> {
        let mut client = HealthClient::new(self.channel.clone());
        let check = client.check(HealthCheckRequest { service: String::new() });
        match tokio::time::timeout(self.config.health_timeout, check).await {
            Err(_) => Err(format!("no answer to a health check within {:?}", self.config.health_timeout)),
            Ok(Err(status)) => Err(format!("the health check failed: {}", status::told(&status))),
            Ok(Ok(answer)) => serving(answer.get_ref()),
        }
    }

    async fn send(self, tenant: Tenant, agent: Agent, message: PushRequest) -> Result<(), PushError> {
        let mut client = PusherClient::new(self.channel).max_encoding_message_size(self.config.max_send_msg_size);
        let mut request = tonic::Request::new(message);
        let name = MetadataValue::try_from(tenant.as_str())
            .map_err(|e| PushError::bad_request(format!("tenant '{tenant}' cannot be sent: {e}")))?;
        request.metadata_mut().insert(ORG_ID, name);
        if let Ok(agent) = MetadataValue::try_from(agent.as_str()) {
            request.metadata_mut().insert(AGENT, agent);
        }
        match tokio::time::timeout(self.config.remote_timeout, client.push(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(status::to_error(&status)),
            Err(_) => {
                let timeout = self.config.remote_timeout;
                Err(PushError::unavailable(format!("an ingester did not answer within {timeout:?}; try again")))
            }
        }
    }
}

impl IngesterClient for GrpcIngesterClient {
    fn push(&self, tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        let (client, agent) = (self.clone(), push.agent.clone());
        Box::pin(async move { client.send(tenant, agent, message_of(push, &streams)).await })
    }

    fn check(&self) -> BoxFuture<'static, Result<(), PushError>> {
        let client = self.clone();
        Box::pin(async move { client.health().await.map_err(PushError::unavailable) })
    }
}

fn serving(answer: &HealthCheckResponse) -> Result<(), String> {
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("health check says {}", other.as_str_name())),
    }
}

fn tls_config(tls: &ClientTls) -> Result<ClientTlsConfig, ClientError> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|source| ClientError::File { path: path.clone(), source });
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca_file)?));
    if let Some((cert, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

/// The arena of a push, shared with the messages that are made of it: no line is copied before it is encoded.
struct Arena(Arc<Push>);

impl AsRef<[u8]> for Arena {
    fn as_ref(&self) -> &[u8] {
        &self.0.arena
    }
}

fn message_of(push: Arc<Push>, streams: &[u32]) -> PushRequest {
    let arena = Bytes::from_owner(Arena(Arc::clone(&push)));
    let chosen = streams.iter().filter_map(|i| push.streams.get(*i as usize));
    let streams = chosen.map(|stream| StreamAdapter {
        labels: Bytes::copy_from_slice(stream.labels.text().as_bytes()),
        entries: push.entries_of(stream).iter().map(|entry| entry_message(&push, &arena, entry)).collect(),
        hash: stream.labels.hash(),
    });
    PushRequest { streams: streams.collect(), format: "loki".into() }
}

fn entry_message(push: &Push, arena: &Bytes, entry: &Entry) -> EntryAdapter {
    let pairs = push.metadata_of(entry).iter();
    EntryAdapter {
        timestamp: Some(Timestamp {
            seconds: entry.timestamp.div_euclid(NANOS_PER_SECOND),
            nanos: entry.timestamp.rem_euclid(NANOS_PER_SECOND) as i32,
        }),
        line: slice(arena, entry.line),
        structured_metadata: pairs
            .map(|pair| LabelPairAdapter { name: slice(arena, pair.name), value: slice(arena, pair.value) })
            .collect(),
    }
}

/// As with [`Span::of`], the span is one of this arena.
fn slice(arena: &Bytes, span: Span) -> Bytes {
    arena.slice_ref(span.of(arena))
}
