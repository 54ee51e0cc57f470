//! Seals: no content ID stands on other bytes, and each stands when that was acknowledged.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, ledger, path, reading},
};
use deltachain::{
    base::{self, seed::Seeded},
    chain::{Chain, Opening},
    io::faulty::SimHost,
    job::{
        Progress,
        seal::{full_tree, open_layers, seal},
    },
};
use std::path::Path;

/// A chain all of which is sealed.
#[derive(Debug)]
struct Sealing {
    world: World,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let world = World::new(&mut Seeded::new(seed), seed).map_err(|e| e.to_string())?;
    Ok(Box::new(Sealing { world }))
}

impl Sealing {
    /// Says so unless every layer of the chain bears its content ID.
    fn is_sealed(host: &SimHost) -> Result<(), String> {
        let chain = Chain::open(&arc(host), &path("top"), &reading(host)).map_err(|e| e.to_string())?;
        for (depth, standing) in chain.standings().iter().enumerate() {
            let shown = full_tree(&chain.view(depth), &Progress::default()).map_err(|e| e.to_string())?;
            if standing.known.layer.frozen.and_then(|record| record.sealed) != Some(shown.tree.id()) {
                return Err(format!("layer {depth} from the top is not sealed"));
            }
        }
        Ok(())
    }
}

impl Scene for Sealing {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let layers = open_layers(&arc(host), &path("top"), &Opening::reading())?;
        seal(&ledger(host), &layers, &Progress::default()).map(drop)
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        self.world.judge_layers(host, usize::MAX)?;
        judge_seals(host, Path::new(FOLDER))?;
        if is_done { Self::is_sealed(host) } else { Ok(()) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        self.perform(host).map_err(|e| format!("sealing again failed: {e}"))?;
        self.judge(host, true)?;
        (0..self.world.layers.len()).try_for_each(|layer| check(host, &self.world.path(layer)))
    }
}
