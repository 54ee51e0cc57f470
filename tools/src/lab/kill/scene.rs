//! A disk of three layers in a folder of its own, and what is left of it afterwards.

use super::{Job, Told, told};
use deltachain::{
    base::{GuestOffset, seed::Seeded},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Access, Host, Kept, real::RealHost},
    job::{
        Progress,
        create::{NewImage, create},
        diff::first_difference,
        snapshot::snapshot_as,
    },
    store::{Draft, Ledger},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

/// The layers, the base first.
pub(super) const NAMES: [&str; 3] = ["base", "middle", "top"];

/// Each stretch of this length begins with bytes of the base, which the middle layer hides.
pub(super) const STRIDE_BYTES: u64 = 16 << 20;
/// How many bytes.
const HEAD_BYTES: usize = 64 << 10;

pub(super) struct Scene {
    folder: TempDir,
    pub(super) host: Arc<dyn Host>,
    pub(super) base: Format,
    /// The format of the layers over the base.
    pub(super) deltas: Format,
    strides: u64,
}

impl Scene {
    /// Makes the disk, a copy of it in `before`, and an empty folder `store`.
    pub(super) fn build(seeded: &mut Seeded, is_large: bool, deltas: Format) -> Told<Self> {
        let folder = tempfile::tempdir().map_err(told)?;
        let strides = if is_large { 40 } else { 2 };
        let is_raw = is_large || seeded.chance(1, 2);
        let base = if is_raw { Format::Raw } else { deltas };
        let scene = Self { folder, host: Arc::new(RealHost::new()), base, deltas, strides };
        scene.fill(seeded).map_err(told)?;
        fs::create_dir(scene.path("store")).map_err(told)?;
        fs::create_dir(scene.path("before")).map_err(told)?;
        let mut copy = Command::new("cp");
        copy.current_dir(scene.folder()).args(["--sparse=always", "--reflink=auto"]);
        let status = copy.args(NAMES).arg("before").status().map_err(told)?;
        if status.success() { Ok(scene) } else { Err("cp failed".to_owned()) }
    }

    fn fill(&self, seeded: &mut Seeded) -> deltachain::base::Result<()> {
        let new = NewImage { format: self.base, size: Some(self.size()), parent: None, options: Vec::new() };
        create(&self.host, &self.path("base"), &new, &self.opening())?;
        let disk = self.open("base", Access::Write)?;
        for stride in 0..self.strides {
            disk.write(GuestOffset::new(stride * STRIDE_BYTES), &vec![0x11; HEAD_BYTES])?;
        }
        disk.flush()?;
        drop(disk);
        self.snapshot("base", "middle")?;
        let disk = self.open("middle", Access::Write)?;
        disk.zero(GuestOffset::new(0).range(self.size()), Kept::Nothing)?;
        self.scribble(&disk, seeded)?;
        drop(disk);
        self.snapshot("middle", "top")?;
        let disk = self.open("top", Access::Write)?;
        // The last bytes of the disk: a mark behind them says that all is done.
        disk.write(GuestOffset::new(self.size() - 4096), &[0x22; 4096])?;
        self.scribble(&disk, seeded)
    }

    fn snapshot(&self, below: &str, above: &str) -> deltachain::base::Result<()> {
        let new = self.path(above);
        snapshot_as(&self.host, &self.path(below), (&new, self.deltas), &[], &self.opening()).map(drop)
    }

