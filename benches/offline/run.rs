//! Runs rows: brings their data, runs both sides in turn, compares what they made.

use crate::{
    data::{Data, Piece},
    measure::{self, Sample},
    place::{self, Place, Volume},
    reach::{Reach, Side},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// One comparison. Scripts run in the place's folder; `$W` is the side's prefix for files of its own (all
/// removed before each run), `$DCHAIN` and `$PROBE` are the programs.
pub(crate) struct Row {
    /// What is done.
    pub(crate) name: &'static str,
    /// The subcommand of `dchain` that must be there; empty where the library is measured.
    pub(crate) command: &'static str,
    pub(crate) place: Place,
    pub(crate) pieces: &'static [Piece],
    /// Files that are read into the page cache before each run (and, with reflink, brought to the volume).
    pub(crate) warm: &'static str,
    /// Run once, untimed.
    pub(crate) prepare: &'static str,
    /// Run before each run of either side, untimed.
    pub(crate) setup: &'static str,
    pub(crate) ours: &'static str,
    /// The fastest of these counts.
    pub(crate) theirs: &'static [&'static str],
    /// What `theirs` is, in words.
    pub(crate) against: &'static str,
    /// Run once after both sides ran: fails if the results differ.
    pub(crate) proof: &'static str,
    /// Ending (after `$W`) of the file whose size is compared.
    pub(crate) output: &'static str,
    pub(crate) reach: &'static [Reach],
    /// How each side ends durable, and what it verifies.
    pub(crate) ends: &'static str,
    /// Short work runs this many times as often.
    pub(crate) times: u32,
}

/// Makes `copy`, a chain of nine that is copied: sealed (again, where the host has restarted since). Needs `Piece::Deltas`.
pub(crate) const SEALED_CHAIN: &str = "if [ ! -d copy ]; then rm -rf copy.part && mkdir copy.part && cp base.qcow2 copy.part/ && p=base.qcow2 && \
     for i in 1 2 3 4 5 6 7 8; do cp c.$i copy.part/ && \
     qemu-img rebase -u -f qcow2 -F qcow2 -b $p copy.part/c.$i && p=c.$i || exit 1; done; \
     mv copy.part copy; fi; $DCHAIN id seal --chain copy/c.8 && sync copy/* && cat copy/*";

/// Holds 2 GiB of memory for a moment.
const TOUCH_MEMORY: &str = "head -c 2G /dev/zero | tail -c 2G";

/// What came of a row.
pub(crate) enum Outcome {
    /// The medians of both sides.
    Measured { ours: Side, theirs: Side },
    /// It was not run, and why.
    Skipped(String),
    /// Its result is wrong, or it failed.
    Wrong(String),
}

/// Rows run by this.
pub(crate) struct Bench {
    data: Data,
    runs: u32,
    volume: Option<Result<Volume, String>>,
    memory: TempDir,
    dchain: PathBuf,
    probe: PathBuf,
}

impl Bench {
    /// Takes the programs that cargo has built.
    pub(crate) fn new(data: Data, runs: u32) -> Result<Self, String> {
        let probe = std::env::current_exe().map_err(|e| e.to_string())?;
        let dchain = PathBuf::from(env!("CARGO_BIN_EXE_dchain"));
        Ok(Self { data, runs, volume: None, memory: place::memory()?, dchain, probe })
    }

    /// Runs one row.
    pub(crate) fn run(&mut self, row: &Row) -> Outcome {
        if !row.command.is_empty() && !self.has_command(row.command) {
            return Outcome::Skipped("not built yet".to_owned());
        }
        let folder = match self.bring(row) {
            Ok(folder) => folder,
            Err(why) => return Outcome::Skipped(why),
        };
        let outcome = self.compare(row, &folder);
        remove_own(&folder);
        outcome.unwrap_or_else(Outcome::Wrong)
    }

    fn has_command(&self, name: &str) -> bool {
        let help = Command::new(&self.dchain).args([name, "--help"]).stderr(Stdio::null()).output();
        help.is_ok_and(|h| h.status.success() && !h.stdout.is_empty())
    }

    /// Makes the row's data and returns the folder where it runs.
    fn bring(&mut self, row: &Row) -> Result<PathBuf, String> {
        self.data.make(row.pieces)?;
        let data = self.data.folder.clone();
        match row.place {
            Place::Data => Ok(data),
            Place::Memory => Ok(self.memory.path().to_owned()),
            Place::Reflink => {
                let volume =
                    self.volume.get_or_insert_with(|| Volume::mount(&data)).as_ref().map_err(Clone::clone)?;
                let names: Vec<String> = row.warm.split_whitespace().map(str::to_owned).collect();
                volume.bring(&data, &names)?;
                Ok(volume.folder.clone())
            }
        }
    }

    fn compare(&self, row: &Row, folder: &Path) -> Result<Outcome, String> {
        remove_own(folder);
        let script = |script: &str, side: &str| {
            let names = [
                ("W", side.to_owned()),
                ("DCHAIN", self.dchain.display().to_string()),
                ("PROBE", self.probe.display().to_string()),
                ("MIB", (self.data.size() >> 20).to_string()),
            ];
            measure::run(script, folder, &names)
        };
        script(row.prepare, "")?;
        let sides: Vec<(String, &str)> = std::iter::once(("ours".to_owned(), row.ours))
            .chain(row.theirs.iter().enumerate().map(|(n, s)| (format!("theirs{n}"), *s)))
            .collect();
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); sides.len()];
        for _ in 0..self.runs * row.times {
            for ((side, command), samples) in sides.iter().zip(&mut samples) {
                remove_side(folder, side);
                script(&format!("{}\nsync -f .", row.setup), side)?;
                // Under a hypervisor that takes free memory back, whoever runs next would pay for the page cache it takes.
                if row.times == 1 {
                    script(TOUCH_MEMORY, side)?;
                }
                // What was read once may have left the cache since, and what was copied may not be in it.
                if !row.warm.is_empty() {
                    script(&format!("cat {}", row.warm), side)?;
                }
                samples.push(script(command, side).map_err(|e| format!("{side}: {e}"))?);
            }
        }
        script(row.proof, "").map_err(|e| format!("results differ: {e}"))?;
        let sides: Vec<Side> = sides
            .iter()
            .zip(&samples)
            .map(|((side, _), samples)| {
                let output = folder.join(format!("{side}{}", row.output));
                let output_bytes = fs::metadata(output).map_or(0, |m| m.len());
                Side { sample: measure::medians(samples), output_bytes }
            })
            .collect();
        let (ours, theirs) = sides.split_first().ok_or("a row without sides")?;
        let best = theirs.iter().min_by_key(|s| s.sample.wall).copied().unwrap_or_default();
        Ok(Outcome::Measured { ours: *ours, theirs: best })
    }
}

/// Removes what the sides of a row made.
fn remove_own(folder: &Path) {
    for side in ["ours", "theirs"] {
        remove_side(folder, side);
    }
}

fn remove_side(folder: &Path, side: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(side) {
            let path = entry.path();
            // What cannot be removed makes the next command fail, which is reported.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
