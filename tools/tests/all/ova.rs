//! OVAs as tar and qemu-img make them: what `dchain info` and `dchain convert` make of their disks.

use super::dchain::{dchain, done, qemu};
use serde_json::Value;
use std::{fs, path::Path, process::Command};
use tempfile::{TempDir, tempdir};

const VMDK: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

/// A disk in a package: its file, the attributes of that, and its format's URI.
struct Packed<'a> {
    file: &'a str,
    of_file: &'a str,
    uri: &'a str,
}

fn shell(folder: &Path, line: &str) {
    let done = Command::new("sh").current_dir(folder).args(["-ec", line]).status().unwrap();
    assert!(done.success(), "{line}");
}

/// Disks of 4 MiB with a pattern each, as raw images.
fn disks(names: &[&str]) -> TempDir {
    let folder = tempdir().unwrap();
    for (nth, name) in names.iter().enumerate() {
        qemu(folder.path(), "qemu-img", &["create", "-q", "-f", "raw", name, "4M"]);
        let write = format!("write -P {} {}k 70k", nth + 1, nth * 300 + 100);
        qemu(folder.path(), "qemu-io", &["-f", "raw", "-c", &write, name]);
    }
    folder
}

fn convert(folder: &Path, format: &str, options: &str, raw: &str, to: &str) {
    let line = format!("qemu-img convert -f raw -O {format} {options} {raw} {to}");
    shell(folder, &line);
}

/// Writes the descriptor of a package, as programs of many makers write it.
fn describe(folder: &Path, disks: &[Packed<'_>]) {
    let file = |(nth, disk): (usize, &Packed<'_>)| {
        let size = fs::metadata(folder.join(disk.file)).map_or(0, |file| file.len());
        let (name, more) = (disk.file, disk.of_file);
        format!("<File ovf:href=\"{name}\" ovf:id=\"file{nth}\" ovf:size=\"{size}\" {more}/>")
    };
    let disk = |(nth, disk): (usize, &Packed<'_>)| {
        format!(
            "<Disk ovf:capacity=\"4\" ovf:capacityAllocationUnits=\"byte * 2^20\" ovf:diskId=\"vmdisk{nth}\" \
             ovf:fileRef=\"file{nth}\" ovf:format=\"{}\"/>",
            disk.uri
        )
    };
    let files: String = disks.iter().enumerate().map(file).collect();
    let disks: String = disks.iter().enumerate().map(disk).collect();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- made by a test -->\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n\
         <References>{files}</References>\n<DiskSection><Info>Disks</Info>{disks}</DiskSection>\n\
         <VirtualSystem ovf:id=\"vm7\"><Info>A machine</Info></VirtualSystem>\n</Envelope>\n"
    );
    fs::write(folder.join("vm.ovf"), text).unwrap();
}

/// Writes a manifest of the named files.
fn promise(folder: &Path, algorithm: &str, files: &str) {
    let sum = algorithm.to_ascii_lowercase();
    shell(
        folder,
        &format!("{sum}sum --tag {files} | sed 's/^{algorithm} (\\(.*\\)) = /{algorithm}(\\1)= /' > vm.mf"),
    );
}

fn pack(folder: &Path, files: &str) {
    shell(folder, &format!("tar --format=ustar -cf vm.ova {files}"));
}

/// A package of one qcow2 image with a manifest.
fn simple(algorithm: &str) -> TempDir {
    let folder = disks(&["a.raw"]);
    let at = folder.path();
    convert(at, "qcow2", "", "a.raw", "a.qcow2");
    describe(
        at,
        &[Packed {
            file: "a.qcow2",
            of_file: "",
            uri: "http://www.gnome.org/~markmc/qcow-image-format.html",
        }],
    );
    promise(at, algorithm, "vm.ovf a.qcow2");
    pack(at, "vm.ovf vm.mf a.qcow2");
    folder
}

fn disk_called<'j>(info: &'j Value, id: &str) -> &'j Value {
    info["disks"].as_array().unwrap().iter().find(|disk| disk["disk-id"] == id).unwrap()
}

