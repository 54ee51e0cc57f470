//! The server: clients come in, agree on an export, and are served.
//!
//! A client that says nothing costs a descriptor and no thread: one thread greets all and waits for their first
//! word. Where there is no room, the one that has waited longest for its handshake to end goes.

use super::{
    connection::Connection,
    haggle::{Agreed, Cover, Haggling, Next, reply},
    relief::Relief,
    socket::{Listener, Socket},
    tls::{Certificates, Tls},
    wire::{GREETING_MAGIC, Greeting, OPTION_MAGIC, OptionHeader, STRING_BYTES_MAX, answer, handshake},
};
use crate::{
    base::{Error, Result, clock::Stopwatch, units::index},
    export::Exports,
};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::{
    collections::HashMap,
    io::{self, ErrorKind, IoSlice, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The most that the data of an option may have: a name and many queries.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// The most options that a client may send before it gets an export.
const OPTIONS_MAX: u32 = 1024;
/// Stack of a client's first thread.
const STACK_BYTES: usize = 512 << 10;

const _: () = assert!(OPTION_BYTES_MAX as usize > 4 * STRING_BYTES_MAX);

/// What clients may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at once, those that have not yet said a word included.
    pub clients: usize,
    /// How long a client may take until it has an export.
    pub handshake: Duration,
    /// Threads that work for one client at once.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 1024, handshake: Duration::from_secs(10), threads: 16 }
    }
}

/// A server of disks by NBD.
pub struct Server {
    shared: Arc<Shared>,
    /// Whatever is written here wakes the thread that waits for clients.
    waker: UnixStream,
    door: Option<JoinHandle<()>>,
}

/// What all threads of a server have.
struct Shared {
    exports: Arc<dyn Exports>,
    limits: Limits,
    tls: Tls,
    relief: Arc<Relief>,
    is_stopping: AtomicBool,
    clients: Mutex<Clients>,
    left: Condvar,
}

/// The clients that have a thread, by number.
#[derive(Default)]
struct Clients {
    next: u64,
    here: HashMap<u64, Client>,
}

enum Client {
    /// It agrees on an export: since then.
    Haggling(Arc<Socket>),
    /// It has one.
    Served(Arc<Connection>),
}

/// A client that has not said a word.
struct Silent {
    socket: Socket,
    since: Stopwatch,
}

impl Server {
    /// Serves `exports` at all of `listeners` until [`Server::stop`].
    pub fn start(
        listeners: Vec<Listener>,
        exports: Arc<dyn Exports>,
        limits: Limits,
        tls: Tls,
    ) -> Result<Self> {
        let failed = |e| Error::io("start the server", e);
        let (waker, wakes) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared {
            exports,
            limits,
            tls,
            relief: Relief::start().map_err(failed)?,
            is_stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            left: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let builder = thread::Builder::new().name("nbd-door".to_owned());
        let door = builder.spawn(move || Door { shared: own, listeners, wakes, silent: Vec::new() }.open());
        Ok(Self { shared, waker, door: Some(door.map_err(failed)?) })
    }

    /// Takes no more clients, lets what they asked for be done for at most `patience`, and closes. Returns whether
    /// all was done. The disks are not flushed.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.close();
        let clients: Vec<_> = self.shared.clients.lock().here.values().map(Client::share).collect();
        clients.iter().for_each(Client::stop);
        let is_done = self.shared.wait(patience);
        if !is_done {
            clients.iter().for_each(Client::cut);
            drop(clients);
            // What still waits waits for a disk.
            self.shared.wait(patience / 4);
        }
        self.shared.relief.end();
        is_done
    }

    fn close(&mut self) {
        self.shared.is_stopping.store(true, Relaxed);
        // The thread may have ended by itself.
        let _ = (&self.waker).write(&[0]);
        self.door.take().map(JoinHandle::join);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
        self.shared.clients.lock().here.values().for_each(Client::cut);
        self.shared.relief.end();
    }
}

impl Client {
    fn share(&self) -> Self {
        match self {
            Self::Haggling(socket) => Self::Haggling(Arc::clone(socket)),
            Self::Served(connection) => Self::Served(Arc::clone(connection)),
        }
    }

    fn stop(&self) {
        match self {
            Self::Haggling(socket) => socket.shut(Shutdown::Both),
            Self::Served(connection) => connection.stop(),
        }
    }

    fn cut(&self) {
        match self {
            Self::Haggling(socket) => socket.shut(Shutdown::Both),
            Self::Served(connection) => connection.cut(),
        }
    }
}

