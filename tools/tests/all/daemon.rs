//! Runs the built daemon, for tests that are its clients.

use super::{certificates, foreign::Scratch};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// `dchaind`, serving disks of a folder at the socket `s` in it; killed when this goes.
pub(crate) struct Daemon {
    child: Child,
    folder: std::path::PathBuf,
    /// What its clients prove themselves with, if they have to.
    tls: Option<Arc<ClientConfig>>,
    /// What it said before it was ready.
    pub(crate) said: Vec<String>,
}

impl Daemon {
    /// Starts it with `disks` as on the command line, and waits until it is ready.
    pub(crate) fn start(folder: &Scratch, disks: &[&str]) -> Self {
        Self::start_with(folder, disks, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(folder: &Scratch, disks: &[&str], more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
        command.current_dir(folder.path()).args(disks.iter().flat_map(|disk| ["--disk", disk]));
        command.args(["--nbd", "unix:s"]).args(more).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let said: Vec<String> = out.lines().map(Result::unwrap).take_while(|line| line != "ready").collect();
        assert!(said.contains(&"listening unix:s".to_owned()), "{said:?}");
        Self { child, folder: folder.path(), tls: None, said }
    }

    /// The same with TLS required, and certificates for it in the folder.
    pub(crate) fn start_tls(folder: &Scratch, disks: &[&str], more: &[&str]) -> Self {
        certificates::make(folder);
        let tls = [&["--tls", "required", "--tls-certificates", "server"][..], more].concat();
        let mut daemon = Self::start_with(folder, disks, &tls);
        daemon.tls = Some(certificates::client(folder));
        daemon
    }

    /// The URI of a disk.
    pub(crate) fn uri(&self, disk: &str) -> String {
        let (socket, client) = (self.folder.join("s"), self.folder.join("client"));
        let place = format!("unix:///{disk}?socket={}", socket.display());
        if self.tls.is_none() {
            format!("nbd+{place}")
        } else {
            format!("nbds+{place}&tls-certificates={}", client.display())
        }
    }

    /// A connection that has said nothing.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Peak memory in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    /// How many descriptors it has.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Tells it to stop; returns how it ended, and after which time.
    pub(crate) fn stop(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        (self.child.wait().unwrap(), began.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client by hand says it over.
pub(crate) enum Line {
    Clear(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, UnixStream>>),
}

impl Line {
    /// What is on the wire.
    pub(crate) fn socket(&self) -> &UnixStream {
        match self {
            Self::Clear(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Line {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Line {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A client by hand: what it says is bytes.
pub(crate) struct Hand(pub(crate) Line);

impl Hand {
    /// Takes the greeting and says what is understood; begins TLS where that is the way.
    pub(crate) fn greet(daemon: &Daemon) -> Self {
        let mut hand = Self::greet_in_the_clear(daemon);
        match &daemon.tls {
            None => hand,
            Some(tls) => {
                hand.option(5, &[]);
                assert_eq!(hand.answer(), (1, Vec::new()));
                hand.secure(tls)
            }
        }
    }

    /// Takes the greeting and says what is understood.
    pub(crate) fn greet_in_the_clear(daemon: &Daemon) -> Self {
        let mut hand = Self(Line::Clear(daemon.connect()));
        assert_eq!(hand.take(18)[..16], *b"NBDMAGICIHAVEOPT");
        hand.say(&3_u32.to_be_bytes());
        hand
    }

    /// Goes over to TLS.
    pub(crate) fn secure(self, tls: &Arc<ClientConfig>) -> Self {
        let Line::Clear(stream) = self.0 else { panic!("twice") };
        let name = "localhost".try_into().unwrap();
        let connection = ClientConnection::new(Arc::clone(tls), name).unwrap();
        Self(Line::Tls(Box::new(StreamOwned::new(connection, stream))))
    }

    /// Has an export.
    pub(crate) fn enter(daemon: &Daemon, disk: &str) -> Self {
        let mut hand = Self::greet(daemon);
        hand.option(1, disk.as_bytes());
        hand.take(10);
        hand
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut buf = vec![0; bytes];
        self.0.read_exact(&mut buf).unwrap();
        buf
    }

    /// Says an option whose data may be shorter than it claims.
    pub(crate) fn option_of(&mut self, option: u32, claimed: u32, data: &[u8]) {
        self.say(&[b"IHAVEOPT", &option.to_be_bytes()[..], &claimed.to_be_bytes(), data].concat());
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) {
        self.option_of(option, u32::try_from(data.len()).unwrap(), data);
    }

    /// The kind and data of the next reply to an option.
    pub(crate) fn answer(&mut self) -> (u32, Vec<u8>) {
        let header = self.take(20);
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        (word(12), self.take(usize::try_from(word(16)).unwrap()))
    }

    pub(crate) fn request(&mut self, command: u16, start: u64, bytes: u32) {
        self.request_as(7, command, (start, bytes));
    }

    /// A request whose reply has that cookie.
    pub(crate) fn request_as(&mut self, cookie: u64, command: u16, (start, bytes): (u64, u32)) {
        let magic = 0x2560_9513_u32.to_be_bytes();
        let head = [&magic[..], &[0; 2], &command.to_be_bytes(), &cookie.to_be_bytes()].concat();
        self.say(&[&head[..], &start.to_be_bytes(), &bytes.to_be_bytes()].concat());
    }

    /// The error of the next simple reply.
    pub(crate) fn error(&mut self) -> u32 {
        self.reply().1
    }

    /// The cookie and the error of the next simple reply.
    pub(crate) fn reply(&mut self) -> (u64, u32) {
        let reply = self.take(16);
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
    }

    /// Whether the server has closed the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0; 64]).map_or(true, |read| read == 0)
    }
}
