//! Moves to another folder: each layer is whole here or there at every moment, and gone here at the end.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, ledger, names, path, reading, shows},
};
use deltachain::{
    base::{self, ErrorKind, seed::Seeded},
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        copy::{Copy, Removal, Request},
    },
};
use std::path::Path;

const TARGET: &str = "/there";

/// A chain on its way.
#[derive(Debug)]
struct Moving {
    world: World,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut world = World::new(&mut Seeded::new(seed), seed).map_err(|e| e.to_string())?;
    world.host.make_folder(Path::new(TARGET)).map_err(|e| e.to_string())?;
    world.host = world.host.twin();
    Ok(Box::new(Moving { world }))
}

impl Scene for Moving {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let (top, ledger, opening) = (path("top"), ledger(host), reading(host));
        let (paths, progress) = ((top.as_path(), Path::new(TARGET)), Progress::default());
        if let Some(rest) = Removal::find(&arc(host), &ledger, paths, &opening)? {
            return rest.run(&progress).map(drop);
        }
        let request = Request { removes_source: true, ..Request::default() };
        Copy::prepare(&arc(host), &ledger, paths, &opening, request)?.run(&progress).map(drop)
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let (here, there) = (names(host, Path::new(FOLDER))?, names(host, Path::new(TARGET))?);
        for (layer, expected) in self.world.layers.iter().zip(&self.world.views) {
            let (is_here, is_there) = (here.contains(&layer.name), there.contains(&layer.name));
            if is_here {
                shows(host, &path(&layer.name), expected)?;
            }
            if is_there {
                shows(host, &Path::new(TARGET).join(&layer.name), expected)?;
            }
            if !is_there && (!is_here || is_done) {
                return Err(format!("{} is lost", layer.name));
            }
        }
        judge_seals(host, Path::new(FOLDER))?;
        judge_seals(host, Path::new(TARGET))?;
        if is_done && !here.is_empty() { Err(format!("{here:?} are left")) } else { Ok(()) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        match self.perform(host) {
            Ok(()) => {}
            // All is done: there is no source any more.
            Err(e) if e.kind() == ErrorKind::NotFound && names(host, Path::new(FOLDER))?.is_empty() => {}
            Err(e) => return Err(format!("the resume failed: {e}")),
        }
        self.judge(host, true)?;
        let layers = &self.world.layers;
        layers.iter().try_for_each(|layer| check(host, &Path::new(TARGET).join(&layer.name)))
    }
}
