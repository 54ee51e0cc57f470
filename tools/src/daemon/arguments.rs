//! The command line of `dchaind`.

use crate::options::{self, References};
use clap::Parser;
use deltachain::{base::Error, export::nbd::Listener, format::Format};
use std::{fmt, net::SocketAddr, path::PathBuf};

/// Hold disks open and serve them to guests
#[derive(Debug, Parser)]
#[command(name = "dchaind", version, max_term_width = 100)]
pub struct Arguments {
    /// A disk to serve, and the image on top of its chain (may be repeated); a comma in PATH is written twice
    #[arg(long = "disk", value_name = "NAME=PATH[,format=FMT][,read-only]", value_parser = disk, required = true)]
    pub disks: Vec<Named>,
    /// Where clients of NBD come in: unix:PATH or tcp:ADDR:PORT (may be repeated)
    #[arg(long, value_name = "PLACE", value_parser = address, required = true)]
    pub nbd: Vec<Address>,
    /// Serve at most N clients at once
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_clients: usize,
    /// Send a client away that has no export after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub max_handshake: u64,
    #[command(flatten)]
    pub references: References,
}

/// A disk as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What clients ask for.
    pub name: String,
    /// The head.
    pub path: PathBuf,
    /// Its format, if stated.
    pub format: Option<Format>,
    /// Whether it is only read.
    pub is_read_only: bool,
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

fn address(text: &str) -> Result<Address, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
        Some(("tcp", address)) => address
            .parse()
            .map(Address::Tcp)
            .map_err(|_| "after tcp: come an IP address and a port".to_owned()),
        _ => Err("a place is unix:PATH or tcp:ADDR:PORT".to_owned()),
    }
}

fn disk(text: &str) -> Result<Named, String> {
    let Some((name, rest)) = text.split_once('=') else {
        return Err("a disk is NAME=PATH".to_owned());
    };
    let rest = rest.replace(",,", "\0");
    let mut parts = rest.split(',').map(|part| part.replace('\0', ","));
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("a disk is NAME=PATH")?;
    let mut named = Named { name: name.to_owned(), path: path.into(), format: None, is_read_only: false };
    for part in parts {
        match part.split_once('=') {
            Some(("format", format)) => named.format = Some(options::format(format)?),
            None if part == "read-only" => named.is_read_only = true,
            _ => return Err(format!("'{part}' is neither format=FMT nor read-only")),
        }
    }
    Ok(named)
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
    fn a_disk_is_named_with_all_that_belongs_to_it() {
        let plain = Named { name: "a".into(), path: "x.raw".into(), format: None, is_read_only: false };
        assert_eq!(disk("a=x.raw").unwrap(), plain);
        let all = Named { path: "x,y=1".into(), format: Some(Format::Raw), is_read_only: true, ..plain };
        assert_eq!(disk("a=x,,y=1,format=raw,read-only").unwrap(), all);
        for wrong in ["x.raw", "a=", "a=x,format=tar", "a=x,ro"] {
            assert!(disk(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for place in ["unix:/run/a.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"] {
            assert_eq!(address(place).unwrap().to_string(), place);
        }
        for wrong in ["/run/a.sock", "unix:", "tcp:localhost", "tls:1.2.3.4:5"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
