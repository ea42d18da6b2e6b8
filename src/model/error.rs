use std::fmt;

/// Why a push, or a part of it, was not stored: an HTTP status and the text that the client sees.
///
/// Statuses are those of Loki (400, 413, 422, 429), but every condition that a retry can mend is 503, because Loki's
/// clients drop a 500.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushError {
    /// HTTP status code, 400 to 599.
    pub status: u16,
    /// What was wrong, which limit, and what to do. One line or more, without a trailing newline.
    pub message: String,
    /// Seconds for `Retry-After`; set with 429 and 503.
    pub retry_after: Option<u32>,
}

impl PushError {
    /// 400: the request is wrong and a retry will not help.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into(), retry_after: None }
    }

    /// 413: a size limit was exceeded.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self { status: 413, message: message.into(), retry_after: None }
    }

    /// 429: a rate or stream limit was exceeded.
    pub fn rate_limited(message: impl Into<String>) -> Self {
        Self { status: 429, message: message.into(), retry_after: Some(1) }
    }

    /// 503: nothing is wrong with the request; try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: 503, message: message.into(), retry_after: Some(1) }
    }

    /// An error with any other status.
    pub fn with_status(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// Order of precedence in mixed results: 503 before 429 before everything else.
    pub fn severity(&self) -> u8 {
        match self.status {
            503 => 3,
            429 => 2,
            413 => 1,
            _ => 0,
        }
    }
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PushError {}
