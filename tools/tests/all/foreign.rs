//! What tests with other projects' tools share: a folder, and the tools.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output},
};

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

    /// The whole view of an image as qemu sees it.
    pub(crate) fn flat(&self, format: &str, image: &str) -> Vec<u8> {
        let out = self.file("flat.by-qemu");
        self.qemu_img(&format!("convert -U -f {format} -O raw {image} {}", out.display()));
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        bytes
    }
}

/// Whether two buffers are equal; a failure names the first difference, not a million bytes.
#[track_caller]
pub(crate) fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("{what}: byte {at:#x} is {:#x}, not {:#x}", ours[at], theirs[at]);
    }
}
