//! A server and a hypervisor by hand: the protocol is the crates' own frontend, the rings are written as a guest would,
//! or would not.

use super::{
    Server, Socket,
    device::QUEUES,
    wire::{Config, RequestHeader, Stretch, UNMAP, feature, kind, status},
};
use crate::{
    base::Result,
    export::{
        Export, Exports,
        nbd::tests::{One, Plain},
    },
};
use std::{
    fs::File,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{Frontend, VhostUserFrontend, message::VhostUserConfigFlags},
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const SIZE: usize = 1 << 20;
const MEMORY_BYTES: usize = 4 << 20;
const RING: u16 = 64;
/// Where descriptors, the guest's ring, the device's ring, the header, the status and the data lie.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3800;
const DATA: u64 = 0x10000;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    folder: tempfile::TempDir,
    disk: Arc<Plain>,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Self {
        let disk = Plain::new(SIZE);
        Self::with(Arc::clone(&disk), &(Arc::new(One(disk)) as Arc<_>))
    }

    fn with(disk: Arc<Plain>, exports: &Arc<dyn Exports>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket { export: "disk".to_owned(), path: folder.path().join("s") };
        let server = Server::start(&[socket], exports).unwrap();
        Self { folder, disk, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn stop(&mut self, patience: Duration) -> bool {
        self.server.take().unwrap().stop(patience)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.disk.open_gate();
    }
}

/// A hypervisor with one queue.
struct Machine {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    features: u64,
    /// Chains made available, and answers seen.
    made: u16,
    seen: u16,
}

impl Machine {
    fn enter(bench: &Bench) -> Self {
        Self::enter_without(bench, 0)
    }

    fn enter_without(bench: &Bench, features: u64) -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES as u64).unwrap();
        let range = (GuestAddress(0), MEMORY_BYTES, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let mut frontend = Self::connect(bench);
        let features = frontend.get_features().unwrap() & !features;
        frontend.set_features(features).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
        let region = memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let at = |offset| region.userspace_addr + offset;
        let config = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: at(DESCRIPTORS),
            used_ring_addr: at(USED),
            avail_ring_addr: at(AVAILABLE),
            log_addr: None,
        };
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        frontend.set_vring_num(0, RING).unwrap();
        frontend.set_vring_base(0, 0).unwrap();
        frontend.set_vring_addr(0, &config).unwrap();
        frontend.set_vring_call(0, &call).unwrap();
        frontend.set_vring_kick(0, &kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
        Self { frontend, memory, kick, call, features, made: 0, seen: 0 }
    }

    /// Comes in, as soon as the one before has left.
    fn connect(bench: &Bench) -> Frontend {
        let began = Instant::now();
        loop {
            let frontend = Frontend::connect(bench.socket(), u64::from(QUEUES)).unwrap();
            if frontend.set_owner().and_then(|()| frontend.get_features()).is_ok() {
                return frontend;
            }
            assert!(began.elapsed() < PATIENCE, "nobody lets it in");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Writes a descriptor.
    fn describe(&self, nth: u16, (at, bytes, flags): (u64, u32, u16), next: u16) {
        let place = DESCRIPTORS + u64::from(nth) * 16;
        self.put(place, at);
        self.put(place + 8, bytes);
        self.put(place + 12, flags);
        self.put(place + 14, next);
    }

    /// Makes the chain that begins with descriptor `head` available.
    fn offer(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + u64::from(self.made % RING) * 2, head);
        self.made = self.made.wrapping_add(1);
        self.put(AVAILABLE + 2, self.made);
        self.kick.write(1).unwrap();
    }

    /// Makes a chain from the descriptor `first` on and offers it.
    fn chain(&mut self, first: u16, segments: &[(u64, u32, u16)]) {
        for (nth, segment) in (first..).zip(segments) {
            let is_last = usize::from(nth - first) + 1 == segments.len();
            let (at, bytes, flags) = *segment;
            self.describe(nth, (at, bytes, if is_last { flags } else { flags | NEXT }), nth + 1);
        }
        self.offer(first);
    }

    /// Waits for the next answer: which chain, and how many bytes the device says that it wrote.
    fn answer(&mut self) -> (u32, u32) {
        let began = Instant::now();
        while self.used() == self.seen {
            assert!(began.elapsed() < PATIENCE, "no answer");
            thread::sleep(Duration::from_micros(100));
        }
        let at = USED + 4 + u64::from(self.seen % RING) * 8;
        self.seen = self.seen.wrapping_add(1);
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory
            .write_slice(&RequestHeader { kind, reserved: 0, sector }.to_bytes(), GuestAddress(HEADER))
            .unwrap();
        self.put(STATUS, 0xff_u8);
    }

    /// One request, its data at [`DATA`]; returns status and written bytes.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        self.header(kind, sector);
        let chain = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITABLE)]].concat();
        self.chain(0, &chain);
        let (head, bytes) = self.answer();
        assert_eq!(head, 0);
        (self.status(), bytes)
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        self.ask(kind::OUT, sector, &[(DATA, u32::try_from(bytes.len()).unwrap(), 0)]).0
    }

    fn read(&mut self, sector: u64, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap();
        assert_eq!(self.ask(kind::IN, sector, &[(DATA, length, WRITABLE)]), (status::OK, length + 1));
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }
}

