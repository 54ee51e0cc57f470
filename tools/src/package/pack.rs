//! `dchain convert -O ova`: disks in one archive.

use crate::{failure::Failure, output::Answer, progress::Watching, size};
use deltachain::{
    chain::{Chain, Opening, Package, View},
    io::{EntryKind, Host},
    job::{
        copy::Hierarchies,
        ova::{self, Written},
    },
    store::{ova::NewDisk, vmware},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Makes an OVA at `target` of the disks of `sources`.
pub fn pack(
    host: &Arc<dyn Host>,
    (sources, target): (&[PathBuf], &Path),
    opening: &Opening,
    watching: &Watching,
    answer: &Answer,
) -> Result<(), Failure> {
    let mut disks: Vec<View> = Vec::new();
    for source in sources {
        if Package::open(host, source, opening)?.is_some() {
            let what = format!("{} is an OVA already", source.display());
            return Err(Failure::usage(what).hint("dchain convert -O qcow2 takes a disk out of it"));
        }
        refuse_machine(host, source, opening)?;
        disks.push(Chain::open(host, source, opening)?.view(0));
    }
    let written = watching.run(|progress| ova::write(host, &disks, target, progress));
    let written = written.map_err(Failure::begins_again)?;
    answer.print(&written, |out| lines(&written).iter().try_for_each(|line| writeln!(out, "{line}")))
}

/// Refuses a `.vmx` or `.vmsd` as a disk of its own text.
pub fn refuse_machine(host: &Arc<dyn Host>, source: &Path, opening: &Opening) -> Result<(), Failure> {
    // A folder says of itself what it is.
    let is_text = vmware::is_one(source) && host.kind(source)? == Some(EntryKind::File);
    if !is_text || !Hierarchies::are_meant(host.as_ref(), source, opening)? {
        return Ok(());
    }
    let what = format!("{} names disks, and is none", source.display());
    let hint =
        "name one of its disks; convert --chain -O FMT takes them all, with their snapshots, into a folder";
    Err(Failure::usage(what).hint(hint))
}

fn lines(written: &Written) -> Vec<String> {
    let archive = written.archive.display();
    let disk = |disk: &NewDisk| {
        let (size, written) = (size::show(disk.size), size::show(disk.written_bytes));
        format!("{archive}: {}, {size}, of which {written} written", disk.file)
    };
    let mut lines: Vec<String> = written.disks.iter().map(disk).collect();
    let machine = "its machine has 1 CPU, 1 GiB of memory and no network: set it up where it is imported";
    lines.push(machine.to_owned());
    lines
}
