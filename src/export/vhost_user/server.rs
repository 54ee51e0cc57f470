//! A socket for each disk, at which one virtual machine at a time comes in; when it leaves, the next can.

use super::device::{Backend, Device};
use crate::{
    base::{Error, Result, clock::Stopwatch},
    export::{Exports, Guest, listen_privately},
};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::{
    fs,
    io::{self, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};

/// A place at which a disk is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The export's name.
    pub export: String,
    /// Where the socket is made; only its owner can use it.
    pub path: PathBuf,
}

/// A server of disks by vhost-user-blk.
pub struct Server {
    doors: Vec<Door>,
}

/// A socket, and the thread that waits at it.
struct Door {
    post: Arc<Post>,
    /// Whatever is written here wakes the thread.
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// What the threads of a socket have.
struct Post {
    exports: Arc<dyn Exports>,
    socket: Socket,
    listener: UnixListener,
    is_stopping: AtomicBool,
    machine: Mutex<Option<Arc<Machine>>>,
    left: Condvar,
}

/// A virtual machine that is here.
struct Machine {
    device: Arc<Device>,
    handle: Option<ShutdownHandle>,
    place: String,
}

impl Guest for Machine {
    fn peer(&self) -> String {
        self.place.clone()
    }

    fn is_secret(&self) -> bool {
        false
    }

    fn stop(&self) {
        self.device.stop();
        self.cut();
    }

    fn cut(&self) {
        self.handle.as_ref().map(ShutdownHandle::shutdown);
    }
}

impl Server {
    /// Serves exports at all of `sockets` until [`Server::stop`]. Whether there is an export of that name is asked
    /// whenever a virtual machine comes in.
    ///
    /// A socket that a process left behind is replaced; `Busy` if somebody listens there.
    pub fn start(sockets: &[Socket], exports: &Arc<dyn Exports>) -> Result<Self> {
        let mut server = Self { doors: Vec::new() };
        for socket in sockets {
            server.doors.push(Door::open(socket, exports)?);
        }
        Ok(server)
    }

    /// Lets nobody in any more, does what guests have asked for and was taken up, for at most `patience`, and closes.
    /// Returns whether all was done. The disks are not flushed.
    pub fn stop(mut self, patience: Duration) -> bool {
        let watch = Stopwatch::start();
        self.doors.iter_mut().for_each(Door::close);
        self.doors.iter().fold(true, |is_done, door| {
            let left = patience.saturating_sub(watch.elapsed());
            door.post.wait(left) && is_done
        })
    }
}

impl Door {
    fn open(socket: &Socket, exports: &Arc<dyn Exports>) -> Result<Self> {
        let failed = |e: io::Error| Error::io("listen", e).path(&socket.path);
        let listener = listen_privately(&socket.path)?;
        let (waker, wakes) = UnixStream::pair().map_err(failed)?;
        let post = Arc::new(Post {
            exports: Arc::clone(exports),
            socket: socket.clone(),
            listener,
            is_stopping: AtomicBool::new(false),
            machine: Mutex::new(None),
            left: Condvar::new(),
        });
        let mut door = Self { post: Arc::clone(&post), waker, thread: None };
        let builder = thread::Builder::new().name("vhost-door".to_owned());
        door.thread = Some(builder.spawn(move || post.attend(&wakes)).map_err(failed)?);
        Ok(door)
    }

    /// Lets nobody in any more, and has the guest that is here leave.
    fn close(&mut self) {
        self.post.is_stopping.store(true, Relaxed);
        // The thread may have ended by itself.
        drop((&self.waker).write(&[0]));
        let Some(thread) = self.thread.take() else { return };
        drop(thread.join());
        self.post.machine.lock().as_ref().inspect(|machine| machine.stop());
        // Gone already is as good.
        drop(fs::remove_file(&self.post.socket.path));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

impl Post {
    /// Lets in who comes, until the server stops.
    fn attend(self: &Arc<Self>, wakes: &UnixStream) {
        while !self.is_stopping.load(Relaxed) {
            let mut watched = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(wakes, PollFlags::IN)];
            if rustix::event::poll(&mut watched, None).is_err() {
                continue;
            }
            let has_come = watched.first().is_some_and(|fd| !fd.revents().is_empty());
            if !has_come || self.is_stopping.load(Relaxed) {
                continue;
            }
            if let Err(error) = self.admit() {
                tracing::warn!(export = %self.socket.export, %error, "a virtual machine is sent away");
                self.send_away();
            }
        }
    }

    /// Serves who has come. It stands at the socket still if this fails before it was let in.
    fn admit(self: &Arc<Self>) -> Result<()> {
        if self.machine.lock().is_some() {
            return Err(Error::busy("another virtual machine has the disk"));
        }
        let export = self.exports.open(&self.socket.export)?;
        let failed = |e: &dyn std::fmt::Display| Error::io("serve a guest", io::Error::other(e.to_string()));
        let guests = Arc::clone(&export.guests);
        let device = Device::new(export);
        let name = "vhost-user".to_owned();
        let memory = device.memory.clone();
        let daemon = VhostUserDaemon::new(name, Backend(Arc::clone(&device)), memory);
        let mut daemon = daemon.map_err(|e| failed(&e))?;
        let mut listener = Listener::from(self.listener.try_clone().map_err(|e| failed(&e))?);
        daemon.start(&mut listener).map_err(|e| failed(&e))?;
        let handle = daemon.shutdown_handle();
        let place = format!("vhost-user:{}", self.socket.path.display());
        let machine = Arc::new(Machine { device: Arc::clone(&device), handle, place });
        guests.enter(&(Arc::clone(&machine) as Arc<dyn Guest>));
        *self.machine.lock() = Some(machine);
        let post = Arc::clone(self);
        let serve = move || {
            let _leaves = Leaves(post);
            if let Err(error) = daemon.wait() {
                tracing::debug!(%error, "a virtual machine has left");
            }
            // Ends the threads of the queues.
            drop(daemon);
            device.join();
            drop(device);
        };
        let builder = thread::Builder::new().name("vhost-guest".to_owned());
        if let Err(e) = builder.spawn(serve) {
            // With the closure the connection has gone.
            return Err(failed(&e));
        }
        Ok(())
    }

    /// Closes the connection of who stands at the socket, if anybody does.
    fn send_away(&self) {
        let mut watched = [PollFd::new(&self.listener, PollFlags::IN)];
        if rustix::event::poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            && self.listener.accept().is_err()
        {
            // No descriptor for it, perhaps: none will be free at once.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until no machine is here; false if one still is after `patience`.
    fn wait(&self, patience: Duration) -> bool {
        let watch = Stopwatch::start();
        let mut machine = self.machine.lock();
        while machine.is_some() {
            let left = patience.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return false;
            }
            self.left.wait_for(&mut machine, left);
        }
        true
    }
}

/// A machine leaves, also where its thread fails.
struct Leaves(Arc<Post>);

impl Drop for Leaves {
    fn drop(&mut self) {
        *self.0.machine.lock() = None;
        self.0.left.notify_all();
    }
}