#[test]
fn a_guest_writes_reads_zeroes_and_asks_who_the_disk_is() {
    let bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    let bytes: Vec<u8> = (0..4096_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    assert_eq!(guest.write(8, &bytes), status::OK);
    // Somebody listens, and is told.
    assert!(guest.call.read().unwrap() > 0);
    let cut = [(DATA + 4096, 100, WRITABLE), (DATA, 412, WRITABLE), (DATA + 512, 3584, WRITABLE)];
    assert_eq!(guest.ask(kind::IN, 8, &cut), (status::OK, 4097));
    let mut seen = vec![0; 100];
    guest.memory.read_slice(&mut seen, GuestAddress(DATA + 4096)).unwrap();
    assert_eq!(seen, bytes[..100]);
    let stretches = [(8, 1, 0), (10, 1, UNMAP)]
        .map(|(sector, sectors, flags)| Stretch { sector, sectors, flags }.to_bytes());
    guest.memory.write_slice(&stretches.concat(), GuestAddress(DATA)).unwrap();
    assert_eq!(guest.ask(kind::WRITE_ZEROES, 0, &[(DATA, 32, 0)]).0, status::OK);
    let now = guest.read(8, 4096);
    let zeroed = |sector: usize| now[sector * 512..][..512].iter().all(|byte| *byte == 0);
    assert!(zeroed(0) && !zeroed(1) && zeroed(2) && now[1536..] == bytes[1536..]);
    assert_eq!(guest.ask(kind::GET_ID, 0, &[(DATA, 20, WRITABLE)]), (status::OK, 21));
    let mut name = [0; 20];
    guest.memory.read_slice(&mut name, GuestAddress(DATA)).unwrap();
    assert_eq!(&name[..5], b"disk\0");
    let config = guest.frontend.get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60]).unwrap().1;
    let config = Config::parse_start(&config).unwrap();
    assert_eq!((config.capacity, config.blk_size, config.num_queues), (2048, 512, QUEUES));
}

