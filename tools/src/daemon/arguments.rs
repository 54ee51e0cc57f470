//! The command line of `dchaind`.

use crate::options::{self, References};
use clap::{Parser, ValueEnum};
use deltachain::{base::Error, export::nbd::Listener, service::Named};
use std::{fmt, net::SocketAddr, path::PathBuf};

/// Hold disks open and serve them to guests
#[derive(Debug, Parser)]
#[command(name = "dchaind", version, max_term_width = 100)]
pub struct Arguments {
    /// A disk to serve, and the image on top of its chain (may be repeated); a comma in PATH is written twice
    #[arg(long = "disk", value_name = "NAME=PATH[,format=FMT][,read-only]", value_parser = options::disk)]
    pub disks: Vec<Named>,
    /// Where clients of NBD come in: unix:PATH or tcp:ADDR:PORT (may be repeated); beside sockets called nbd that systemd
    /// has opened
    #[arg(long, value_name = "PLACE", value_parser = address)]
    pub nbd: Vec<Address>,
    /// Make a socket at PATH for the virtual machine that has the disk NAME, by vhost-user-blk (may be repeated)
    #[arg(long, value_name = "NAME=PATH", value_parser = guest)]
    pub vhost_user: Vec<Guest>,
    /// Where `dchain disk`, `dchain job` and others find the daemon: unix:PATH
    #[arg(long, value_name = "PLACE", value_parser = control)]
    pub control: Option<PathBuf>,
    /// Show the disks and jobs as a web page at http://ADDR:PORT on this machine, to those who know the token
    #[arg(long, value_name = "ADDR:PORT", value_parser = loopback)]
    pub web: Option<SocketAddr>,
    /// The token of --web stands in FILE; a fresh one is put there if it is missing (unless stated: web-token in --state)
    #[arg(long, value_name = "FILE")]
    pub web_token: Option<PathBuf>,
    /// Keep in DIR which image is the head of which disk, so that a restart finds all as it was
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Take options from FILE, too (TOML): nbd = ["PLACE", ...], state = "DIR", no-resume = true and so on, and disks as tables
    /// [disks.NAME] with path, format, read-only, freeze, thaw, hook-timeout and vhost-user
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Do not go on with consolidations that were cut off
    #[arg(long)]
    pub no_resume: bool,
    /// Give a consolidation up whose target, apart from the disk's head, has not answered for so long; 0: wait for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub target_timeout: u64,
    /// Serve at most N clients at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = options::positive::<usize>)]
    pub max_clients: usize,
    /// Send a client away that has no export after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = options::positive::<u64>)]
    pub max_handshake: u64,
    /// Have clients of NBD speak TLS: off, allowed, or required (nothing is told to one that does not)
    #[arg(long, value_name = "MODE", value_enum)]
    pub tls: Option<TlsMode>,
    /// Take server-cert.pem, server-key.pem, ca-cert.pem and ca-crl.pem from DIR; --tls is then required unless stated
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// Whether clients have to show a certificate that ca-cert.pem signed: on unless stated
    #[arg(long, value_name = "on|off", value_enum)]
    pub tls_verify_peer: Option<Switch>,
    #[command(flatten)]
    pub references: References,
}

/// Whether clients of NBD speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// They cannot.
    Off,
    /// They may.
    Allowed,
    /// They have to.
    Required,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// Where a virtual machine comes to its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The disk's name.
    pub disk: String,
    /// The socket.
    pub path: PathBuf,
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vhost-user:{}={}", self.disk, self.path.display())
    }
}

/// Where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A port.
    Tcp(SocketAddr),
}

impl Address {
    /// Listens there.
    pub fn listen(&self) -> Result<Listener, Error> {
        match self {
            Self::Unix(path) => Listener::unix(path),
            Self::Tcp(address) => Listener::tcp(*address),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Reads where the web page is.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| "an IP address and a port are wanted".to_owned())?;
    // What is said there is not secret: to be seen from elsewhere it goes through ssh -L or a proxy with TLS.
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only an address of this machine's loopback".to_owned())
    }
}

/// Reads where the control socket is.
pub fn control(text: &str) -> Result<PathBuf, String> {
    match address(text)? {
        Address::Unix(path) => Ok(path),
        Address::Tcp(_) => Err("the control socket is unix:PATH".to_owned()),
    }
}

/// Reads where a virtual machine comes in.
pub fn guest(text: &str) -> Result<Guest, String> {
    match text.split_once('=') {
        Some((disk, path)) if !disk.is_empty() && !path.is_empty() => {
            Ok(Guest { disk: disk.to_owned(), path: path.into() })
        }
        _ => Err("a disk and its socket are NAME=PATH".to_owned()),
    }
}

/// Reads where clients come in.
pub fn address(text: &str) -> Result<Address, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
        Some(("tcp", address)) => address
            .parse()
            .map(Address::Tcp)
            .map_err(|_| "after tcp: come an IP address and a port".to_owned()),
        _ => Err("a place is unix:PATH or tcp:ADDR:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for place in ["unix:/run/a.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"] {
            assert_eq!(address(place).unwrap().to_string(), place);
        }
        for wrong in ["/run/a.sock", "unix:", "tcp:localhost", "tls:1.2.3.4:5"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert!(loopback("127.0.0.1:0").is_ok() && loopback("[::1]:80").is_ok());
        for wrong in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "localhost:80", "127.0.0.1"] {
            assert!(loopback(wrong).is_err(), "{wrong}");
        }
        assert_eq!(guest("vm=/run/vm.sock").unwrap().to_string(), "vhost-user:vm=/run/vm.sock");
        for wrong in ["/run/vm.sock", "vm=", "=/run/vm.sock"] {
            assert!(guest(wrong).is_err(), "{wrong}");
        }
    }
}
