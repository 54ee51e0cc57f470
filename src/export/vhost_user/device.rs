//! One guest's device: its queues, and the threads that work for them.
//!
//! One thread takes requests from all rings: being woken costs as much as a short request does, and while it is awake
//! guests do not wake it. Short ones it does itself, and tells the guest of several at once. What takes long, by its kind or
//! by how long such requests took lately, goes to threads that all queues share: then many are under way.
//!
//! What stays true: a request that was taken gets its answer, also while the connection ends; once a queue has stopped
//! nothing of it touches the guest's memory. No lock is held during a disk's operation. Lock order: a ring's, then
//! nothing; `work`, then nothing.

use super::{
    perform::{Answer, Chain, Request, Target},
    request::{DATA_SEGMENTS_MAX, STRETCH_SECTORS_MAX, STRETCHES_MAX, Segment, Task, Terms},
    wire::{Config, SECTOR_BYTES, feature},
};
use crate::{
    base::{clock::Stopwatch, units::index},
    export::{
        Export,
        pace::{Pace, SHORT_BYTES},
    },
    io::Lent,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

/// Queues of a device; a guest uses as many as it has processors, its hypervisor fewer if told so.
pub(super) const QUEUES: u16 = 8;
/// Descriptors of a queue.
const QUEUE_SIZE_MAX: usize = 1024;
/// So many requests of a queue are taken in one go, and the guest is told of their answers at once; then it is the next
/// queue's turn.
const TURN_MAX: u32 = 32;
/// Threads for long requests.
const THREADS_MAX: usize = 16;
/// Long requests that wait for one of them; then the queues wait.
const WAITING_MAX: usize = 256;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Memory that a thread keeps for its next request.
const KEPT_BYTES: usize = 2 << 20;
/// The longest part of its configuration that a hypervisor may ask for, in bytes (`VHOST_USER_CONFIG_SIZE`).
const CONFIG_BYTES_MAX: u32 = 256;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A device.
pub(super) struct Device {
    target: Target,
    config: Config,
    features: u64,
    pub(super) memory: Memory,
    /// All of it that somebody may still use: a guest may take it away at any time.
    lent: Mutex<Vec<Lent>>,
    work: Mutex<Work>,
    /// A long request waits, or the end has come.
    called: Condvar,
    /// A request, or a thread, is done.
    done: Condvar,
    is_over: AtomicBool,
    reads: Pace,
    writes: Pace,
}

/// What is under way.
#[derive(Default)]
struct Work {
    waiting: VecDeque<Long>,
    threads: usize,
    idle: usize,
    /// By queue: its long requests, and the rings' thread while that is at it.
    busy: [usize; QUEUES as usize],
}

/// What the rings' thread uses again from request to request.
#[derive(Default)]
struct Own {
    buf: Vec<u8>,
    chain: Chain,
}

/// What the rings' thread was woken by, and the rings (a bit each) that made no sense since.
struct Round {
    woken_by: usize,
    left_out: u64,
}

/// A request that takes long.
struct Long {
    busy: Busy,
    ring: VringMutex,
    memory: Arc<GuestMemoryMmap>,
    head: u16,
    chain: Chain,
    request: Request,
}

/// Something of a queue is under way as long as this is there.
struct Busy {
    device: Arc<Device>,
    queue: usize,
}

impl Busy {
    fn new(device: &Arc<Device>, queue: usize) -> Self {
        device.work.lock().busy.iter_mut().skip(queue).take(1).for_each(|busy| *busy += 1);
        Self { device: Arc::clone(device), queue }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.device.work.lock().busy.iter_mut().skip(self.queue).take(1).for_each(|busy| *busy -= 1);
        self.device.done.notify_all();
    }
}

impl Device {
    /// A device that is the disk of `export`.
    pub(super) fn new(export: Export) -> Arc<Self> {
        let is_writable = export.is_writable();
        let sectors = export.disk.size() / SECTOR_BYTES;
        let terms = Terms { size: sectors * SECTOR_BYTES, is_writable };
        let mut features = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;
        features |=
            feature::PROTOCOL_FEATURES | feature::MQ | feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        features |= if is_writable { feature::DISCARD | feature::WRITE_ZEROES } else { feature::RO };
        let blk_size = export.disk.sector_bytes();
        let sector_units = u32::try_from(u64::from(blk_size) / SECTOR_BYTES).unwrap_or(1);
        let config = Config {
            capacity: sectors,
            size_max: 0,
            seg_max: DATA_SEGMENTS_MAX,
            geometry: 0,
            blk_size,
            topology: 0,
            writeback: 0,
            unused0: 0,
            num_queues: QUEUES,
            max_discard_sectors: STRETCH_SECTORS_MAX,
            max_discard_seg: STRETCHES_MAX,
            discard_sector_alignment: sector_units,
            max_write_zeroes_sectors: STRETCH_SECTORS_MAX,
            max_write_zeroes_seg: STRETCHES_MAX,
            write_zeroes_may_unmap: 1,
            unused1: [0; 3],
        };
        Arc::new(Self {
            target: Target { disk: export.disk, terms, name: export.name, acked: AtomicU64::new(0) },
            config,
            features,
            memory: GuestMemoryAtomic::new(GuestMemoryMmap::new()),
            lent: Mutex::default(),
            work: Mutex::default(),
            called: Condvar::new(),
            done: Condvar::new(),
            is_over: AtomicBool::new(false),
            reads: Pace::default(),
            writes: Pace::default(),
        })
    }

    /// Takes no more requests; those that were taken are done.
    pub(super) fn stop(&self) {
        let work = self.work.lock();
        self.is_over.store(true, Relaxed);
        drop(work);
        self.called.notify_all();
    }

    /// Waits until all that was taken is done. The rings' thread is gone by now.
    pub(super) fn join(&self) {
        self.stop();
        let mut work = self.work.lock();
        while work.threads > 0 {
            self.done.wait(&mut work);
        }
    }

    /// Does what waits in the rings, in turns, until nothing does; one of them has woken the thread. A ring that makes no
    /// sense waits until it is woken for again: the guest is to set it up anew.
    fn serve(self: &Arc<Self>, woken_by: usize, rings: &[VringMutex]) {
        let (mut own, mut round) = (Own::default(), Round { woken_by, left_out: 0 });
        while !self.is_over.load(Relaxed) {
            let has_worked = self.any(rings, &mut round, |queue, ring| self.take_turn(queue, ring, &mut own));
            if !has_worked && !self.any(rings, &mut round, |_, ring| listen(ring)) {
                return;
            }
        }
    }

    /// Does something with each ring that is not left out; returns whether any of them said yes.
    fn any(
        &self,
        rings: &[VringMutex],
        round: &mut Round,
        mut act: impl FnMut(usize, &VringMutex) -> Result<bool, virtio_queue::Error>,
    ) -> bool {
        let (mut is_any, left_out) = (false, round.left_out);
        for (queue, ring) in rings.iter().enumerate().filter(|(queue, _)| left_out >> queue & 1 == 0) {
            match act(queue, ring) {
                Ok(is_so) => is_any |= is_so,
                Err(error) => {
                    round.left_out |= 1 << queue;
                    // Whatever the others ask for, it is said when the guest comes with this one.
                    if queue == round.woken_by {
                        tracing::warn!(export = %self.target.name, %error, "a guest's ring makes no sense");
                    }
                }
            }
        }
        is_any
    }

    /// Does what waits in a ring, as far as one turn goes; returns whether there was anything. The guest does not tell of
    /// its requests from here on.
    fn take_turn(
        self: &Arc<Self>,
        queue: usize,
        ring: &VringMutex,
        own: &mut Own,
    ) -> Result<bool, virtio_queue::Error> {
        if ask(ring, |_| Ok(()))?.is_none() {
            return Ok(false);
        }
        // From here on a stop of the queue waits.
        let _busy = Busy::new(self, queue);
        if ask(ring, VringState::disable_notification)?.is_none() {
            return Ok(false);
        }
        let (mut taken, mut answers) = (0, 0);
        while taken < TURN_MAX && !self.is_over.load(Relaxed) {
            let memory = self.memory.memory();
            let Some(head) = take(ring, &memory, &mut own.chain)? else { break };
            taken += 1;
            let answer = match self.target.admit(&memory, &own.chain) {
                Err(refused) => refused,
                Ok(request) if self.is_short(&request) => {
                    self.perform(&memory, &own.chain, &request, &mut own.buf)
                }
                Ok(request) => {
                    let memory = memory.into_inner();
                    let (busy, ring) = (Busy::new(self, queue), ring.clone());
                    let chain = std::mem::take(&mut own.chain);
                    self.hand_on(Long { busy, ring, memory, head, chain, request });
                    continue;
                }
            };
            // A number that no chain has cannot be answered; what waits behind it can.
            answers += u32::from(ring.add_used(head, answer.give(&memory)).is_ok());
        }
        if answers > 0 {
            tell(ring)?;
        }
        Ok(taken > 0)
    }

    /// Returns the pace that a request belongs to, and its bytes; `None` if the rings' thread does no such request.
    fn pace(&self, request: &Request) -> Option<(&Pace, u64)> {
        match request.task {
            Task::Read(range) if range.bytes <= SHORT_BYTES => Some((&self.reads, range.bytes)),
            Task::Write(range) if range.bytes <= SHORT_BYTES && !self.target.is_write_through() => {
                Some((&self.writes, range.bytes))
            }
            _ => None,
        }
    }

    fn is_short(&self, request: &Request) -> bool {
        self.pace(request).is_some_and(|(pace, _)| pace.is_short())
    }

    /// Does a request, and learns how long such ones take.
    fn perform(
        &self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        request: &Request,
        buf: &mut Vec<u8>,
    ) -> Answer {
        let watch = Stopwatch::start();
        let answer = self.target.perform(memory, chain, request, buf);
        if let Some((pace, bytes)) = self.pace(request) {
            pace.learn(bytes, watch);
        }
        answer
    }

    /// Has another thread do a request.
    fn hand_on(self: &Arc<Self>, long: Long) {
        let mut work = self.work.lock();
        while work.waiting.len() >= WAITING_MAX {
            self.done.wait(&mut work);
        }
        work.waiting.push_back(long);
        if work.waiting.len() > work.idle && work.threads < THREADS_MAX {
            let device = Arc::clone(self);
            let builder = thread::Builder::new().name("vhost-work".to_owned());
            if builder.spawn(move || device.work()).is_ok() {
                work.threads += 1;
            }
        }
        if work.threads > 0 {
            self.called.notify_one();
            return;
        }
        // The system has no thread for it.
        let long = work.waiting.pop_back();
        drop(work);
        if let Some(long) = long {
            self.finish(long, &mut Vec::new());
        }
    }

    /// The life of a thread for long requests.
    fn work(self: Arc<Self>) {
        let _counted = Counted(&self);
        let mut buf = Vec::new();
        while let Some(long) = self.next() {
            self.finish(long, &mut buf);
            buf.truncate(KEPT_BYTES);
            buf.shrink_to(KEPT_BYTES);
        }
    }

    /// Waits for a long request; `None` where it is over, or there is no need of this thread, which is not counted then.
    fn next(&self) -> Option<Long> {
        let mut work = self.work.lock();
        let mut is_late = false;
        loop {
            if let Some(long) = work.waiting.pop_front() {
                return Some(long);
            }
            if is_late || self.is_over.load(Relaxed) {
                work.threads -= 1;
                drop(work);
                self.done.notify_all();
                return None;
            }
            work.idle += 1;
            is_late = self.called.wait_for(&mut work, IDLE).timed_out();
            work.idle -= 1;
        }
    }

    fn finish(&self, long: Long, buf: &mut Vec<u8>) {
        let Long { busy, ring, memory, head, chain, request } = long;
        let answer = self.perform(&memory, &chain, &request, buf);
        if let Err(error) = ring.add_used(head, answer.give(&memory)).and_then(|()| tell(&ring)) {
            tracing::warn!(export = %self.target.name, %error, "a guest's ring cannot be written");
        }
        drop(busy);
    }

    /// Returns once nothing of a queue is under way.
    fn wait_for(&self, queue: usize) {
        let mut work = self.work.lock();
        while work.busy.get(queue).is_some_and(|busy| *busy > 0) {
            self.done.wait(&mut work);
        }
    }
}

/// A thread for long requests; one that fails is not counted any more.
struct Counted<'a>(&'a Device);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.work.lock().threads -= 1;
            self.0.done.notify_all();
        }
    }
}