#[test]
fn the_disk_of_an_ova_becomes_an_image_and_its_manifest_is_held_against_it() {
    for algorithm in ["SHA1", "SHA256", "SHA512"] {
        let folder = simple(algorithm);
        let at = folder.path();
        let before = fs::read(at.join("vm.ova")).unwrap();
        let run = done(at, &["convert", "-O", "qcow2", "vm.ova", "out.qcow2"]);
        assert!(run.out.contains("from disk vmdisk0 (a.qcow2)"), "{}", run.out);
        assert!(run.out.contains(&format!("manifest: a.qcow2 verified ({algorithm})")), "{}", run.out);
        qemu(at, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "a.raw", "out.qcow2"]);
        qemu(at, "qemu-img", &["check", "-q", "-f", "qcow2", "out.qcow2"]);
        let json = done(at, &["convert", "-O", "raw", "--output", "json", "vm.ova", "out.raw"]).json();
        assert_eq!((&json["manifest"]["outcome"], &json["disk"]), (&"verified".into(), &"vmdisk0".into()));
        assert_eq!(fs::read(at.join("a.raw")).unwrap(), fs::read(at.join("out.raw")).unwrap());
        assert_eq!(fs::read(at.join("vm.ova")).unwrap(), before, "an OVA is only read");
    }
}

#[test]
fn what_is_not_as_the_manifest_promises_is_refused_and_leaves_nothing_behind() {
    let folder = simple("SHA256");
    let at = folder.path();
    let mut bytes = fs::read(at.join("vm.ova")).unwrap();
    // A byte of the disk's data, somewhere before the archive's end.
    let place = bytes.iter().rposition(|byte| *byte == 1).unwrap();
    bytes[place] = 9;
    fs::write(at.join("bad.ova"), &bytes).unwrap();
    let run = dchain(at, &["convert", "-O", "qcow2", "bad.ova", "out.qcow2"]);
    assert_eq!(run.code, Some(65), "{}", run.err);
    assert!(
        run.err.contains("bad.ova/a.qcow2: is not what the manifest promises: its SHA256 is"),
        "{}",
        run.err
    );
    assert!(run.err.contains("--skip-manifest"), "{}", run.err);
    let left = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("out") || name.contains("draft")).count(), 0);
    // Into an image that is there, nothing is written either.
    qemu(at, "qemu-img", &["create", "-q", "-f", "raw", "old.raw", "4M"]);
    let run = dchain(at, &["convert", "-O", "raw", "--no-create", "--yes", "bad.ova", "old.raw"]);
    assert_eq!(run.code, Some(65), "{}", run.err);
    assert!(fs::read(at.join("old.raw")).unwrap().iter().all(|byte| *byte == 0));
    let run = done(at, &["convert", "-O", "raw", "--skip-manifest", "bad.ova", "out.raw"]);
    assert!(run.out.contains("not looked at"), "{}", run.out);
    // The descriptor is promised as well; `info` shows that it differs, and the rest.
    shell(at, "sed -i s/vm7/vm8/ vm.ovf && tar --format=ustar -cf vm.ova vm.ovf vm.mf a.qcow2");
    assert_eq!(dchain(at, &["convert", "-O", "raw", "vm.ova", "never.raw"]).code, Some(65));
    assert!(!at.join("never.raw").exists());
    let info = done(at, &["info", "--output", "json", "vm.ova"]).json();
    assert_eq!((&info["manifest"]["descriptor"], &info["systems"][0]), (&"differs".into(), &"vm8".into()));
}

