//! A running QEMU and we keep out of each other's way.

use crate::foreign::Scratch;
use deltachain::{
    base::{ErrorKind, HostOffset},
    io::{Access, Host, real::RealHost},
};
use std::{
    process::{Child, Command},
    time::Duration,
};

/// A `qemu-nbd` that has an image open, until dropped.
struct Served(Child);

impl Served {
    fn start(folder: &Scratch, arguments: &str) -> Self {
        let (socket, ready) = (folder.file("nbd"), folder.file("pid"));
        let mut command = Command::new("qemu-nbd");
        command
            .current_dir(folder.path())
            .arg(format!("--socket={}", socket.display()))
            .arg("--pid-file=pid");
        let served = Self(command.args(arguments.split_whitespace()).spawn().expect("qemu-nbd is needed"));
        // It says its number when the image is open and locked; its socket is there before.
        for _ in 0..5000 {
            if ready.exists() {
                return served;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("qemu-nbd {arguments} does not listen");
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const FORMATS: [&str; 2] = ["raw", "qcow2"];

#[test]
fn an_image_that_qemu_writes_is_refused_with_the_name_of_the_holder() {
    for format in FORMATS {
        let folder = Scratch::new();
        folder.qemu_img(&format!("create -q -f {format} disk 1M"));
        let (host, disk) = (RealHost::new(), folder.file("disk"));
        let server = Served::start(&folder, &format!("-f {format} disk"));
        for access in [Access::Read, Access::Write] {
            let error = host.open(&disk, access).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            let expected = format!("disk: is being written by qemu-nbd (pid {})", server.pid());
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
        host.open(&disk, Access::ReadShared).unwrap();
        drop(server);
        host.open(&disk, Access::Write).unwrap();
    }
}

#[test]
fn an_image_that_qemu_reads_can_be_read_and_not_written() {
    for format in FORMATS {
        let folder = Scratch::new();
        folder.qemu_img(&format!("create -q -f {format} disk 1M"));
        let host = RealHost::new();
        let server = Served::start(&folder, &format!("-r -f {format} disk"));
        host.open(&folder.file("disk"), Access::Read).unwrap();
        let error = host.open(&folder.file("disk"), Access::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("qemu-nbd (pid {})", server.pid())), "{error}");
    }
}

/// Whether qemu-io can do this to the image.
fn qemu_can(folder: &Scratch, arguments: &[&str]) -> bool {
    let output = folder.try_run("qemu-io", arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("lock"), "refused for another reason: {said}");
    output.status.success()
}

#[test]
fn qemu_refuses_an_image_that_we_write_unless_told_to_share() {
    for format in FORMATS {
        let folder = Scratch::new();
        folder.qemu_img(&format!("create -q -f {format} disk 1M"));
        let ours = RealHost::new().open(&folder.file("disk"), Access::Write).unwrap();
        assert!(!qemu_can(&folder, &["-f", format, "-c", "write 0 64k", "disk"]));
        // QEMU itself lets raw disks be read while another QEMU writes them.
        let reads = qemu_can(&folder, &["-r", "-f", format, "-c", "read 0 64k", "disk"]);
        assert_eq!(reads, format == "raw");
        assert!(qemu_can(&folder, &["-U", "-r", "-f", format, "-c", "read 0 64k", "disk"]));
        drop(ours);
        assert!(qemu_can(&folder, &["-f", format, "-c", "write 0 64k", "disk"]));
    }
}

#[test]
fn qemu_reads_and_does_not_write_an_image_that_we_read() {
    for format in FORMATS {
        let folder = Scratch::new();
        folder.qemu_img(&format!("create -q -f {format} disk 1M"));
        let host = RealHost::with_descriptors(1);
        let ours = host.open(&folder.file("disk"), Access::Read).unwrap();
        let write = ["-f", format, "-c", "write -P 7 512k 64k", "disk"];
        assert!(!qemu_can(&folder, &write));
        assert!(qemu_can(&folder, &["-r", "-f", format, "-c", "read 0 64k", "disk"]));
        // A file that rests lets qemu in, and says so when it is used again.
        folder.qemu_img("create -q -f raw other 1M");
        let _has_the_descriptor = host.open(&folder.file("other"), Access::Read).unwrap();
        assert!(qemu_can(&folder, &write));
        let error = ours.read_at(HostOffset::new(0), &mut [0; 512]).unwrap_err();
        assert!(
            error.to_string().ends_with("disk: was changed by somebody else since it was opened"),
            "{error}"
        );
    }
}
