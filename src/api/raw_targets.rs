//! Request targets as people write them: `curl -g 'http://…/query_range?query={app="x"}'`.
//!
//! Go's server, and so Loki, takes quotes and braces in a target as they are. hyper refuses some of them with an empty 400,
//! before anybody here sees the request. So they are percent-encoded below it, in the first line of HTTP/1 heads.

use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A longer line is left to hyper, which refuses it.
const MAX_LINE: usize = 64 << 10;
/// Bytes that are read at a time while heads are looked at.
const CHUNK: usize = 4 << 10;
/// Whatever begins otherwise is handed on as it is: HTTP/2, TLS on a port without it, noise.
const METHODS: [&[u8]; 3] = [b"GET ", b"HEAD ", b"POST "];
/// A head with one of these may have a body, and behind that nobody here knows where the next head begins.
const BODY: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"upgrade", b"expect"];

/// Where the next line belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning of a request.
    First,
    /// In the headers of a request, which may have a body.
    Headers { body: bool },
    /// Nowhere: everything is handed on as it is, for ever.
    Through,
}

/// A stream whose reader sees request targets with what hyper refuses percent-encoded.
pub struct RawTargets<S> {
    stream: S,
    heads: Heads,
}

/// What was read of heads.
struct Heads {
    place: Place,
    /// The line that has begun.
    line: Vec<u8>,
    /// What the reader gets next.
    ready: BytesMut,
}

impl<S> RawTargets<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, heads: Heads { place: Place::First, line: Vec::new(), ready: BytesMut::new() } }
    }
}

impl Heads {
    fn feed(&mut self, mut bytes: &[u8]) {
        while self.place != Place::Through && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            let (line, rest) = bytes.split_at(end);
            self.line.extend_from_slice(line);
            bytes = rest;
            if !self.is_plausible() {
                self.through();
            } else if self.line.ends_with(b"\n") {
                self.end_line();
            }
        }
        self.ready.extend_from_slice(bytes);
    }

    fn is_plausible(&self) -> bool {
        let is_start = || METHODS.iter().any(|m| m.starts_with(&self.line) || self.line.starts_with(m));
        self.line.len() <= MAX_LINE && (self.place != Place::First || is_start())
    }

    fn through(&mut self) {
        self.place = Place::Through;
        self.ready.extend_from_slice(&std::mem::take(&mut self.line));
    }

    fn end_line(&mut self) {
        match self.place {
            Place::First => {
                encode_target(&self.line, &mut self.ready);
                self.place = Place::Headers { body: false };
            }
            Place::Headers { body } => {
                let is_empty = matches!(self.line[..], [b'\n'] | [b'\r', b'\n']);
                let begins = |name: &&[u8]| self.line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name));
                self.place = match is_empty {
                    true if body => Place::Through,
                    true => Place::First,
                    false => Place::Headers { body: body || BODY.iter().any(begins) },
                };
                self.ready.extend_from_slice(&self.line);
            }
            Place::Through => {}
        }
        self.line.clear();
    }
}

/// The line, with its target (between the first two spaces) encoded.
fn encode_target(line: &[u8], out: &mut BytesMut) {
    let mut parts = line.splitn(3, |b| *b == b' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return out.extend_from_slice(line);
    };
    out.extend_from_slice(method);
    out.extend_from_slice(b" ");
    for byte in target {
        match byte {
            // As in Go, a target has no fragment.
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => {
                out.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            _ => out.extend_from_slice(&[*byte]),
        }
    }
    out.extend_from_slice(b" ");
    out.extend_from_slice(version);
}

impl<S: AsyncRead + Unpin> AsyncRead for RawTargets<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, heads } = self.get_mut();
        while heads.ready.is_empty() {
            if heads.place == Place::Through {
                return Pin::new(stream).poll_read(cx, buf);
            }
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut chunk))?;
            match chunk.filled() {
                // The peer has ended, within a line or not.
                [] => heads.through(),
                bytes => heads.feed(bytes),
            }
        }
        let n = buf.remaining().min(heads.ready.len());
        buf.put_slice(&heads.ready.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RawTargets<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// What a reader sees of these bytes, when they come in pieces of this size.
    async fn seen(bytes: &[u8], piece: usize) -> String {
        let mut stream = RawTargets::new(Pieces { bytes: bytes.to_vec(), at: 0, piece });
        let mut out = Vec::new();
        stream.read_to_end(&mut out).await.unwrap();
        String::from_utf8_lossy(&out).into_owned()
    }

    struct Pieces {
        bytes: Vec<u8>,
        at: usize,
        piece: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let end = self.bytes.len().min(self.at + self.piece.min(buf.remaining()));
            buf.put_slice(&self.bytes[self.at..end]);
            self.at = end;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn targets_are_encoded_in_every_head_without_a_body() {
        let first = "GET /q?query={a=\"b\"}|=`<ü>#1` HTTP/1.1\r\nHost: \"x\"\r\n\r\n";
        let second = "HEAD /q?a=%22+b&c HTTP/1.1\nHost: y\n\n";
        let body = "POST /p?x={} HTTP/1.1\r\nCONTENT-length: 22\r\n\r\nGET /{\"\"} HTTP/1.1\r\n\r\n";
        let sent = format!("{first}{second}{body}{first}");
        let expected = format!(
            "GET /q?query=%7Ba=%22b%22%7D%7C=%60%3C%C3%BC%3E%231%60 HTTP/1.1\r\nHost: \"x\"\r\n\r\n\
             {second}{}{first}",
            body.replacen("{}", "%7B%7D", 1)
        );
        for piece in [1, 2, 7, 10_000] {
            assert_eq!(seen(sent.as_bytes(), piece).await, expected, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn whatever_else_comes_is_handed_on_as_it_is() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "\"".repeat(MAX_LINE));
        let chunked = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nGET /\" HTTP/1.1\r\n";
        for text in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{\"\"}\n",
            "\u{16}\u{3}\u{1}\"\n",
            "PUT /\" HTTP/1.1\r\n\r\n",
            "\r\nGET /\" HTTP/1.1\r\n\r\n",
            "GET /\"",
            "GET\n",
            "GET /\"\r\n",
            "",
            chunked,
            &long,
        ] {
            for piece in [1, 10_000] {
                assert_eq!(seen(text.as_bytes(), piece).await, *text);
            }
        }
    }
}
