//! Time limits of a connection, below HTTP: hyper's own timer for heads would close idle connections as well.

use axum::body::Body;
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head, and from the connection to its first request.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For a peer that does not take what is sent.
    pub write: Duration,
}

/// What a connection is doing: shared by its I/O and its requests.
#[derive(Debug, Default)]
pub struct Activity {
    requests: AtomicUsize,
    /// Requests that ever began, to see those that came and went between two reads.
    begun: AtomicUsize,
    is_http2: AtomicBool,
    /// A read that began during a request: hyper does not look again when the request ends, and somebody has to start
    /// the clock.
    reader: AtomicWaker,
}

impl Activity {
    /// Call when a request's head was read; the request lasts until the guard is dropped.
    pub fn begin(self: &Arc<Self>, is_http2: bool) -> Active {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.is_http2.store(is_http2, Ordering::Relaxed);
        Active(Arc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0
    }
}

/// A request being served.
#[derive(Debug)]
pub struct Active(Arc<Activity>);

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.reader.wake();
        }
    }
}

/// A response body that keeps its request [`Active`] until it is sent.
pub struct ActiveBody {
    body: Body,
    _active: Active,
}

impl ActiveBody {
    pub fn new(body: Body, active: Active) -> Self {
        Self { body, _active: active }
    }
}

impl hyper::body::Body for ActiveBody {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        hyper::body::Body::size_hint(&self.body)
    }
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its peer lets a limit pass. While a request is served, reads
/// have no limit here: bodies have their own.
pub struct TimedStream<S> {
    stream: S,
    timeouts: Timeouts,
    activity: Arc<Activity>,
    /// Requests that had begun at the last read.
    seen: usize,
    /// Has a head begun? The deadline of a head does not move when more of it comes.
    in_head: bool,
    read_armed: bool,
    write_armed: bool,
    read_deadline: Pin<Box<Sleep>>,
    write_deadline: Pin<Box<Sleep>>,
}

impl<S> TimedStream<S> {
    pub fn new(stream: S, timeouts: Timeouts, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            timeouts,
            activity,
            seen: 0,
            in_head: true,
            read_armed: true,
            write_armed: false,
            read_deadline: Box::pin(tokio::time::sleep(timeouts.header)),
            write_deadline: Box::pin(tokio::time::sleep(timeouts.write)),
        }
    }

    fn arm_read(&mut self, timeout: Duration) {
        self.read_deadline.as_mut().reset(Instant::now() + timeout);
        self.read_armed = true;
    }

    /// Between requests: runs from the last one's end.
    fn watch_idle(&mut self) {
        let begun = self.activity.begun.load(Ordering::Relaxed);
        if begun != self.seen {
            self.seen = begun;
            self.in_head = false;
            self.read_armed = false;
        }
        if !self.read_armed && !self.activity.is_busy() {
            self.arm_read(self.timeouts.idle);
        }
    }

    /// Bytes came. Frames of HTTP/2 between requests are no head of one.
    fn received(&mut self) {
        if self.activity.is_busy() {
            return;
        }
        if self.activity.is_http2.load(Ordering::Relaxed) {
            self.arm_read(self.timeouts.idle);
        } else if !self.in_head {
            self.in_head = true;
            self.arm_read(self.timeouts.header);
        }
    }

    fn check_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_armed = false;
            return result;
        }
        if !self.write_armed {
            self.write_deadline.as_mut().reset(Instant::now() + self.timeouts.write);
            self.write_armed = true;
        }
        ready!(self.write_deadline.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("the peer does not take the answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch_idle();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    this.received();
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                this.activity.reader.register(cx.waker());
                // Again: the last request may have ended just before its reader was registered.
                this.watch_idle();
                if !this.read_armed {
                    return Poll::Pending;
                }
                ready!(this.read_deadline.as_mut().poll(cx));
                Poll::Ready(Err(timed_out("no complete request head came in time")))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.check_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.check_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.check_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.check_write(cx, result)
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (TimedStream<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Activity>) {
        let (ours, theirs) = tokio::io::duplex(16);
        let second = Duration::from_secs;
        let timeouts = Timeouts { header: second(10), idle: second(120), write: second(30) };
        let activity = Arc::new(Activity::default());
        (TimedStream::new(ours, timeouts, Arc::clone(&activity)), theirs, activity)
    }

    async fn seconds_until_timeout(stream: &mut TimedStream<tokio::io::DuplexStream>) -> u64 {
        let start = Instant::now();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_has_the_time_of_a_head() {
        let (mut stream, _theirs, _) = pair();
        assert_eq!(seconds_until_timeout(&mut stream).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_no_limit_here_and_after_it_the_connection_may_rest() {
        let (mut stream, _theirs, activity) = pair();
        let request = activity.begin(false);
        assert!(tokio::time::timeout(Duration::from_secs(1000), stream.read_u8()).await.is_err());
        drop(request);
        assert_eq!(seconds_until_timeout(&mut stream).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_during_a_request_is_limited_after_it() {
        let (mut stream, _theirs, activity) = pair();
        let request = activity.begin(false);
        let end = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            drop(request);
        };
        assert_eq!(tokio::join!(seconds_until_timeout(&mut stream), end).0, 1120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_between_two_reads_restarts_the_clock() {
        let (mut stream, mut theirs, activity) = pair();
        theirs.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        drop(activity.begin(false));
        assert_eq!(seconds_until_timeout(&mut stream).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_head_has_its_time_from_its_first_byte() {
        let (mut stream, mut theirs, activity) = pair();
        drop(activity.begin(false));
        theirs.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        let start = Instant::now();
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                theirs.write_all(b"x").await.unwrap();
            }
        };
        let read = async { while stream.read_u8().await.is_ok() {} };
        let limit = tokio::time::sleep(Duration::from_secs(100));
        tokio::select! { () = drip => (), () = read => (), () = limit => () }
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_keep_an_idle_connection() {
        let (mut stream, mut theirs, activity) = pair();
        drop(activity.begin(true));
        theirs.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        assert_eq!(seconds_until_timeout(&mut stream).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (mut stream, _theirs, _) = pair();
        let start = Instant::now();
        assert_eq!(stream.write_all(&[0; 17]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
