//! A disk of three layers in a folder of its own, and what is left of it afterwards.

use super::{Job, Told, told};
use deltachain::{
    base::{GuestOffset, seed::Seeded, units::index},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Access, Host, Kept, real::RealHost},
    job::{
        Progress,
        create::{NewImage, create},
        diff::first_difference,
        rebase::NewParent,
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

/// What the layers of a scene are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// What it is called.
    pub(super) name: &'static str,
    /// The format of its layers.
    pub(super) format: Format,
    /// The subformat of a base that is no raw disk, and how the file ends that has its bytes; none: one file has all.
    base: Option<(&'static str, &'static str)>,
    /// The same of the layers over it.
    delta: Option<(&'static str, &'static str)>,
}

/// Every kind, qcow2 first.
pub(super) const KINDS: [Kind; 5] = [
    plain(Format::Qcow2),
    plain(Format::Vhdx),
    plain(Format::Vpc),
    plain(Format::Vmdk),
    // As ESX has its snapshots: each layer is a descriptor and a file with its bytes.
    Kind {
        name: "vmdk of ESX",
        format: Format::Vmdk,
        base: Some(("monolithicFlat", "-flat.vmdk")),
        delta: Some(("vmfsSparse", "-delta.vmdk")),
    },
];

const fn plain(format: Format) -> Kind {
    Kind { name: format.name(), format, base: None, delta: None }
}

impl Kind {
    /// Returns what goes into a round, the first being 0: every second time qcow2, then the others in turn.
    pub(super) fn of(round: u64) -> Self {
        let [qcow2, others @ ..] = KINDS;
        let nth = index(round / 2) % others.len();
        others.get(nth).copied().filter(|_| !round.is_multiple_of(2)).unwrap_or(qcow2)
    }
}

pub(super) struct Scene {
    folder: TempDir,
    pub(super) host: Arc<dyn Host>,
    pub(super) base: Format,
    /// What the layers over the base are, and the base, if it is no raw disk.
    kind: Kind,
    strides: u64,
}

impl Scene {
    /// Makes the disk, a copy of it in `before`, and an empty folder `store`.
    pub(super) fn build(seeded: &mut Seeded, is_large: bool, kind: Kind) -> Told<Self> {
        let folder = tempfile::tempdir().map_err(told)?;
        let strides = if is_large { 40 } else { 2 };
        let is_raw = is_large || seeded.chance(1, 2);
        let base = if is_raw { Format::Raw } else { kind.format };
        let scene = Self { folder, host: Arc::new(RealHost::new()), base, kind, strides };
        scene.fill(seeded).map_err(told)?;
        fs::create_dir(scene.path("store")).map_err(told)?;
        fs::create_dir(scene.path("before")).map_err(told)?;
        let mut copy = Command::new("cp");
        copy.current_dir(scene.folder()).args(["--sparse=always", "--reflink=auto"]);
        let status = copy.args(scene.all_files()).arg("before").status().map_err(told)?;
        if status.success() { Ok(scene) } else { Err("cp failed".to_owned()) }
    }

    fn fill(&self, seeded: &mut Seeded) -> deltachain::base::Result<()> {
        self.make("base", None)?;
        let disk = self.open("base", Access::Write)?;
        for stride in 0..self.strides {
            disk.write(GuestOffset::new(stride * STRIDE_BYTES), &vec![0x11; HEAD_BYTES])?;
        }
        disk.flush()?;
        drop(disk);
        self.make("middle", Some("base"))?;
        let disk = self.open("middle", Access::Write)?;
        disk.zero(GuestOffset::new(0).range(self.size()), Kept::Nothing)?;
        self.scribble(&disk, seeded)?;
        drop(disk);
        self.make("top", Some("middle"))?;
        let disk = self.open("top", Access::Write)?;
        // The last bytes of the disk: a mark behind them says that all is done.
        disk.write(GuestOffset::new(self.size() - 4096), &[0x22; 4096])?;
        self.scribble(&disk, seeded)
    }

