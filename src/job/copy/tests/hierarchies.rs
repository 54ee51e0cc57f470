//! Folders of hierarchies in another format: each layer once, whatever the format, whenever power fails.

use super::*;
use crate::{
    content::Tree,
    format::Nothing,
    job::{
        copy::{Conversion, Hierarchies},
        create::{NewImage, create},
        rebase::NewParent,
    },
};
use std::collections::BTreeMap;

fn conversion(format: Format, options: &[(&str, &str)]) -> Conversion {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Conversion { format, options, is_packed: false, names: BTreeMap::new() }
}

/// `PLAIN`, with a second head on its middle layer, another disk, and a file that is no image.
fn build() -> (SimHost, BTreeMap<&'static str, Vec<u8>>) {
    let (host, _) = PLAIN.build();
    let (middle, side) = (Path::new("/vm/middle"), Path::new("/vm/side"));
    snapshot(&arc(&host), middle, side, &small(), &opening(&host)).unwrap();
    put(&host, "/vm/side", &[(500, 3000, 7)]);
    let other = host.create(Path::new("/vm/other.vhd")).unwrap();
    let creation = Creation { size: 4096, parent: None, options: Vec::new() };
    let image = format::create(Format::Vpc, other, &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(700), &[5; 700], &Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    host.create(Path::new("/vm/notes.txt")).unwrap().write_at(crate::base::HostOffset::new(0), b"?").unwrap();
    let host = again(&host);
    let names = ["base", "middle", "top", "side", "other.vhd"];
    let views = names.map(|name| (name, view(&host, &Path::new("/vm").join(name)).unwrap()));
    (host, views.into())
}

fn prepare(host: &SimHost, from: &str, new: Conversion) -> Result<Hierarchies> {
    let paths = (Path::new(from), Path::new("/store"));
    Hierarchies::prepare(&arc(host), &Ledger::new(arc(host), None), paths, &opening(host), new)
}

fn convert(host: &SimHost, from: &str, new: Conversion) -> Result<Vec<Report>> {
    prepare(host, from, new)?.run(&Progress::default())
}

/// What has a name shows what the layer of that name shows; returns how many have.
fn check_made(host: &SimHost, views: &BTreeMap<&str, Vec<u8>>, suffix: &str, story: &str) -> usize {
    let mut made = 0;
    for (name, expected) in views {
        let place = Path::new("/store").join(name);
        let place = if name.contains('.') { place.with_extension(suffix) } else { place };
        if host.kind(&place).unwrap().is_some() {
            let shown = view(host, &place).unwrap_or_else(|e| panic!("{story}: {name} does not open: {e}"));
            assert!(shown == *expected, "{story}: {name} shows something else");
            made += 1;
        }
    }
    made
}

fn names(host: &SimHost) -> usize {
    let entries = host.list(Path::new("/store")).unwrap();
    entries.iter().filter(|entry| entry.kind == EntryKind::File).count()
}

#[test]
fn each_layer_of_a_folder_is_made_once_in_every_format_that_has_children() {
    for format in Format::ALL.into_iter().filter(|format| *format != Format::Raw) {
        let (host, views) = build();
        let job = prepare(&host, "/vm", conversion(format, &[])).unwrap();
        let planned: Vec<_> = job.plans().iter().flat_map(|plan| &plan.layers).map(Placed::source).collect();
        assert_eq!(planned.len(), 5, "{planned:?}");
        let reports = job.run(&Progress::default()).unwrap();
        assert_eq!(reports.len(), 3);
        assert_eq!(check_made(&host, &views, format.suffixes()[0], format.name()), 5);
        assert_eq!(names(&host), 5);
        for proved in reports.iter().flat_map(|report| &report.proved) {
            let name = proved.image.file_stem().unwrap().to_str().unwrap();
            let expected = views.iter().find(|(own, _)| own.starts_with(name)).unwrap().1;
            assert_eq!(proved.id, Tree::of(expected).id(), "{format} {name}");
        }
        // Asked for again, all of it is there.
        let again = prepare(&host, "/vm", conversion(format, &[])).unwrap();
        assert!(again.plans().iter().all(|plan| plan.is_there && plan.copy_bytes == 0));
        again.run(&Progress::default()).unwrap();
        assert_eq!(names(&host), 5);
    }
}

#[test]
fn power_cuts_of_a_folder_s_conversion_leave_whole_layers_or_none() {
    let (host, views) = build();
    let new = || conversion(Format::Qcow2, &[("cluster_size", "1024")]);
    convert(&host, "/vm", new()).unwrap();
    let mut points = 0;
    for crash in crash_states(&host.trace(), 5, 0).step_by(23) {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check_made(&crash.host, &views, "qcow2", &story);
        convert(&crash.host, "/vm", new()).unwrap_or_else(|e| panic!("{story}: {e}"));
        assert_eq!(check_made(&crash.host, &views, "qcow2", &story), 5, "{story}");
        assert_eq!(names(&crash.host), 5, "{story}: something is left");
        points += 1;
    }
    println!("{points} power cuts");
    assert!(points > 12, "{points}");
}

#[test]
fn what_shares_a_layer_reads_it_no_second_time() {
    let (host, _) = build();
    let reports = convert(&host, "/vm", conversion(Format::Vhdx, &[])).unwrap();
    let made: u64 = reports.iter().map(|report| report.copied_bytes).sum();
    let alone: u64 = ["/vm/top", "/vm/side"]
        .iter()
        .map(|top| {
            let (host, _) = build();
            let request = Request {
                share: Share::Deny,
                conversion: Some(conversion(Format::Vhdx, &[])),
                ..Request::default()
            };
            let (ledger, paths) = (Ledger::new(arc(&host), None), (Path::new(*top), Path::new("/store")));
            let copy = Copy::prepare(&arc(&host), &ledger, paths, &opening(&host), request).unwrap();
            copy.run(&Progress::default()).unwrap().copied_bytes
        })
        .sum();
    assert!(made + 6000 < alone, "{made} {alone}");
}

#[test]
fn a_machine_s_file_stands_for_the_hierarchies_of_its_disks() {
    let (host, views) = build();
    let write = |name: &str, text: &str| {
        let file = host.create(Path::new(name)).unwrap();
        file.write_at(crate::base::HostOffset::new(0), text.as_bytes()).unwrap();
    };
    write(
        "/vm/vm.vmx",
        "scsi0:0.fileName = \"top\"\nide1:0.fileName = \"no.iso\"\nide1:0.deviceType = \"cdrom-image\"\n",
    );
    write("/vm/vm.vmsd", "snapshot0.disk0.fileName = \"base\"\nsnapshot1.disk0.fileName = \"middle\"\n");
    for from in ["/vm/vm.vmx", "/vm/vm.vmsd"] {
        let machine = again(&host);
        convert(&machine, from, conversion(Format::Qcow2, &[])).unwrap();
        // All that stands on its base, and the other disk is somebody else's.
        assert_eq!((check_made(&machine, &views, "qcow2", from), names(&machine)), (4, 4));
    }
    host.create(Path::new("/secret")).unwrap();
    write("/vm/far.vmx", "scsi0:0.fileName = \"/vm/base\"\nscsi0:1.fileName = \"../secret\"\n");
    write("/vm/lost.vmx", "scsi0:0.fileName = \"nothing.vmdk\"\n");
    write("/vm/empty.vmx", "memsize = \"1024\"\n");
    for (from, kind, what) in [
        ("/vm/far.vmx", ErrorKind::Policy, "/secret"),
        ("/vm/lost.vmx", ErrorKind::NotFound, "nothing.vmdk"),
        ("/vm/empty.vmx", ErrorKind::NotFound, "names no disk"),
    ] {
        let refused = prepare(&host, from, conversion(Format::Qcow2, &[])).unwrap_err();
        assert!(refused.kind() == kind && refused.to_string().contains(what), "{refused}");
    }
}

#[test]
fn nothing_is_written_where_one_layer_cannot_be_what_it_is() {
    let (host, _) = build();
    let refused = |host: &SimHost, from: &str, new: Conversion, what: &str| {
        let error = prepare(host, from, new).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(names(host), 0);
    };
    // 20 KiB are no whole number of sectors of that size, one sector more than ten are not either.
    let odd = NewImage { format: Format::Qcow2, size: Some(10 * 4096 + 512), parent: None, options: small() };
    create(&arc(&host), Path::new("/vm/odd.qcow2"), &odd, &opening(&host)).unwrap();
    let large = conversion(Format::Vhdx, &[("logical_sector_size", "4096")]);
    refused(&host, "/vm", large, "odd.qcow2: ");
    refused(&host, "/vm", conversion(Format::Raw, &[]), "a raw one cannot");
    // 3 TiB are too much for a VHD, also above a parent.
    let parent = Some(NewParent { path: "/vm/odd.qcow2".into(), format: Format::Qcow2 });
    let wide = NewImage { format: Format::Qcow2, size: Some(3 << 40), parent, options: Vec::new() };
    create(&arc(&host), Path::new("/vm/wide.qcow2"), &wide, &opening(&host)).unwrap();
    refused(&host, "/vm", conversion(Format::Vpc, &[]), "wide.qcow2: ");
    refused(&host, "/store", conversion(Format::Qcow2, &[]), "a folder of their own");
    let file = host.create(Path::new("/vm/broken")).unwrap();
    file.write_at(crate::base::HostOffset::new(0), b"QFI\xfb\0\0\0\x09").unwrap();
    refused(&host, "/vm", conversion(Format::Vhdx, &[]), "/vm/broken: might belong");
}

#[test]
fn names_that_would_meet_stay_apart() {
    let (host, _) = build();
    for (name, format) in
        [("/vm/disk.qcow2", Format::Qcow2), ("/vm/disk.vhd", Format::Vpc), ("/vm/DISK.VHD", Format::Vpc)]
    {
        let new = NewImage { format, size: Some(1 << 20), parent: None, options: Vec::new() };
        create(&arc(&host), Path::new(name), &new, &opening(&host)).unwrap();
    }
    let job = prepare(&host, "/vm", conversion(Format::Vhdx, &[])).unwrap();
    let places: BTreeSet<_> =
        job.plans().iter().flat_map(|plan| &plan.layers).filter_map(Placed::target).collect();
    assert!(places.len() == 8 && places.contains(Path::new("/store/disk.vhdx")), "{places:?}");
    job.run(&Progress::default()).unwrap();
    assert_eq!(names(&host), 8);
}