/// The thread that waits for clients.
struct Door {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    wakes: UnixStream,
    silent: Vec<Silent>,
}

impl Door {
    fn open(mut self) {
        while !self.shared.is_stopping.load(Relaxed) {
            let (has_new, spoke) = self.wait();
            self.let_speak(&spoke);
            if has_new && !self.greet() {
                // No descriptors: none will be free at once, and the clients are still there.
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Waits until somebody comes or speaks; returns whether somebody came, and who of the silent spoke.
    fn wait(&self) -> (bool, Vec<bool>) {
        let listening = self.listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN));
        let waking = std::iter::once(PollFd::new(&self.wakes, PollFlags::IN));
        let silent = self.silent.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN));
        let mut watched: Vec<_> = waking.chain(listening).chain(silent).collect();
        let oldest = self.silent.first().map(|client| {
            let left = self.shared.limits.handshake.saturating_sub(client.since.elapsed());
            Timespec::try_from(left + Duration::from_millis(1)).unwrap_or_default()
        });
        if rustix::event::poll(&mut watched, oldest.as_ref()).is_err() {
            return (false, Vec::new());
        }
        let mut has_come = watched.iter().skip(1).map(|fd| !fd.revents().is_empty());
        let has_new = has_come.by_ref().take(self.listeners.len()).fold(false, |any, one| any | one);
        (has_new, has_come.collect())
    }

    /// Gives those that spoke a thread, and sends away those that were silent for too long.
    fn let_speak(&mut self, spoke: &[bool]) {
        let patience = self.shared.limits.handshake;
        let mut spoke = spoke.iter().copied();
        for client in std::mem::take(&mut self.silent) {
            if spoke.next().unwrap_or(false) {
                self.shared.admit(client);
            } else if client.since.elapsed() < patience {
                self.silent.push(client);
            }
        }
    }

    /// Greets all that have come; returns false if the system has no descriptor for one.
    fn greet(&mut self) -> bool {
        let greeting = Greeting {
            magic: GREETING_MAGIC,
            option_magic: OPTION_MAGIC,
            flags: handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES,
        };
        for listener in &self.listeners {
            loop {
                let socket = match listener.accept() {
                    Ok(socket) => socket,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if is_scarce(&e) => {
                        // The longest silent one makes room.
                        let goes = (!self.silent.is_empty()).then(|| self.silent.remove(0));
                        return goes.is_some();
                    }
                    Err(_) => continue,
                };
                // A new socket has room for these bytes: nobody waits.
                if socket.send(&mut [IoSlice::new(&greeting.to_bytes())]).is_ok() {
                    self.silent.push(Silent { socket, since: Stopwatch::start() });
                }
                while self.silent.len() + self.shared.clients.lock().here.len() > self.shared.limits.clients {
                    if self.silent.len() > 1 {
                        self.silent.remove(0);
                    } else if !self.shared.evict() {
                        self.silent.pop();
                        break;
                    }
                }
            }
        }
        true
    }
}

