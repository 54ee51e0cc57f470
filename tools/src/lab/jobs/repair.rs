//! Repairs of a layer that a stranger wrote: what is trusted shows what it promises, and no child reads anything else
//! than it was made on.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, ledger, path, reading, shows, view},
};
use deltachain::{
    base::{
        self, ErrorKind, GuestOffset,
        seed::Seeded,
        units::{count, index},
    },
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        convert::convert,
        repair::{Repair, Unproven},
    },
    store::Trust,
};
use std::path::Path;

const COPIES: &str = "/copies";
const COPY: &str = "/copies/copy";

/// A chain of which a layer was written behind its children's back.
#[derive(Debug)]
struct Repairing {
    world: World,
    /// The layer, counted from the base.
    harmed: usize,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    // Only sealed layers promise anything.
    let world = World::new(&mut random, seed & !1).map_err(|e| e.to_string())?;
    let harmed = index(random.below(count(world.layers.len()) - 1));
    let mut scene = Repairing { world, harmed };
    scene.harm(&mut random).map_err(|e| e.to_string())?;
    Ok(Box::new(scene))
}

impl Repairing {
    fn harm(&mut self, random: &mut Seeded) -> base::Result<()> {
        let (host, place) = (&self.world.host, self.world.path(self.harmed));
        host.make_folder(Path::new(COPIES))?;
        let sound = Chain::open(&arc(host), &place, &reading(host))?;
        let format = if random.chance(1, 2) { Format::Raw } else { Format::Qcow2 };
        convert(&arc(host), &sound.view(0), Path::new(COPY), (format, &[], false), &Progress::default())?;
        drop(sound);
        let chain = Chain::open(&arc(host), &place, &Opening::writing())?;
        for _ in 0..=random.below(3) {
            let at = random.below(chain.size());
            let bytes = (1 + random.below(3000)).min(chain.size() - at);
            chain.write(GuestOffset::new(at), &vec![255; index(bytes)])?;
        }
        chain.flush()?;
        for file in chain.head()?.image.files() {
            file.flush_with_time()?;
        }
        drop(chain);
        self.world.host = host.twin();
        Ok(())
    }

    /// Says so if the layer is trusted and shows something else, or a layer above it reads what it was not made on.
    fn judge_harmed(&self, host: &SimHost) -> Result<(), String> {
        let place = self.world.path(self.harmed);
        let chain = Chain::open(&arc(host), &place, &reading(host)).map_err(|e| e.to_string())?;
        let is_trusted = chain.standings().first().is_some_and(|s| s.known.trust == Trust::Trusted);
        drop(chain);
        for (layer, expected) in self.world.layers.iter().zip(&self.world.views).skip(self.harmed) {
            let is_harmed = path(&layer.name) == place;
            match view(host, &path(&layer.name)) {
                Ok(shown) if shown == *expected || (is_harmed && !is_trusted) => {}
                Ok(_) => return Err(format!("{} shows something else", layer.name)),
                Err(error) if error.kind() == ErrorKind::Policy && !is_harmed => {}
                Err(error) => return Err(format!("{} does not open: {error}", layer.name)),
            }
        }
        Ok(())
    }
}

impl Scene for Repairing {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let (place, opening) = (self.world.path(self.harmed), Opening::reading());
        let (paths, openings) = ((place.as_path(), Path::new(COPY)), (&opening, &opening));
        let repair = Repair::prepare(&arc(host), &ledger(host), paths, openings, &Progress::default())?;
        repair.run(Unproven::Refuse, &Progress::default()).map(drop)
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        self.world.judge_layers(host, self.harmed)?;
        self.judge_harmed(host)?;
        judge_seals(host, Path::new(FOLDER))?;
        if is_done { self.world.judge_layers(host, usize::MAX) } else { Ok(()) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        self.perform(host).map_err(|e| format!("the resume failed: {e}"))?;
        self.judge(host, true)?;
        shows(host, &path("top"), self.world.top())?;
        self.world.layers.iter().try_for_each(|layer| check(host, &path(&layer.name)))
    }
}
