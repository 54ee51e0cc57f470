//! The far side of a session: a program that was started for it, and keeps to one folder.
//!
//! What stays true: whoever talks to it names files of that folder and no others; it writes only if it was started for
//! that; an image there whose parents lie elsewhere is not sent.

use super::{
    Incoming, Outgoing, Peer, Target,
    frame::Frame,
    receive::heads,
    session::Offer,
    terms::{Ask, check_name},
    wire::Input,
};
use crate::{
    base::{Error, Result, name::FileName},
    chain::{Chain, Opening, Policy},
    format::Format,
    io::{Access, Host},
    job::{Progress, copy::Share},
    store::Ledger,
};
use std::{mem, path::Path, sync::Arc};

/// Serves one session over `peer`, in the folder `root`; takes layers in only if `is_writable`.
///
/// What goes wrong is told to the peer as well.
pub fn serve(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    (root, is_writable): (&Path, bool),
    mut peer: Peer,
) -> Result<()> {
    let quiet = Progress::default();
    let agent = Agent { host, ledger, root, is_writable };
    match agent.serve(&mut peer, &quiet) {
        Ok(()) => peer.output.finish(&quiet),
        Err(error) => {
            let error = peer.reason(error);
            peer.give_up(&error);
            Err(error)
        }
    }
}

struct Agent<'a> {
    host: &'a Arc<dyn Host>,
    ledger: &'a Ledger,
    root: &'a Path,
    is_writable: bool,
}

impl Agent<'_> {
    fn serve(&self, peer: &mut Peer, progress: &Progress) -> Result<()> {
        match peer.input.next(progress)? {
            Frame::Ask(Ask::Receive { share }) => self.receive(share, peer, progress),
            Frame::Ask(Ask::Send { top, format }) => self.send((&top, format), peer, progress),
            other => Err(other.misplaced("what is asked for")),
        }
    }

    /// Returns how images of the folder are opened: nothing outside it is looked at.
    fn opening(&self) -> Result<Opening> {
        let allowed = vec![self.host.canonical(self.root)?];
        let policy = Policy { allowed, ..Policy::default() };
        Ok(Opening::reading().with_policy(policy).with_ledger(self.ledger.clone()))
    }

    fn receive(&self, share: Share, peer: &mut Peer, progress: &Progress) -> Result<()> {
        if !self.is_writable {
            return Err(Error::policy("is served for reading only").path(self.root));
        }
        let target = Target::new(self.host, self.ledger, self.root, &self.opening()?)?;
        let heads = heads(&mut peer.input, progress)?;
        let input = mem::replace(&mut peer.input, Input::ended());
        let mut incoming = Incoming::of(target, (input, heads), share, progress)?;
        incoming.answer(&mut peer.output, progress)?;
        let (incoming, turns, _) = incoming.take_turns_and_tell(&mut peer.output, progress)?;
        incoming.take_in(turns, &mut peer.output, progress).map(drop)
    }

    fn send(
        &self,
        (top, format): (&FileName, Option<Format>),
        peer: &mut Peer,
        progress: &Progress,
    ) -> Result<()> {
        check_name(top)?;
        let opening = self.opening()?.with_access(Access::Read).with_format(format);
        let root = self.host.canonical(self.root)?;
        let place = self.host.canonical(&root.join(&top.0))?;
        let outside = |path: &Path| Error::policy("lies outside the folder that is served").path(path);
        if !place.starts_with(&root) {
            return Err(outside(&root.join(&top.0)));
        }
        let chain = Chain::open(self.host, &place, &opening)?;
        // What counts is where the opened files are.
        if let Some(layer) = chain.layers().iter().find(|layer| !layer.path.starts_with(&root)) {
            return Err(outside(&layer.path));
        }
        let outgoing = Outgoing::of(self.ledger, chain, progress)?;
        Offer::make(outgoing, peer, progress)?.agree(peer, progress)?.send(peer, progress).map(drop)
    }
}
