//! What tests with other projects' tools share: a folder, and the tools.

use super::dchain::done;
use deltachain::base::seed::Seeded;
use std::{
    ffi::OsStr,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

/// Reads a chain of VHDs or VHDX images, the head first, with libvhdi, which keeps parents apart.
const LIBVHDI: &str = "
import pyvhdi, sys
files = []
for name in sys.argv[2:]:
    files.append(pyvhdi.file())
    files[-1].open(name)
for child, parent in reversed(list(zip(files, files[1:]))):
    assert child.get_parent_identifier() == parent.get_identifier()
    child.set_parent(parent)
out = open(sys.argv[1], 'wb')
for at in range(0, files[0].get_media_size(), 4096):
    out.write(files[0].read_buffer_at_offset(min(4096, files[0].get_media_size() - at), at))
";

/// A folder of its own for one test, gone afterwards.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder in memory: for many small files that need not survive anything.
    pub(crate) fn in_memory() -> Self {
        let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self(made.unwrap())
    }

    /// Where it is, without links.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Runs a tool in the folder, which must succeed; returns what it prints.
    pub(crate) fn run(&self, tool: &str, arguments: &str) -> String {
        let output = self.try_run(tool, arguments.split_whitespace());
        assert!(output.status.success(), "{tool} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a tool in the folder, whatever comes of it.
    pub(crate) fn try_run<A: AsRef<OsStr>>(
        &self,
        tool: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut command = Command::new(tool);
        command.current_dir(self.path()).args(arguments);
        command.output().unwrap_or_else(|e| panic!("{tool} is needed for the tests: {e}"))
    }

    /// Runs `qemu-img`.
    pub(crate) fn qemu_img(&self, arguments: &str) -> String {
        self.run("qemu-img", arguments)
    }

    /// Writes to an image with `qemu-io`, one command after the other (`write -P 7 0 64k`).
    pub(crate) fn qemu_io(&self, format: &str, image: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", format, image];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        let output = self.try_run("qemu-io", &arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        let failed = !output.status.success() || said.contains("failed") || said.contains("rror");
        assert!(!failed, "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The whole view of a chain, the head first, as libvhdi sees it.
    pub(crate) fn by_libvhdi(&self, chain: &[&str]) -> Vec<u8> {
        let arguments = ["-c", LIBVHDI, "flat.by-libvhdi"].into_iter().chain(chain.iter().copied());
        let output = self.try_run("/usr/bin/python3", arguments);
        assert!(output.status.success(), "{chain:?}: {}", String::from_utf8_lossy(&output.stderr));
        self.taken("flat.by-libvhdi")
    }

    /// The whole view of an image as qemu sees it.
    pub(crate) fn flat(&self, format: &str, image: &str) -> Vec<u8> {
        self.qemu_img(&format!("convert -U -f {format} -O raw {image} flat.by-qemu"));
        self.taken("flat.by-qemu")
    }

    /// What a file of the folder holds, which goes.
    fn taken(&self, name: &str) -> Vec<u8> {
        let bytes = std::fs::read(self.file(name)).unwrap();
        std::fs::remove_file(self.file(name)).unwrap();
        bytes
    }
}

/// Whether two buffers are equal; a failure names the first difference, not a million bytes.
#[track_caller]
pub(crate) fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    if ours == theirs {
        return;
    }
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("{what}: byte {at:#x} is {:#x}, not {:#x}", ours[at], theirs[at]);
    }
}

/// Bytes of the disks that [`disk`] makes.
pub(crate) const SIZE: usize = 5 << 20;

/// What `dchain convert` makes of an image.
pub(crate) fn by_us(folder: &Scratch, image: &str) -> Vec<u8> {
    let out = folder.file("by-us");
    let _ = fs::remove_file(&out);
    done(&folder.path(), &["convert", "-q", "-O", "raw", image, out.to_str().unwrap()]);
    fs::read(&out).unwrap()
}

/// Makes a raw disk of `SIZE` bytes and what it is to show.
pub(crate) fn disk(folder: &Scratch, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    let mut random = Seeded::new(seed);
    for _ in 0..12 {
        let at = usize::try_from(random.below(SIZE as u64 / 512 - 400)).unwrap() * 512;
        let length = usize::try_from(1 + random.below(200_000)).unwrap();
        random.fill(&mut bytes[at..at + length]);
    }
    fs::write(folder.file("disk"), &bytes).unwrap();
    bytes
}