#[test]
fn of_several_disks_one_is_named() {
    let folder = disks(&["a.raw", "b.raw"]);
    let at = folder.path();
    convert(at, "qcow2", "-c", "b.raw", "b.qcow2");
    let raw = Packed { file: "a.raw", of_file: "", uri: "http://example/raw" };
    describe(at, &[raw, Packed { file: "b.qcow2", of_file: "", uri: VMDK }]);
    shell(at, "echo signature > vm.cert");
    pack(at, "vm.ovf vm.cert a.raw b.qcow2");
    let run = dchain(at, &["convert", "-O", "raw", "vm.ova", "out.raw"]);
    assert_eq!(run.code, Some(64), "{}", run.err);
    let (list, hint) = ("vmdisk0 (a.raw), vmdisk1 (b.qcow2)", "hint: --disk NAME says which");
    assert!(run.err.contains(list) && run.err.contains(hint), "{}", run.err);
    assert_eq!(dchain(at, &["convert", "-O", "raw", "--disk", "c", "vm.ova", "out.raw"]).code, Some(1));
    for (name, source) in
        [("vmdisk0", "a.raw"), ("a.raw", "a.raw"), ("vmdisk1", "b.raw"), ("b.qcow2", "b.raw")]
    {
        let run = done(at, &["convert", "-O", "raw", "--disk", name, "vm.ova", "out.raw"]);
        assert!(
            run.out.contains("manifest: there is none") && run.out.contains("vm.cert is not verified"),
            "{}",
            run.out
        );
        shell(at, &format!("cmp {source} out.raw && rm out.raw"));
    }
    // Over an image that is there, and compressed.
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "old.qcow2", "4M"]);
    done(at, &["convert", "-O", "qcow2", "-c", "--no-create", "--disk", "vmdisk1", "vm.ova", "old.qcow2"]);
    qemu(at, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "b.raw", "old.qcow2"]);
    let run = dchain(at, &["convert", "-O", "raw", "--disk", "a", "a.raw", "x.raw"]);
    assert_eq!(run.code, Some(64), "--disk is for an OVA: {}", run.err);
    assert_eq!(dchain(at, &["convert", "-O", "qcow2", "--chain", "vm.ova", "."]).code, Some(64));
}

#[test]
fn info_shows_the_disks_and_why_some_are_not_read() {
    let folder = disks(&["a.raw"]);
    let at = folder.path();
    shell(at, "gzip -k a.raw && cp a.raw c.raw && head -c 100 a.raw > notes.txt && : > d.raw");
    let of = |file, of_file| Packed { file, of_file, uri: "http://example/raw" };
    describe(
        at,
        &[
            of("a.raw", ""),
            of("a.raw.gz", "ovf:compression=\"gzip\""),
            of("c.raw", "ovf:chunkSize=\"2147483648\""),
            Packed { file: "notes.txt", of_file: "", uri: VMDK },
            of("gone.raw", ""),
        ],
    );
    shell(at, "sed -i 's|</DiskSection>|<Disk ovf:diskId=\"blank\" ovf:capacity=\"1024\"/>&|' vm.ovf");
    promise(at, "SHA256", "vm.ovf a.raw");
    pack(at, "vm.ovf vm.mf a.raw a.raw.gz c.raw notes.txt d.raw");
    let info = done(at, &["info", "--output", "json", "vm.ova"]).json();
    assert_eq!(
        (&info["format"], &info["schema"], &info["descriptor"]),
        (&"ova".into(), &1.into(), &"vm.ovf".into())
    );
    assert_eq!(
        (&info["manifest"]["algorithms"][0], &info["manifest"]["descriptor"]),
        (&"SHA256".into(), &"verified".into())
    );
    assert_eq!(info["other-files"], serde_json::json!(["d.raw"]));
    let good = disk_called(&info, "vmdisk0");
    assert_eq!(
        (&good["virtual-size"], &good["capacity"], &good["problem"]),
        (&(4 << 20).into(), &(4 << 20).into(), &Value::Null)
    );
    for (id, why) in [
        ("vmdisk1", "compressed as a whole (gzip)"),
        ("vmdisk2", "in pieces of 2147483648 bytes each (chunkSize)"),
        ("vmdisk3", "calls it vmdk, and it has no such header"),
        ("vmdisk4", "'gone.raw', which the archive has not"),
        ("blank", "has no file"),
    ] {
        let problem = disk_called(&info, id)["problem"].as_str().unwrap().to_owned();
        assert!(problem.contains(why), "{problem}");
        let run = dchain(at, &["convert", "-O", "raw", "--disk", id, "vm.ova", "never.raw"]);
        assert!(matches!(run.code, Some(1 | 65)) && run.err.contains(why), "{id}: {}", run.err);
    }
    let text = done(at, &["info", "vm.ova"]).out;
    for line in [
        "file format: ova",
        "virtual machine: vm7",
        "manifest: vm.mf (SHA256; the descriptor is as it says; convert looks at the disks)",
        "    vmdisk0: a.raw",
        "        virtual size: 4 MiB (4194304 bytes)",
        "        not read here: is compressed as a whole (gzip)",
        "other files: d.raw",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
    }
    let one = done(at, &["info", "--output", "json", "--disk", "vmdisk0", "vm.ova"]).json();
    assert_eq!((&one["format"], &one["virtual-size"]), (&"raw".into(), &(4 << 20).into()));
}

