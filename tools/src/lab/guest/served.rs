//! The disk: an image with an ext4 that `dchaind` serves, and the commands that reshape it.

use super::{Programs, Told, Wire, run, told};
use crate::daemon::Daemon;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The disk's size in MiB.
const SIZE_MIB: u64 = 128;
/// A fold of what a guest writes in a second takes about as long: so that it writes during folds, too.
const RATE: &str = "4M";

/// `dchaind` with the disk `vm`.
pub(super) struct Served {
    daemon: Daemon,
    folder: PathBuf,
    dchain: PathBuf,
    wire: Wire,
    snapshots: u64,
}

/// What a fold said of itself.
pub(super) struct Fold {
    pub(super) copied_bytes: u64,
    pub(super) mirrored_bytes: u64,
    pub(super) pause: Duration,
}

impl Served {
    /// Makes the disk in `folder` and serves it there.
    pub(super) fn start(folder: &Path, programs: &Programs, wire: Wire) -> Told<Self> {
        run(folder, "truncate", &["-s", &format!("{SIZE_MIB}M"), "new.raw"])?;
        // What the kernel does behind a mount it does here, too: it clears the inode tables.
        run(folder, "mkfs.ext4", &["-q", "-E", "lazy_itable_init=1", "new.raw"])?;
        run(folder, "qemu-img", &["convert", "-O", "qcow2", "new.raw", "head-0"])?;
        let place = match wire {
            Wire::Nbd => ["--nbd", "unix:s"],
            Wire::VhostUser => ["--vhost-user", "vm=s"],
        };
        let arguments = [&["--disk", "vm=head-0"], &place[..]].concat();
        let daemon = Daemon::start(&programs.dchaind, folder, &arguments, true)?;
        let (folder, dchain) = (folder.to_path_buf(), programs.dchain.clone());
        Ok(Self { daemon, folder, dchain, wire, snapshots: 0 })
    }

    /// Returns what qemu needs to hear of the disk.
    pub(super) fn device(&self) -> Vec<String> {
        let socket = self.folder.join("s");
        let arguments = match self.wire {
            Wire::Nbd => {
                let place = format!("driver=nbd,export=vm,server.type=unix,server.path={}", socket.display());
                let block = format!("{place},node-name=disk,discard=unmap,cache.direct=on");
                ["-blockdev".to_owned(), block, "-device".to_owned(), "virtio-blk-pci,drive=disk".to_owned()]
            }
            Wire::VhostUser => {
                let place = format!("socket,id=wire,path={}", socket.display());
                let device = "vhost-user-blk-pci,chardev=wire,num-queues=2";
                ["-chardev".to_owned(), place, "-device".to_owned(), device.to_owned()]
            }
        };
        arguments.into()
    }

    /// Puts a new head on the disk.
    pub(super) fn snapshot(&mut self) -> Told<()> {
        self.snapshots += 1;
        self.ask(&["snapshot", "--disk", &format!("vm=head-{}", self.snapshots)]).map(drop)
    }

    /// Folds all layers into one, and waits for the end.
    pub(super) fn fold(&self) -> Told<Fold> {
        let job = self.ask(&["consolidate", "--disk", "vm", "--yes", "--rate", RATE])?;
        let report = job.get("report").ok_or("no report")?;
        let bytes = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or_default();
        let seconds = report.get("pause").and_then(Value::as_f64).ok_or("no pause in the report")?;
        let (copied_bytes, mirrored_bytes) = (bytes("copied-bytes"), bytes("mirrored-bytes"));
        Ok(Fold { copied_bytes, mirrored_bytes, pause: Duration::from_secs_f64(seconds) })
    }

    /// Ends the daemon as its unit does; returns the disk's image.
    pub(super) fn stop(self) -> Told<PathBuf> {
        let disk = self.ask(&["disk", "show", "vm"])?;
        let layers = disk.get("layers").and_then(Value::as_array).map_or(0, Vec::len);
        if layers != 1 {
            return Err(format!("{layers} layers are left"));
        }
        let head = disk.get("path").and_then(Value::as_str).ok_or("the disk has no path")?;
        self.daemon.stop().map(|()| head.into())
    }

    fn ask(&self, arguments: &[&str]) -> Told<Value> {
        let all = [arguments, &["--socket", "c", "--output", "json"]].concat();
        serde_json::from_str(&run(&self.folder, &self.dchain, &all)?).map_err(told)
    }
}
