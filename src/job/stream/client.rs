//! The near side of a session: a chain is pushed to another store, or pulled from one.

use super::{
    Incoming, Outgoing, Peer, Received, Target,
    frame::Frame,
    receive::heads,
    session::Offer,
    terms::{Ask, Planned},
    wire::{Input, Output},
};
use crate::{
    base::{Error, ErrorKind, Result, name::FileName},
    chain::Opening,
    content::ContentId,
    format::Format,
    io::Host,
    job::{Progress, copy::Share},
    store::Ledger,
};
use std::{
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is done with one layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// The file's name at the target.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub name: PathBuf,
    /// What it shows.
    pub id: ContentId,
    /// Whether the target has it, or something that shows the same.
    pub is_there: bool,
    /// Guest bytes before this place are there from an earlier run.
    pub done_bytes: u64,
    /// Whether the target has something like it, from which leaves are taken.
    pub has_relative: bool,
    /// Guest bytes that are sent at most.
    pub bytes: u64,
}

/// What is going to be done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RemotePlan {
    /// The head at the source.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// The layers, the deepest first.
    pub layers: Vec<Pushed>,
    /// What the deepest layer that is sent stands on at the target.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub link: Option<PathBuf>,
    /// Guest bytes that are sent at most.
    pub send_bytes: u64,
    /// Space free at the target, in bytes.
    pub free_bytes: u64,
    /// What is not carried, as `FILE: what`.
    pub lost: Vec<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RemoteReport {
    /// As planned.
    pub plan: RemotePlan,
    /// The head at the target.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// Guest bytes that went over the wire in this run.
    pub sent_bytes: u64,
    /// Guest bytes that the target took from something like it.
    pub taken_bytes: u64,
}

/// A chain that is going to another store; nothing is written there yet.
#[derive(Debug)]
pub struct Push {
    peer: Peer,
    offer: Offer,
    plan: RemotePlan,
}

