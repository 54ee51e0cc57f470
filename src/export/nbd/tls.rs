//! TLS over a client's byte stream: certificates, and one client's session.
//!
//! ```text
//!   the leader ── receive ──> incoming ──┐                 ┌── outgoing <── send ── whoever has a reply
//!                 (waits on the socket)  └──> connection <─┘  (waits on the socket)
//! ```
//!
//! One state ciphers both directions, so it has a lock, which nobody holds while it waits on the socket: who receives
//! waits with `incoming`, who sends with `outgoing`, and neither holds up the other.
//!
//! What stays true: records go out in the order in which they were ciphered (`outgoing` is held from the one to the
//! other). Who receives sends nothing: what the protocol wants to be answered goes with the next reply. Lock order:
//! `incoming`, `connection`; `outgoing`, `connection`.

use super::socket::Raw;
use crate::base::{Error, Result, clock};
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use std::{
    fmt, fs,
    io::{self, ErrorKind, IoSlice, Read, Write},
    path::Path,
    sync::Arc,
};

/// What one call brings in: several records.
const INCOMING_BYTES: usize = 64 << 10;
/// As many bytes are ciphered before they are sent: a few records, so that who receives never waits for long.
const OUTGOING_BYTES: usize = 128 << 10;

/// A server's own certificate, and those whose word about clients it takes.
#[derive(Clone)]
pub struct Certificates(Arc<ServerConfig>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// Whether clients speak TLS.
#[derive(Clone, Debug, Default)]
pub enum Tls {
    /// They cannot.
    #[default]
    Off,
    /// They may.
    Allowed(Certificates),
    /// They have to, before anything else.
    Required(Certificates),
}

impl Certificates {
    /// The server's certificate, and those that vouch for it, in a folder as qemu has it.
    pub const SERVER: &str = "server-cert.pem";
    /// Its key.
    pub const KEY: &str = "server-key.pem";
    /// Whose word about clients is taken.
    pub const AUTHORITY: &str = "ca-cert.pem";
    /// Certificates that the authority has taken back; may be missing.
    pub const REVOKED: &str = "ca-crl.pem";

    /// Reads PEM files in `folder`. `verifies`: a client has to show a certificate that the authority in
    /// `ca-cert.pem` signed and `ca-crl.pem`, where there is one, does not name.
    ///
    /// `Invalid` for a file that has not what it should have, or a key that is another certificate's.
    pub fn read(folder: &Path, verifies: bool) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let verifier =
            if verifies { verifier(folder, &provider)? } else { WebPkiClientVerifier::no_client_auth() };
        let (file, key) = (folder.join(Self::SERVER), folder.join(Self::KEY));
        let chain = certificates(&file)?;
        let wrong = |path: &Path, what: String| Error::invalid(what).path(path);
        let key = PrivateKeyDer::from_pem_slice(&bytes(&key)?)
            .map_err(|e| wrong(&key, format!("no private key can be read: {e}")))?;
        let config = ServerConfig::builder_with_details(provider, Arc::new(Clock))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&file, e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key);
        let mut config = config.map_err(|e| wrong(&file, format!("the certificate and its key: {e}")))?;
        // Each connection proves anew who its client is.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|e| Error::io("read", e).path(file))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(file)?).collect();
    let found = found.map_err(|e| Error::invalid(format!("no certificate can be read: {e}")).path(file))?;
    if found.is_empty() { Err(Error::invalid("no certificate is in it").path(file)) } else { Ok(found) }
}

fn verifier(folder: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
    let file = folder.join(Certificates::AUTHORITY);
    let wrong = |e: &dyn fmt::Display| Error::invalid(format!("no authority for clients: {e}")).path(&file);
    let mut roots = RootCertStore::empty();
    for authority in certificates(&file)? {
        roots.add(authority).map_err(|e| wrong(&e))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let revoked = folder.join(Certificates::REVOKED);
    if revoked.try_exists().map_err(|e| Error::io("look for it", e).path(&revoked))? {
        let text = bytes(&revoked)?;
        let lists: std::result::Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&text).collect();
        let wrong = |what: String| Error::invalid(what).path(&revoked);
        let lists = lists.map_err(|e| wrong(format!("no revocation list can be read: {e}")))?;
        if lists.is_empty() {
            return Err(wrong("no revocation list is in it".to_owned()));
        }
        builder = builder.with_crls(lists).only_check_end_entity_revocation();
    }
    builder.build().map_err(|e| wrong(&e))
}

/// The one clock, for the dates in certificates.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::since_epoch()))
    }
}

