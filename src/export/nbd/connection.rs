//! One client: several threads, of which one at a time *leads*: it alone reads what the client sends.
//!
//! The leader does small requests itself and gathers the replies, so that a client with many requests in flight costs
//! few system calls. A request that takes long is done by a thread that first hands the lead on. What it believed
//! short and takes long nevertheless is noticed by the server's [`Relief`], which hands the lead on for it.
//!
//! ```text
//!   leading ──(long request: hand on)──> working ──(reply sent)──> following ──(lead is free)──> leading
//!      └──(short request: the lead rests in `post`, reserved)──> leading, or following if relieved meanwhile
//! ```
//!
//! What stays true: the lead exists once, held by a thread or resting in `post`; a reply is sent whole, under `sending`;
//! no lock is held during a disk's operation. Lock order: `post`, then nothing; `sending`, then nothing.

use super::{
    haggle::Agreed,
    input::Input,
    perform::perform,
    relief::Relief,
    reply::{Buffer, To},
    request::{Refusal, Request, Task, check},
    socket::Socket,
    wire::command,
};
use crate::{
    base::{
        clock::Stopwatch,
        units::{count, index},
    },
    export::{
        Guest,
        pace::{Pace, SHORT_BYTES},
    },
};
use parking_lot::{Condvar, Mutex};
use std::{
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// Replies are sent when they are this many bytes together, or this many.
const REPLIES_BYTES: usize = 256 << 10;
const REPLIES_MAX: usize = 64;
/// Memory that a thread keeps for its next request.
const KEPT_BYTES: usize = 2 << 20;
/// Bytes that long requests of one client may hold in memory at once; then the leader reads no further ones.
const HELD_BYTES: u64 = 64 << 20;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Stack of a thread; only what is used of it takes memory.
const STACK_BYTES: usize = 512 << 10;

/// A client that has an export.
pub(super) struct Connection {
    socket: Socket,
    agreed: Agreed,
    threads_max: usize,
    relief: Arc<Relief>,
    post: Mutex<Post>,
    changed: Condvar,
    sending: Mutex<()>,
    is_stopping: AtomicBool,
    reads: Pace,
    writes: Pace,
}

/// Where the lead is, and who is there to take it.
#[derive(Default)]
struct Post {
    /// The lead, if it rests.
    lead: Option<Box<Lead>>,
    /// The short request during which it rests: then only the thread that does it takes the lead again.
    reserved: Option<u64>,
    /// Counts short requests.
    short: u64,
    /// Bytes that long requests hold now.
    held_bytes: u64,
    threads: usize,
    following: usize,
    is_over: bool,
}

/// What only the leader has.
struct Lead {
    input: Input,
    replies: Vec<Buffer>,
    replies_bytes: usize,
    /// Buffers for the next short replies.
    spare: Vec<Buffer>,
}

/// What a thread keeps from request to request.
#[derive(Default)]
struct Own {
    payload: Buffer,
    reply: Buffer,
}

/// What the leader found.
enum Found {
    /// Done, its reply gathered; or refused.
    Nothing,
    /// To be done while the leader leads on if it can; the payload is in `Own`.
    Task(Task, To),
}

impl Lead {
    /// Sends the replies gathered so far.
    fn send(&mut self, connection: &Connection) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let mut parts: Vec<_> = self.replies.iter().map(|reply| IoSlice::new(reply.bytes())).collect();
        let sent = {
            let _sending = connection.sending.lock();
            connection.socket.send(&mut parts)
        };
        self.replies_bytes = 0;
        for mut reply in self.replies.drain(..) {
            reply.cut(0);
            // One large buffer is kept, and as many others as were in use at once.
            if self.spare.is_empty() || !reply.is_large() {
                self.spare.push(reply);
            }
        }
        sent
    }

    fn keep(&mut self, reply: Buffer) {
        self.replies_bytes += reply.bytes().len();
        self.replies.push(reply);
    }

    fn is_full(&self) -> bool {
        self.replies.len() >= REPLIES_MAX || self.replies_bytes >= REPLIES_BYTES
    }

    /// Returns the next request, its header taken off, and sends what was gathered before it waits.
    fn next(&mut self, connection: &Connection) -> io::Result<Request> {
        let style = connection.agreed.terms.style;
        loop {
            let peeked = self.input.peek(style).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
            if let Some(request) = peeked {
                let whole = style.request_bytes() + index(request.payload_bytes);
                let is_here = whole > Input::REQUEST_BYTES_MAX || self.input.waiting().len() >= whole;
                if is_here {
                    self.input.take(style.request_bytes());
                    return Ok(request);
                }
            }
            self.send(connection)?;
            if connection.is_stopping.load(Relaxed) {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            self.input.receive(&connection.socket)?;
        }
    }

    /// Understands a request and brings its payload; what is refused is answered.
    fn admit(&mut self, request: &Request, own: &mut Own, connection: &Connection) -> io::Result<Found> {
        let terms = &connection.agreed.terms;
        let to = To { style: terms.style, cookie: request.cookie, start: request.start };
        match check(request, terms) {
            Ok(task) => {
                own.payload.cut(0);
                let payload = own.payload.room(index(request.payload_bytes));
                if payload.len() > self.input.waiting().len() {
                    self.send(connection)?;
                }
                self.input.receive_into(payload, &connection.socket)?;
                Ok(Found::Task(task, to))
            }
            Err(refusal) => {
                if request.payload_bytes > count(self.input.waiting().len()) {
                    self.send(connection)?;
                }
                self.input.skip(request.payload_bytes, &connection.socket)?;
                self.refuse(to, refusal);
                Ok(Found::Nothing)
            }
        }
    }

    fn refuse(&mut self, to: To, refusal: Refusal) {
        let mut reply = self.spare.pop().unwrap_or_default();
        to.refused(refusal, &mut reply);
        self.keep(reply);
    }
}

impl Connection {
    /// Serves a client on this thread and others until it leaves or is [`Connection::stop`]ped.
    pub(super) fn serve(self: &Arc<Self>) {
        let lead = Lead { input: Input::new(), replies: Vec::new(), replies_bytes: 0, spare: Vec::new() };
        self.post.lock().threads += 1;
        self.work(Some(Box::new(lead)), None);
        let mut post = self.post.lock();
        while post.threads > 0 {
            self.changed.wait(&mut post);
        }
        drop(post);
        // Who stops the server may hold the connection for a moment longer; the client need not wait for that.
        self.socket.close();
    }

    pub(super) fn new(socket: Socket, agreed: Agreed, threads_max: usize, relief: Arc<Relief>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            agreed,
            threads_max,
            relief,
            post: Mutex::default(),
            changed: Condvar::new(),
            sending: Mutex::new(()),
            is_stopping: AtomicBool::new(false),
            reads: Pace::default(),
            writes: Pace::default(),
        })
    }

    /// Is known to who owns the disk from now on.
    pub(super) fn enter(self: &Arc<Self>) {
        let guest: Arc<dyn Guest> = Arc::<Self>::clone(self);
        self.agreed.export.guests.enter(&guest);
    }

    /// Takes no more requests than have come in: what is being done is done, then the connection ends.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.socket.shut(Shutdown::Read);
    }

    /// Ends the connection whatever is being done; nobody waits on the socket any more.
    pub(super) fn cut(&self) {
        self.socket.shut(Shutdown::Both);
        self.end();
    }

    /// Hands the lead on if its holder has been at the short request `seen` since the last look; returns the short
    /// request that is being done now.
    pub(super) fn relieve(self: &Arc<Self>, seen: Option<u64>) -> Option<u64> {
        let mut post = self.post.lock();
        if post.reserved.is_some() && post.reserved == seen {
            post.reserved = None;
            self.rouse(&mut post);
        }
        post.reserved
    }

    /// Returns a number that grows while there is something to do.
    pub(super) fn activity(&self) -> u64 {
        self.post.lock().short
    }

    /// Has somebody take the lead that rests in `post`.
    fn rouse(self: &Arc<Self>, post: &mut Post) {
        if post.following > 0 {
            self.changed.notify_one();
        } else if post.threads < self.threads_max {
            let connection = Arc::clone(self);
            let builder = thread::Builder::new().name("nbd".to_owned()).stack_size(STACK_BYTES);
            if builder.spawn(move || connection.work(None, Some(IDLE))).is_ok() {
                post.threads += 1;
            }
            // Else the thread that is done first takes it.
        }
    }

    /// The life of a thread: until the connection is over, or it had no work for the time `idle`.
    fn work(self: &Arc<Self>, mut lead: Option<Box<Lead>>, idle: Option<Duration>) {
        let _left = Left(self);
        let mut own = Own::default();
        while let Some(held) = lead.take().or_else(|| self.follow(idle)) {
            if let Err(error) = self.lead(held, &mut own) {
                if error.kind() == ErrorKind::InvalidData {
                    tracing::debug!(export = %self.agreed.export.name, "a client does not speak the protocol");
                }
                self.end();
            }
            own.payload.shrink(KEPT_BYTES);
            own.reply.shrink(KEPT_BYTES);
        }
    }

    /// Waits for the lead; `None` where it is over, or there is no need of this thread.
    fn follow(&self, idle: Option<Duration>) -> Option<Box<Lead>> {
        let mut post = self.post.lock();
        loop {
            if post.is_over {
                return None;
            }
            if post.reserved.is_none() && post.lead.is_some() {
                return post.lead.take();
            }
            post.following += 1;
            let is_late = idle.is_some_and(|idle| self.changed.wait_for(&mut post, idle).timed_out());
            if idle.is_none() {
                self.changed.wait(&mut post);
            }
            post.following -= 1;
            if is_late && post.lead.is_none() {
                return None;
            }
        }
    }

    /// No more requests are read; threads end when they are done.
    fn end(&self) {
        let mut post = self.post.lock();
        post.is_over = true;
        post.lead = None;
        drop(post);
        self.changed.notify_all();
    }

    /// Leads until the lead is handed on (then this thread's own request is done, too), or the client leaves (an
    /// error).
    fn lead(self: &Arc<Self>, mut lead: Box<Lead>, own: &mut Own) -> io::Result<()> {
        loop {
            if lead.is_full() {
                lead.send(self)?;
            }
            let request = lead.next(self).inspect_err(|_| drop(lead.send(self)))?;
            if request.command == command::DISC {
                lead.send(self)?;
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let Found::Task(task, to) = lead.admit(&request, own, self)? else { continue };
            if self.pace(&task).is_some_and(|(pace, _)| pace.is_short()) {
                match self.do_short(lead, &task, to, own) {
                    Ok(still) => lead = still,
                    Err(reply) => return self.send_one(&reply),
                }
            } else {
                lead.send(self)?;
                let bytes = held_bytes(&task);
                self.hold(bytes);
                self.hand_on(lead);
                let done = self.do_long(&task, to, own);
                self.release(bytes);
                return done;
            }
        }
    }

    /// Returns the pace that a request belongs to, and its bytes; `None` if no leader does such a request.
    fn pace(&self, task: &Task) -> Option<(&Pace, u64)> {
        match *task {
            Task::Read { range, .. } if range.bytes <= SHORT_BYTES => Some((&self.reads, range.bytes)),
            Task::Write { range, is_durable: false } if range.bytes <= SHORT_BYTES => {
                Some((&self.writes, range.bytes))
            }
            _ => None,
        }
    }

    /// Does a request while the lead rests; returns it, or the reply if somebody else leads now.
    fn do_short(
        self: &Arc<Self>,
        mut lead: Box<Lead>,
        task: &Task,
        to: To,
        own: &Own,
    ) -> Result<Box<Lead>, Buffer> {
        let mut reply = lead.spare.pop().unwrap_or_default();
        let own_number = {
            let mut post = self.post.lock();
            post.short += 1;
            post.lead = Some(lead);
            post.reserved = Some(post.short);
            post.short
        };
        self.relief.attend();
        self.perform(task, own.payload.bytes(), to, &mut reply);
        let mut post = self.post.lock();
        if post.reserved == Some(own_number) {
            post.reserved = None;
            if let Some(mut lead) = post.lead.take() {
                drop(post);
                lead.keep(reply);
                return Ok(lead);
            }
        }
        Err(reply)
    }

    /// Waits until a request may have `bytes` bytes of memory, and takes them.
    fn hold(&self, bytes: u64) {
        let mut post = self.post.lock();
        while post.held_bytes > 0 && post.held_bytes + bytes > HELD_BYTES && !post.is_over {
            self.changed.wait(&mut post);
        }
        post.held_bytes += bytes;
    }

    /// Gives them back.
    fn release(&self, bytes: u64) {
        self.post.lock().held_bytes -= bytes;
        if bytes > 0 {
            self.changed.notify_all();
        }
    }

    /// Lets somebody else lead.
    fn hand_on(self: &Arc<Self>, lead: Box<Lead>) {
        let mut post = self.post.lock();
        if !post.is_over {
            post.lead = Some(lead);
            self.rouse(&mut post);
        }
    }

    /// Does a request and sends its reply.
    fn do_long(&self, task: &Task, to: To, own: &mut Own) -> io::Result<()> {
        own.reply.cut(0);
        self.perform(task, own.payload.bytes(), to, &mut own.reply);
        self.send_one(&own.reply)
    }

    /// Does a request, and learns how long such ones take.
    fn perform(&self, task: &Task, payload: &[u8], to: To, reply: &mut Buffer) {
        let watch = Stopwatch::start();
        perform(&self.agreed, task, payload, to, reply);
        if let Some((pace, bytes)) = self.pace(task) {
            pace.learn(bytes, watch);
        }
    }

    fn send_one(&self, reply: &Buffer) -> io::Result<()> {
        let _sending = self.sending.lock();
        self.socket.send(&mut [IoSlice::new(reply.bytes())])
    }
}

impl Guest for Connection {
    fn peer(&self) -> String {
        self.socket.peer()
    }

    fn is_secret(&self) -> bool {
        self.socket.is_secret()
    }

    fn stop(&self) {
        Self::stop(self);
    }

    fn cut(&self) {
        Self::cut(self);
    }
}

/// Returns how much memory a request's bytes take.
const fn held_bytes(task: &Task) -> u64 {
    match *task {
        Task::Read { range, .. } | Task::Write { range, .. } => range.bytes,
        _ => 0,
    }
}

/// A thread that leaves, also one that fails.
struct Left<'a>(&'a Arc<Connection>);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.cut();
        }
        self.0.post.lock().threads -= 1;
        self.0.changed.notify_all();
    }
}
