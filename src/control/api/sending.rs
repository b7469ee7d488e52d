//! A connection of the client that passes descriptors with the first bytes that it sends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::sys::passing;

/// The connection.
#[derive(Debug)]
pub struct SendingStream {
    stream: UnixStream,
    /// Not passed yet.
    descriptors: Vec<Arc<OwnedFd>>,
}

impl SendingStream {
    /// Passes these descriptors with the first bytes.
    pub fn new(stream: UnixStream, descriptors: Vec<Arc<OwnedFd>>) -> SendingStream {
        SendingStream { stream, descriptors }
    }
}

impl AsyncRead for SendingStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SendingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let SendingStream { stream, descriptors } = &mut *self;
        while !descriptors.is_empty() && !buf.is_empty() {
            ready!(stream.poll_write_ready(cx))?;
            let all: Vec<BorrowedFd<'_>> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            match stream.try_io(Interest::WRITABLE, || passing::send(&*stream, buf, &all)) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    descriptors.clear();
                    return Poll::Ready(sent);
                }
            }
        }
        Pin::new(stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