/// Does something with a ring, unless it has stopped: then its place in the guest's memory may be anybody's.
fn ask<T>(
    ring: &VringMutex,
    act: impl FnOnce(&mut VringState) -> Result<T, virtio_queue::Error>,
) -> Result<Option<T>, virtio_queue::Error> {
    let mut state = ring.get_mut();
    let is_running = state.get_queue().ready() && state.is_enabled();
    if is_running { act(&mut state).map(Some) } else { Ok(None) }
}

/// Takes the next chain from a ring, and returns by which number it is answered; `None` if nothing waits, or the ring
/// has stopped.
fn take(
    ring: &VringMutex,
    memory: &GuestMemoryLoadGuard<GuestMemoryMmap>,
    chain: &mut Chain,
) -> Result<Option<u16>, virtio_queue::Error> {
    let next = |ring: &mut VringState| Ok(ring.get_queue_mut().iter(memory.clone())?.next());
    let Some(found) = ask(ring, next)?.flatten() else { return Ok(None) };
    let head = found.head_index();
    chain.segments.clear();
    // An empty chain is no request, and one that breaks off is none.
    chain.is_whole = false;
    for descriptor in found {
        let (at, bytes, is_writable) = (descriptor.addr(), descriptor.len(), descriptor.is_write_only());
        chain.segments.push(Segment { at, bytes, is_writable });
        chain.is_whole = !descriptor.has_next();
    }
    Ok(Some(head))
}