    /// Writes some bytes past each head.
    fn scribble(&self, disk: &Chain, seeded: &mut Seeded) -> deltachain::base::Result<()> {
        let mut bytes = vec![0; 150_000];
        for _ in 0..4 {
            seeded.fill(&mut bytes);
            let stride = seeded.below(self.strides) * STRIDE_BYTES;
            disk.write(GuestOffset::new(stride + (1 << 20) + seeded.below(8 << 20)), &bytes)?;
        }
        disk.flush()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub(super) fn is_there(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Size of the disk in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.strides * STRIDE_BYTES
    }

    pub(super) fn ledger(&self) -> Ledger {
        Ledger::new(Arc::clone(&self.host), None)
    }

    fn opening(&self) -> Opening {
        Opening::reading().with_ledger(self.ledger())
    }

    /// Opens a layer and all below it, holding each to what it claims of its parent.
    pub(super) fn open(&self, name: &str, access: Access) -> deltachain::base::Result<Chain> {
        let is_raw = name.ends_with("base") && self.base == Format::Raw;
        let format = Some(if is_raw { Format::Raw } else { self.deltas });
        Chain::open(&self.host, &self.path(name), &self.opening().with_access(access).with_format(format))
    }

    /// Fails unless `name` shows what `was` showed before the job.
    pub(super) fn compare(&self, name: &str, was: &str) -> Told<()> {
        // The copies have other inodes than their records speak of.
        let format = Some(if was == "base" { self.base } else { self.deltas });
        let opening = Opening::reading().with_format(format);
        let before = Chain::open(&self.host, &self.path(&format!("before/{was}")), &opening).map_err(told)?;
        let now = self.open(name, Access::ReadShared).map_err(told)?;
        match first_difference(&before.view(0), &now.view(0), &Progress::default()).map_err(told)? {
            None => Ok(()),
            Some(at) => Err(format!("{name} shows something else than before at guest byte {at:#x}")),
        }
    }

    /// Judges what the ended job left: the view, what else is there, and the images by the program's own check.
    pub(super) fn judge(&self, job: Job, program: &Path) -> Told<()> {
        let (place, left) = self.end(job);
        self.compare(&format!("{place}top"), "top")?;
        let folder = self.path(place);
        let names = names(&folder)?;
        if names != left {
            return Err(format!("{names:?} are left, not {left:?}"));
        }
        let images = left.iter().filter(|name| **name != "base" || self.base != Format::Raw);
        images.map(|name| folder.join(name)).try_for_each(|image| check(program, &image))
    }

    /// Returns where the result is, and the names that are left there.
    fn end(&self, job: Job) -> (&'static str, &'static [&'static str]) {
        match (job, self.base) {
            (Job::Copy | Job::Remote, _) => ("store/", &NAMES),
            (Job::Consolidate, Format::Raw) => ("", &["base", "top"]),
            (Job::Consolidate, _) => ("", &["top"]),
        }
    }

    /// Lets qemu-img compare the result with the disk before.
    pub(super) fn judge_by_qemu(&self, job: Job) -> Told<()> {
        let result = format!("{}top", self.end(job).0);
        let mut compare = Command::new("qemu-img");
        compare.current_dir(self.folder()).args(["compare", "-q", "-f", "qcow2", "-F", "qcow2"]);
        let status = compare.args(["before/top", &result]).status().map_err(told)?;
        if status.success() { Ok(()) } else { Err(format!("qemu-img compare: {status}")) }
    }
}

/// Returns the names of files in a folder, sorted; fails for one that only an interrupted program leaves.
pub(super) fn names(folder: &Path) -> Told<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(told)? {
        let path = entry.map_err(told)?.path();
        if path.is_file() {
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        if Draft::is_left_over(&path) {
            return Err(format!("{} is left over", path.display()));
        }
    }
    names.sort();
    Ok(names)
}

/// Fails for a corrupt image, and for one whose leaks a repair does not give back.
pub(super) fn check(program: &Path, image: &Path) -> Told<()> {
    let run = |options: &[&str]| -> Told<i32> {
        let output = Command::new(program).arg("check").args(options).arg(image).output().map_err(told)?;
        Ok(output.status.code().unwrap_or(-1))
    };
    let leaks = 3;
    let mut verdict = run(&[])?;
    if verdict == leaks {
        run(&["--repair", "leaks"])?;
        verdict = run(&[])?;
    }
    if verdict == 0 { Ok(()) } else { Err(format!("check {}: exit code {verdict}", image.display())) }
}
