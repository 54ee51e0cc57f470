//! Streams of layers, and sessions: what a peer says is the input. Sums are put right after a damage, which else would hide
//! all that lies behind them.
//!
//! Whatever is said, what has a name in the store afterwards can be opened, and shows what its seal says.

use super::feed::{Fed, Wrong};
use crate::jobs::world::ledger;
use deltachain::{
    base::{Error, ErrorKind, GuestOffset, Result as Answer},
    chain::{Chain, Opening},
    format::{self, Creation, Format, NoParts, Nothing},
    io::{EntryKind, Host, faulty::SimHost},
    job::{
        Progress,
        copy::Share,
        seal::full_tree,
        snapshot::snapshot,
        stream::{Incoming, Outgoing, Peer, Pull, Push, SendRequest, serve},
    },
};
use std::{
    io::{self, Cursor, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Bytes of a preamble, and of a frame's head.
const START: usize = 12;
const TOP: &str = "/vm/top";
const STORE: &str = "/store";

/// Which side of a conversation reads the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who receives a stream.
    Stream,
    /// The agent that layers are pushed to.
    Taking,
    /// The agent that a chain is pulled from.
    Giving,
    /// Who pushes.
    Pushing,
    /// Who pulls.
    Pulling,
}

impl Side {
    pub(super) const ALL: [Self; 5] =
        [Self::Stream, Self::Taking, Self::Giving, Self::Pushing, Self::Pulling];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Taking => "session taking",
            Self::Giving => "session giving",
            Self::Pushing => "session pushing",
            Self::Pulling => "session pulling",
        }
    }
}

/// Keeps what is written, and passes it on.
struct Kept<W>(Arc<Mutex<Vec<u8>>>, W);

impl<W: Write> Write for Kept<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        self.1.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// A machine with a chain of two layers, and a store that has something like its base.
fn machine() -> Answer<SimHost> {
    let host = SimHost::new();
    let arc: Arc<dyn Host> = Arc::new(host.clone());
    let opening = Opening::reading().with_ledger(ledger(&host));
    for (folder, name, at) in [("/vm", "base", 0), (STORE, "older", 70_000)] {
        host.make_folder(Path::new(folder))?;
        let creation = Creation { size: 200 << 10, parent: None, options: Vec::new() };
        let path = Path::new(folder).join(name);
        let image = format::create(Format::Qcow2, host.create(&path)?, &creation, &NoParts)?;
        image.write(GuestOffset::new(0), &vec![1; 150_000], &Nothing)?;
        image.write(GuestOffset::new(at), &[2; 600], &Nothing)?;
        image.flush()?;
    }
    let layers = deltachain::job::seal::open_layers(&arc, Path::new("/store/older"), &opening)?;
    deltachain::job::seal::seal(&ledger(&host), &layers, &Progress::default())?;
    drop(layers);
    snapshot(&arc, Path::new("/vm/base"), Path::new(TOP), &[], &opening)?;
    let how = opening.with_access(deltachain::io::Access::Write);
    let disk = Chain::open(&arc, Path::new(TOP), &how)?;
    deltachain::disk::Disk::write(&disk, GuestOffset::new(3000), &[3; 5000])?;
    deltachain::disk::Disk::flush(&disk)?;
    Ok(host)
}

/// What is said in a whole and sound conversation to `side`.
pub(super) fn conversation(side: Side) -> Answer<Vec<u8>> {
    let host = machine()?;
    let (arc, own, quiet) = (Arc::new(host.clone()) as Arc<dyn Host>, ledger(&host), Progress::default());
    let (mine, others) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
    let reading = Opening::reading();
    if side == Side::Stream {
        // Nobody answers it.
        let sent = Outgoing::open(&arc, &own, Path::new(TOP), &reading, &quiet)?;
        sent.plan(&SendRequest::default())?.run(Box::new(Kept(Arc::clone(&mine), io::sink())), &quiet)?;
        let said: Vec<u8> = mine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        return Ok(said);
    }
    let pipe = || io::pipe().map_err(|e| Error::io("make a pipe", e));
    let ((agent_in, to_agent), (from_agent, agent_out)) = (pipe()?, pipe()?);
    let agent = {
        let (arc, own) = (Arc::clone(&arc), own.clone());
        let out = Kept(Arc::clone(&others), agent_out);
        let root = if side == Side::Giving || side == Side::Pulling { "/vm" } else { STORE };
        thread::spawn(move || {
            let peer = Peer::new(Box::new(agent_in), Box::new(out));
            serve(&arc, &own, (Path::new(root), true), peer)
        })
    };
    let to_agent = Kept(Arc::clone(&mine), to_agent);
    let here = (&arc, &own);
    match side {
        Side::Stream | Side::Taking | Side::Pushing => {
            let peer = Peer::new(Box::new(from_agent), Box::new(to_agent));
            let what = (Path::new(TOP), Share::Allow);
            Push::prepare(here, peer, what, &reading, &quiet)?.run(&quiet)?;
        }
        Side::Giving | Side::Pulling => {
            let peer = Peer::new(Box::new(from_agent), Box::new(to_agent));
            let what = (Path::new("top"), None, Path::new(STORE));
            Pull::prepare(here, peer, what, (&reading, Share::Allow), &quiet)?.run(&quiet)?;
        }
    }
    drop(agent.join());
    let said = if side == Side::Pushing || side == Side::Pulling { others } else { mine };
    let said: Vec<u8> = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(said)
}

