//! Names of unix sockets in the file system.
//!
//! What stays true: nothing is taken away to make room for a socket but a socket on which nobody listens.

use crate::base::{Error, Result};
use rustix::{
    fs::{FileType, Mode},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    fs,
    io::ErrorKind,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

/// Clients that wait to be heard.
const BACKLOG: i32 = 128;

/// Listens on a socket that is its owner's alone from the first moment. One that a process left behind is replaced.
///
/// `Busy` if somebody listens there; what is no socket stays, and is an error.
pub fn listen_privately(path: &Path) -> Result<UnixListener> {
    let failed = |e: Errno| Error::io("listen", e.into()).path(path);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(failed)?;
    // What is bound takes the mode of the socket.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if is_left_behind(path)? => {
            fs::remove_file(path).map_err(|e| Error::io("replace", e).path(path))?;
            rustix::net::bind(&socket, &address).map_err(failed)?;
        }
        bound => bound.map_err(failed)?,
    }
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

/// Whether `path` is a socket on which nobody listens; `Busy` if somebody does.
pub(super) fn is_left_behind(path: &Path) -> Result<bool> {
    let failed = |e| Error::io("look at what is there", e).path(path);
    let kind = rustix::fs::lstat(path).map_err(|e| failed(e.into()))?.st_mode;
    if FileType::from_raw_mode(kind) != FileType::Socket {
        return Ok(false);
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(e) => Err(failed(e)),
        Ok(_) => Err(Error::busy("another server listens there").path(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_that_nobody_hears_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = listen_privately(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen_privately(&path).unwrap_err().kind(), base::ErrorKind::Busy);
        drop(first);
        let second = listen_privately(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        second.accept().unwrap();
        let disk = folder.path().join("disk.raw");
        fs::write(&disk, "a guest's bytes").unwrap();
        assert!(listen_privately(&disk).is_err());
        assert_eq!(fs::read(&disk).unwrap(), b"a guest's bytes");
    }
}
