//! One thread of a server that looks whether a leader is held up, and has another one lead.
//!
//! It looks about once a millisecond while there is something to do, and sleeps otherwise.

use super::connection::Connection;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

/// How often it looks. A request that is seen twice has taken at least this long.
const LOOK: Duration = Duration::from_millis(1);
/// It sleeps after this many looks at which nothing had happened.
const QUIET_LOOKS: u32 = 20;

/// The relief of all connections of a server.
#[derive(Default)]
pub(super) struct Relief {
    connections: Mutex<Vec<Watched>>,
    is_asleep: AtomicBool,
    is_over: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A connection, and what was seen of it last.
struct Watched {
    connection: Weak<Connection>,
    short: Option<u64>,
    activity: u64,
}

impl Relief {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<Arc<Self>> {
        let relief = Arc::new(Self::default());
        let own = Arc::clone(&relief);
        let handle = thread::Builder::new().name("nbd-relief".to_owned()).spawn(move || own.watch())?;
        // Nothing attends before this returns.
        let _ = relief.thread.set(handle.thread().clone());
        Ok(relief)
    }

    /// Watches a connection from now on.
    pub(super) fn add(&self, connection: &Arc<Connection>) {
        let watched = Watched { connection: Arc::downgrade(connection), short: None, activity: 0 };
        self.connections.lock().push(watched);
    }

    /// Has it look, since something begins that may take long. Called after that can be seen.
    pub(super) fn attend(&self) {
        if self.is_asleep.load(SeqCst) {
            self.wake();
        }
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        self.is_over.store(true, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        self.is_asleep.store(false, SeqCst);
        self.thread.get().inspect(|thread| thread.unpark());
    }

    fn watch(&self) {
        let mut quiet = 0;
        while !self.is_over.load(SeqCst) {
            quiet = if self.look() { 0 } else { quiet + 1 };
            if quiet < QUIET_LOOKS {
                thread::park_timeout(LOOK);
                continue;
            }
            self.is_asleep.store(true, SeqCst);
            // What began before this was set is seen here; what begins after it wakes this thread.
            if !self.look() {
                while self.is_asleep.load(SeqCst) && !self.is_over.load(SeqCst) {
                    thread::park();
                }
            }
            self.is_asleep.store(false, SeqCst);
            quiet = 0;
        }
    }

    /// Looks at all connections; returns whether something happened since the last time.
    fn look(&self) -> bool {
        let mut is_busy = false;
        self.connections.lock().retain_mut(|watched| {
            let Some(connection) = watched.connection.upgrade() else { return false };
            let activity = connection.activity();
            let short = connection.relieve(watched.short);
            is_busy |= short.is_some() || activity != watched.activity;
            (watched.short, watched.activity) = (short, activity);
            true
        });
        is_busy
    }
}