    fn make(&self, name: &str, below: Option<&str>) -> deltachain::base::Result<()> {
        let parent = below.map(|below| NewParent { path: self.path(below), format: self.format(below) });
        let subformat =
            self.beside(name).map(|(subformat, _)| ("subformat".to_owned(), subformat.to_owned()));
        let (format, size) = (self.format(name), parent.is_none().then_some(self.size()));
        let new = NewImage { format, size, parent, options: subformat.into_iter().collect() };
        create(&self.host, &self.path(name), &new, &self.opening()).map(drop)
    }

    /// The format of a layer of that name.
    fn format(&self, name: &str) -> Format {
        if name.ends_with("base") { self.base } else { self.kind.format }
    }

    /// The subformat of a layer that keeps its bytes in a further file, and how that one ends.
    fn beside(&self, name: &str) -> Option<(&'static str, &'static str)> {
        match name {
            "base" if self.base == Format::Raw => None,
            "base" => self.kind.base,
            _ => self.kind.delta,
        }
    }

    /// The files of a layer, the one that is called like it last: in the order in which they are copied.
    pub(super) fn files(&self, name: &str) -> Vec<String> {
        let further = self.beside(name).map(|(_, ending)| format!("{name}{ending}"));
        further.into_iter().chain([name.to_owned()]).collect()
    }

    pub(super) fn all_files(&self) -> Vec<String> {
        NAMES.iter().flat_map(|name| self.files(name)).collect()
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
        let opening = self.opening().with_access(access).with_format(Some(self.format(name)));
        Chain::open(&self.host, &self.path(name), &opening)
    }

    /// Fails unless `name` shows what `was` showed before the job.
    pub(super) fn compare(&self, name: &str, was: &str) -> Told<()> {
        // The copies have other inodes than their records speak of.
        let opening = Opening::reading().with_format(Some(self.format(was)));
        let before = Chain::open(&self.host, &self.path(&format!("before/{was}")), &opening).map_err(told)?;
        let now = self.open(name, Access::ReadShared).map_err(told)?;
        match first_difference(&before.view(0), &now.view(0), &Progress::default()).map_err(told)? {
            None => Ok(()),
            Some(at) => Err(format!("{name} shows something else than before at guest byte {at:#x}")),
        }
    }

    /// Judges what the ended job left: the view, what else is there, and the images by the program's own check.
    pub(super) fn judge(&self, job: Job, program: &Path) -> Told<()> {
        let (place, mut left) = self.end(job);
        self.compare(&format!("{place}top"), "top")?;
        let folder = self.path(place);
        let names = names(&folder)?;
        left.sort();
        if names != left {
            return Err(format!("{names:?} are left, not {left:?}"));
        }
        let layers = left.iter().filter(|name| NAMES.contains(&name.as_str()));
        let images = layers.filter(|name| self.format(name) != Format::Raw);
        images.map(|name| folder.join(name)).try_for_each(|image| check(program, &image))
    }

    /// Returns where the result is, and the names that are left there.
    fn end(&self, job: Job) -> (&'static str, Vec<String>) {
        let plain = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        match (job, self.base) {
            (Job::Copy, _) => ("store/", self.all_files()),
            // What arrives is an image like the source's, in one file.
            (Job::Remote, _) => ("store/", plain(&NAMES)),
            (Job::Consolidate, Format::Raw) => ("", plain(&["base", "top"])),
            (Job::Consolidate, _) => {
                let own = self.files("base").into_iter().filter(|name| name != "base");
                ("", own.chain(["top".to_owned()]).collect())
            }
        }
    }

    /// Whether qemu-img reads the whole chain: it knows parents of the same format only, and of VHDX and VHD none.
    pub(super) fn is_read_by_qemu(&self) -> bool {
        match self.kind.format {
            Format::Qcow2 => true,
            Format::Vmdk => self.base == Format::Vmdk,
            _ => false,
        }
    }

    /// Lets qemu-img compare the result with the disk before.
    pub(super) fn judge_by_qemu(&self, job: Job) -> Told<()> {
        let (result, format) = (format!("{}top", self.end(job).0), self.kind.format.name());
        let mut compare = Command::new("qemu-img");
        compare.current_dir(self.folder()).args(["compare", "-q", "-f", format, "-F", format]);
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
