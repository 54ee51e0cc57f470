//! The machine: qemu's emulator with a kernel, one program (`init.sh`), and a serial line on which they talk.
//!
//! The guest says `guest: ready`, `guest: wrote NAME HASH` once that file is durable, `guest: removed NAME`,
//! `guest: wrong WHAT`, and at the end `guest: unmounted`; the host says `stop`.

use super::{Told, told};
use deltachain::base::clock::Stopwatch;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// The guest's first program.
const INIT: &str = include_str!("init.sh");
/// What every guest's first program begins with.
const PRELUDE: &str = include_str!("prelude.sh");
/// What the kernel needs for the disk, in its folder of drivers.
const MODULES: [&str; 6] = [
    "virtio/virtio",
    "virtio/virtio_ring",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(100);
/// How many of its last lines an error shows.
const LINES: usize = 16;

/// Files by name, each with the hash that it has to have.
pub(super) type Files = BTreeMap<String, String>;

/// A running machine, killed when this goes.
pub(super) struct Machine {
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    said: Vec<String>,
    heard: Heard,
}

/// What the guest has said so far.
#[derive(Default)]
struct Heard {
    files: Files,
    writes: u64,
    is_ready: bool,
    is_unmounted: bool,
}

impl Heard {
    /// Takes a line in; what is wrong by it is an error.
    fn hear(&mut self, line: &str) -> Told<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["guest:", "ready"] => self.is_ready = true,
            ["guest:", "unmounted"] => self.is_unmounted = true,
            ["guest:", "wrote", name, hash] => {
                self.writes += 1;
                self.files.insert(name.to_owned(), hash.to_owned());
            }
            ["guest:", "removed", name] => drop(self.files.remove(name)),
            ["guest:", "wrong", ..] => return Err(line.to_owned()),
            // The kernel and the firmware talk, too.
            _ => {}
        }
        Ok(())
    }
}

impl Machine {
    /// Starts it with a disk that `device` tells qemu of; the kernel is in the folder `kernel`. Returns once the guest
    /// writes.
    pub(super) fn boot(folder: &Path, kernel: &Path, device: &[String]) -> Told<Self> {
        let mut qemu = emulator(folder, kernel, INIT, device)?;
        let mut qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(told)?;
        let (input, out) = (qemu.stdin.take().ok_or("no stdin")?, qemu.stdout.take().ok_or("no stdout")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        let mut machine = Self { qemu, input, lines, said: Vec::new(), heard: Heard::default() };
        machine.wait(|heard| heard.is_ready)?;
        Ok(machine)
    }

    /// Waits until the guest has written a file that it had not written when this was called.
    pub(super) fn wait_for_write(&mut self) -> Told<()> {
        while let Ok(line) = self.lines.try_recv() {
            self.hear(line)?;
        }
        let before = self.heard.writes;
        self.wait(|heard| heard.writes > before)
    }

    /// Has the guest unmount and power off; returns the files on its disk, and how many it has written in all.
    pub(super) fn stop(mut self) -> Told<(Files, u64)> {
        self.input.write_all(b"stop\n").map_err(told)?;
        self.wait(|heard| heard.is_unmounted)?;
        let watch = Stopwatch::start();
        while self.qemu.try_wait().map_err(told)?.is_none() {
            if watch.elapsed() > PATIENCE {
                return Err("qemu does not end".to_owned());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let heard = std::mem::take(&mut self.heard);
        Ok((heard.files, heard.writes))
    }

    fn wait(&mut self, is_enough: impl Fn(&Heard) -> bool) -> Told<()> {
        let watch = Stopwatch::start();
        while !is_enough(&self.heard) {
            let left = PATIENCE.saturating_sub(watch.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                return Err(format!("the guest says nothing more; {}", self.last_said()));
            };
            self.hear(line)?;
        }
        Ok(())
    }

    fn hear(&mut self, line: String) -> Told<()> {
        let heard = self.heard.hear(&line);
        self.said.push(line);
        heard.map_err(|wrong| format!("{wrong}; {}", self.last_said()))
    }

    fn last_said(&self) -> String {
        let last = self.said.len().saturating_sub(LINES);
        format!("the last that it said:\n{}", self.said.get(last..).unwrap_or_default().join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Where it has ended, there is nothing to kill.
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

/// Returns qemu's emulator with a machine that has two processors, the disk that `device` tells of, and `init` as its first
/// program, a script of busybox that begins with `. /prelude.sh`; its serial line is standard input and output. What the machine needs is packed in `folder`;
/// the folder `kernel` is what `tools/test.sh --install` unpacks. An error is a sentence.
pub fn emulator(folder: &Path, kernel: &Path, init: &str, device: &[String]) -> Told<Command> {
    let memory = initramfs(folder, kernel, init)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-smp", "2", "-m", "256M", "-nodefaults", "-no-reboot", "-display", "none"]);
    // vhost-user needs the guest's memory in a file.
    qemu.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
    qemu.args(["-machine", "q35,memory-backend=memory", "-serial", "stdio"]).args(device);
    qemu.arg("-kernel").arg(found(&kernel.join("boot"), "vmlinuz-")?).arg("-initrd").arg(memory);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
    Ok(qemu)
}

/// Packs what the guest runs; returns where.
fn initramfs(folder: &Path, kernel: &Path, init: &str) -> Told<PathBuf> {
    let root = folder.join("guest");
    let busybox = kernel.join("bin/busybox");
    let drivers = found(&kernel.join("lib/modules"), "")?.join("kernel/drivers");
    let mut names = vec![".".to_owned()];
    for folder in ["bin", "dev", "disk", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).map_err(told)?;
        names.push(folder.to_owned());
    }
    let mut copy = |from: &Path, to: String| {
        fs::copy(from, root.join(&to)).map_err(|e| format!("{}: {e}", from.display()))?;
        names.push(to);
        Told::Ok(())
    };
    copy(&busybox, "bin/busybox".to_owned())?;
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        copy(&drivers.join(format!("{module}.ko")), format!("modules/{name}.ko"))?;
    }
    for (name, script) in [("init", init), ("prelude.sh", PRELUDE)] {
        fs::write(root.join(name), script).map_err(told)?;
        names.push(name.to_owned());
    }
    super::run(&root, "chmod", &["755", "init"])?;
    let packed = folder.join("guest.cpio");
    let mut pack = Command::new(&busybox);
    pack.current_dir(&root).args(["cpio", "-o", "-H", "newc"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut pack = pack.stdout(fs::File::create(&packed).map_err(told)?).spawn().map_err(told)?;
    let mut input = pack.stdin.take().ok_or("no stdin")?;
    input.write_all(names.join("\n").as_bytes()).map_err(told)?;
    drop(input);
    let status = pack.wait().map_err(told)?;
    if status.success() { Ok(packed) } else { Err(format!("cpio: {status}")) }
}

/// Returns the first entry of `folder` whose name begins with `start`.
fn found(folder: &Path, start: &str) -> Told<PathBuf> {
    let missing =
        || format!("{}/{start}* is not there: tools/test.sh --install unpacks it", folder.display());
    let entries = fs::read_dir(folder).map_err(|_| missing())?.filter_map(Result::ok);
    let mut names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    names.next().map(|entry| entry.path()).ok_or_else(missing)
}
