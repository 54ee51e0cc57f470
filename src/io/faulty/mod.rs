//! A simulated machine whose files have a write-back cache, lose power and fail.
//!
//! Programs run on a [`SimHost`] as on a real one and see their own changes at once; the disk is promised
//! only what a flush (for a file's bytes and length) or a sync of the folder (for its names) covered. The
//! machine keeps a trace of all changes and barriers, from which [`crash_states`] makes every machine that a
//! power cut could leave. Nothing here depends on time or chance: a seed gives one run.
//!
//! ```text
//!   program -> SimFile -> disk as seen (cache)      fail: the n-th I/O
//!                      -> trace -> crash_states -> SimHost, SimHost, ...
//! ```

mod crash;
mod disk;
mod fault;
mod file;

pub use crash::{Crash, Landing, Trace, crash_states, kill_states};
pub use fault::{Failure, Fault, Waits};

use super::{Access, Entry, EntryKind, File, Host, Status, Witness};
use crate::base::{Error, ErrorKind, HostOffset, Result, units::count};
use disk::{Change, Disk, Event, Inode, NameChange, Node};
use fault::{Action, Faults, Stranger};
use file::SimFile;
use parking_lot::{Condvar, Mutex};
use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// A simulated machine; clones are the same machine.
#[derive(Clone, Debug)]
pub struct SimHost {
    machine: Arc<Mutex<Machine>>,
}

#[derive(Debug)]
struct Machine {
    boot: u128,
    /// The disk when the machine was switched on.
    start: Disk,
    /// The disk as programs see it.
    disk: Disk,
    events: Vec<Event>,
    time: u64,
    /// Open files: number, inode, access.
    open: Vec<(u64, u64, Access)>,
    next: u64,
    faults: Faults,
    /// How often what was held has been let go.
    hold: u64,
    released: Arc<Condvar>,
}

impl SimHost {
    /// Returns a machine with an empty disk: one folder, `/`, which is also the working folder.
    pub fn new() -> Self {
        Self::boot(Disk::new(), 1)
    }

    fn boot(disk: Disk, boot: u128) -> Self {
        let start = disk.clone();
        Self::go_on(disk, Trace { boot, start, events: Vec::new() })
    }

    /// The machine after `trace`, with nothing open.
    fn go_on(disk: Disk, Trace { boot, start, events }: Trace) -> Self {
        let time = disk.files.values().map(|inode| inode.modified).max().unwrap_or_default() + 1;
        let next = disk.files.last_key_value().map_or(1, |(inode, _)| inode + 1);
        let (open, faults, hold, released) = (Vec::new(), Faults::default(), 0, Arc::default());
        let machine = Machine { boot, start, disk, events, time, open, next, faults, hold, released };
        Self { machine: Arc::new(Mutex::new(machine)) }
    }

    /// Returns what the machine did since it was switched on.
    pub fn trace(&self) -> Trace {
        let machine = self.machine.lock();
        Trace { boot: machine.boot, start: machine.start.clone(), events: machine.events.clone() }
    }

    /// Returns how many events the trace has now.
    pub fn events(&self) -> usize {
        self.machine.lock().events.len()
    }

    /// Returns how many I/Os there were: reads, changes, barriers, whether they failed or not.
    pub fn ios(&self) -> u64 {
        self.machine.lock().faults.ios
    }

    /// Lets an I/O fail, or with `None` none from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        self.machine.lock().faults.fault = fault;
    }

    /// Has every change and flush of the file that is called so now fail (`EIO`), whatever it is called later, and nobody
    /// find out its space; or lets it be changed again.
    pub fn break_file(&self, path: &Path, is_broken: bool) -> Result<()> {
        let mut machine = self.machine.lock();
        let inode = machine.file(path)?;
        let broken = &mut machine.faults.broken;
        if is_broken {
            broken.insert(inode)
        } else {
            broken.remove(&inode)
        };
        Ok(())
    }

    /// Has I/Os of the file that is called so now wait, and no other file's, until [`SimHost::release`].
    pub fn hold(&self, path: &Path, waits: Waits) -> Result<()> {
        let mut machine = self.machine.lock();
        let inode = machine.file(path)?;
        machine.faults.held = Some((inode, waits));
        Ok(())
    }

    /// Has `stranger` act once, right before the I/O numbered `at` ([`SimHost::ios`] counts them).
    pub fn before_io(&self, at: u64, stranger: impl FnOnce() + Send + 'static) {
        self.machine.lock().faults.stranger = Some((at, Stranger(Box::new(stranger))));
    }

    /// Changes bytes of a file as a program does that heeds no locks.
    pub fn write_rudely(&self, path: &Path, at: HostOffset, bytes: &[u8]) -> Result<()> {
        let mut machine = self.machine.lock();
        let inode = machine.file(path)?;
        let grows = at.plus(count(bytes.len())).bytes() > machine.witness(inode).bytes;
        machine.change(inode, Change::Write { at, data: Arc::from(bytes), grows });
        Ok(())
    }

    /// Returns how many I/Os wait.
    pub fn waiting(&self) -> usize {
        self.machine.lock().faults.waiting
    }

    /// Lets what waits go on; nothing is held any more.
    pub fn release(&self) {
        let mut machine = self.machine.lock();
        machine.faults.held = None;
        machine.hold += 1;
        machine.released.notify_all();
    }

    /// Returns another machine in the same state and of the same boot: everything is on its disk, nothing is
    /// open, its trace is empty.
    #[must_use]
    pub fn twin(&self) -> Self {
        let machine = self.machine.lock();
        Self::boot(machine.disk.clone(), machine.boot)
    }

    /// Begins to count the barriers of one operation (flushes of files and syncs of folders) at 0, and lets
    /// those numbered in `forgotten` report success and do nothing: what a program does that has forgotten them.
    pub fn begin_operation(&self, forgotten: impl IntoIterator<Item = u64>) {
        self.machine.lock().faults.begin(forgotten.into_iter().collect(), false);
    }

    /// As [`SimHost::begin_operation`] with nothing forgotten; notes who asks for each barrier.
    pub fn begin_named_operation(&self) {
        self.machine.lock().faults.begin(Vec::new(), true);
    }

    /// Returns who asked for each barrier of a named operation, in order.
    pub fn barrier_names(&self) -> Vec<String> {
        self.machine.lock().faults.names.clone().unwrap_or_default()
    }

    /// Returns how many barriers the operation has had.
    pub fn barriers(&self) -> u64 {
        self.machine.lock().faults.barriers
    }
}