#[test]
fn what_a_guest_asks_wrongly_is_refused_and_what_it_asks_next_is_done() {
    let bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    let far = MEMORY_BYTES as u64;
    for (kind, sector, data, wanted) in [
        (99, 0, vec![], status::UNSUPP),
        (kind::IN, 0, vec![(DATA, 511, WRITABLE)], status::IOERR),
        (kind::IN, 2048, vec![(DATA, 512, WRITABLE)], status::IOERR),
        (kind::IN, u64::MAX, vec![(DATA, 512, WRITABLE)], status::IOERR),
        (kind::IN, 8, vec![(DATA, 512, 0)], status::IOERR),
        (kind::OUT, 8, vec![(DATA, 512, WRITABLE)], status::IOERR),
        (kind::OUT, 8, vec![(far - 256, 512, 0)], status::IOERR),
        (kind::OUT, 8, vec![(u64::MAX - 100, 512, 0)], status::IOERR),
        (kind::OUT, 2047, vec![(DATA, 512, 0)], status::IOERR),
        (kind::DISCARD, 0, vec![(DATA, 15, 0)], status::IOERR),
        (kind::DISCARD, 0, vec![(far, 16, 0)], status::IOERR),
    ] {
        assert_eq!(guest.ask(kind, sector, &data).0, wanted, "{kind} {sector} {data:?}");
    }
    // An answer that leads out of the memory; the disk has been read by then, and nothing else has been.
    bench.disk.open_gate();
    assert_eq!(guest.ask(kind::IN, 0, &[(far, 512, WRITABLE)]).0, status::IOERR);
    // A chain that bites its tail, one that leads out of its table, one whose table is nowhere.
    guest.header(kind::FLUSH, 0);
    guest.describe(0, (HEADER, 16, NEXT), 1);
    guest.describe(1, (STATUS, 1, WRITABLE | NEXT), 1);
    guest.offer(0);
    assert_eq!((guest.answer().0, guest.status()), (0, status::IOERR));
    guest.describe(1, (STATUS, 1, WRITABLE | NEXT), RING);
    guest.offer(0);
    assert_eq!((guest.answer().0, guest.status()), (0, status::IOERR));
    guest.describe(0, (far, 32, 4), 0);
    guest.offer(0);
    assert_eq!(guest.answer(), (0, 0));
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    // No chain has this number: nothing can be answered.
    guest.offer(RING);
    assert_eq!(guest.write(9, &[7; 512]), status::OK);
    assert_eq!(guest.read(8, 1024), [7; 1024]);
}

/// A file that is made shorter under its mapping is SIGBUS for who reads there: of the whole process.
#[test]
fn a_guest_that_takes_its_memory_away_takes_no_other_guest_along() {
    let bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    // What the device reads from now on may be a request for the first sector.
    bench.disk.open_gate();
    let file = guest.memory.iter().next().unwrap().file_offset().unwrap().file().try_clone().unwrap();
    guest.header(kind::IN, 8);
    let chain = [(HEADER, 16, NEXT), (DATA, 512, WRITABLE | NEXT), (STATUS, 1, WRITABLE)];
    for (nth, segment) in (0..).zip(chain) {
        guest.describe(nth, segment, nth + 1);
    }
    guest.put(AVAILABLE + 4 + u64::from(guest.made % RING) * 2, 0_u16);
    guest.put(AVAILABLE + 2, guest.made + 1);
    // All but the ring is gone, then all.
    for bytes in [AVAILABLE + 0x1000, 0] {
        file.set_len(bytes).unwrap();
        guest.kick.write(1).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    // This process has lost the memory as well: nobody here may look.
    drop(guest);
    assert_eq!(Machine::enter(&bench).read(8, 512), [7; 512]);
}

#[test]
fn a_ring_that_promises_more_than_it_holds_stands_still_and_is_set_up_anew() {
    let bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    guest.put(AVAILABLE + 2, guest.made.wrapping_add(RING + 1));
    guest.kick.write(1).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.used(), guest.seen);
    guest.put(AVAILABLE + 2, guest.made);
    assert_eq!(guest.read(8, 512), [7; 512]);
}

