//! A server and hand-written clients over real sockets, with disks that are slow or fail where a test says so.

use super::{
    Limits, Listener, Server, Tls,
    wire::{
        CompactRequest, GREETING_MAGIC, OPTION_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, command, errno, flag,
    },
};
use crate::{
    base::{Error, ErrorKind, GuestOffset, GuestRange, Result},
    disk::{Disk, Status},
    export::{Export, Exports},
    io::Kept,
};
use parking_lot::{Condvar, Mutex};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

/// A disk in memory. Reads of its first sector wait until the test lets them go; its last sector cannot be written.
pub(in crate::export) struct Plain {
    bytes: Mutex<Vec<u8>>,
    pub(in crate::export) gate: Mutex<bool>,
    opened: Condvar,
    /// How many reads have come to the gate so far.
    pub(in crate::export) came: AtomicU64,
    /// How many operations have come so far, and what it was at the last flush.
    pub(in crate::export) count: AtomicU64,
    pub(in crate::export) flushed: AtomicU64,
}

impl Plain {
    pub(in crate::export) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; size]),
            gate: Mutex::new(false),
            opened: Condvar::new(),
            came: AtomicU64::new(0),
            count: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        })
    }

    pub(in crate::export) fn open_gate(&self) {
        *self.gate.lock() = true;
        self.opened.notify_all();
    }

    pub(super) fn export(size: usize) -> Export {
        Export {
            name: "disk".to_owned(),
            description: "in memory".to_owned(),
            disk: Self::new(size),
            is_read_only: false,
            is_multi_conn: true,
            contexts: Vec::new(),
            guests: Arc::default(),
        }
    }
}

fn part(at: GuestOffset, bytes: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(at.bytes()).unwrap();
    start..start + bytes
}

impl Disk for Plain {
    fn size(&self) -> u64 {
        self.bytes.lock().len() as u64
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        if at.bytes() < 512 {
            let mut gate = self.gate.lock();
            self.came.fetch_add(1, SeqCst);
            while !*gate {
                self.opened.wait(&mut gate);
            }
        }
        buf.copy_from_slice(&self.bytes.lock()[part(at, buf.len())]);
        Ok(())
    }

    fn write(&self, at: GuestOffset, buf: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.lock();
        if part(at, buf.len()).end == bytes.len() {
            return Err(Error::new(ErrorKind::NoSpace, "full"));
        }
        bytes[part(at, buf.len())].copy_from_slice(buf);
        self.count.fetch_add(1, SeqCst);
        Ok(())
    }

    fn zero(&self, range: GuestRange, _kept: Kept) -> Result<()> {
        self.bytes.lock()[part(range.start, usize::try_from(range.bytes).unwrap())].fill(0);
        Ok(())
    }

    fn zeroes_fast(&self, range: GuestRange, _kept: Kept) -> bool {
        range.bytes.is_multiple_of(4096)
    }

    fn cache(&self, _range: GuestRange) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushed.store(self.count.load(SeqCst), SeqCst);
        Ok(())
    }

    fn status(&self, range: GuestRange, out: &mut Vec<Status>) -> Result<()> {
        out.push(Status { range, depth: Some(0), is_zero: false });
        Ok(())
    }
}

pub(in crate::export) struct One(pub(in crate::export) Arc<Plain>);

