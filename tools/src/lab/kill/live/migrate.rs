//! Kills `dchaind` while a disk goes to another store under its guests, and starts it again: the disk is whole where it was,
//! or where it goes, and the move ends by itself.

use super::{Live, WRITES, all_of, rounds};
use crate::kill::{
    FOREIGN, GLANCE, PATIENCE, Stage, Tally, Told,
    scene::{Scene, check},
    told,
};
use deltachain::{
    base::{clock::Stopwatch, seed::Seeded},
    io::Access,
    store::Journal,
};
use serde_json::Value;
use std::{fs, path::Path, thread, time::Duration};

/// Where a kill may strike: layers are on their way, the head is, the disk goes over.
const PHASES: [&str; 3] = ["layers", "head", "end"];
const ENDING: usize = 2;

/// Kills the `dchaind` beside `program`, which is `dchain`, until `kills` of them counted; the first wrong result ends
/// it, with words that name the seed.
pub fn search(seed: u64, kills: u64, program: &Path) -> Result<Tally, String> {
    rounds("migrate", &PHASES, (seed, kills), program, |live, seeded, tally, round| {
        live.migrate(seeded, tally, round)
    })
}

/// Where a move is, as the folders tell.
fn stage(scene: &Scene) -> Stage {
    match Journal::find(&scene.host, &scene.path("top")) {
        Ok(Some(journal)) if journal.position().is_ready => Stage::In(ENDING, scene.size()),
        Ok(Some(journal)) => Stage::In(1, journal.position().mark.bytes()),
        _ if scene.is_there("store/top") => Stage::Over,
        _ if fs::read_dir(scene.path("store")).is_ok_and(|mut all| all.next().is_some()) => Stage::In(0, 0),
        _ => Stage::Before,
    }
}

fn count_kill(tally: &mut Tally, stage: Stage) {
    match stage {
        Stage::In(phase, mark) => {
            *tally.counted.entry(PHASES.get(phase).copied().unwrap_or("?")).or_default() += 1;
            tally.marked += u64::from(mark > 0);
        }
        Stage::Before | Stage::Over => tally.uncounted += 1,
    }
}

impl Live<'_> {
    fn migrate(&mut self, seeded: &mut Seeded, tally: &mut Tally, round: u64) -> Told<()> {
        let phase =
            (0..PHASES.len()).min_by_key(|phase| PHASES.get(*phase).and_then(|p| tally.counted.get(p)));
        let removes = seeded.chance(1, 2);
        self.start()?;
        let left = self.kill_in_move(phase.unwrap_or(0), removes, seeded)?;
        count_kill(tally, left);
        if seeded.chance(1, 3) && matches!(left, Stage::In(..)) {
            self.start()?;
            let again = self.kill_while(seeded, |live, seeded| {
                thread::sleep(Duration::from_micros(seeded.below(60_000)));
                Ok(stage(&live.scene))
            })?;
            count_kill(tally, again);
        }
        self.start()?;
        self.look()?;
        self.write(seeded, WRITES, |_, _| Ok(()))?;
        self.end_move(removes)?;
        tally.ended += 1;
        self.write(seeded, WRITES / 4, |_, _| Ok(()))?;
        self.look()?;
        self.stop()?;
        self.judge_moved(removes, round.is_multiple_of(FOREIGN), tally)
    }

    /// Begins the move and kills the daemon in that phase of it, or in a later one.
    fn kill_in_move(&mut self, wanted: usize, removes: bool, seeded: &mut Seeded) -> Told<Stage> {
        let wait = Duration::from_micros(seeded.below(if wanted == ENDING { 2500 } else { 100_000 }));
        self.kill_while(seeded, |live, _| {
            let rate = if wanted == ENDING { "0" } else { "2M" };
            let asked = ["migrate", "--disk", "vm", "--yes", "--detach", "--rate", rate, "store"];
            let removes = removes.then_some("--remove-source");
            let mut asking = live.ask(asked.into_iter().chain(removes)).spawn().map_err(told)?;
            let since = Stopwatch::start();
            loop {
                match stage(&live.scene) {
                    Stage::In(phase, _) if phase >= wanted => break,
                    Stage::Over => break,
                    _ => thread::sleep(GLANCE),
                }
                if since.elapsed() > PATIENCE {
                    return Err("the move hangs".to_owned());
                }
            }
            thread::sleep(wait);
            live.kill();
            asking.wait().map_err(told)?;
            Ok(stage(&live.scene))
        })
    }

    /// Waits for the job that goes on by itself; where the disk is still where it was and none does, moves it.
    fn end_move(&self, removes: bool) -> Told<()> {
        let jobs = self.answer(["job", "list"])?;
        let job = jobs.as_array().and_then(|jobs| jobs.last());
        let job = match job.and_then(|job| job.get("id")).and_then(Value::as_u64) {
            Some(id) => self.answer(["job", "wait", &id.to_string()])?,
            None if self.is_moved()? => return Ok(()),
            None => {
                let removes = removes.then_some("--remove-source");
                self.answer(["migrate", "--disk", "vm", "--yes", "store"].into_iter().chain(removes))?
            }
        };
        if job.get("error").is_some_and(|error| !error.is_null()) {
            return Err(format!("the job failed: {job}"));
        }
        if self.is_moved()? { Ok(()) } else { Err(format!("the disk is not where it was to go: {job}")) }
    }

    fn is_moved(&self) -> Told<bool> {
        let shown = self.answer(["disk", "show", "vm"])?;
        let path = shown.get("path").and_then(Value::as_str).map(Path::new);
        Ok(path.is_some_and(|path| path.ends_with("store/top")))
    }

    /// Judges what is left once the daemon has ended.
    fn judge_moved(&self, removes: bool, by_qemu: bool, tally: &mut Tally) -> Told<()> {
        let served = self.disks.first().ok_or("no disk")?;
        let chain = self.scene.open("store/top", Access::Read).map_err(told)?;
        if all_of(&chain)? != served.expected {
            return Err("the disk shows something else than its guests wrote".to_owned());
        }
        let paths: Vec<_> = chain.layers().iter().map(|layer| layer.path.clone()).collect();
        let store = fs::canonicalize(self.scene.path("store")).map_err(told)?;
        if let Some(path) = paths.iter().find(|path| !path.starts_with(&store)) {
            return Err(format!("a layer is not in the store: {}", path.display()));
        }
        drop(chain);
        check(self.program, &self.scene.path("store/top"))?;
        if self.scene.is_there("top") {
            return Err("the old head has its name still".to_owned());
        }
        // One that is to go stays where a kill leaves it in doubt whether somebody wrote it.
        if !removes && !self.scene.is_there("top.moved") {
            return Err("the old head is gone".to_owned());
        }
        if by_qemu {
            self.compare_by_qemu("store/top", &served.expected)?;
            tally.compared += 1;
        }
        Ok(())
    }
}
