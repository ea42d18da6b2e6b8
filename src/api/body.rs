//! Reading request bodies: bounded in size, in time, and by the memory that all requests share.

use super::decode::{BudgetError, Lease};
use crate::model::PushError;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// A body that was announced to be larger gets its buffer when it has shown this much of itself.
const FIRST_CAPACITY: usize = 256 << 10;
/// Capacity for a body of unknown length.
const UNKNOWN_CAPACITY: usize = 64 << 10;
/// Least that a request is charged, so that the number of requests in flight is bounded too.
const MIN_CHARGE: usize = 4 << 10;
/// Further bytes are charged so many at a time.
const CHARGE: usize = 1 << 20;
/// Slowest body, in bytes per second over its whole time.
const MIN_RATE: u32 = 1024;
/// How often a request that waits for memory looks again.
const BUDGET_POLL: Duration = Duration::from_millis(20);
/// How long, and how much of, a body is read that nobody wants, so that its sender can read the answer.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 256 << 20;

/// Bounds of one body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes.
    pub max: usize,
    /// Longest time without progress.
    pub read_timeout: Duration,
    /// Longest time to wait for memory.
    pub budget_wait: Duration,
}

/// Refuses a body by its announced length.
///
/// # Errors
/// 413.
pub fn check_declared(declared: Option<u64>, max: usize) -> Result<(), PushError> {
    match declared {
        Some(len) if len > max as u64 => Err(too_large(len, max)),
        _ => Ok(()),
    }
}

/// Reads a body to its end. What came of it is taken from `lease` before it is copied, and at the end its capacity: pages of
/// a buffer that nothing was written to are no memory, so what a client only announces costs nothing.
///
/// # Errors
/// 413 when it is too large, 503 when it is too slow or there is no memory for it, 400 when it ends early.
pub async fn read(
    body: &mut Body,
    declared: Option<u64>,
    limits: BodyLimits,
    lease: &mut Lease,
) -> Result<Vec<u8>, PushError> {
    check_declared(declared, limits.max)?;
    // Not above the limit, which is one of memory.
    let announced = declared.map(|len| len as usize);
    let first = announced.unwrap_or(UNKNOWN_CAPACITY).clamp(MIN_CHARGE, FIRST_CAPACITY);
    let wait = limits.budget_wait;
    patiently(wait, || lease.take_to_receive(first)).await?;
    let mut buffer = Vec::with_capacity(first);
    let mut pace = Pace::new(limits.read_timeout);
    while let Some(data) = next_data(body, &mut pace).await? {
        let len = buffer.len() + data.len();
        if len > limits.max {
            return Err(too_large(declared.unwrap_or(len as u64), limits.max));
        }
        if len > buffer.capacity() {
            let doubled = buffer.capacity().saturating_mul(2).min(limits.max);
            grow(&mut buffer, announced.unwrap_or(doubled).max(len), wait, lease).await?;
        }
        charge(len, buffer.capacity(), wait, lease).await?;
        buffer.extend_from_slice(&data);
    }
    buffer.shrink_to(MIN_CHARGE);
    lease.hold(buffer.capacity())?;
    Ok(buffer)
}

/// Takes what lets the lease cover `len` bytes and some to come, up to `most`.
async fn charge(len: usize, most: usize, wait: Duration, lease: &mut Lease) -> Result<(), PushError> {
    let taken = lease.taken();
    if len <= taken {
        return Ok(());
    }
    let more = len.max(taken + CHARGE).min(most) - taken;
    patiently(wait, || lease.take_to_receive(more)).await
}

/// Asks for memory of the shared budget with `ask`, waiting a bounded time for others to give theirs back.
///
/// # Errors
/// 503 when the time is over, 413 when the budget could never hold it.
pub async fn patiently<T>(wait: Duration, mut ask: impl FnMut() -> Result<T, BudgetError>) -> Result<T, PushError> {
    let deadline = Instant::now() + wait;
    loop {
        match ask() {
            Ok(got) => return Ok(got),
            Err(BudgetError::Exhausted { .. }) if Instant::now() < deadline => tokio::time::sleep(BUDGET_POLL).await,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads and forgets the rest of a body, in the background and for a bounded time. A connection that is closed while its
/// peer still sends is reset, and the peer then often loses the answer.
pub fn linger(mut body: Body) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = next_frame(&mut body).await {
            match frame.data_ref().and_then(|d| left.checked_sub(d.len())) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    }));
}

fn too_large(len: u64, max: usize) -> PushError {
    PushError::too_large(format!("request body too large: message size too large than max ({len} vs {max})"))
}

/// While the bytes move, they are there twice.
async fn grow(buffer: &mut Vec<u8>, capacity: usize, wait: Duration, lease: &mut Lease) -> Result<(), PushError> {
    let len = buffer.len();
    patiently(wait, || lease.take_to_receive(len)).await?;
    buffer.try_reserve_exact(capacity - len).map_err(|_| no_memory(capacity))?;
    lease.give_back(len);
    Ok(())
}

fn no_memory(bytes: usize) -> PushError {
    PushError::unavailable(format!("the system has no {bytes} bytes of memory for the request body; try again later"))
}

/// The next bytes, or `None` at the end. Trailers are skipped.
async fn next_data(body: &mut Body, pace: &mut Pace) -> Result<Option<Bytes>, PushError> {
    loop {
        let frame = match tokio::time::timeout_at(pace.deadline(), next_frame(body)).await {
            Err(_) => return Err(pace.too_slow()),
            Ok(None) => return Ok(None),
            Ok(Some(Err(e))) => return Err(PushError::bad_request(format!("unexpected EOF: the body broke off: {e}"))),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(data) = frame.into_data() {
            pace.received(data.len());
            return Ok(Some(data));
        }
    }
}

async fn next_frame(body: &mut Body) -> Option<Result<hyper::body::Frame<Bytes>, axum::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// How slow a body may be: never silent for longer than the timeout, and [`MIN_RATE`] over all beyond the first timeout.
struct Pace {
    start: Instant,
    progress: Instant,
    timeout: Duration,
    received: u64,
}

impl Pace {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self { start: now, progress: now, timeout, received: 0 }
    }

    fn received(&mut self, bytes: usize) {
        if bytes > 0 {
            self.progress = Instant::now();
            self.received += bytes as u64;
        }
    }

    fn deadline(&self) -> Instant {
        let earned = Duration::from_secs(self.received / u64::from(MIN_RATE));
        (self.progress + self.timeout).min(self.start + self.timeout + earned)
    }

    fn too_slow(&self) -> PushError {
        PushError::unavailable(format!(
            "the request body came too slowly: {} bytes in {:?}; no more than {:?} may pass without progress, and at \
             least {MIN_RATE} bytes per second have to come",
            self.received,
            self.start.elapsed(),
            self.timeout
        ))
    }
}