/// Has the guest tell of its next request; returns whether one waits already.
fn listen(ring: &VringMutex) -> Result<bool, virtio_queue::Error> {
    Ok(ask(ring, VringState::enable_notification)? == Some(true))
}

/// Tells the guest that there are answers, if it wants to hear that.
fn tell(ring: &VringMutex) -> Result<(), virtio_queue::Error> {
    if ring.needs_notification()? {
        // Nobody listens where the guest is gone.
        drop(ring.signal_used_queue());
    }
    Ok(())
}

/// The device as the protocol's threads know it.
#[derive(Clone)]
pub(super) struct Backend(pub(super) Arc<Device>);

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        usize::from(QUEUES)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        self.0.features
    }

    fn acked_features(&self, features: u64) {
        self.0.target.acked.store(features, Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut bytes = self.0.config.to_bytes().to_vec();
        bytes.resize(index(u64::from(CONFIG_BYTES_MAX)), 0);
        let (start, size) = (index(u64::from(offset)), index(u64::from(size)));
        let part = bytes.get(start..).and_then(|rest| rest.get(..size));
        // The protocol's layer answers with an error where this is shorter than what was asked for.
        part.unwrap_or_default().to_vec()
    }

    fn set_config(&self, _offset: u32, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        // It is the one that the device has. Where queues that run touch it before this and it is gone, they wait for this.
        let lent = Lent::new(memory.memory().into_inner()).map_err(io::Error::other)?;
        let mut all = self.0.lent.lock();
        all.retain(|before| !before.is_unused());
        all.push(lent);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![(1 << QUEUES) - 1]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        self.0.wait_for(index(u64::from(queue)));
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        rings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        // While it is awake, what has come in elsewhere needs not wake it again.
        self.0.serve(usize::from(event), rings);
        Ok(())
    }
}