/// Whether the process or the system has no more descriptors.
fn is_scarce(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let scarce = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    scarce.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

impl Shared {
    /// Waits until all clients are gone; false if some are still here after `patience`.
    fn wait(&self, patience: Duration) -> bool {
        let watch = Stopwatch::start();
        let mut clients = self.clients.lock();
        while !clients.here.is_empty() {
            let left = patience.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return false;
            }
            self.left.wait_for(&mut clients, left);
        }
        true
    }

    /// Sends the client away that has been haggling for the longest; false if none is.
    fn evict(&self) -> bool {
        let mut clients = self.clients.lock();
        let haggling = clients.here.iter().filter(|(_, client)| matches!(client, Client::Haggling(_)));
        let oldest = haggling.map(|(number, _)| *number).min();
        oldest.and_then(|number| clients.here.remove(&number)).inspect(Client::cut).is_some()
    }

    /// Gives a client a thread.
    fn admit(self: &Arc<Self>, client: Silent) {
        let Silent { socket, since } = client;
        let socket = Arc::new(socket);
        let number = {
            let mut clients = self.clients.lock();
            clients.next += 1;
            let number = clients.next;
            clients.here.insert(number, Client::Haggling(Arc::clone(&socket)));
            number
        };
        let leaves = Leaves { shared: Arc::clone(self), number };
        let builder = thread::Builder::new().name("nbd".to_owned()).stack_size(STACK_BYTES);
        let spawned = builder.spawn(move || {
            let leaves = leaves;
            leaves.shared.serve(leaves.number, socket, since);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a client");
        }
    }

    /// Serves one client from its first word to its last.
    fn serve(&self, number: u64, socket: Arc<Socket>, since: Stopwatch) {
        let agreed = match self.haggle(&socket, since) {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "a handshake failed"),
        };
        let connection = {
            let mut clients = self.clients.lock();
            if clients.here.remove(&number).is_none() {
                // Sent away meanwhile.
                return;
            }
            // Only who stops the server may hold it, too.
            let Ok(socket) = Arc::try_unwrap(socket) else { return };
            let connection =
                Connection::new(socket, *agreed, self.limits.threads.max(1), Arc::clone(&self.relief));
            clients.here.insert(number, Client::Served(Arc::clone(&connection)));
            connection
        };
        self.relief.add(&connection);
        connection.enter();
        if self.is_stopping.load(Relaxed) {
            connection.stop();
        }
        connection.serve();
    }

    /// Has a client choose an export; `None` if it leaves without.
    fn haggle(&self, socket: &Socket, since: Stopwatch) -> io::Result<Option<Box<Agreed>>> {
        let mut flags = [0; 4];
        self.receive(socket, &mut flags, since)?;
        let flags = u32::from_be_bytes(flags);
        let known = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return Err(ErrorKind::InvalidData.into());
        }
        let (cover, certificates) = match &self.tls {
            Tls::Off => (Cover::None, None),
            Tls::Allowed(certificates) => (Cover::Offered, Some(certificates)),
            Tls::Required(certificates) => (Cover::Required, Some(certificates)),
        };
        let has_no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        let mut haggling = Haggling::new(self.exports.as_ref(), has_no_zeroes, cover);
        for _ in 0..OPTIONS_MAX {
            let mut header = [0; OptionHeader::SIZE];
            self.receive(socket, &mut header, since)?;
            let header = OptionHeader::parse(&header);
            if header.magic != OPTION_MAGIC {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut out = Vec::new();
            if header.bytes > OPTION_BYTES_MAX {
                haggling.refuse_long(header.option, &mut out);
                self.send(socket, &out, since)?;
                return Err(ErrorKind::InvalidData.into());
            }
            let mut data = vec![0; index(u64::from(header.bytes))];
            self.receive(socket, &mut data, since)?;
            if self.is_stopping.load(Relaxed) {
                reply(&mut out, header.option, answer::ERR_SHUTDOWN, b"the server stops");
                self.send(socket, &out, since)?;
                return Ok(None);
            }
            let next = haggling.answer(header.option, &data, &mut out);
            self.send(socket, &out, since)?;
            match next {
                Next::Option => {}
                Next::End => {
                    socket.close();
                    return Ok(None);
                }
                Next::Tls => self.secure(socket, certificates, since)?,
                Next::Transmission(agreed) => {
                    socket.set_patience(None)?;
                    return Ok(Some(agreed));
                }
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    /// Has TLS begin, within the time that the whole handshake may take.
    fn secure(
        &self,
        socket: &Socket,
        certificates: Option<&Certificates>,
        since: Stopwatch,
    ) -> io::Result<()> {
        // Only where there are certificates the client may ask for it.
        socket.secure(certificates.ok_or(ErrorKind::Unsupported)?)?;
        loop {
            socket.set_patience(Some(self.left(since)?))?;
            if socket.shake()? {
                return Ok(());
            }
        }
    }

    /// Returns how long the handshake may still take.
    fn left(&self, since: Stopwatch) -> io::Result<Duration> {
        let left = self.limits.handshake.saturating_sub(since.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Fills `buf` within the time that a handshake may take, however slowly the bytes come.
    fn receive(&self, socket: &Socket, mut buf: &mut [u8], since: Stopwatch) -> io::Result<()> {
        while !buf.is_empty() {
            socket.set_patience(Some(self.left(since)?))?;
            match socket.receive_step(buf)? {
                None => {}
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(received) => buf = buf.get_mut(received..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn send(&self, socket: &Socket, bytes: &[u8], since: Stopwatch) -> io::Result<()> {
        socket.set_patience(Some(self.left(since)?))?;
        socket.send(&mut [IoSlice::new(bytes)])
    }
}

/// A client's first thread ends, also one that fails.
struct Leaves {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.shared.clients.lock().here.remove(&self.number);
        self.shared.left.notify_all();
    }
}
