//! Consolidations: at every moment TOP's name (or, after the record, the result's) opens what TOP showed.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, ledger, names, path, reading, shows},
};
use deltachain::{
    base::{self, seed::Seeded, units::index},
    chain::{Chain, Opening},
    format::{self, Format},
    io::{Access, Host, faulty::SimHost},
    job::{
        Progress,
        consolidate::{Consolidation, NewImage, Pace, Request},
    },
    store::Journal,
};
use std::path::Path;

const PACE: Pace = Pace { move_bytes: 4096, mark_bytes: 6000, adopted_pieces: 2 };

/// What becomes of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The target takes TOP's name, or an empty TOP stays over it.
    TopsName,
    /// The target keeps its name.
    TargetsName,
    /// A new image.
    New,
}

/// A seeded chain, and what is to be done with it.
#[derive(Debug)]
struct Fold {
    world: World,
    /// The layer that the run goes into.
    target: usize,
    end: End,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    let make = if seed % 3 == 2 { World::apart } else { World::new };
    let world = make(&mut random, seed).map_err(|e| e.to_string())?;
    let target = index(random.below(world.layers.len() as u64 - 1));
    let end = match random.below(4) {
        0 => End::TargetsName,
        1 => End::New,
        _ => End::TopsName,
    };
    Ok(Box::new(Fold { world, target, end }))
}

impl Fold {
    fn request(&self) -> Request {
        let new = (self.end == End::New).then(|| NewImage {
            path: path("new"),
            format: Some(Format::Qcow2),
            options: vec![("cluster_size".into(), "1024".into())],
        });
        let into = Some(self.world.path(self.target));
        Request { into, new, keeps_target_name: self.end == End::TargetsName, ..Request::default() }
    }

    fn result(&self) -> &str {
        match (self.end, self.world.layers.get(self.target)) {
            (End::New, _) => "new",
            (End::TargetsName, Some(target)) => &target.name,
            _ => "top",
        }
    }

    /// The names that are left in the end, sorted.
    fn left(&self) -> Vec<String> {
        let layers = &self.world.layers;
        let raw_stays = layers.get(self.target).is_some_and(|target| target.format == Format::Raw);
        let below = match self.end {
            End::New => layers.len(),
            End::TargetsName => self.target + 1,
            End::TopsName => self.target + usize::from(raw_stays),
        };
        let mut names: Vec<String> = layers.iter().take(below).map(|layer| layer.name.clone()).collect();
        names.extend((self.end != End::TargetsName).then(|| self.result().to_owned()));
        names.sort();
        names.dedup();
        names
    }

    fn is_over(&self, host: &SimHost) -> bool {
        let left = self.left();
        names(host, Path::new(FOLDER)).is_ok_and(|names| names == left) && {
            let depth = Chain::open(&arc(host), &path(self.result()), &Opening::reading());
            let below = self.target + 1 + usize::from(left.len() > self.target + 1);
            self.end == End::New || depth.is_ok_and(|chain| chain.layers().len() <= below)
        }
    }

    fn journal_stands(host: &SimHost) -> Result<bool, String> {
        Journal::find(&arc(host), &path("top")).map(|found| found.is_some()).map_err(|e| e.to_string())
    }
}

impl Scene for Fold {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let opening = Opening::reading().with_ledger(ledger(host));
        let job = Consolidation::prepare(&arc(host), &path("top"), &opening, &self.request())?;
        job.run(PACE, &Progress::default()).map(drop)
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let top = host.open(&path("top"), Access::ReadShared);
        let is_head = top.is_ok_and(|file| !format::is_retired(file.as_ref()).unwrap_or(true));
        let name = if is_head && !is_done { "top" } else { self.result() };
        shows(host, &path(name), self.world.top())?;
        // What lies below the target is nobody's business.
        self.world.judge_layers(host, self.target)?;
        judge_seals(host, Path::new(FOLDER))?;
        if is_done && (Self::journal_stands(host)? || !self.is_over(host)) {
            return Err("is not over, although that was acknowledged".to_owned());
        }
        Ok(())
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        if Self::journal_stands(host)? || !self.is_over(host) {
            self.perform(host).map_err(|e| format!("the resume failed: {e}"))?;
        }
        let result = path(self.result());
        shows(host, &result, self.world.top())?;
        let (names, left) = (names(host, Path::new(FOLDER))?, self.left());
        if names != left {
            return Err(format!("left are {names:?}, not {left:?}"));
        }
        judge_seals(host, Path::new(FOLDER))?;
        Chain::open(&arc(host), &result, &reading(host)).map_err(|e| e.to_string())?;
        check(host, &result)
    }
}