/// One client's TLS.
pub(super) struct Session {
    connection: Mutex<ServerConnection>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Vec<u8>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Bytes as they came over the wire.
struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Session {
    pub(super) fn new(certificates: &Certificates) -> io::Result<Self> {
        let mut connection = ServerConnection::new(Arc::clone(&certificates.0)).map_err(broken)?;
        connection.set_buffer_limit(Some(OUTGOING_BYTES));
        let incoming = Incoming { bytes: vec![0; INCOMING_BYTES], start: 0, end: 0 };
        Ok(Self {
            connection: Mutex::new(connection),
            incoming: Mutex::new(incoming),
            outgoing: Mutex::default(),
        })
    }

    /// Does a step of the handshake: sends what is to be sent, and waits for bytes once. Returns whether it is over.
    pub(super) fn shake(&self, raw: &Raw) -> io::Result<bool> {
        self.send_rest(raw)?;
        if !self.connection.lock().is_handshaking() {
            return Ok(true);
        }
        let mut incoming = self.incoming.lock();
        if incoming.is_empty() && incoming.receive(raw)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        // What comes behind the handshake stays in `incoming`.
        let shaken = loop {
            let mut connection = self.connection.lock();
            if incoming.is_empty() || !connection.is_handshaking() {
                break Ok(!connection.is_handshaking());
            }
            if let Err(error) = incoming.feed(&mut connection) {
                break Err(error);
            }
        };
        // Also the alert that says what is wrong.
        self.send_rest(raw)?;
        shaken
    }

    /// Waits for bytes once and takes what they mean; `None` if that is nothing yet, 0 bytes if the client is done.
    pub(super) fn receive_step(&self, raw: &Raw, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.receive_by(buf, |incoming| incoming.receive(raw).map(Some))
    }

    /// The same without waiting.
    pub(super) fn receive_now(&self, raw: &Raw, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.receive_by(buf, |incoming| incoming.receive_now(raw))
    }

    fn receive_by(
        &self,
        buf: &mut [u8],
        more: impl FnOnce(&mut Incoming) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let mut incoming = self.incoming.lock();
        if let Some(taken) = self.take(&mut incoming, buf)? {
            return Ok(Some(taken));
        }
        match more(&mut incoming)? {
            None => Ok(None),
            Some(0) => Ok(Some(0)),
            Some(_) => self.take(&mut incoming, buf),
        }
    }

    /// Deciphers what is there into `buf`; `None` if nothing is, 0 bytes after the client's last.
    fn take(&self, incoming: &mut Incoming, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = self.connection.lock();
        let mut filled = 0;
        loop {
            let room = buf.get_mut(filled..).unwrap_or_default();
            match connection.reader().read(room) {
                Ok(0) => return Ok(Some(filled)),
                Ok(read) => filled += read,
                Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e),
                Err(_) if incoming.is_empty() => return Ok((filled > 0).then_some(filled)),
                Err(_) => incoming.feed(&mut connection)?,
            }
        }
    }

    /// Sends all of `parts`.
    pub(super) fn send(&self, raw: &Raw, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let mut connection = self.connection.lock();
            let taken = connection.writer().write_vectored(parts)?;
            cipher(&mut connection, &mut outgoing)?;
            drop(connection);
            IoSlice::advance_slices(&mut parts, taken);
            flush(&mut outgoing, raw)?;
        }
        Ok(())
    }

    /// Sends what the protocol itself has to say.
    fn send_rest(&self, raw: &Raw) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock();
        cipher(&mut self.connection.lock(), &mut outgoing)?;
        flush(&mut outgoing, raw)
    }

    /// Tells the client that nothing more comes, if that can be said without waiting.
    pub(super) fn say_last(&self, raw: &Raw) {
        let Some(mut outgoing) = self.outgoing.try_lock() else { return };
        let mut connection = self.connection.lock();
        connection.send_close_notify();
        if cipher(&mut connection, &mut outgoing).is_ok() {
            raw.send_now(&outgoing);
        }
    }
}

/// Moves what is ciphered to `outgoing`.
fn cipher(connection: &mut ServerConnection, outgoing: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(outgoing)?;
    }
    Ok(())
}

fn flush(outgoing: &mut Vec<u8>, raw: &Raw) -> io::Result<()> {
    let sent = raw.send(&mut [IoSlice::new(outgoing)]);
    outgoing.clear();
    sent
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Waits for bytes; there are none when this is called.
    fn receive(&mut self, raw: &Raw) -> io::Result<usize> {
        let received = raw.receive(&mut self.bytes)?;
        (self.start, self.end) = (0, received);
        Ok(received)
    }

    fn receive_now(&mut self, raw: &Raw) -> io::Result<Option<usize>> {
        let received = raw.receive_now(&mut self.bytes)?;
        (self.start, self.end) = (0, received.unwrap_or_default());
        Ok(received)
    }

    /// Gives the next bytes to the connection, as many as it takes at once.
    fn feed(&mut self, connection: &mut ServerConnection) -> io::Result<()> {
        let mut waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        self.start += connection.read_tls(&mut waiting)?;
        connection.process_new_packets().map(drop).map_err(broken)
    }
}
