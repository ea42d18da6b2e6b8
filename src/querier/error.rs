use super::ParseError;

/// Why a read was not answered: an HTTP status and the text that the client sees, as `text/plain`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// HTTP status code, 400 to 599.
    pub status: u16,
    /// What was wrong, which limit, and what to do.
    pub message: String,
}

impl QueryError {
    /// 400: the request is wrong and a retry will not help.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into() }
    }

    /// 500: stored data could not be read.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: 500, message: message.into() }
    }

    /// 503: nothing is wrong with the request; try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: 503, message: message.into() }
    }
}

impl From<ParseError> for QueryError {
    fn from(error: ParseError) -> Self {
        Self::bad_request(error.to_string())
    }
}
