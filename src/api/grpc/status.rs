//! HTTP statuses in gRPC errors, as Loki's `httpgrpc` carries them.
//!
//! Loki sends the HTTP status as the gRPC code itself, which only Go understands. Here the code is the nearest standard
//! one, and the HTTP status is where Loki's clients look for it: in `grpc-status-details-bin`.

use crate::api::pb::httpgrpc::{Detail, Header, HttpResponse, RpcStatus};
use crate::model::PushError;
use prost::Message;
use std::error::Error;
use tonic::{Code, Status};

const TYPE_URL: &str = "type.googleapis.com/httpgrpc.HTTPResponse";
const HTTP_RESPONSE: &str = "httpgrpc.HTTPResponse";

/// Bytes of `grpc-message`, where a byte may take three, and of the text in the details. Together with base64 they stay
/// below the 16 KiB of headers that common clients take.
const MAX_MESSAGE: usize = 1 << 10;
const MAX_BODY: usize = 4 << 10;

/// The gRPC error of a push that failed.
pub(super) fn from_error(error: &PushError) -> Status {
    let code = code_of(error.status);
    let retry_after = error.retry_after.map(|s| Header { key: "Retry-After".into(), values: vec![s.to_string()] });
    let message = shortened(&error.message, MAX_MESSAGE);
    let http = HttpResponse {
        code: i32::from(error.status),
        headers: retry_after.into_iter().collect(),
        body: shortened(&error.message, MAX_BODY).into(),
    };
    let details = RpcStatus {
        code: code.into(),
        message: message.clone(),
        details: vec![Detail { type_url: TYPE_URL.into(), value: http.encode_to_vec().into() }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// What a remote ingester's error means for the push. Whatever another try can mend is 503.
pub(super) fn to_error(status: &Status) -> PushError {
    if let Some(http) = http_response(status) {
        return from_http(&http);
    }
    let message = told(status);
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => PushError::bad_request(message),
        Code::Unauthenticated => PushError::with_status(401, message),
        // Without details only the message size limit of the gRPC library says this.
        Code::ResourceExhausted => PushError::too_large(message),
        _ => PushError::unavailable(message),
    }
}

/// Code and message, and the causes that a failure on this side has and its message leaves out: that a connection is
/// refused, for instance.
pub(super) fn told(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

/// `status_code` of `loki_request_duration_seconds`: `success`, the HTTP status, or `error`. tonic leaves the status of a
/// failed call in the extensions of the answer.
pub(super) fn metric_label(status: Option<&Status>) -> String {
    match status {
        None => "success".into(),
        Some(status) => http_response(status).map_or_else(|| "error".into(), |http| http.code.to_string()),
    }
}

/// The text, cut at a character if it is longer than `max` bytes.
fn shortened(text: &str, max: usize) -> String {
    const MARK: &str = "... (cut)";
    if text.len() <= max {
        return text.into();
    }
    let end = (0..=max - MARK.len()).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}{MARK}", text.get(..end).unwrap_or_default())
}

fn code_of(http_status: u16) -> Code {
    match http_status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        429 => Code::ResourceExhausted,
        400..=499 => Code::InvalidArgument,
        503 => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn http_response(status: &Status) -> Option<HttpResponse> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|d| d.type_url.rsplit('/').next() == Some(HTTP_RESPONSE))?;
    HttpResponse::decode(detail.value).ok()
}

fn from_http(http: &HttpResponse) -> PushError {
    let message = String::from_utf8_lossy(&http.body).trim_end().to_owned();
    match u16::try_from(http.code) {
        Ok(429) => PushError::rate_limited(message),
        Ok(status @ 400..=499) => PushError::with_status(status, message),
        _ => PushError::unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_error_survives_the_way_over_grpc() {
        let errors = [
            PushError::bad_request("too old"),
            PushError::rate_limited("slow down"),
            PushError::unavailable("disk full"),
            PushError::with_status(401, "no org id"),
            PushError::with_status(422, "nothing to store"),
            PushError::too_large("too large"),
        ];
        for error in errors {
            assert_eq!(to_error(&from_error(&error)), error);
        }
    }

    #[test]
    fn the_code_in_the_details_equals_that_of_the_status() {
        // grpc-go replaces a status whose details name another code by Internal.
        for http in [400, 401, 413, 422, 429, 500, 503] {
            let status = from_error(&PushError::with_status(http, "x"));
            let details = RpcStatus::decode(status.details()).unwrap();
            assert_eq!(details.code, i32::from(status.code()));
        }
    }

    #[test]
    fn errors_without_details_map_by_code() {
        let status = |code| to_error(&Status::new(code, "x")).status;
        assert_eq!(status(Code::Unavailable), 503);
        assert_eq!(status(Code::DeadlineExceeded), 503);
        assert_eq!(status(Code::Unknown), 503);
        assert_eq!(status(Code::InvalidArgument), 400);
        assert_eq!(status(Code::ResourceExhausted), 413);
    }

    #[test]
    fn a_500_of_a_remote_ingester_can_be_tried_again() {
        assert_eq!(to_error(&from_error(&PushError::with_status(500, "panic"))).status, 503);
    }
}
