//! Copies to another folder: no name there stands for something that is not whole.

use super::{
    Scene,
    world::{MATCH, World, arc, check, judge_seals, ledger, names, path, shows},
};
use deltachain::{
    base::{self, seed::Seeded, units::index},
    chain::Opening,
    format::Format,
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        copy::{Conversion, Copy, Request, Share},
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const TARGET: &str = "/there";

/// A chain, and what the target has of it.
#[derive(Debug)]
struct Carrying {
    world: World,
    /// The layer that the target has, counted from the base.
    held: Option<usize>,
    share: Share,
    /// Whether the layers are made anew.
    is_converted: bool,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    // A disk that stands on nothing is neither linked nor hashed: only its own flush makes it durable.
    let world = if seed % 8 == 5 { World::alone() } else { World::new(&mut random, seed) };
    let world = world.map_err(|e| e.to_string())?;
    let below_top = world.layers.len() as u64 - 1;
    let held = random.chance(2, 3).then(|| index(random.below(below_top.max(1)))).filter(|_| below_top > 0);
    let is_converted = seed % 8 == 6;
    let share = if random.chance(1, 4) || is_converted { Share::Deny } else { Share::Allow };
    let mut scene = Carrying { world, held, share, is_converted };
    scene.world.stock(Path::new(TARGET), scene.held).map_err(|e| e.to_string())?;
    Ok(Box::new(scene))
}

fn there(name: &str) -> PathBuf {
    Path::new(TARGET).join(name)
}

impl Carrying {
    /// The first layer that has to be copied, counted from the base.
    fn copied(&self) -> usize {
        let linked = self.held.filter(|_| self.share == Share::Allow);
        linked.map_or(0, |held| held + 1)
    }
}

impl Scene for Carrying {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let options = vec![("cluster_size".into(), "1024".into())];
        let conversion =
            Conversion { format: Format::Qcow2, options, is_packed: false, names: BTreeMap::new() };
        let conversion = self.is_converted.then_some(conversion);
        let request = Request { share: self.share, conversion, ..Request::default() };
        let (top, folder) = (path("top"), Path::new(TARGET));
        let opening = Opening::reading();
        let job = Copy::prepare(&arc(host), &ledger(host), (&top, folder), &opening, request)?;
        job.run(&Progress::default()).map(drop)
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        self.world.judge_layers(host, usize::MAX)?;
        for name in names(host, Path::new(TARGET))? {
            let layers = &self.world.layers;
            let number = layers.iter().position(|layer| layer.name == name).or(self.held);
            let view = number.and_then(|number| self.world.views.get(number));
            let view = view.ok_or_else(|| format!("{name} appeared at the target"))?;
            shows(host, &there(&name), view)?;
        }
        judge_seals(host, Path::new(TARGET))?;
        if is_done { shows(host, &there("top"), self.world.top()) } else { Ok(()) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let found = names(host, Path::new(TARGET))?;
        // A copy that is over and whose note is gone would find its own names taken.
        let is_over = found.contains(&"top".to_owned()) && !has_note(host);
        if !is_over {
            self.perform(host).map_err(|e| format!("the resume failed: {e}"))?;
        }
        self.judge(host, true)?;
        // A match that could not be read is none: then more is copied than had to be.
        let found = names(host, Path::new(TARGET))?;
        let wanted = self.world.layers.iter().skip(self.copied()).map(|layer| layer.name.as_str());
        if let Some(missing) =
            wanted.chain(self.held.map(|_| MATCH)).find(|name| !found.iter().any(|f| f == name))
        {
            return Err(format!("{missing} is not at the target: {found:?}"));
        }
        let entries = host.list(Path::new(TARGET)).map_err(|e| e.to_string())?;
        if let Some(draft) = entries.iter().find(|e| deltachain::store::Draft::is_left_over(&e.path)) {
            return Err(format!("{} is left", draft.path.display()));
        }
        found.iter().try_for_each(|name| check(host, &there(name)))
    }
}

fn has_note(host: &SimHost) -> bool {
    let entries = host.list(&there(".dchain")).unwrap_or_default();
    entries.iter().any(|e| e.path.to_string_lossy().ends_with(".json"))
}
