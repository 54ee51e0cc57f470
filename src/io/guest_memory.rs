//! The memory of virtual machines, mapped: it lies in files that belong to them, and who makes such a file shorter takes
//! memory away under whoever reads it. The kernel tells by SIGBUS, which ends the process, and with it every other disk.
//!
//! What stays true: where memory is [`Lent`] and goes, zeros of our own take its place, region by region: the machine that
//! took it away has lost it, and nobody else has lost anything. A SIGBUS for any other reason does what it did before, a
//! moment later: the queues of a machine may touch new memory just before it is lent.

use crate::base::{Error, Result};
use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

/// Regions of memory that all machines have together: a machine has a handful, eight and more are asked of the protocol.
const PLACES: usize = 4096;

/// How often it is looked whether memory that is gone has been lent by now: a millisecond apart.
const TRIES: u32 = 1000;

/// A region of mapped memory. Free where `start` is 0; nothing is there until `bytes` is set.
struct Place {
    start: AtomicUsize,
    bytes: AtomicUsize,
}

/// Read by the signal's handler: no lock, no allocation.
static LENT: [Place; PLACES] =
    [const { Place { start: AtomicUsize::new(0), bytes: AtomicUsize::new(0) } }; PLACES];

/// What a SIGBUS did before; set once the handler is there.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Memory of a machine that may be taken away; it stays mapped as long as this is there.
#[derive(Debug)]
pub struct Lent {
    memory: Arc<GuestMemoryMmap>,
    places: Vec<usize>,
}

impl Lent {
    /// Has the process survive that `memory` goes.
    ///
    /// Fails where machines have more regions together than are kept account of.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Result<Self> {
        listen()?;
        let mut lent = Self { memory, places: Vec::new() };
        for region in lent.memory.iter() {
            let (start, bytes) = (region.as_ptr().addr(), region.size());
            let is_taken = |place: &Place| place.start.compare_exchange(0, start, AcqRel, Relaxed).is_ok();
            let found = LENT.iter().enumerate().find(|(_, place)| is_taken(place));
            let (at, place) =
                found.ok_or_else(|| Error::busy("virtual machines have too many pieces of memory"))?;
            place.bytes.store(bytes, Release);
            lent.places.push(at);
        }
        Ok(lent)
    }

    /// Returns whether nobody else has the memory.
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for place in self.places.iter().filter_map(|at| LENT.get(*at)) {
            place.bytes.store(0, Release);
            place.start.store(0, Release);
        }
    }
}

/// Has the signal's handler be there.
fn listen() -> Result<()> {
    let mut done = Ok(());
    BEFORE.get_or_init(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: zeros are a `struct sigaction` without flags and with an empty mask; both outlive the call, which reads
        // the one and writes the other; the handler keeps to what a handler may do (`signal-safety(7)`).
        unsafe {
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
            (*action.as_mut_ptr()).sa_sigaction = handler as *const () as usize;
            (*action.as_mut_ptr()).sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGBUS, action.as_ptr(), before.as_mut_ptr()) != 0 {
                done = Err(Error::io("prepare for lost memory", std::io::Error::last_os_error()));
            }
            before.assume_init()
        }
    });
    done
}

/// Puts zeros in the place of the region that is touched, as soon as it is lent, or steps back.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the signal's own information.
    let at = unsafe { (*info).si_addr() }.addr();
    for _ in 0..TRIES {
        for place in &LENT {
            let (bytes, start) = (place.bytes.load(Acquire), place.start.load(Relaxed));
            if at.checked_sub(start).is_some_and(|offset| offset < bytes) && is_replaced(start, bytes) {
                return;
            }
        }
        nap();
    }
    let Some(before) = BEFORE.get() else { return };
    // SAFETY: `before` is what the kernel said of this signal. It comes again as soon as this returns, and finds that.
    unsafe {
        libc::sigaction(signal, before, ptr::null_mut());
        libc::raise(signal);
    }
}

/// Waits for a millisecond, as a handler may.
fn nap() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // SAFETY: the time outlives the call, which is one that a handler may make; errno is the interrupted thread's.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::nanosleep(&raw const time, ptr::null_mut());
        *errno = before;
    }
}

/// Maps zeros over a lent region; returns whether they are there.
fn is_replaced(start: usize, bytes: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: all of the region is mapped memory of a machine, which anybody may change at any time, so that nobody relies
    // on what it holds; it stays mapped (`Lent` has it), so that nothing else is there. errno is the interrupted thread's.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let start = ptr::without_provenance_mut::<c_void>(start);
        let mapped = libc::mmap(start, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        *errno = before;
        mapped != libc::MAP_FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{thread, time::Duration};
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    #[test]
    fn memory_that_is_gone_before_it_is_lent_is_zeros_from_then_on() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 16).unwrap();
        let region = (GuestAddress(0), 1 << 16, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([region]).unwrap());
        listen().unwrap();
        file.set_len(0).unwrap();
        let reader = thread::spawn({
            let memory = Arc::clone(&memory);
            move || memory.read_obj::<u64>(GuestAddress(8)).unwrap()
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!reader.is_finished());
        let _lent = Lent::new(memory).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    }
}
