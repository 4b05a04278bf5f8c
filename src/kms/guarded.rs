//! A connection's stream with the bounds that HTTP itself does not set: a time to take an answer, and a gentle close.
//!
//! Made by the server around every accepted socket. A peer that never reads is hung up on; one that is refused before
//! it has sent everything still gets to read why.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a refused peer may still send before the socket closes: unread bytes would reset the connection.
const MAX_LINGER_BYTES: usize = 4 * 1024 * 1024;
/// How long it may take for that.
const LINGER: Duration = Duration::from_secs(1);

/// A bounded stream.
pub(super) struct Guarded<S> {
    stream: S,
    write_timeout: Duration,
    stop: watch::Receiver<bool>,
    /// Runs while the peer does not take what is to be written.
    stuck: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

struct Closing {
    deadline: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    /// Bounds `stream`: the peer has to take something of an answer within `write_timeout`. Once `stop` is true, the
    /// close does not linger.
    pub(super) fn new(stream: S, write_timeout: Duration, stop: watch::Receiver<bool>) -> Self {
        Self { stream, write_timeout, stop, stuck: None, closing: None }
    }

    /// Looks at the clock when a write did not go on.
    fn watch<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stuck = None;
            return outcome;
        }
        let timeout = self.write_timeout;
        let timer = self.stuck.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the peer does not take its answer")))
    }

    /// Reads and forgets what the peer still sends, within bounds.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let closing = self.closing.get_or_insert_with(|| Closing {
            deadline: Box::pin(sleep_until(Instant::now() + LINGER)),
            bytes: 0,
        });
        let mut space = [0; 16 * 1024];
        while closing.bytes < MAX_LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => closing.bytes += buffer.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return closing.deadline.as_mut().poll(context),
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.watch(context, outcome))?;
        }
        if *self.stop.borrow() {
            return Poll::Ready(Ok(()));
        }
        self.drain(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn guarded<S: AsyncRead + AsyncWrite + Unpin>(stream: S, timeout: Duration) -> Guarded<S> {
        Guarded::new(stream, timeout, watch::channel(false).1)
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_peer_that_does_not_read_is_hung_up_on() {
        run(async {
            let (ours, _theirs) = duplex(16);
            let mut guarded = guarded(ours, Duration::from_millis(20));
            let error = guarded.write_all(&[7; 64]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_slow_peer_is_waited_for_as_long_as_it_reads() {
        run(async {
            let (ours, mut theirs) = duplex(16);
            let mut guarded = guarded(ours, Duration::from_mins(1));
            let reader = async {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).await.unwrap();
                all.len()
            };
            let writer = async move { guarded.write_all(&[7; 64]).await.map(|()| drop(guarded)) };
            let (written, read) = tokio::join!(writer, reader);
            assert!(written.is_ok());
            assert_eq!(read, 64);
        });
    }

    #[test]
    fn the_close_waits_for_what_the_peer_still_sends() {
        run(async {
            let (ours, mut theirs) = duplex(64 * 1024);
            theirs.write_all(&vec![1; 50_000]).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut guarded = guarded(ours, Duration::from_mins(1));
            guarded.shutdown().await.unwrap();
            assert_eq!(guarded.closing.unwrap().bytes, 50_000);
        });
    }
}