impl Push {
    /// Opens the chain at `top`, offers it to the peer, and hears what is lacking there.
    ///
    /// Fails as [`Outgoing::open`], and as the peer says.
    pub fn prepare(
        (host, ledger): (&Arc<dyn Host>, &Ledger),
        mut peer: Peer,
        (top, share): (&Path, Share),
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Self> {
        let outgoing = Outgoing::open(host, ledger, top, opening, progress)?;
        let make = || {
            peer.output.put(&Frame::Ask(Ask::Receive { share }), progress)?;
            Offer::make(outgoing, &mut peer, progress)
        };
        let offer = make().map_err(|e| peer.reason(e))?;
        let plan = plan_of(&offer, top)?;
        Ok(Self { peer, offer, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &RemotePlan {
        &self.plan
    }

    /// Sends what is lacking. Cut off at any moment, no name at the target stands for something that is not whole, and the
    /// next [`Push::prepare`] goes on from there.
    ///
    /// What another copy brings there at the same time is waited for; the report has the plan as it is then.
    pub fn run(self, progress: &Progress) -> Result<RemoteReport> {
        let Self { mut peer, offer, plan } = self;
        let before = peer.output.data_bytes();
        let sent = offer.agree(&mut peer, progress).and_then(|offer| {
            let plan = plan_of(&offer, &plan.head)?;
            Ok((plan, offer.send(&mut peer, progress)?))
        });
        match sent {
            Ok((plan, report)) => {
                let sent_bytes = peer.output.data_bytes() - before;
                let (head, taken_bytes) = (report.head.0, report.taken_bytes);
                Ok(RemoteReport { plan, head, sent_bytes, taken_bytes })
            }
            Err(error) => {
                let error = peer.reason(error);
                if error.kind() == ErrorKind::Interrupted {
                    peer.give_up(&error);
                }
                Err(error)
            }
        }
    }
}

/// Says what is going to be done; `NoSpace` if it cannot be.
fn plan_of(offer: &Offer, top: &Path) -> Result<RemotePlan> {
    let (heads, answer) = (offer.outgoing.heads(), &offer.answer);
    let first = usize::try_from(answer.first).unwrap_or(usize::MAX);
    let (there, missing) = heads.split_at_checked(first).ok_or_else(|| Error::invalid("no such layer"))?;
    let there = there.iter().map(|head| Pushed {
        name: head.name.0.clone(),
        id: head.id,
        is_there: true,
        done_bytes: 0,
        has_relative: false,
        bytes: 0,
    });
    let lacking = missing.iter().zip(&answer.lacking).zip(&offer.planned.bytes);
    let lacking = lacking.map(|((head, lacking), bytes)| Pushed {
        name: lacking.name.0.clone(),
        id: head.id,
        is_there: false,
        done_bytes: lacking.from,
        has_relative: lacking.leaves > 0,
        bytes: *bytes,
    });
    let plan = RemotePlan {
        head: top.to_path_buf(),
        layers: there.chain(lacking).collect(),
        link: answer.link.as_ref().map(|link| link.0.clone()),
        send_bytes: offer.planned.bytes.iter().fold(0, |all, bytes| all.saturating_add(*bytes)),
        free_bytes: answer.free_bytes,
        lost: offer.planned.lost.clone(),
    };
    if plan.send_bytes > plan.free_bytes && plan.layers.iter().all(|layer| layer.done_bytes == 0) {
        let what = format!("{} bytes are to be sent, {} are free there", plan.send_bytes, plan.free_bytes);
        return Err(Error::new(ErrorKind::NoSpace, what));
    }
    Ok(plan)
}

/// A chain that is going to come from another store; nothing is written here yet.
#[derive(Debug)]
pub struct Pull {
    output: Output,
    incoming: Incoming,
    plan: RemotePlan,
}

impl Pull {
    /// Asks the peer for the chain at `top`, a name in its folder, and tells it what `folder` has.
    ///
    /// Fails as [`Incoming::begin`], and as the peer says.
    pub fn prepare(
        (host, ledger): (&Arc<dyn Host>, &Ledger),
        mut peer: Peer,
        (top, format, folder): (&Path, Option<Format>, &Path),
        (opening, share): (&Opening, Share),
        progress: &Progress,
    ) -> Result<Self> {
        let target = Target::new(host, ledger, folder, opening)?;
        let ask = Ask::Send { top: FileName(top.to_path_buf()), format };
        let sent = peer.output.put(&Frame::Ask(ask), progress);
        sent.map_err(|e| peer.reason(e))?;
        let heads = heads(&mut peer.input, progress)?;
        let input = mem::replace(&mut peer.input, Input::ended());
        let mut incoming = Incoming::of(target, (input, heads), share, progress)?;
        let planned = incoming.answer(&mut peer.output, progress)?;
        let plan = plan_from(&incoming, planned, top)?;
        Ok(Self { output: peer.output, incoming, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &RemotePlan {
        &self.plan
    }

    /// Takes in what is lacking. Cut off at any moment, no name here stands for something that is not whole, and the next
    /// [`Pull::prepare`] goes on from there.
    ///
    /// What another copy brings here at the same time is waited for, and linked; the report has the plan as it is then.
    pub fn run(self, progress: &Progress) -> Result<RemoteReport> {
        let Self { mut output, incoming, mut plan } = self;
        let (incoming, turns, planned) = incoming.take_turns_and_tell(&mut output, progress)?;
        if let Some(planned) = planned {
            plan = plan_from(&incoming, planned, &plan.head)?;
        }
        progress.begin("receive", plan.send_bytes);
        let Received { head, received_bytes, taken_bytes, .. } =
            incoming.take_in(turns, &mut output, progress)?;
        output.finish(progress)?;
        Ok(RemoteReport { plan, head, sent_bytes: received_bytes, taken_bytes })
    }
}

fn plan_from(incoming: &Incoming, planned: Planned, top: &Path) -> Result<RemotePlan> {
    let own = incoming.plan();
    let first = own.layers.iter().filter(|layer| layer.is_there).count();
    if planned.bytes.len() != own.layers.len() - first {
        return Err(Error::corrupt("the plan speaks of other layers"));
    }
    let bytes = std::iter::repeat_n(0, first).chain(planned.bytes.iter().copied());
    let layers = own.layers.iter().zip(bytes).enumerate().map(|(nth, (layer, bytes))| Pushed {
        name: PathBuf::from(layer.to.file_name().unwrap_or_default()),
        id: layer.id,
        is_there: layer.is_there,
        done_bytes: layer.done_bytes,
        has_relative: incoming.relative_leaves(nth).next().is_some(),
        bytes,
    });
    Ok(RemotePlan {
        head: top.to_path_buf(),
        layers: layers.collect(),
        link: own.link.clone(),
        send_bytes: planned.bytes.iter().fold(0, |all, bytes| all.saturating_add(*bytes)),
        free_bytes: own.free_bytes,
        lost: planned.lost,
    })
}
