//! What gives an image another parent, head, size or place, one small scene each.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, path, reading, shows, view, writing},
};
use deltachain::{
    base::{
        self, GuestOffset,
        seed::Seeded,
        units::{count, index},
    },
    chain::Chain,
    disk::Disk,
    format::Format,
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        compact::Compaction,
        convert,
        rebase::{NewParent, Rebase},
        resize::Resize,
        snapshot::{self, Revert},
    },
};
use std::path::Path;

/// What is done to the chain.
#[derive(Debug)]
enum Deed {
    /// `new` becomes the head.
    Snapshot,
    /// The head starts again from the layer of this number, counted from the base.
    Revert(usize),
    /// The head gets another parent, in the folder under this name, or none.
    Rebase(Option<(String, Format)>),
    /// The head gets this size in bytes.
    Resize(u64),
    /// The head's zeros take no space any more.
    Compact,
    /// `flat` shows what the head shows.
    Convert(Format),
}

/// A chain that is reshaped.
#[derive(Debug)]
struct Reshaping {
    world: World,
    deed: Deed,
}

/// What makes the deed that belongs to a world.
type Choice = fn(&mut World, &mut Seeded) -> base::Result<Deed>;

/// What makes the world that belongs to a seed.
type Make = fn(&mut Seeded, u64) -> base::Result<World>;

fn scene(seed: u64, choose: Choice) -> Result<Box<dyn Scene>, String> {
    scene_in(World::new, seed, choose)
}

fn scene_in(make: Make, seed: u64, choose: Choice) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    let mut world = make(&mut random, seed).map_err(|e| e.to_string())?;
    let deed = choose(&mut world, &mut random).map_err(|e| e.to_string())?;
    world.host = world.host.twin();
    Ok(Box::new(Reshaping { world, deed }))
}

/// Makes up the snapshot that belongs to `seed`.
pub(super) fn snapshot(seed: u64) -> Result<Box<dyn Scene>, String> {
    // Now and then of a disk that nothing was ever noted of.
    let alone: Choice = |world, _| World::alone().map(|alone| *world = alone).map(|()| Deed::Snapshot);
    scene(seed, if seed % 4 == 3 { alone } else { |_, _| Ok(Deed::Snapshot) })
}

/// Makes up the revert that belongs to `seed`.
pub(super) fn revert(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(seed, |world, random| Ok(Deed::Revert(index(random.below(count(world.layers.len()) - 1)))))
}

/// Makes up the rebase that belongs to `seed`.
pub(super) fn rebase(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(seed, |world, random| {
        let is_flat = random.chance(1, 3);
        let depth = world.layers.len();
        if is_flat || depth < 3 {
            let chain = Chain::open(&arc(&world.host), &path("layer0"), &reading(&world.host))?;
            let new = (Format::Qcow2, [].as_slice(), false);
            convert::convert(&arc(&world.host), &chain.view(0), &path("other"), new, &Progress::default())?;
        }
        Ok(Deed::Rebase(match random.below(4) {
            0 => None,
            _ if is_flat || depth < 3 => Some(("other".to_owned(), Format::Qcow2)),
            _ => world.layers.get(depth - 3).map(|layer| (layer.name.clone(), layer.format)),
        }))
    })
}

/// Makes up the resize that belongs to `seed`.
pub(super) fn resize(seed: u64) -> Result<Box<dyn Scene>, String> {
    // Not all formats have children of another size.
    scene_in(World::qcow2, seed, |_, random| Ok(Deed::Resize(512 * (1 + random.below(200)))))
}

/// Makes up the compaction that belongs to `seed`.
pub(super) fn compact(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(seed, |world, random| {
        let chain = Chain::open(&arc(&world.host), &path("top"), &writing(&world.host))?;
        for _ in 0..3 {
            let at = random.below(chain.size());
            let bytes = (1 + random.below(6000)).min(chain.size() - at);
            chain.write(GuestOffset::new(at), &vec![0; index(bytes)])?;
        }
        chain.flush()?;
        drop(chain);
        let shown = view(&world.host, &path("top"))?;
        world.views.last_mut().into_iter().for_each(|top| top.clone_from(&shown));
        Ok(Deed::Compact)
    })
}

/// Makes up the conversion that belongs to `seed`.
pub(super) fn convert(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(seed, |_, random| Ok(Deed::Convert(if random.chance(1, 3) { Format::Raw } else { Format::Qcow2 })))
}