#[test]
fn a_driver_that_knows_no_flush_has_each_write_durable() {
    let bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    assert_ne!(guest.features & feature::FLUSH, 0);
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    assert_eq!(bench.disk.flushed.load(SeqCst), 0);
    assert_eq!(guest.ask(kind::FLUSH, 0, &[]), (status::OK, 1));
    assert_eq!(bench.disk.flushed.load(SeqCst), 1);
    drop(guest);
    let bench = Bench::new();
    let mut guest = Machine::enter_without(&bench, feature::FLUSH);
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    assert_eq!(bench.disk.flushed.load(SeqCst), bench.disk.count.load(SeqCst));
    assert_eq!(bench.disk.count.load(SeqCst), 1);
}

/// The disk for reading only.
struct ReadOnly(One);

impl Exports for ReadOnly {
    fn list(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn open(&self, name: &str) -> Result<Export> {
        Ok(Export { is_read_only: true, ..self.0.open(name)? })
    }
}

#[test]
fn a_disk_for_reading_says_so_and_takes_no_write() {
    let disk = Plain::new(SIZE);
    let bench = Bench::with(Arc::clone(&disk), &(Arc::new(ReadOnly(One(disk))) as Arc<_>));
    let mut guest = Machine::enter(&bench);
    let changes = feature::DISCARD | feature::WRITE_ZEROES;
    assert_eq!(guest.features & (feature::RO | changes), feature::RO);
    assert_eq!(guest.write(8, &[7; 512]), status::IOERR);
    assert_eq!(guest.read(8, 512), [0; 512]);
}

/// Has a guest's reads be known as slow: one of them has just been.
fn slow_down(bench: &Bench, guest: &mut Machine) {
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            bench.disk.open_gate();
        });
        guest.read(0, 512);
    });
    *bench.disk.gate.lock() = false;
}

#[test]
fn while_slow_requests_wait_others_of_the_same_queue_are_done() {
    let mut bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    slow_down(&bench, &mut guest);
    guest.header(kind::IN, 0);
    for first in [10, 20, 30] {
        guest.chain(first, &[(HEADER, 16, 0), (DATA, 512, WRITABLE), (STATUS + 16, 1, WRITABLE)]);
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.used(), guest.seen);
    assert_eq!(guest.read(8, 512), [0; 512]);
    // A queue stops when nothing of it is under way any more.
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            bench.disk.open_gate();
        });
        assert_eq!(guest.frontend.get_vring_base(0).unwrap(), u32::from(guest.made));
    });
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!(guest.used(), guest.made);
    assert!(bench.stop(PATIENCE));
}

#[test]
fn a_machine_leaves_and_the_next_one_finds_what_it_wrote() {
    let bench = Bench::new();
    assert_eq!(bench.socket().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut guest = Machine::enter(&bench);
    assert_eq!(guest.write(8, &[7; 512]), status::OK);
    // Two at once would write over each other's file system.
    let other = UnixStream::connect(bench.socket()).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(std::io::Read::read(&mut &other, &mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(guest.read(8, 512), [7; 512]);
    drop(guest);
    assert_eq!(Machine::enter(&bench).read(8, 512), [7; 512]);
}

#[test]
fn a_stop_is_bounded_also_with_a_guest_whose_request_hangs() {
    let mut bench = Bench::new();
    let mut guest = Machine::enter(&bench);
    slow_down(&bench, &mut guest);
    guest.header(kind::IN, 0);
    guest.chain(10, &[(HEADER, 16, 0), (DATA, 512, WRITABLE), (STATUS, 1, WRITABLE)]);
    let began = Instant::now();
    while bench.disk.came.load(SeqCst) < 2 {
        assert!(began.elapsed() < PATIENCE, "nobody takes the request up");
        thread::sleep(Duration::from_millis(1));
    }
    let began = Instant::now();
    assert!(!bench.stop(Duration::from_millis(200)));
    assert!(began.elapsed() < Duration::from_mins(1));
    assert!(!bench.socket().exists());
    // What was taken up is answered nevertheless.
    bench.disk.open_gate();
    assert_eq!((guest.answer().0, guest.status()), (10, status::OK));
}
