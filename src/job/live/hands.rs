//! Threads for I/O that may never return: whoever waits for it can go on without.
//!
//! What stays true: what was left behind is counted until it has returned, so that nobody takes its file for quiet.

use crate::base::{Error, Result, clock::Stopwatch};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

/// How long what is under way may take to return when it is waited for.
const LAST: Duration = Duration::from_secs(1);

/// Counts what is under way, until it has returned, come to grief or never begun.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// It was not waited for any longer, or has come to grief.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left;

type Task = Box<dyn FnOnce() + Send>;

/// As many threads as there is work, and the work that they have not returned from.
pub(super) struct Hands {
    /// Taken by a thread that waits, or by none.
    offer: Sender<Task>,
    taken: Receiver<Task>,
    under_way: Arc<AtomicUsize>,
    patience: Duration,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hands").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl Hands {
    /// Waits for each piece of work as long as `patience` says.
    pub(super) fn new(patience: Duration) -> Self {
        let (offer, taken) = bounded(0);
        Self { offer, taken, under_way: Arc::default(), patience }
    }

    /// Does `work` in another thread, and returns what comes of it, or [`Left`] if it has not returned in time: it may go
    /// on then.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::result::Result<T, Left> {
        let (tell, told) = bounded(1);
        let under_way = UnderWay::new(&self.under_way);
        self.give(Box::new(move || {
            let done = work();
            drop(under_way);
            // Nobody may wait any more.
            drop(tell.send(done));
        }));
        told.recv_timeout(self.patience).map_err(|_| Left)
    }

    fn give(&self, task: Task) {
        let Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) = self.offer.try_send(task)
        else {
            return;
        };
        let taken = self.taken.clone();
        let work = move |first: Task| {
            first();
            while let Ok(task) = taken.recv_timeout(IDLE) {
                task();
            }
        };
        // Without a thread the task is dropped, which whoever waits for it notices.
        drop(thread::Builder::new().name("target".to_owned()).spawn(move || work(task)));
    }

    /// Fails while something has not returned.
    pub(super) fn check_quiet(&self) -> Result<()> {
        let watch = Stopwatch::start();
        while self.under_way.load(SeqCst) > 0 {
            if watch.elapsed() > LAST {
                return Err(Error::busy(
                    "does not answer: I/O that was begun has not returned yet, and may still land",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