impl Reshaping {
    fn is_there(host: &SimHost, name: &str) -> bool {
        host.kind(&path(name)).is_ok_and(|kind| kind.is_some())
    }

    fn judge_resized(&self, host: &SimHost, to: u64, is_done: bool) -> Result<(), String> {
        let mut expected = self.world.top().to_vec();
        let shown = view(host, &path("top")).map_err(|e| e.to_string())?;
        if is_done || shown.len() != expected.len() {
            expected.resize(index(to), 0);
        }
        if shown == expected { Ok(()) } else { Err("top shows something else".to_owned()) }
    }

    /// Says so unless the acknowledged deed is there to be seen.
    fn judge_done(&self, host: &SimHost) -> Result<(), String> {
        match &self.deed {
            Deed::Snapshot => shows(host, &path("new"), self.world.top()),
            Deed::Convert(_) => shows(host, &path("flat"), self.world.top()),
            Deed::Revert(to) => {
                let view = self.world.views.get(*to).map(Vec::as_slice).unwrap_or_default();
                shows(host, &path("top"), view)
            }
            Deed::Rebase(parent) => {
                let chain = Chain::open(&arc(host), &path("top"), &reading(host));
                let found = chain.map_err(|e| e.to_string())?.layers().get(1).map(|layer| layer.path.clone());
                let wanted = parent.as_ref().map(|(name, _)| path(name));
                if found == wanted { Ok(()) } else { Err(format!("lies on {found:?}, not {wanted:?}")) }
            }
            Deed::Resize(to) => self.judge_resized(host, *to, true),
            Deed::Compact => Ok(()),
        }
    }
}

impl Scene for Reshaping {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let (machine, top, progress) = (arc(host), path("top"), Progress::default());
        match &self.deed {
            Deed::Snapshot => snapshot::snapshot(&machine, &top, &path("new"), &[], &writing(host)).map(drop),
            Deed::Revert(to) => {
                let revert = Revert::prepare(&machine, &top, &self.world.path(*to), &writing(host))?;
                revert.run(&machine, &[]).map(drop)
            }
            Deed::Rebase(parent) => {
                let parent =
                    parent.as_ref().map(|(name, format)| NewParent { path: path(name), format: *format });
                Rebase::prepare(&machine, &top, &writing(host), parent.as_ref())?.run(&progress).map(drop)
            }
            Deed::Resize(to) => {
                Resize::prepare(&machine, &top, &writing(host), |_| Some(*to))?.run().map(drop)
            }
            Deed::Compact => Compaction::prepare(&machine, &top, &writing(host))?.run(&progress).map(drop),
            Deed::Convert(format) => {
                let source = Chain::open(&machine, &top, &reading(host))?.view(0);
                let new = (*format, [].as_slice(), false);
                convert::convert(&machine, &source, &path("flat"), new, &progress).map(drop)
            }
        }
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let below = self.world.layers.len() - 1;
        self.world.judge_layers(host, below)?;
        judge_seals(host, Path::new(FOLDER))?;
        match &self.deed {
            Deed::Snapshot if Self::is_there(host, "new") => shows(host, &path("new"), self.world.top())?,
            Deed::Convert(_) if Self::is_there(host, "flat") => shows(host, &path("flat"), self.world.top())?,
            Deed::Resize(to) => self.judge_resized(host, *to, is_done)?,
            Deed::Revert(_) => {
                let shown = view(host, &path("top")).map_err(|e| format!("top does not open: {e}"))?;
                if shown != self.world.top() {
                    self.judge_done(host)?;
                }
            }
            _ => {}
        }
        if !matches!(self.deed, Deed::Resize(_) | Deed::Revert(_)) {
            shows(host, &path("top"), self.world.top())?;
        }
        if is_done { self.judge_done(host) } else { Ok(()) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let is_over = match self.deed {
            Deed::Snapshot => Self::is_there(host, "new"),
            Deed::Convert(_) => Self::is_there(host, "flat"),
            _ => false,
        };
        if !is_over {
            self.perform(host).map_err(|e| format!("doing it again failed: {e}"))?;
        }
        self.judge(host, true)?;
        let names = super::world::names(host, Path::new(FOLDER))?;
        names.iter().try_for_each(|name| check(host, &path(name)))
    }
}
