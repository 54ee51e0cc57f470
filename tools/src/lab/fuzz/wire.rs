//! Conversations over NBD: what a client says is the input, and a server with a disk in memory answers.
//!
//! Whatever is said, the server ends the conversation once the client has said all, and goes on to serve others.

use super::feed::{Fed, Wrong};
use deltachain::{
    base::{Error, ErrorKind, Result as Answer},
    chain::{Chain, Layer},
    export::{
        Export, Exports,
        nbd::{Limits, Listener, Server, Tls},
    },
    format::{self, Format, NoParts},
    io::{File, memory::MemoryFile},
};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

const DISK_BYTES: u64 = 1 << 20;
/// How long a conversation may take that the client has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// What opens a reply, with structured replies and with extended headers.
const REPLIES: [[u8; 4]; 2] = [0x668e_33ef_u32.to_be_bytes(), 0x6e8a_278c_u32.to_be_bytes()];

/// A sound conversation with compact or extended requests.
pub(super) fn conversation(is_extended: bool) -> Vec<u8> {
    let mut said = 3_u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        let bytes = u32::try_from(data.len()).unwrap_or_default().to_be_bytes();
        said.extend([b"IHAVEOPT", &number.to_be_bytes()[..], &bytes, data].concat());
    };
    let name = [&4_u32.to_be_bytes()[..], b"disk"].concat();
    option(3, &[]);
    option(if is_extended { 11 } else { 8 }, &[]);
    option(9, &[&name[..], &[0; 4]].concat());
    let query = [&15_u32.to_be_bytes()[..], b"base:allocation"].concat();
    option(10, &[&name[..], &1_u32.to_be_bytes(), &query].concat());
    option(6, &[&name[..], &[0, 2, 0, 1, 0, 3]].concat());
    option(7, &[&name[..], &[0, 0]].concat());
    let mut request = |command: u16, flags: u16, start: u64, bytes: u32, payload: &[u8]| {
        let magic: u32 = if is_extended { 0x21e4_1c71 } else { 0x2560_9513 };
        said.extend(magic.to_be_bytes());
        said.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
        said.extend([7_u64.to_be_bytes(), start.to_be_bytes()].concat());
        if is_extended {
            said.extend(u64::from(bytes).to_be_bytes());
        } else {
            said.extend(bytes.to_be_bytes());
        }
        said.extend(payload);
    };
    request(1, 0, 4096, 512, &[7; 512]);
    request(0, 0, 4096, 4096, &[]);
    request(6, 1, 8192, 65536, &[]);
    request(4, 0, 0, 4096, &[]);
    request(7, 0, 0, 1 << 20, &[]);
    request(5, 0, 0, 1 << 20, &[]);
    request(3, 0, 0, 0, &[]);
    request(0, 4, 0, 300_000, &[]);
    request(2, 0, 0, 0, &[]);
    said
}

/// A disk in memory.
struct One(Arc<Chain>);

impl Exports for One {
    fn list(&self) -> Vec<(String, String)> {
        vec![("disk".to_owned(), String::new())]
    }

    fn open(&self, name: &str) -> Answer<Export> {
        if name != "disk" {
            return Err(Error::new(ErrorKind::NotFound, "no such disk"));
        }
        Ok(Export {
            name: name.to_owned(),
            description: String::new(),
            disk: self.0.clone(),
            is_read_only: false,
            is_multi_conn: true,
            contexts: Vec::new(),
            guests: Arc::default(),
        })
    }
}

/// Starts a server in a folder of its own.
fn serve(folder: &tempfile::TempDir) -> Answer<Server> {
    let file = Arc::new(MemoryFile::new("disk.raw"));
    file.set_bytes(DISK_BYTES)?;
    let image = format::open(Format::Raw, file, true, &NoParts)?;
    let layer = Layer { path: PathBuf::from("disk.raw"), is_stated: true, image };
    let listener = Listener::unix(&folder.path().join("s"))?;
    let disk = One(Arc::new(Chain::of(vec![layer], true)));
    Server::start(vec![listener], Arc::new(disk), Limits::default(), Tls::Off)
}

/// Says `input` and returns all that is answered.
fn talk(folder: &tempfile::TempDir, input: &[u8]) -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect(folder.path().join("s"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answered = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // A server that left does not listen to the end.
            drop((&stream).write_all(input));
            drop(stream.shutdown(Shutdown::Write));
        });
        match (&stream).read_to_end(&mut answered) {
            Err(e) if e.kind() != io::ErrorKind::ConnectionReset => Err(e),
            _ => Ok(()),
        }
    })?;
    Ok(answered)
}

/// Has a server listen to `input`, and then to a client that means well.
pub(super) fn nbd(input: &[u8]) -> Result<Fed, Wrong> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let server = serve(&folder).map_err(|e| e.to_string())?;
    let answered = talk(&folder, input).map_err(|e| format!("the conversation does not end: {e}"))?;
    let is_past_header = answered.windows(4).any(|bytes| REPLIES.iter().any(|magic| magic == bytes));
    let well =
        talk(&folder, &conversation(false)).map_err(|e| format!("another client is not served: {e}"))?;
    if !well.windows(4).any(|bytes| bytes == REPLIES[0]) {
        return Err("another client is refused".to_owned());
    }
    if server.stop(PATIENCE) {
        Ok(Fed { is_past_header, ..Fed::default() })
    } else {
        Err("the server does not stop".to_owned())
    }
}
