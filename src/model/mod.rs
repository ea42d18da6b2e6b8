//! The nouns of the field: tenants, labels, entries, pushes, limits. No I/O and no other module of this crate.

mod entry;
mod error;
mod label_parser;
mod labels;
mod limits;
mod matcher;
mod push;
mod rate_limited;
mod tenant;
mod token_bucket;
mod traffic;
mod wall_clock;
mod within;

pub use entry::{LogEntry, Metadata};
pub use error::PushError;
pub use label_parser::parse_labels;
pub use labels::{LabelError, LabelSet};
pub use limits::{Limits, Overrides};
pub use matcher::{MatchOp, Matcher};
pub use push::{Entry, MetadataPair, Push, PushRequest, PushStream, RawStream, Span};
pub use rate_limited::RateLimited;
pub use tenant::{Tenant, TenantError};
pub use token_bucket::TokenBucket;
pub use traffic::{Agent, Agents, Amount, Busy, Recent, RefusedStream, TenantReason, TenantStream, Traffic};
pub use wall_clock::WallClock;
pub use within::add_within;
