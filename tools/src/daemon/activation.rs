//! Sockets that whoever started the daemon has opened for it (`sd_listen_fds(3)`): those of NBD are called `nbd`, any
//! other is the control socket.

use crate::failure::Failure;
use deltachain::export::nbd::Listener;
use listenfd::ListenFd;
use std::{env, os::unix::net::UnixListener};

/// What such a socket of NBD is called (`FileDescriptorName=`).
const NBD: &str = "nbd";

/// What was given.
#[derive(Debug, Default)]
pub struct Given {
    /// The control socket.
    pub control: Option<UnixListener>,
    /// Where clients of NBD come in.
    pub nbd: Vec<Listener>,
}

impl Given {
    /// Takes all of them over.
    pub fn take() -> Result<Self, Failure> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut given = Self::default();
        for at in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            if name == NBD {
                given.nbd.push(nbd(&mut sockets, at)?);
            } else if given.control.is_none() {
                given.control = sockets.take_unix_listener(at)?;
            } else {
                let what = format!(
                    "LISTEN_FDNAMES: '{name}' would be a second control socket; those of NBD are called nbd"
                );
                return Err(Failure::usage(what));
            }
        }
        Ok(given)
    }
}

fn nbd(sockets: &mut ListenFd, at: usize) -> Result<Listener, Failure> {
    if let Ok(Some(socket)) = sockets.take_unix_listener(at) {
        return Ok(Listener::given_unix(socket)?);
    }
    let port = sockets.take_tcp_listener(at)?;
    Ok(Listener::given_tcp(port.ok_or_else(|| Failure::usage("LISTEN_FDS: a socket was taken already"))?)?)
}
