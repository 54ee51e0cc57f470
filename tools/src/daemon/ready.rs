//! Tells whoever started the daemon that it is ready: a line on stdout, and systemd (`sd_notify(3)`).

use std::{
    env,
    ffi::OsStr,
    io::{self, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Says that clients can come, and where.
pub fn say(places: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for place in places {
        writeln!(out, "listening {place}")?;
    }
    writeln!(out, "ready")?;
    out.flush()?;
    notify("READY=1");
    Ok(())
}

/// Says that the daemon ends.
pub fn stopping() {
    notify("STOPPING=1");
}

/// Tells systemd, if it started this program. That it does not listen is no reason to serve nobody.
fn notify(state: &str) {
    let Some(place) = env::var_os("NOTIFY_SOCKET") else { return };
    let _ = send(&place, state);
}

fn send(place: &OsStr, state: &str) -> io::Result<usize> {
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
}