#[test]
fn an_ova_that_could_harm_whoever_unpacks_it_is_refused() {
    let folder = simple("SHA256");
    let at = folder.path();
    let bad = [
        (
            "tar --format=ustar -Pcf bad.ova vm.ovf a.qcow2 --transform 's|a.qcow2|../a.qcow2|'",
            77,
            "leads out of the folder",
        ),
        (
            "tar --format=ustar -Pcf bad.ova vm.ovf a.qcow2 --transform 's|a.qcow2|/etc/x|'",
            77,
            "leads out of the folder",
        ),
        ("ln -sf /etc/shadow b.qcow2; tar --format=ustar -cf bad.ova vm.ovf b.qcow2", 77, "a link"),
        (
            "ln -f a.qcow2 c.qcow2; tar --format=ustar -cf bad.ova vm.ovf a.qcow2 c.qcow2; rm c.qcow2",
            77,
            "a link",
        ),
        ("mkfifo f; tar --format=ustar -cf bad.ova vm.ovf f", 77, "a FIFO"),
        ("tar --format=ustar --hard-dereference -cf bad.ova vm.ovf a.qcow2 a.qcow2", 65, "is there already"),
        ("truncate -s 8M s.raw; tar --format=gnu -Scf bad.ova vm.ovf s.raw", 1, "a sparse file"),
        ("truncate -s 8M s.raw; tar --format=pax -Scf bad.ova vm.ovf s.raw", 1, "a sparse file"),
        (
            "tar --format=ustar -cf bad.ova vm.ovf a.qcow2; truncate -s 20000 bad.ova",
            65,
            "the file ends after",
        ),
        (
            "sed 's|<Envelope|<!DOCTYPE x [<!ENTITY a \"b\">]>&|' -i vm.ovf; tar --format=ustar -cf bad.ova vm.ovf",
            77,
            "has a document type",
        ),
        (
            "head -c 2M /dev/zero > vm.ovf; tar --format=ustar -cf bad.ova vm.ovf",
            1,
            "vm.ovf: has 2097152 bytes",
        ),
    ];
    for (how, code, what) in bad {
        shell(at, how);
        for arguments in [&["info", "bad.ova"][..], &["convert", "-O", "raw", "bad.ova", "never.raw"]] {
            let run = dchain(at, arguments);
            assert_eq!(run.code, Some(code), "{how}: {}{}", run.out, run.err);
            assert!(run.err.starts_with("dchain: bad.ova") && run.err.contains(what), "{how}: {}", run.err);
        }
        assert!(!at.join("never.raw").exists());
    }
}

#[test]
fn tar_programs_write_names_and_folders_in_many_ways() {
    let folder = disks(&["a.raw"]);
    let at = folder.path();
    let long = format!("{}.raw", "x".repeat(150));
    describe(at, &[Packed { file: &long, of_file: "", uri: "http://example/raw" }]);
    shell(at, &format!("mkdir pack && mv vm.ovf pack && cp a.raw pack/{long}"));
    for format in ["gnu", "pax"] {
        shell(at, &format!("tar --format={format} -C pack -cf vm.ova ."));
        done(at, &["convert", "-O", "raw", "vm.ova", "out.raw"]);
        shell(at, "cmp a.raw out.raw && rm out.raw");
    }
}

