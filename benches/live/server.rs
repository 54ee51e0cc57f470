//! The servers that are compared, each started afresh on a file that is in the page cache.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// A server and what it serves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    /// `dchaind`, a copy of this file, which is written.
    Ours(&'static str, Files),
    /// `nbdkit file`.
    Nbdkit(&'static str),
    /// `qemu-nbd`, its raw format over `io_uring`.
    QemuRaw(&'static str),
    /// `qemu-nbd` on a qcow2 image.
    QemuQcow2(&'static str, Files),
    /// `dchaind`, over vhost-user.
    OursVhost(&'static str),
    /// `qemu-storage-daemon`, over vhost-user, and by what it reads its file.
    QemuVhost(&'static str, &'static str),
}

/// Which files of the data are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// A copy of one, for writing.
    Copy,
    /// A chain of so many deltas on the base, for reading.
    Chain(u32),
}

/// A server that runs; stopped when this goes.
pub(crate) struct Running {
    child: Child,
    uri: String,
    folder: TempDir,
}

impl Server {
    /// Returns its name in the table.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_, Files::Chain(1)) => "ours, depth 1",
            Self::Ours(..) => "ours, raw",
            Self::Nbdkit(_) => "nbdkit file",
            Self::QemuRaw(_) => "qemu-nbd --aio=io_uring",
            Self::QemuQcow2(..) => "qemu-nbd",
            Self::OursVhost(_) => "ours, vhost-user",
            Self::QemuVhost(_, "io_uring") => "qemu-storage-daemon, aio=io_uring",
            Self::QemuVhost(..) => "qemu-storage-daemon",
        }
    }

    /// Starts it on data in `folder`.
    pub(crate) fn start(&self, folder: &Path) -> Result<Running, String> {
        let wrong = |e: io::Error| format!("{}: {e}", self.name());
        let place = TempDir::new().map_err(wrong)?;
        let socket = place.path().join("s");
        let socket_text = socket.display().to_string();
        let mut command = match self {
            Self::Ours(file, files) => {
                let path = bring(folder, file, *files).map_err(wrong)?.display().to_string();
                let kind = if *files == Files::Copy { "" } else { ",read-only" };
                let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
                command.args(["--disk", &format!("disk={path}{kind},format={}", format_of(file))]);
                command.args(["--nbd", &format!("unix:{socket_text}")]);
                command
            }
            Self::Nbdkit(file) => {
                let mut command = Command::new("nbdkit");
                command
                    .args(["-f", "-U", &socket_text, "file"])
                    .arg(bring(folder, file, Files::Copy).map_err(wrong)?);
                command
            }
            Self::QemuRaw(file) => {
                let mut command = Command::new("qemu-nbd");
                command.args(["-f", "raw", "-e", "8", "--aio=io_uring", "-t", "-k", &socket_text]);
                command.arg(bring(folder, file, Files::Copy).map_err(wrong)?);
                command
            }
            Self::QemuQcow2(file, files) => {
                let mut command = Command::new("qemu-nbd");
                command.args(["-f", "qcow2", "-e", "8", "-t", "-k", &socket_text]);
                command.args((*files != Files::Copy).then_some("-r"));
                command.arg(bring(folder, file, *files).map_err(wrong)?);
                command
            }
            Self::OursVhost(file) => {
                let path = bring(folder, file, Files::Copy).map_err(wrong)?.display().to_string();
                let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
                command.args(["--disk", &format!("disk={path},format={}", format_of(file))]);
                command.args(["--vhost-user", &format!("disk={socket_text}")]);
                command
            }
            Self::QemuVhost(file, aio) => {
                let path = bring(folder, file, Files::Copy).map_err(wrong)?.display().to_string();
                let mut command = Command::new("qemu-storage-daemon");
                let node = format!("driver=file,node-name=disk,aio={aio},filename={path}");
                let place = format!("num-queues=2,addr.type=unix,addr.path={socket_text}");
                let export = format!("type=vhost-user-blk,id=x,node-name=disk,writable=on,{place}");
                command.args(["--blockdev", &node, "--export", &export]);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(wrong)?;
        let disk = if matches!(self, Self::Ours(..)) { "disk" } else { "" };
        let running =
            Running { child, uri: format!("nbd+unix:///{disk}?socket={socket_text}"), folder: place };
        // Over vhost-user, who comes in has the disk.
        let is_alone = matches!(self, Self::OursVhost(_) | Self::QemuVhost(..));
        for _ in 0..500 {
            if socket.exists() && (is_alone || std::os::unix::net::UnixStream::connect(&socket).is_ok()) {
                return Ok(running);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{} does not listen", self.name()))
    }
}

impl Running {
    /// Returns where the disk is.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns the folder with its socket, `s`, which goes when this goes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the processor time that it took so far, in seconds (`proc(5)`: user and system time, in ticks of 1/100 s).
    pub(crate) fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In order, so that what was written is in the file.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn format_of(file: &str) -> &'static str {
    if Path::new(file).extension().is_some_and(|ending| ending == "raw") { "raw" } else { "qcow2" }
}

/// Has the files in the page cache; returns what is to be served.
fn bring(folder: &Path, file: &str, files: Files) -> io::Result<PathBuf> {
    let original = folder.join(file);
    let (served, read) = match files {
        Files::Copy => {
            let copy = folder.join(format!("live.{file}"));
            if !copy.exists() {
                let part = folder.join("live.part");
                let done = Command::new("cp").arg("--sparse=auto").args([&original, &part]).status()?;
                if !done.success() {
                    return Err(io::Error::other("cp failed"));
                }
                fs::rename(&part, &copy)?;
            }
            (copy.clone(), vec![copy])
        }
        Files::Chain(depth) => {
            let deltas = (1..=depth).map(|n| folder.join(format!("c.{n}")));
            (original, deltas.chain([folder.join("base.qcow2")]).collect())
        }
    };
    for path in read {
        io::copy(&mut fs::File::open(path)?, &mut io::sink())?;
    }
    Ok(served)
}