impl Exports for One {
    fn list(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn open(&self, name: &str) -> Result<Export> {
        Ok(Export { name: name.to_owned(), disk: Arc::clone(&self.0) as Arc<dyn Disk>, ..Plain::export(0) })
    }
}

struct Bench {
    folder: tempfile::TempDir,
    disk: Arc<Plain>,
    server: Option<Server>,
}

const SIZE: usize = 1 << 20;

impl Bench {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Plain::new(SIZE);
        let listener = Listener::unix(&folder.path().join("s")).unwrap();
        let server =
            Server::start(vec![listener], Arc::new(One(Arc::clone(&disk))), limits, Tls::Off).unwrap();
        Self { folder, disk, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn client(&self) -> Client {
        Client::enter(UnixStream::connect(self.socket()).unwrap())
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

/// A client with an export, simple replies.
struct Client(UnixStream);

impl Client {
    fn enter(mut stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting[..8], GREETING_MAGIC.to_be_bytes());
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        stream.write_all(&hello).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(export[..8], (SIZE as u64).to_be_bytes());
        Self(stream)
    }

    fn send(&mut self, command: u16, flags: u16, cookie: u64, range: (u64, u32)) {
        let (start, bytes) = range;
        let request = CompactRequest { magic: REQUEST_MAGIC, flags, command, cookie, start, bytes };
        self.0.write_all(&request.to_bytes()).unwrap();
    }

    /// The next reply: cookie and error; the bytes that were read follow.
    fn reply(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
    }

    fn bytes(&mut self, bytes: usize) -> Vec<u8> {
        let mut buf = vec![0xee; bytes];
        self.0.read_exact(&mut buf).unwrap();
        buf
    }

    fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0]).map_or(true, |read| read == 0)
    }
}

#[test]
fn a_slow_request_does_not_hold_up_those_behind_it() {
    let bench = Bench::new(Limits::default());
    let mut client = bench.client();
    // One that is believed to be short, one that is known to be long.
    for (cookie, bytes) in [(1, 512), (2, 128 << 10)] {
        client.send(command::READ, 0, cookie, (0, bytes));
    }
    for cookie in 3..100 {
        client.send(command::READ, 0, cookie, (4096, 512));
        assert_eq!(client.reply(), (cookie, 0));
        client.bytes(512);
    }
    bench.disk.open_gate();
    let mut late = Vec::new();
    for _ in 0..2 {
        let (cookie, error) = client.reply();
        client.bytes(if cookie == 1 { 512 } else { 128 << 10 });
        late.push((cookie, error));
    }
    late.sort_unstable();
    assert_eq!(late, [(1, 0), (2, 0)]);
}

#[test]
fn replies_gathered_before_a_slow_request_are_not_kept_back() {
    let bench = Bench::new(Limits::default());
    let mut client = bench.client();
    let mut burst = Vec::new();
    for (cookie, start) in [(1, 4096), (2, 8192), (3, 0)] {
        let (flags, bytes) = (0, 512);
        let request =
            CompactRequest { magic: REQUEST_MAGIC, flags, command: command::READ, cookie, start, bytes };
        burst.extend(request.to_bytes());
    }
    client.0.write_all(&burst).unwrap();
    for cookie in [1, 2] {
        assert_eq!(client.reply(), (cookie, 0));
        client.bytes(512);
    }
}

#[test]
fn more_slow_requests_than_threads_are_all_answered() {
    let bench = Bench::new(Limits { threads: 4, ..Limits::default() });
    let mut client = bench.client();
    for cookie in 0..40 {
        client.send(command::READ, 0, cookie, (0, 512));
    }
    std::thread::sleep(Duration::from_millis(20));
    bench.disk.open_gate();
    let mut cookies: Vec<u64> = (0..40).map(|_| (client.reply().0, client.bytes(512)).0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..40).collect::<Vec<_>>());
}

#[test]
fn what_a_disk_answers_reaches_the_client_as_its_number() {
    let bench = Bench::new(Limits::default());
    let mut client = bench.client();
    client.send(command::WRITE, 0, 1, (SIZE as u64 - 512, 512));
    client.0.write_all(&[7; 512]).unwrap();
    assert_eq!(client.reply(), (1, errno::NOSPC));
    client.send(command::WRITE_ZEROES, flag::FAST_ZERO, 2, (0, 512));
    assert_eq!(client.reply(), (2, errno::NOTSUP));
    client.send(command::WRITE_ZEROES, flag::FAST_ZERO, 3, (0, 4096));
    assert_eq!(client.reply(), (3, 0));
    client.send(99, 0, 4, (0, 512));
    assert_eq!(client.reply(), (4, errno::INVAL));
}