#[test]
fn other_commands_do_not_take_an_ova_for_a_disk() {
    let folder = simple("SHA256");
    let at = folder.path();
    for arguments in
        [&["snapshot", "vm.ova", "new.qcow2"][..], &["id", "seal", "vm.ova"], &["resize", "vm.ova", "1G"]]
    {
        let run = dchain(at, arguments);
        assert!(
            run.code == Some(1) && run.err.contains("is an OVA by its header"),
            "{arguments:?}: {}",
            run.err
        );
    }
    // A raw disk in which a guest keeps an OVA is a raw disk if somebody says so.
    let raw = done(at, &["info", "-f", "raw", "--output", "json", "vm.ova"]).json();
    assert_eq!(raw["format"], "raw");
}

#[test]
fn disks_that_are_packed_come_out_again_with_tar_and_qemu_and_here() {
    let folder = disks(&["a.raw", "b.raw"]);
    let at = folder.path();
    convert(at, "qcow2", "", "a.raw", "a.qcow2");
    let run = done(at, &["convert", "-O", "ova", "a.qcow2", "b.raw", "two disks.ova"]);
    assert!(run.out.contains("two_disks-disk2.vmdk") && run.out.contains("1 CPU"), "{}", run.out);
    // The manifest lies second, and holds.
    shell(
        at,
        "mkdir out && tar -C out -xf 'two disks.ova' && test \"$(tar -tf 'two disks.ova' | head -2 | tail -1)\" = two_disks.mf && \
         cd out && sed 's/^SHA256(\\(.*\\))= \\(.*\\)/\\2  \\1/' two_disks.mf | sha256sum -c --quiet --strict && \
         python3 -c 'import xml.dom.minidom as m; m.parse(\"two_disks.ovf\")'",
    );
    for (nth, raw) in [(1, "a.raw"), (2, "b.raw")] {
        let name = format!("two_disks-disk{nth}.vmdk");
        let taken = format!("out/{name}");
        qemu(at, "qemu-img", &["compare", "-f", "raw", "-F", "vmdk", raw, &taken]);
        assert!(qemu(at, "qemu-img", &["info", "-f", "vmdk", &taken]).contains("streamOptimized"));
        let run = done(at, &["convert", "-O", "raw", "--disk", &name, "two disks.ova", "back.raw"]);
        assert!(run.out.contains("verified (SHA256)"), "{}", run.out);
        shell(at, &format!("cmp {raw} back.raw && rm back.raw"));
    }
    let run = dchain(at, &["convert", "-O", "ova", "a.qcow2", "two disks.ova"]);
    assert_eq!(run.code, Some(1), "there is one already: {}", run.err);
    let run = dchain(at, &["convert", "-O", "ova", "two disks.ova", "more.ova"]);
    assert!(run.code == Some(64) && run.err.contains("is an OVA already"), "{}", run.err);
    let run = dchain(at, &["convert", "-O", "qcow2", "a.qcow2", "b.raw", "x.qcow2"]);
    assert_eq!(run.code, Some(64), "images are not joined: {}", run.err);
    let left = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("draft") || name.contains("more")).count(), 0);
}

#[test]
fn a_manifest_that_names_its_files_from_here_is_held_against_them() {
    let folder = simple("SHA256");
    let at = folder.path();
    promise(at, "SHA256", "./vm.ovf ./a.qcow2");
    for members in ["vm.ovf vm.mf a.qcow2", "./vm.ovf ./vm.mf ./a.qcow2"] {
        pack(at, members);
        let run = done(at, &["convert", "-O", "qcow2", "vm.ova", "out.qcow2"]);
        assert!(run.out.contains("manifest: a.qcow2 verified (SHA256)"), "{}", run.out);
        fs::remove_file(at.join("out.qcow2")).unwrap();
    }
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 99 0 64k", "a.qcow2"]);
    pack(at, "vm.ovf vm.mf a.qcow2");
    let run = dchain(at, &["convert", "-O", "qcow2", "vm.ova", "out.qcow2"]);
    assert_eq!((run.code, at.join("out.qcow2").exists()), (Some(65), false), "{}", run.err);
}
