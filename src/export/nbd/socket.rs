//! Where clients come in, and the byte stream of one of them.

use super::tls::{Certificates, Session};
use crate::{
    base::{Error, Result},
    export::unix::is_left_behind,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use std::{
    fs, io,
    io::{ErrorKind, IoSlice, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

/// A place where clients come in.
#[derive(Debug)]
pub struct Listener(Place);

#[derive(Debug)]
enum Place {
    /// The socket's name, if it is ours to remove.
    Unix(UnixListener, Option<PathBuf>),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a unix socket. One that a process left behind is replaced; `Busy` if somebody listens there.
    pub fn unix(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("listen", e).path(path);
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && is_left_behind(path)? => {
                fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path)
            }
            answer => answer,
        };
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self(Place::Unix(listener, Some(path.to_path_buf()))))
    }

    /// Listens on a TCP port of this machine.
    pub fn tcp(address: SocketAddr) -> Result<Self> {
        let failed = |e| Error::io(format!("listen on {address}"), e);
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self(Place::Tcp(listener)))
    }

    /// Takes a unix socket over that somebody else has opened, and whose name is theirs.
    ///
    /// `Invalid` if nobody can come in there.
    pub fn given_unix(listener: UnixListener) -> Result<Self> {
        let failed = |e| Error::io("take a socket over", e);
        refuse_deaf(&listener)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self(Place::Unix(listener, None)))
    }

    /// Takes a TCP port over that somebody else has opened.
    ///
    /// `Invalid` if nobody can come in there.
    pub fn given_tcp(listener: TcpListener) -> Result<Self> {
        let failed = |e| Error::io("take a port over", e);
        refuse_deaf(&listener)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self(Place::Tcp(listener)))
    }

    /// Returns the address of a TCP port: port 0 has become a real one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Place::Unix(..) => None,
            Place::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Returns the name of a unix socket, if it has one.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.0 {
            Place::Unix(listener, _) => listener.local_addr().ok()?.as_pathname().map(Path::to_path_buf),
            Place::Tcp(_) => None,
        }
    }

    /// Returns the next client that waits; `WouldBlock` if none does.
    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.0 {
            Place::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Raw::Unix(stream).into())
            }
            Place::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                // A client whose machine died does not keep its place for ever.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Raw::Tcp(stream).into())
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Place::Unix(listener, _) => listener.as_fd(),
            Place::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix(_, Some(path)) = &self.0 {
            // Gone already is as good.
            let _ = fs::remove_file(path);
        }
    }
}

/// A socket that does not listen would fail at each look for clients.
fn refuse_deaf(socket: impl AsFd) -> Result<()> {
    let listens = rustix::net::sockopt::socket_acceptconn(socket);
    if listens.map_err(|e| Error::io("look at a socket", e.into()))? {
        Ok(())
    } else {
        Err(Error::invalid("a socket that was to be taken over does not listen"))
    }
}

/// The byte stream of one client: in the clear until it is [`Socket::secure`]d.
#[derive(Debug)]
pub(super) struct Socket {
    raw: Raw,
    tls: OnceLock<Session>,
}

impl From<Raw> for Socket {
    fn from(raw: Raw) -> Self {
        Self { raw, tls: OnceLock::new() }
    }
}

impl Socket {
    /// Returns where the client is: its address, or the process that has connected.
    pub(super) fn peer(&self) -> String {
        let found = match &self.raw {
            Raw::Unix(stream) => rustix::net::sockopt::socket_peercred(stream)
                .map(|who| format!("process {}", who.pid.as_raw_nonzero()))
                .map_err(io::Error::from),
            Raw::Tcp(stream) => stream.peer_addr().map(|address| address.to_string()),
        };
        found.unwrap_or_else(|_| "gone".to_owned())
    }

    /// Returns whether TLS has begun.
    pub(super) fn is_secret(&self) -> bool {
        self.tls.get().is_some()
    }

    /// From here on all bytes are TLS's. Nothing was read ahead: what a client has sent in the clear since its request
    /// is taken for the begin of the TLS handshake, and no such thing.
    pub(super) fn secure(&self, certificates: &Certificates) -> io::Result<()> {
        let session = Session::new(certificates)?;
        self.tls.set(session).map_err(|_| ErrorKind::InvalidData.into())
    }

    /// Does a step of the TLS handshake, waiting at most once; returns whether it is over.
    pub(super) fn shake(&self) -> io::Result<bool> {
        self.tls.get().map_or(Ok(true), |tls| tls.shake(&self.raw))
    }

    /// Waits for bytes; 0 if the client has closed its side.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(received) = self.receive_step(buf)? {
                return Ok(received);
            }
        }
    }

    /// Waits for bytes once; `None` if what came is nothing to read yet.
    pub(super) fn receive_step(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.tls.get() {
            None => self.raw.receive(buf).map(Some),
            Some(tls) => tls.receive_step(&self.raw, buf),
        }
    }

    /// Takes what is there; `None` if nothing is.
    pub(super) fn receive_now(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.tls.get() {
            None => self.raw.receive_now(buf),
            Some(tls) => tls.receive_now(&self.raw, buf),
        }
    }

    /// Fills `buf`.
    pub(super) fn receive_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let received = self.receive(buf)?;
            if received == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            buf = buf.get_mut(received..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends all of `parts`.
    pub(super) fn send(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        match self.tls.get() {
            None => self.raw.send(parts),
            Some(tls) => tls.send(&self.raw, parts),
        }
    }

    /// Sets how long receiving and sending may wait; `None`: for ever.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match &self.raw {
            Raw::Unix(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
            Raw::Tcp(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
        }
    }

    /// Ends one or both directions: whoever waits on them wakes up.
    pub(super) fn shut(&self, how: Shutdown) {
        // A client that is gone already is as good.
        let _ = match &self.raw {
            Raw::Unix(stream) => stream.shutdown(how),
            Raw::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// Ends both directions when all is said, and says so.
    pub(super) fn close(&self) {
        self.tls.get().inspect(|tls| tls.say_last(&self.raw));
        self.shut(Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

/// The bytes on the wire.
#[derive(Debug)]
pub(super) enum Raw {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Raw {
    /// Waits for bytes; 0 if the client has closed its side.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let answer = match self {
                Self::Unix(stream) => (&mut &*stream).read(buf),
                Self::Tcp(stream) => (&mut &*stream).read(buf),
            };
            match answer {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
    }

    /// Takes what is there; `None` if nothing is.
    pub(super) fn receive_now(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(self, buf, RecvFlags::DONTWAIT) {
            Ok((received, _)) => Ok(Some(received)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends all of `parts`.
    pub(super) fn send(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let answer = match self {
                Self::Unix(stream) => (&mut &*stream).write_vectored(parts),
                Self::Tcp(stream) => (&mut &*stream).write_vectored(parts),
            };
            match answer {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut parts, sent),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sends what there is room for.
    pub(super) fn send_now(&self, bytes: &[u8]) {
        // A last word: whether it is heard does not matter.
        let _ = rustix::net::send(self, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}
