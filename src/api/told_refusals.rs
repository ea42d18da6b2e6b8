//! What hyper cannot read as a request it answers by itself, with a status and nothing else, before anybody here sees it. Below
//! it, these answers get a line that says what was wrong, which limit, and what to do.

use super::serve::{MAX_HEAD, MAX_HEADERS};
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What ends the head of an answer that nobody here has given: ours say of what type they are.
const NO_BODY: &[u8] = b"content-length: 0\r\n";
/// hyper's own heads are short.
const LONGEST: usize = 256;

/// A stream on which hyper's own refusals have a body.
pub struct ToldRefusals<S> {
    stream: S,
    /// Of an answer with its text, what was not written yet.
    held: BytesMut,
}

impl<S> ToldRefusals<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, held: BytesMut::new() }
    }
}

/// The answer with a body, if these bytes are one of hyper's own refusals.
fn told(head: &[u8]) -> Option<BytesMut> {
    if head.len() > LONGEST || !head.starts_with(b"HTTP/1.1 4") || !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    let at = memchr::memmem::find(head, NO_BODY)?;
    if memchr::memmem::find(head, b"content-type:").is_some() {
        return None;
    }
    let text = match head.get(9..12)? {
        b"400" => {
            "this is no request of HTTP/1.1: its first line or a header does not follow the syntax; spaces, quotes, braces and the like \
             have to be percent-encoded in a URL\n"
                .to_string()
        }
        b"431" => format!(
            "the head of the request has more than {MAX_HEADERS} headers or {MAX_HEAD} bytes: send fewer or shorter headers, and \
             long parameters as a form in the body of a POST\n"
        ),
        _ => return None,
    };
    let mut out = BytesMut::from(&head[..at]);
    out.extend_from_slice(
        format!("content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n", text.len()).as_bytes(),
    );
    out.extend_from_slice(&head[at + NO_BODY.len()..]);
    out.extend_from_slice(text.as_bytes());
    Some(out)
}

impl<S: AsyncWrite + Unpin> ToldRefusals<S> {
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ToldRefusals<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ToldRefusals<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        ready!(me.poll_held(cx))?;
        let Some(answer) = told(buf) else { return Pin::new(&mut me.stream).poll_write(cx, buf) };
        // It goes out with the flush that follows.
        me.held = answer;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = bufs {
            return self.poll_write(cx, head);
        }
        let me = self.get_mut();
        ready!(me.poll_held(cx))?;
        Pin::new(&mut me.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_held(cx))?;
        Pin::new(&mut me.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_held(cx))?;
        Pin::new(&mut me.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_without_type_and_body_get_one() {
        let ours = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 0\r\n\r\n";
        let long = format!("HTTP/1.1 400 Bad Request\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(50));
        for text in [
            ours,
            &long,
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n0123456789",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "",
        ] {
            assert_eq!(told(text.as_bytes()), None, "{text}");
        }
        let answer =
            told(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: now\r\n\r\n").unwrap();
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{head}");
        assert!(head.ends_with(&format!("\r\ncontent-length: {}\r\ndate: now", body.len())), "{head}");
        assert!(body.contains("percent-encoded"), "{body}");
    }

    /// A client that reads slowly takes an answer in pieces; it gets all of it once, and then what follows.
    #[tokio::test]
    async fn a_told_answer_goes_out_in_pieces() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let refusal = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = ToldRefusals::new(server);
        let write = async move {
            server.write_all(refusal).await.unwrap();
            server.flush().await.unwrap();
            server.write_all(refusal).await.unwrap();
            server.write_all(b"next").await.unwrap();
            server.shutdown().await.unwrap();
        };
        let read = async {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(write, read);
        let answer = told(refusal).unwrap();
        let expected = [&answer[..], &answer[..], b"next"].concat();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
    }
}