#[test]
fn a_durable_write_is_flushed_before_its_reply() {
    let bench = Bench::new(Limits::default());
    let mut client = bench.client();
    for (cookie, flags, flushed) in [(1, 0, 0), (2, flag::FUA, 2), (3, 0, 2)] {
        client.send(command::WRITE, flags, cookie, (4096, 512));
        client.0.write_all(&[7; 512]).unwrap();
        assert_eq!(client.reply(), (cookie, 0));
        assert_eq!(bench.disk.flushed.load(SeqCst), flushed);
    }
    client.send(command::FLUSH, 0, 4, (0, 0));
    assert_eq!(client.reply(), (4, 0));
    assert_eq!(bench.disk.flushed.load(SeqCst), 3);
}

#[test]
fn a_write_that_is_too_long_is_refused_and_its_bytes_are_no_requests() {
    let bench = Bench::new(Limits::default());
    let mut client = bench.client();
    let bytes = (32 << 20) + 1;
    client.send(command::WRITE, 0, 1, (0, bytes));
    let piece = vec![0x25; 1 << 20];
    for _ in 0..32 {
        client.0.write_all(&piece).unwrap();
    }
    client.0.write_all(&[0x25]).unwrap();
    assert_eq!(client.reply().0, 1);
    client.send(command::READ, 0, 2, (4096, 4096));
    assert_eq!((client.reply(), client.bytes(4096)), ((2, 0), vec![0; 4096]));
}

#[test]
fn a_client_that_speaks_no_nbd_is_left_and_others_are_served() {
    let bench = Bench::new(Limits::default());
    let mut other = bench.client();
    let mut client = bench.client();
    client.0.write_all(&[0x55; 28]).unwrap();
    assert!(client.is_closed());
    // And one that goes within its payload: what came of it is not written.
    let mut client = bench.client();
    client.send(command::WRITE, 0, 1, (4096, 512));
    client.0.write_all(&[7; 100]).unwrap();
    drop(client);
    other.send(command::READ, 0, 5, (4096, 512));
    assert_eq!((other.reply(), other.bytes(512)), ((5, 0), vec![0; 512]));
}

#[test]
fn the_silent_make_room_for_those_who_speak() {
    let bench = Bench::new(Limits { clients: 8, ..Limits::default() });
    let silent: Vec<_> = (0..30).map(|_| UnixStream::connect(bench.socket()).unwrap()).collect();
    // Some say half a word and no more.
    for mut stream in silent.iter().skip(15) {
        let _ = stream.write_all(&[0]);
    }
    let mut client = bench.client();
    client.send(command::READ, 0, 5, (4096, 512));
    assert_eq!(client.reply(), (5, 0));
}

#[test]
fn a_handshake_ends_in_time_however_slowly_it_is_spoken() {
    let bench = Bench::new(Limits { handshake: Duration::from_millis(100), ..Limits::default() });
    let mut silent = UnixStream::connect(bench.socket()).unwrap();
    let mut slow = UnixStream::connect(bench.socket()).unwrap();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(25));
        let _ = slow.write_all(&[0]);
    }
    for stream in [&mut silent, &mut slow] {
        let mut said = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.read_to_end(&mut said);
        assert_eq!(said.len(), 18, "the greeting, and then the end");
    }
}

#[test]
fn a_stop_lets_what_was_begun_be_done() {
    let mut bench = Bench::new(Limits::default());
    let mut idle = bench.client();
    let mut client = bench.client();
    client.send(command::READ, 0, 1, (0, 512));
    client.send(command::READ, 0, 2, (4096, 512));
    assert_eq!((client.reply(), client.bytes(512).len()), ((2, 0), 512));
    let disk = Arc::clone(&bench.disk);
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        disk.open_gate();
    });
    assert!(bench.stop(Duration::from_secs(20)));
    opener.join().unwrap();
    assert_eq!((client.reply(), client.bytes(512).len()), ((1, 0), 512));
    assert!(client.is_closed() && idle.is_closed());
    assert!(UnixStream::connect(bench.socket()).is_err(), "the socket is gone");
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let mut bench = Bench::new(Limits::default());
    let mut client = bench.client();
    client.send(command::READ, 0, 1, (0, 512));
    client.send(command::READ, 0, 2, (4096, 512));
    assert_eq!(client.reply(), (2, 0));
    assert!(!bench.stop(Duration::from_millis(50)));
    client.bytes(512);
    assert!(client.is_closed());
}