impl Default for SimHost {
    fn default() -> Self {
        Self::new()
    }
}

/// Lets a stranger act whose I/O is next; the machine is not locked meanwhile.
fn let_stranger_act(machine: &Mutex<Machine>) {
    let due = machine.lock().faults.due();
    if let Some(Stranger(act)) = due {
        act();
    }
}

fn not_found(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, "is not there").path(path)
}

/// The absolute path without `.` and `..`.
fn resolved(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::from("/"), |mut whole, part| {
        match part {
            Component::Normal(name) => whole.push(name),
            Component::ParentDir => drop(whole.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
        whole
    })
}

impl Machine {
    fn change(&mut self, inode: u64, change: Change) {
        self.time += 1;
        self.disk.apply(inode, &change);
        self.disk.set_modified(inode, self.time);
        self.events.push(Event::Content { inode, change, time: self.time });
    }

    fn barrier(&mut self, event: Event) {
        if self.faults.barrier_works() {
            self.events.push(event);
        }
    }

    /// Changes a name, unless a failure is due.
    fn rename(&mut self, doing: &str, change: NameChange) -> Result<()> {
        if let Some(failure) = self.faults.next(Action::Change) {
            return Err(Error::io(doing, failure.errno().into()).path(&change.path));
        }
        self.disk.rename(&change);
        self.events.push(Event::Name(change));
        Ok(())
    }

    fn node(&self, path: &Path) -> Option<Node> {
        self.disk.names.get(&resolved(path)).copied()
    }

    fn file(&self, path: &Path) -> Result<u64> {
        match self.node(path) {
            Some(Node::File(inode)) => Ok(inode),
            Some(Node::Folder) => Err(Error::policy("is a folder, not a file or block device").path(path)),
            None => Err(not_found(path)),
        }
    }

    /// The resolved path of a name that can be made: its folder is there, and it is not unless `replace`.
    fn new_name(&self, path: &Path, replace: bool) -> Result<PathBuf> {
        let path = resolved(path);
        let folder = path.parent().and_then(|folder| self.disk.names.get(folder));
        match (folder, self.node(&path)) {
            (Some(Node::Folder), Some(Node::File(_))) if replace => Ok(path),
            (Some(Node::Folder), None) => Ok(path),
            (Some(Node::Folder), Some(_)) => {
                Err(Error::new(ErrorKind::Exists, "is there already").path(path))
            }
            _ => Err(not_found(&path)),
        }
    }

    fn lock(&mut self, path: &Path, inode: u64, access: Access) -> Result<u64> {
        self.next += 1;
        self.relock(path, (self.next, inode), access)?;
        Ok(self.next)
    }

    /// Has the open file of a number be locked in this way, unless another one of the inode stands against it.
    fn relock(&mut self, path: &Path, (number, inode): (u64, u64), access: Access) -> Result<()> {
        let clashes = |held: Access| match access {
            Access::ReadShared => false,
            Access::Read | Access::ReadToWrite => held == Access::Write,
            Access::Write => held != Access::ReadShared,
        };
        let mut others = self.open.iter().filter(|(open, of, _)| *open != number && *of == inode);
        if others.any(|(_, _, held)| clashes(*held)) {
            return Err(Error::busy("is open elsewhere on the simulated machine").path(path));
        }
        self.close(number);
        self.open.push((number, inode, access));
        Ok(())
    }

    fn close(&mut self, number: u64) {
        self.open.retain(|(open, ..)| *open != number);
    }

    fn witness(&self, inode: u64) -> Witness {
        let Inode { pages, modified } = self.disk.inode(inode).cloned().unwrap_or_default();
        let modified_ns = i128::from(modified);
        Witness { file_system: 1, inode, bytes: pages.bytes(), modified_ns, boot: self.boot }
    }
}

impl Host for SimHost {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>> {
        let mut machine = self.machine.lock();
        let inode = machine.file(path)?;
        let open = machine.lock(path, inode, access)?;
        Ok(Arc::new(SimFile::new(&self.machine, path, inode, open, access)))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        let name = machine.new_name(path, false)?;
        machine.next += 1;
        let inode = machine.next;
        machine.rename("create", NameChange { path: name, node: Some(Node::File(inode)), replaces: None })?;
        let open = machine.lock(path, inode, Access::Write)?;
        Ok(Arc::new(SimFile::new(&self.machine, path, inode, open, Access::Write)))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        let inode = machine.file(from)?;
        let path = machine.new_name(to, true)?;
        let replaces = Some(resolved(from)).filter(|from| *from != path);
        machine.rename("rename", NameChange { path, node: Some(Node::File(inode)), replaces })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        let inode = machine.file(from)?;
        let path = machine.new_name(to, false)?;
        let replaces = Some(resolved(from));
        machine.rename("rename", NameChange { path, node: Some(Node::File(inode)), replaces })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        machine.file(path)?;
        machine.rename("remove", NameChange { path: resolved(path), node: None, replaces: None })
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        let mut machine = self.machine.lock();
        let whole = resolved(path);
        let mut folders: Vec<&Path> = whole.ancestors().collect();
        folders.reverse();
        for folder in folders {
            match machine.node(folder) {
                Some(Node::Folder) => {}
                Some(Node::File(_)) => {
                    return Err(Error::new(ErrorKind::Exists, "is a file, not a folder").path(folder));
                }
                None => {
                    let path = folder.to_path_buf();
                    let change = NameChange { path, node: Some(Node::Folder), replaces: None };
                    machine.rename("make a folder", change)?;
                }
            }
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        let_stranger_act(&self.machine);
        let mut machine = self.machine.lock();
        if machine.node(folder) != Some(Node::Folder) {
            return Err(not_found(folder));
        }
        if let Some(failure) = machine.faults.next(Action::Barrier) {
            return Err(Error::io("make names durable", failure.errno().into()).path(folder));
        }
        machine.barrier(Event::Sync { folder: resolved(folder) });
        Ok(())
    }

    fn list(&self, folder: &Path) -> Result<Vec<Entry>> {
        let machine = self.machine.lock();
        if machine.node(folder) != Some(Node::Folder) {
            return Err(not_found(folder));
        }
        let whole = resolved(folder);
        let inside = machine.disk.names.iter().filter(|(path, _)| path.parent() == Some(&whole));
        let entries = inside.filter_map(|(path, node)| {
            let kind = if node.file().is_some() { EntryKind::File } else { EntryKind::Folder };
            Some(Entry { path: folder.join(path.file_name()?), kind, is_link: false })
        });
        Ok(entries.collect())
    }

    fn kind(&self, path: &Path) -> Result<Option<EntryKind>> {
        Ok(self.machine.lock().node(path).map(|node| match node {
            Node::File(_) => EntryKind::File,
            Node::Folder => EntryKind::Folder,
        }))
    }

    fn is_taken(&self, path: &Path) -> Result<bool> {
        Ok(self.kind(path)?.is_some())
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        self.kind(path)?.map(|_| resolved(path)).ok_or_else(|| not_found(path))
    }

    fn opened_as(&self, file: &dyn File) -> Result<PathBuf> {
        let inode = file.witness()?.inode;
        let machine = self.machine.lock();
        let is_it = |node: &Node| node.file() == Some(inode);
        // Of several names the one that it was opened by.
        if machine.node(file.path()).is_some_and(|node| is_it(&node)) {
            return Ok(resolved(file.path()));
        }
        let found = machine.disk.names.iter().find(|(_, node)| is_it(node));
        found.map(|(path, _)| path.clone()).ok_or_else(|| not_found(file.path()))
    }

    fn witness(&self, path: &Path) -> Result<Witness> {
        let machine = self.machine.lock();
        Ok(machine.witness(machine.file(path)?))
    }

    /// Folders have no times here.
    fn status(&self, path: &Path) -> Result<Status> {
        let Witness { inode, bytes, modified_ns, .. } = self.witness(path)?;
        Ok(Status { device: 1, inode, bytes, modified_ns, changed_ns: modified_ns })
    }

    fn machine(&self) -> u128 {
        1
    }

    fn free_bytes(&self, _folder: &Path) -> Result<u64> {
        Ok(1 << 50)
    }
}

#[cfg(test)]
mod tests;
