//! Which tenant a request belongs to, and which program has sent it.

use super::ApiConfig;
use crate::model::{Agent, PushError, Tenant, TenantError};
use axum::http::{HeaderMap, header::USER_AGENT};

/// Header of HTTP requests and metadata key of gRPC calls that names the tenant.
pub const ORG_ID: &str = "x-scope-orgid";

/// Metadata key of gRPC calls with the user agent of the push that a distributor hands on.
pub const AGENT: &str = "x-timberline-agent";

/// The program that has sent a push, from its user agent; that of the client where a distributor hands a push on.
pub fn agent_of(headers: &HeaderMap) -> Agent {
    let header = headers.get(AGENT).or_else(|| headers.get(USER_AGENT));
    header.map(|v| Agent::new(v.as_bytes())).unwrap_or_default()
}

/// The tenant of a request: `X-Scope-OrgID` with `auth_enabled`, else always the configured one.
///
/// # Errors
/// 401 without a name, 400 with one that breaks the rules; the texts are Loki's.
pub fn tenant_of(headers: &HeaderMap, config: &ApiConfig) -> Result<Tenant, PushError> {
    if !config.auth_enabled {
        return Ok(config.no_auth_tenant.clone());
    }
    let name = headers.get(ORG_ID).map(|v| String::from_utf8_lossy(v.as_bytes())).unwrap_or_default();
    Tenant::new(&name).map_err(|e| match e {
        TenantError::Missing => PushError::with_status(401, e.to_string()),
        _ => PushError::bad_request(e.to_string()),
    })
}
