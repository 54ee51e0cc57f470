//! The loopback port of the web page, and the token that every request there needs.

use deltachain::base::{Error, ErrorKind, seed};
use std::{
    fmt, fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// A token that somebody chose has so many characters at least.
const TOKEN_BYTES_MIN: usize = 16;

/// The port, open.
pub struct Web {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: String,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is for nobody's log.
        f.debug_struct("Web").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Display for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

impl Web {
    /// Listens, with the token in `file`: a fresh one if there is no such file.
    ///
    /// `Policy` for a file that others can read, `Invalid` for a token that could be guessed or not be sent.
    pub fn open(address: SocketAddr, file: &Path) -> Result<Self, Error> {
        let token = token(file)?;
        let failed = |e| Error::io(format!("listen on {address}"), e);
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, token })
    }
}

fn token(file: &Path) -> Result<String, Error> {
    let failed = |e| Error::io("read the token", e).path(file);
    let text = match fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return make(file),
        read => read.map_err(failed)?,
    };
    if fs::metadata(file).map_err(failed)?.permissions().mode() & 0o077 != 0 {
        let what =
            "the token can be read by others (chmod 600 closes it; a new one is made where there is none)";
        return Err(Error::new(ErrorKind::Policy, what).path(file));
    }
    let token = text.trim();
    if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = format!("no token: at least {TOKEN_BYTES_MIN} letters and digits are wanted");
        return Err(Error::invalid(what).path(file));
    }
    Ok(token.to_owned())
}

/// Makes one of 256 bits. It is whole as soon as it is there, and only its owner can read it.
fn make(file: &Path) -> Result<String, Error> {
    let token = format!("{:032x}{:032x}", seed::fresh(), seed::fresh());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut draft| {
        writeln!(draft, "{token}")?;
        draft.persist_noclobber(file).map_err(|e| e.error)
    });
    written.map_err(|e| Error::io("make a token", e).path(file))?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_one_that_others_know_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let made = token(&file).unwrap();
        assert_eq!((made.len(), token(&file).unwrap()), (64, made));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(token(&file).unwrap_err().kind(), ErrorKind::Policy);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in ["", "short", "sixteen letters and a space"] {
            fs::write(&file, wrong).unwrap();
            assert_eq!(token(&file).unwrap_err().kind(), ErrorKind::Invalid, "{wrong}");
        }
    }
}
