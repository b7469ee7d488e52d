//! Accepts connections up to a limit, with timeouts and graceful shutdown.
//!
//! A client that neither completes its request nor reads its response is disconnected within seconds. Each listener has
//! its own limit, so that clients at the TCP address do not exhaust the socket's.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::peer::PeerOf;

/// Maximum connections of a listener; more wait to be accepted.
const CONNECTIONS: usize = 64;

/// Timeout for a request after connecting or after a response. Less than our client's timeout, so that it succeeds even
/// when silent clients hold all connections.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Timeout of writing to a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of connections when the switch stops.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout of the first request of a connection when the switch stops: the client has just connected.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// Maximum bytes of a request's head.
const HEAD: usize = 64 * 1024;

/// Notifies streaming responses that the switch stops: the value changes, or the sender is dropped.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<()>);

impl Shutdown {
    /// Waits for the stop.
    pub async fn wait(&mut self) {
        // A dropped sender means the same.
        let _ = self.0.changed().await;
    }
}

/// Serves `pages` at `listener` until `stop` is ready. Responses in progress are completed within `patience`. The
/// listener is dropped before, so that no one connects any more.
pub async fn serve<L>(mut listener: L, pages: Router, patience: Duration, stop: impl Future<Output = ()>)
where
    L: Listener,
    L::Io: PeerOf,
{
    let mut stop = pin!(stop);
    let (leave, shutdown) = watch::channel(());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut stop => break,
            (stream, _) = listener.accept(), if connections.len() < CONNECTIONS => {
                connections.spawn(serve_connection(stream, pages.clone(), Shutdown(shutdown.clone())));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop((listener, leave));
    // Dropping the set disconnects the others.
    let _ = timeout(patience, async { while connections.join_next().await.is_some() {} }).await;
}

/// Serves one connection until either side closes it, or, after `leave`, until its current request is answered, which is
/// the first one of a client that has just connected.
async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + PeerOf + Unpin + Send + 'static,
    pages: Router,
    mut leave: Shutdown,
) {
    // In the request, not as layers: a router with further layers is copied whole, which takes longer than most requests.
    let (peer, groups, passed) = (stream.peer(), stream.groups(), stream.passed());
    let shutdown = leave.clone();
    let pages = TowerToHyperService::new(pages);
    let has_begun = Notify::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        has_begun.notify_one();
        let known = request.extensions_mut();
        known.insert(peer);
        known.insert(groups.clone());
        known.insert(passed.clone());
        known.insert(shutdown.clone());
        pages.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_header_size(HEAD)
        .serve_connection(TokioIo::new(TimedStream::new(stream, WRITE_TIMEOUT)), service);
    let mut connection = pin!(connection);
    // Errors of the connection concern the client only.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = leave.wait() => {}
    }
    // Of a connection without a request, a graceful shutdown would close it.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = timeout(FIRST_REQUEST, has_begun.notified()) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A stream with a write timeout.
struct TimedStream<S> {
    stream: S,
    timeout: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedStream<S> {
    fn new(stream: S, timeout: Duration) -> TimedStream<S> {
        TimedStream { stream, timeout, waiting: None }
    }

    /// Result of a write.
    fn check<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.timeout)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.check(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.check(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_response_that_is_not_read_times_out() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut ours = TimedStream::new(ours, Duration::from_millis(10));
        let error = loop {
            if let Err(e) = poll_fn(|cx| Pin::new(&mut ours).poll_write(cx, &[0; 65536])).await {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn a_reader_that_resumes_in_time_is_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut ours = TimedStream::new(ours, Duration::from_secs(3600));
        let full = poll_fn(|cx| {
            loop {
                if Pin::new(&mut ours).poll_write(cx, &[0; 65536]).is_pending() {
                    return Poll::Ready(ours.waiting.is_some());
                }
            }
        });
        assert!(full.await, "a write that waits is timed");
        let (result, ()) = tokio::join!(poll_fn(|cx| Pin::new(&mut ours).poll_write(cx, &[0; 65536])), async {
            let mut room = vec![0; 1 << 20];
            theirs.readable().await.unwrap();
            theirs.try_read(&mut room).unwrap();
        });
        assert!(result.unwrap() > 0);
        assert!(ours.waiting.is_none());
    }
}
