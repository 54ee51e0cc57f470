//! Disks in use that go to another store: a guest writes between any two steps, and notes what it was told.
//!
//! Where the disk is, the new head's name tells, as the daemon's book does that is written right after it.

use super::{
    Scene,
    live::{Guest, LIVE_PACE, Live, PACE, judge_told},
    world::{FOLDER, MATCH, World, arc, check, judge_seals, names, path, reading, shows, view},
};
use deltachain::{
    base::{self, seed::Seeded, units::index},
    disk::Disk,
    format::Format,
    io::{Access, Host, faulty::SimHost},
    job::{
        Progress,
        consolidate::{Abandonment, Consolidation, Folding, NewImage, Request as Fold, aside, has_landed},
        live::LiveDisk,
        migrate::{Migration, Request},
    },
    store::{Draft, Journal},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const STORE: &str = "/there";

/// A chain, and what the store has of it.
#[derive(Debug)]
struct Migrating {
    world: World,
    /// The layer that the store has, counted from the base.
    held: Option<usize>,
    removes_source: bool,
    /// Whether a move that was cut off is given up.
    gives_up: bool,
    seed: u64,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    // A disk that stands on nothing goes as it is.
    let world = if seed % 8 == 5 { World::alone() } else { World::new(&mut random, seed) };
    let world = world.map_err(|e| e.to_string())?;
    let below_top = world.layers.len() as u64 - 1;
    let held = random.chance(2, 3).then(|| index(random.below(below_top.max(1)))).filter(|_| below_top > 0);
    let (removes_source, gives_up) = (random.chance(1, 2), random.chance(1, 3));
    let mut scene = Migrating { world, held, removes_source, gives_up, seed };
    scene.world.stock(Path::new(STORE), scene.held).map_err(|e| e.to_string())?;
    Ok(Box::new(scene))
}

fn there(name: &str) -> PathBuf {
    Path::new(STORE).join(name)
}

impl Migrating {
    fn request(&self) -> Request {
        let options = vec![("cluster_size".into(), "512".into())];
        let removes_source = self.removes_source;
        Request { store: STORE.into(), format: Some(Format::Qcow2), options, removes_source }
    }

    /// Where the disk is now.
    fn place(host: &SimHost) -> PathBuf {
        let there = there("top");
        if host.kind(&there).is_ok_and(|kind| kind.is_some()) { there } else { path("top") }
    }

    fn stands(host: &SimHost) -> base::Result<Option<Journal>> {
        Journal::find(&arc(host), &path("top"))
    }

    fn begin(&self, host: &SimHost, disk: &Arc<LiveDisk>) -> base::Result<Folding> {
        let migration = Migration::again(&arc(host), disk, &Live::opening(host), &self.request())?;
        let below = migration.bring(&Progress::default())?;
        migration.fold(&below)?.begin(LIVE_PACE)
    }

    /// What is left of a move whose record has landed.
    fn end(host: &SimHost) -> base::Result<()> {
        let new = NewImage { path: there("top"), format: None, options: Vec::new() };
        let request = Fold { new: Some(new), ..Fold::default() };
        let job = Consolidation::prepare(&arc(host), &path("top"), &reading(host), &request)?;
        job.run(PACE, &Progress::default()).map(drop)
    }

    /// Goes on as a start of the daemon does, or gives the move up.
    fn go_on(&self, host: &SimHost) -> base::Result<()> {
        if let Some(journal) = Self::stands(host)? {
            if has_landed(host, &journal)? {
                return Self::end(host);
            }
            if self.gives_up {
                drop(journal);
                Abandonment::prepare(&arc(host), &path("top"), &reading(host))?.run()?;
            }
        }
        let disk = Live::disk(host)?;
        if self.gives_up {
            let migration = Migration::again(&arc(host), &disk, &Live::opening(host), &self.request())?;
            return migration.give_up();
        }
        let mut folding = self.begin(host, &disk)?;
        let copied = folding.copy(&Progress::default());
        folding.finish(copied, &Progress::default()).map(drop)
    }

    /// What each folder has shows what it must, and is sealed as nothing else.
    fn judge_layers(&self, host: &SimHost) -> Result<(), String> {
        let layers = &self.world.layers;
        for folder in [FOLDER, STORE] {
            for name in names(host, Path::new(folder))? {
                let number = layers.iter().position(|layer| layer.name == name);
                let number = number.or(self.held.filter(|_| name == MATCH));
                let is_head = number == Some(layers.len() - 1) || name.starts_with("top.moved");
                if is_head {
                    continue;
                }
                let view = number.and_then(|number| self.world.views.get(number));
                let view = view.ok_or_else(|| format!("{name} appeared in {folder}"))?;
                shows(host, &Path::new(folder).join(&name), view)?;
            }
            judge_seals(host, Path::new(folder))?;
        }
        Ok(())
    }

    /// After the end: one head, nothing in the making, and of the sources what was to stay.
    fn judge_end(&self, host: &SimHost) -> Result<(), String> {
        let (here, store) = (names(host, Path::new(FOLDER))?, names(host, Path::new(STORE))?);
        for folder in [FOLDER, STORE] {
            let entries = host.list(Path::new(folder)).map_err(|e| e.to_string())?;
            if let Some(draft) = entries.iter().find(|entry| Draft::is_left_over(&entry.path)) {
                return Err(format!("{} is left", draft.path.display()));
            }
        }
        let is_here = |name: &str| here.iter().any(|one| one == name);
        if !store.contains(&"top".to_owned()) {
            return if is_here("top") { Ok(()) } else { Err("the disk is nowhere".to_owned()) };
        }
        if is_here("top") {
            return Err("the old head has its name still".to_owned());
        }
        let is_kept = aside(&path("top")).any(|aside| host.kind(&aside).is_ok_and(|kind| kind.is_some()));
        if !is_kept && !self.removes_source {
            return Err("the old head is gone".to_owned());
        }
        // What a flat image stands in for is no layer there.
        let frozen = self.world.layers.len() - 1;
        let there: Vec<_> = self.world.views.iter().take(frozen).skip(self.held.unwrap_or(0)).collect();
        let layers = self.world.layers.iter().zip(&self.world.views).take(frozen);
        for (layer, view) in layers {
            // A match that could not be read is none: then the layer was copied.
            let is_there = there.contains(&view) || store.contains(&layer.name);
            let may_go = self.removes_source && !is_kept && is_there;
            if !may_go && !is_here(&layer.name) {
                return Err(format!("{} is gone", layer.name));
            }
        }
        Ok(())
    }
}

impl Scene for Migrating {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let disk = Live::disk(host)?;
        let mut guest = Guest::new(host, self.seed)?;
        let migration = Migration::prepare(&arc(host), &disk, &Live::opening(host), &self.request())?;
        guest.act(disk.as_ref())?;
        let brought = migration.bring(&Progress::default());
        guest.act(disk.as_ref())?;
        let begun = brought.and_then(|below| migration.fold(&below)?.begin(LIVE_PACE));
        let mut folding = begun.inspect_err(|_| drop(migration.give_up()))?;
        let mut fold = || {
            loop {
                for _ in 0..guest.random.below(4) {
                    guest.act(disk.as_ref())?;
                }
                if guest.random.chance(1, 4) {
                    folding.checkpoint()?;
                } else if folding.step()?.is_none() {
                    break;
                }
            }
            folding.copy(&Progress::default())?;
            guest.act(disk.as_ref())?;
            folding.record(&Progress::default())
        };
        let recorded = fold();
        if recorded.is_err() && !folding.has_landed()? {
            folding.retreat()?;
            guest.act(disk.as_ref())?;
            return recorded;
        }
        guest.act(disk.as_ref())?;
        folding.end()?;
        guest.act(disk.as_ref())?;
        disk.flush()
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        judge_told(host, &Self::place(host), self.world.top())?;
        self.judge_layers(host)?;
        let stands = Self::stands(host).map_err(|e| e.to_string())?.is_some();
        if is_done && (stands || Self::place(host) != there("top")) {
            return Err("is not over, although that was acknowledged".to_owned());
        }
        Ok(())
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let before = view(host, &Self::place(host)).map_err(|e| e.to_string())?;
        let stands = Self::stands(host).map_err(|e| e.to_string())?.is_some();
        if stands || Self::place(host) == path("top") {
            self.go_on(host).map_err(|e| format!("the resume failed: {e}"))?;
        }
        let place = Self::place(host);
        if view(host, &place).map_err(|e| e.to_string())? != before {
            return Err("shows something else than before the resume".to_owned());
        }
        if Self::stands(host).map_err(|e| e.to_string())?.is_some() {
            return Err("a journal is left".to_owned());
        }
        self.judge_layers(host)?;
        self.judge_end(host)?;
        drop(host.open(&place, Access::Write).map_err(|e| e.to_string())?);
        check(host, &place)
    }
}
