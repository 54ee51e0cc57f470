//! One open file of a simulated machine.

use super::{
    Machine,
    disk::{Change, Event},
    fault::{Action, Failure},
    let_stranger_act,
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, units::count},
    io::{Access, Descriptor, File, Kept, Run, Witness, pages::Pages},
};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// An open file; its lock goes when it is dropped.
#[derive(Debug)]
pub(super) struct SimFile {
    machine: Arc<Mutex<Machine>>,
    path: PathBuf,
    inode: u64,
    open: u64,
    access: Mutex<Access>,
    /// Whether a flush failed; see `RealFile`.
    is_lost: AtomicBool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.machine.lock().close(self.open);
    }
}

impl SimFile {
    pub(super) fn new(
        machine: &Arc<Mutex<Machine>>,
        path: &Path,
        inode: u64,
        open: u64,
        access: Access,
    ) -> Self {
        let (machine, path, is_lost) = (Arc::clone(machine), path.to_path_buf(), AtomicBool::new(false));
        Self { machine, path, inode, open, access: Mutex::new(access), is_lost }
    }

    fn failed(&self, doing: &str, e: Errno) -> Error {
        Error::io(doing, e.into()).path(&self.path)
    }

    fn pages<T>(&self, read: impl FnOnce(&Pages) -> T) -> T {
        let machine = self.machine.lock();
        let nothing = Pages::default();
        read(machine.disk.inode(self.inode).map_or(&nothing, |inode| &inode.pages))
    }

    /// Lets a stranger act, then waits while I/Os like this are held.
    fn wait(&self, action: Action) {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        if !machine.faults.waits(self.inode, action) {
            return;
        }
        let released = Arc::clone(&machine.released);
        if matches!(action, Action::Read) {
            // Those after it do not wait.
            machine.faults.held = None;
        }
        machine.faults.waiting += 1;
        let hold = machine.hold;
        released.wait_while(&mut machine, |machine| machine.hold == hold);
        machine.faults.waiting -= 1;
    }

    /// Performs a change, unless a failure is due.
    fn change(&self, doing: &str, change: Change) -> Result<()> {
        if !self.access.lock().writes() {
            return Err(self.failed(doing, Errno::BADF));
        }
        self.wait(Action::Change);
        let mut machine = self.machine.lock();
        let failure = machine.faults.next_on(self.inode, Action::Change);
        let is_short = failure == Some(Failure::Short);
        match (failure, change) {
            (None, change) => machine.change(self.inode, change),
            (Some(Failure::Short), Change::Write { at, data, grows }) => {
                let half = data.get(..data.len() / 1024 * 512).unwrap_or_default();
                machine.change(self.inode, Change::Write { at, data: Arc::from(half), grows });
            }
            (Some(_), _) => {}
        }
        match failure {
            None => Ok(()),
            Some(failure) => Err(self.failed(doing, if is_short { Errno::NOSPC } else { failure.errno() })),
        }
    }

    fn flush_file(&self, has_time: bool) -> Result<()> {
        self.wait(Action::Barrier);
        let mut machine = self.machine.lock();
        let failure = machine.faults.next_on(self.inode, Action::Barrier).map(Failure::errno);
        if let Some(e) = failure.or(self.is_lost.load(Relaxed).then_some(Errno::IO)) {
            self.is_lost.store(true, Relaxed);
            return Err(self.failed("flush", e));
        }
        machine.barrier(Event::Flush { inode: self.inode, has_time });
        Ok(())
    }
}

impl File for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.pages(Pages::bytes))
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.wait(Action::Read);
        if let Some(failure) = self.machine.lock().faults.next(Action::Read) {
            return Err(self.failed(&format!("read {} bytes at {at:#x}", buf.len()), failure.errno()));
        }
        self.pages(|pages| pages.read(at, buf));
        Ok(())
    }

    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let doing = format!("write {} bytes at {at:#x}", buf.len());
        let grows = at.plus(count(buf.len())).bytes() > self.bytes()?;
        self.change(&doing, Change::Write { at, data: Arc::from(buf), grows })
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        let range = match kept {
            Kept::Space => range,
            Kept::Nothing => range.clip(HostOffset::new(0).range(self.bytes()?)),
        };
        if range.is_empty() {
            return Ok(());
        }
        let doing = format!("zero {} bytes at {:#x}", range.bytes, range.start);
        let grows = range.end().bytes() > self.bytes()?;
        self.change(&doing, Change::Zero { range, grows })
    }

    fn zeroes_fast(&self, _kept: Kept) -> bool {
        true
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let doing = format!("reserve {} bytes at {:#x}", range.bytes, range.start);
        self.change(&doing, Change::Grow { bytes: range.end().bytes() })
    }

    fn set_bytes(&self, bytes: u64) -> Result<()> {
        self.change(&format!("set the length to {bytes} bytes"), Change::Cut { bytes })
    }

    fn flush(&self) -> Result<()> {
        self.flush_file(false)
    }

    fn flush_with_time(&self) -> Result<()> {
        self.flush_file(true)
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        Ok(self.pages(|pages| pages.run_at(at)))
    }

    fn witness(&self) -> Result<Witness> {
        Ok(self.machine.lock().witness(self.inode))
    }

    fn allocated_bytes(&self) -> Result<u64> {
        if self.machine.lock().faults.broken.contains(&self.inode) {
            return Err(self.failed("find out how much space it takes", Errno::IO));
        }
        Ok(self.pages(Pages::held_bytes))
    }

    fn descriptor(&self) -> Option<Descriptor> {
        None
    }

    fn is_device(&self) -> bool {
        false
    }

    fn set_access(&self, access: Access) -> Result<()> {
        self.machine.lock().relock(&self.path, (self.open, self.inode), access)?;
        *self.access.lock() = access;
        Ok(())
    }
}
