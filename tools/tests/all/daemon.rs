//! Runs the built daemon, for tests that are its clients.

use super::foreign::Scratch;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// `dchaind`, serving disks of a folder at the socket `s` in it; killed when this goes.
pub(crate) struct Daemon {
    child: Child,
    folder: std::path::PathBuf,
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
        Self { child, folder: folder.path(), said }
    }

    /// The URI of a disk.
    pub(crate) fn uri(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.folder.join("s").display())
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

/// A client by hand: what it says is bytes.
pub(crate) struct Hand(pub(crate) UnixStream);

impl Hand {
    /// Takes the greeting and says what is understood.
    pub(crate) fn greet(daemon: &Daemon) -> Self {
        let mut hand = Self(daemon.connect());
        assert_eq!(hand.take(18)[..16], *b"NBDMAGICIHAVEOPT");
        hand.say(&3_u32.to_be_bytes());
        hand
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
        let magic = 0x2560_9513_u32.to_be_bytes();
        let cookie = 7_u64.to_be_bytes();
        self.say(
            &[
                &magic[..],
                &[0; 2],
                &command.to_be_bytes(),
                &cookie,
                &start.to_be_bytes(),
                &bytes.to_be_bytes(),
            ]
            .concat(),
        );
    }

    /// The error of the next simple reply.
    pub(crate) fn error(&mut self) -> u32 {
        let reply = self.take(16);
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    /// Whether the server has closed the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0; 64]).map_or(true, |read| read == 0)
    }
}
