//! A port that takes few clients at once: whoever is on this machine can come to it, and descriptors that they hold
//! are ones that guests and disks lack. Those beyond wait in the system's queue, which costs the daemon nothing. Who has not
//! shown the token soon goes, and makes room for them.

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use std::{
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

/// How long a client may stay that shows no token.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a client has shown the token.
#[derive(Clone, Default)]
pub struct Known(Arc<AtomicBool>);

impl Known {
    /// Says that it has.
    pub fn welcome(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Connected<IncomingStream<'_, Narrow>> for Known {
    fn connect_info(stream: IncomingStream<'_, Narrow>) -> Self {
        stream.io().known.clone()
    }
}

/// The port.
pub struct Narrow {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl Narrow {
    /// Lets in so many at once.
    pub fn new(listener: TcpListener, clients: usize) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(clients)) }
    }
}

impl Listener for Narrow {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        // Nobody closes the semaphore.
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let (known, patience) = (Known::default(), Box::pin(sleep(PATIENCE)));
        (Guest { stream, known, patience, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client, and the place that it takes.
pub struct Guest {
    stream: TcpStream,
    known: Known,
    patience: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Guest {
    /// Fails once it has stayed too long without the token; whoever waits for it is told of that moment.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.known.0.load(Relaxed) && self.patience.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
