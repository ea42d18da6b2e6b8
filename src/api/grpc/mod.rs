//! `logproto.Pusher` and `grpc.health.v1.Health`, and the client of a remote ingester.

mod client;
mod compression;
mod status;

pub use client::{ClientConfig, ClientError, ClientTls, GrpcIngesterClient};

use super::body;
use super::decode::{self, DecodeLimits, Expected, Lease};
use super::http::joined;
use super::pb::logproto::PushResponse;
use super::tenancy::{agent_of, tenant_of};
use super::{Api, Status as ServerStatus};
use crate::model::{Agent, PushError, PushRequest, Tenant};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use bytes::Buf;
use compression::Compression;
use futures_util::FutureExt;
use prost::Message as _;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, UnaryService};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const PUSH: &str = "/logproto.Pusher/Push";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Flag and length before a gRPC message.
const FRAME_HEAD: usize = 5;

/// All routes of the gRPC listener; pushes go to [`Backends::grpc_pusher`](super::Backends::grpc_pusher).
pub fn router(api: Arc<Api>) -> Router {
    let health = HealthServer::new(HealthService(Arc::clone(&api.backends.status)));
    Routes::new(health)
        .into_axum_router()
        .route(PUSH, post(push).with_state(Arc::clone(&api)))
        .layer(from_fn_with_state(api, observe))
}

/// Around every call: duration, calls in flight, and an answer when the handler panics.
async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    // The path is the client's; the label has few values.
    let route = [PUSH, HEALTH_CHECK].into_iter().find(|r| *r == request.uri().path()).unwrap_or("other");
    let observation = api.metrics.start("gRPC", route);
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(payload) => {
            let panic = api.metrics.panicked(route, &*payload);
            let error = PushError::with_status(500, format!("error while processing request: {panic}"));
            status::from_error(&error).into_http()
        }
    };
    observation.finish(&status::metric_label(response.extensions().get::<Status>()));
    response
}

/// The generated server would collect the message before anything here sees it, and make an object of each line. So the
/// body is read as that of an HTTP push, within the same limits, and decoded where it lies.
async fn push(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (mut head, mut body) = request.into_parts();
    let (tenant, mut body, lease) = match receive(&api, &head, &mut body).await {
        Ok(received) => received,
        Err(error) => return status::from_error(&error).into_http(),
    };
    let max = api.config.grpc_max_recv_msg_size;
    let compression = Compression::take(&mut head, &mut body);
    let call = PushCall { api, tenant, agent: agent_of(&head.headers), compression, lease };
    let request = Request::from_parts(head, Body::from(body));
    Grpc::new(PushCodec).apply_max_message_size_config(Some(max), None).unary(call, request).await.map(Body::new)
}

async fn receive(api: &Api, head: &Parts, body: &mut Body) -> Result<(Tenant, Vec<u8>, Lease), PushError> {
    api.backends.status.accepts_pushes()?;
    let tenant = tenant_of(&head.headers, &api.config)?;
    let limits = api.body_limits(api.config.grpc_max_recv_msg_size.saturating_add(FRAME_HEAD));
    let mut lease = api.budget.lease();
    let body = body::read(body, None, limits, &mut lease).await?;
    // tonic copies the message out of its frame; while it does, both are there.
    body::patiently(limits.budget_wait, || lease.take(body.len())).await?;
    Ok((tenant, body, lease))
}

/// One push whose message is to come out of its frame.
struct PushCall {
    api: Arc<Api>,
    tenant: Tenant,
    agent: Agent,
    /// Of the message.
    compression: Option<Compression>,
    /// Of the frame and of the message.
    lease: Lease,
}

impl UnaryService<Vec<u8>> for PushCall {
    type Response = PushResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<PushResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Vec<u8>>) -> Self::Future {
        let (api, tenant) = (Arc::clone(&self.api), self.tenant.clone());
        let lease = std::mem::replace(&mut self.lease, api.budget.lease());
        let message = Message { bytes: request.into_inner(), compression: self.compression };
        // A task of its own: what was handed on is stored to its end, also when the client goes away.
        let task = tokio::spawn(store(api, tenant, self.agent.clone(), message, lease));
        Box::pin(async move {
            match joined(task.await) {
                Ok(()) => Ok(tonic::Response::new(PushResponse {})),
                Err(error) => Err(status::from_error(&error)),
            }
        })
    }
}

/// A message as it came out of its frame.
struct Message {
    bytes: Vec<u8>,
    compression: Option<Compression>,
}

impl Message {
    fn expected(&self) -> Expected {
        match self.compression {
            Some(_) => decode::expected_of_packed(&self.bytes),
            None => decode::expected_of_message(&self.bytes),
        }
    }

    /// Decodes it, without its compression if it has one. The lease covers the bytes.
    fn decode(self, limits: &DecodeLimits, lease: &mut Lease) -> Result<PushRequest, PushError> {
        let plain = match self.compression {
            Some(compression) => compression.decompress(self.bytes, limits, lease)?,
            None => self.bytes,
        };
        decode::decode_protobuf(plain, limits, lease)
    }
}

async fn store(
    api: Arc<Api>,
    tenant: Tenant,
    agent: Agent,
    message: Message,
    mut lease: Lease,
) -> Result<(), PushError> {
    let max_decompressed = api.config.decode.max_decompressed.min(api.config.grpc_max_recv_msg_size);
    let limits = DecodeLimits { max_decompressed, ..api.config.decode };
    // The frame is gone.
    lease.hold(message.bytes.capacity())?;
    let expected = message.expected();
    let decode = move |lease: &mut Lease| message.decode(&limits, lease);
    // The lease lives until the push is answered: so long the decoded push is in memory.
    let (mut request, _lease) = api.decode(lease, expected, decode).await?;
    request.agent = agent;
    api.backends.grpc_pusher.push_grpc(tenant, request).await
}

/// Takes the message out of its frame as it is.
#[derive(Clone, Copy, Debug, Default)]
struct PushCodec;

impl Codec for PushCodec {
    type Encode = PushResponse;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for PushCodec {
    type Item = PushResponse;
    type Error = Status;

    fn encode(&mut self, item: PushResponse, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|e| Status::internal(format!("the answer cannot be encoded: {e}")))
    }
}

impl Decoder for PushCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).into()))
    }
}

/// Serving as long as `/ready` says so.
struct HealthService(Arc<dyn ServerStatus>);

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = futures_util::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !["", "logproto.Pusher"].contains(&service.as_str()) {
            return Err(Status::new(Code::NotFound, "unknown service; ask for \"\" or \"logproto.Pusher\""));
        }
        let status = if self.0.ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }

    /// Not supported, as in Loki: clients then take the server for healthy and ask with `Check`.
    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("Watch is not supported; use Check"))
    }
}

#[cfg(test)]
mod tests;
