//! Where a row runs: in the data folder, on a file system with reflinks, or in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// Where a row runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The data folder.
    Data,
    /// A loop-mounted xfs with reflinks, which holds copies of the files that the row names.
    Reflink,
    /// A folder in memory, where making something durable costs nothing.
    Memory,
}

/// The xfs, mounted as long as this lives.
pub(crate) struct Volume {
    pub(crate) folder: PathBuf,
}

impl Volume {
    /// Makes (unless it is there) and mounts `xfs.img` of the data folder; the error is the reason to skip.
    pub(crate) fn mount(data: &Path) -> Result<Self, String> {
        let (image, folder) = (data.join("xfs.img"), data.join("xfs"));
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        if !image.exists() {
            let part = data.join("xfs.img.part");
            run("truncate", &["-s", "24G", &text(&part)])?;
            run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", &text(&part)])?;
            fs::rename(&part, &image).map_err(|e| e.to_string())?;
        }
        run("mount", &["-o", "loop", &text(&image), &text(&folder)])?;
        Ok(Self { folder })
    }

    /// Copies files of the data folder unless they are there, naming their parents without a folder.
    pub(crate) fn bring(&self, data: &Path, names: &[String]) -> Result<(), String> {
        for name in names {
            let (from, to) = (text(&data.join(name)), self.folder.join(name));
            if to.exists() {
                continue;
            }
            let part = text(&self.folder.join(format!("{name}.part")));
            run("cp", &["--sparse=auto", &from, &part])?;
            if let Some(parent) = parent_of(name) {
                run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &parent, &part])?;
            }
            fs::rename(&part, &to).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(why) = run("umount", &[&text(&self.folder)]) {
            eprintln!("offline: {} stays mounted: {why}", self.folder.display());
        }
    }
}

/// A folder in memory.
pub(crate) fn memory() -> Result<TempDir, String> {
    tempfile::Builder::new()
        .prefix("dchain-bench-")
        .tempdir_in("/dev/shm")
        .map_err(|e| format!("/dev/shm: {e}"))
}

/// The parent of `c.2` is `c.1`, that of `c.1` the base.
fn parent_of(name: &str) -> Option<String> {
    let (prefix, number) = name.split_once('.')?;
    match number.parse::<u32>().ok()? {
        1 => Some("base.qcow2".to_owned()),
        n => Some(format!("{prefix}.{}", n - 1)),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(name).args(arguments).output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", why.lines().next().unwrap_or("failed")))
}