/// Puts the sums of all frames right.
fn summed(input: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (input.to_vec(), START);
    while let Some((head, rest)) = out.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<START>) {
        let [kind, a, b, c, l0, l1, l2, l3, ..] = *head;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(payload) = rest.get(..length) else { break };
        let start = crc32c::crc32c(&[kind, a, b, c, l0, l1, l2, l3]);
        if let Some(sum) = head.last_chunk_mut::<4>() {
            *sum = crc32c::crc32c_append(start, payload).to_le_bytes();
        }
        at += START + length;
    }
    out
}

/// Has a side of a conversation hear `input`.
pub(super) fn hear(input: &[u8], side: Side) -> Result<Fed, Wrong> {
    let host = machine().map_err(|e| e.to_string())?;
    let (arc, own, quiet) = (Arc::new(host.clone()) as Arc<dyn Host>, ledger(&host), Progress::default());
    let (here, reading) = ((&arc, &own), Opening::reading());
    let from = Box::new(Cursor::new(summed(input)));
    let peer = |from| Peer::new(from, Box::new(io::sink()));
    let heard = match side {
        Side::Stream => Incoming::begin(&arc, &own, (Path::new(STORE), from), &reading, &quiet)
            .and_then(|incoming| incoming.run(&quiet).map(drop)),
        Side::Taking => serve(&arc, &own, (Path::new(STORE), true), peer(from)),
        Side::Giving => serve(&arc, &own, (Path::new("/vm"), true), peer(from)),
        Side::Pushing => Push::prepare(here, peer(from), (Path::new(TOP), Share::Allow), &reading, &quiet)
            .and_then(|push| push.run(&quiet).map(drop)),
        Side::Pulling => {
            let what = (Path::new("top"), None, Path::new(STORE));
            Pull::prepare(here, peer(from), what, (&reading, Share::Allow), &quiet)
                .and_then(|pull| pull.run(&quiet).map(drop))
        }
    };
    let is_past_header = heard.is_ok();
    if let Err(error) = heard.as_ref()
        && !is_apt(error)
    {
        return Err(format!("the error says too little: {:?} '{error}'", error.kind()));
    }
    judge(&host)?;
    Ok(Fed { is_past_header, ..Fed::default() })
}

/// A peer has no file: what is wrong is said of what came, or of the store.
fn is_apt(error: &Error) -> bool {
    let machine = [ErrorKind::Io, ErrorKind::Busy];
    !machine.contains(&error.kind()) && error.to_string().len() >= 16
}

/// What has a name can be opened, and shows what it says.
fn judge(host: &SimHost) -> Result<(), Wrong> {
    let arc: Arc<dyn Host> = Arc::new(host.clone());
    let opening = Opening::reading().with_ledger(ledger(host));
    for entry in host.list(Path::new(STORE)).map_err(|e| e.to_string())? {
        if entry.kind != EntryKind::File || deltachain::store::Draft::is_left_over(&entry.path) {
            continue;
        }
        let chain = Chain::open(&arc, &entry.path, &opening).map_err(|e| e.to_string())?;
        let known = chain.standings().first().and_then(|standing| standing.known.proven());
        let shown = full_tree(&chain.view(0), &Progress::default()).map_err(|e| e.to_string())?.tree.id();
        if known != Some(shown) {
            return Err(format!("{} shows {shown}, and says {known:?}", entry.path.display()));
        }
    }
    Ok(())
}
