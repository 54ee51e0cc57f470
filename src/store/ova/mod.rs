//! An OVA: a tar archive that holds a virtual machine's disks and an OVF descriptor of them (DSP0243 2.1.1, section 5). It
//! is a place of images, as a folder is: each disk is read where it lies in the archive, and nothing is unpacked.
//!
//! What stays true: a disk's bytes come from the archive's own files and from nowhere else, whatever the descriptor names;
//! nothing of a stranger's archive is taken in that has no bound.
//!
//! ```text
//!   vm.ova   ── archive (tar headers) ── members ─┬─ vm.ovf   ── descriptor ── which disks there are
//!                                                 ├─ vm.mf    ── manifest   ── what the members' bytes are
//!                                                 └─ disk1.vmdk ── io::Window ── an image of some format
//! ```

mod archive;
mod descriptor;
mod manifest;
mod new;

pub use archive::Member;
pub use manifest::{Algorithm, Hasher, Manifest, Promise, ShownDigest};
pub use new::{NewDisk, NewNames, promise_line, tar_header};

use crate::{
    base::{Error, ErrorKind, HostOffset, Result, error::InFile, name, units::index},
    io::{File, Window},
};
use descriptor::{Descriptor, DiskEntry, FileEntry};
use std::{os::unix::ffi::OsStrExt, path::PathBuf, sync::Arc};

/// Bytes in a descriptor, and in a manifest.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// How the names of the files end that say what is in the archive.
const DESCRIPTOR: &str = ".ovf";
const MANIFEST: &str = ".mf";
const CERTIFICATE: &str = ".cert";

/// An open OVA.
#[derive(Debug)]
pub struct Ova {
    file: Arc<dyn File>,
    members: Vec<Member>,
    descriptor: Descriptor,
    descriptor_member: Member,
    /// What the descriptor's bytes are, by the manifest.
    manifest: Option<(Member, Manifest)>,
    certificate: Option<Member>,
}

/// A disk of an OVA, as its descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OvaDisk {
    /// What the descriptor calls it.
    pub id: String,
    /// The file that has its bytes, as the descriptor names it; none of a disk that is empty at first.
    pub href: Option<String>,
    /// That file, if the archive has it.
    pub member: Option<Member>,
    /// How many bytes the file has by the descriptor, as far as it says so.
    pub stated_bytes: Option<u64>,
    /// The disk's size by the descriptor, as it is written there.
    pub capacity: Option<String>,
    /// The same in bytes, where that is a number in known units.
    pub size: Option<u64>,
    /// The format by the descriptor, a URI.
    pub format: Option<String>,
    /// How the file as a whole is compressed.
    pub compression: Option<String>,
    /// How many bytes each piece of the file has, if it lies in pieces.
    pub chunk: Option<String>,
    /// The disk that it is a delta on.
    pub parent: Option<String>,
}

impl OvaDisk {
    /// Returns why the disk cannot be read, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        let Some(href) = &self.href else { return Some("has no file: it is empty at first".to_owned()) };
        if let Some(parent) = &self.parent {
            return Some(format!("is a delta on '{parent}'"));
        }
        if let Some(bytes) = &self.chunk {
            return Some(format!("lies in pieces of {bytes} bytes each (chunkSize)"));
        }
        if let Some(how) = &self.compression {
            return Some(format!("is compressed as a whole ({how})"));
        }
        self.member.is_none().then(|| format!("is in '{href}', which the archive has not"))
    }

    /// Returns what people call it: its file, or else its ID.
    pub fn name(&self) -> &str {
        self.href.as_deref().unwrap_or(&self.id)
    }

    fn is_called(&self, name: &str) -> bool {
        let member = self.member.as_ref().map(|member| member.name.as_str());
        [Some(self.id.as_str()), self.href.as_deref(), member].contains(&Some(name))
    }
}

impl Ova {
    /// Returns whether a file that a person named is an OVA by what it starts with: a tar archive whose first file is a
    /// descriptor, or any in a file that is called `.ova`.
    pub fn is_one(file: &dyn File) -> Result<bool> {
        let Some(first) = archive::first_name(file)? else { return Ok(false) };
        let is_named = file.path().extension().is_some_and(|ending| ending.eq_ignore_ascii_case("ova"));
        Ok(is_named || first.to_ascii_lowercase().ends_with(DESCRIPTOR.as_bytes()))
    }

    /// Reads what an OVA says of itself: all tar headers, its descriptor and its manifest. No disk is read.
    ///
    /// `Corrupt`, `Policy` or `Unsupported`, with field and offset, for what is no OVA or none to be trusted.
    pub fn open(file: Arc<dyn File>) -> Result<Self> {
        let members = archive::members(file.as_ref()).in_file(file.path())?;
        let descriptor_member = only(&members, DESCRIPTOR)
            .and_then(|found| found.ok_or_else(|| Error::corrupt("has no descriptor (.ovf)")))
            .in_file(file.path())?;
        let descriptor = Descriptor::parse(&text(&file, &descriptor_member)?)
            .map_err(|e| e.path(named(file.as_ref(), &descriptor_member)))?;
        let manifest = match only(&members, MANIFEST).in_file(file.path())? {
            None => None,
            Some(member) => {
                let manifest = Manifest::parse(&text(&file, &member)?)
                    .map_err(|e| e.path(named(file.as_ref(), &member)))?;
                Some((member, manifest))
            }
        };
        let certificate = only(&members, CERTIFICATE).in_file(file.path())?;
        Ok(Self { file, members, descriptor, descriptor_member, manifest, certificate })
    }

    /// Returns the archive.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Returns its files, in their order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the file that describes the others.
    pub const fn descriptor(&self) -> &Member {
        &self.descriptor_member
    }

    /// Returns what says of the others what their bytes are, if there is one.
    pub fn manifest(&self) -> Option<(&Member, &Manifest)> {
        self.manifest.as_ref().map(|(member, manifest)| (member, manifest))
    }

    /// Returns the file that signs the manifest, if there is one. Nothing here looks at it.
    pub const fn certificate(&self) -> Option<&Member> {
        self.certificate.as_ref()
    }

    /// Returns what the virtual machines are called that the descriptor describes.
    pub fn systems(&self) -> &[String] {
        &self.descriptor.systems
    }

    /// Returns the disks, in their order; `Policy` where one is said to be in a file that could only be elsewhere.
    pub fn disks(&self) -> Result<Vec<OvaDisk>> {
        let disks = self.descriptor.disks.iter().map(|disk| self.disk_of(disk));
        disks.collect::<Result<_>>().map_err(|e| e.path(named(self.file.as_ref(), &self.descriptor_member)))
    }

    fn disk_of(&self, disk: &DiskEntry) -> Result<OvaDisk> {
        let wrong = |what: String| Error::corrupt(format!("Disk '{}': {what}", disk.id));
        let found = disk.file.as_ref().map(|id| {
            let file = self.descriptor.files.get(id);
            file.ok_or_else(|| wrong(format!("fileRef: there is no File '{id}'")))
        });
        let file: Option<&FileEntry> = found.transpose()?;
        let member = file.map(|file| self.member_at(&file.href)).transpose();
        Ok(OvaDisk {
            id: disk.id.clone(),
            href: file.map(|file| file.href.clone()),
            member: member.map_err(|e| e.doing(format!("Disk '{}'", disk.id)))?.flatten(),
            stated_bytes: file.and_then(|file| file.bytes),
            capacity: disk.capacity.clone(),
            size: disk.size,
            format: disk.format.clone(),
            compression: file.and_then(|file| file.compression.clone()),
            chunk: file.and_then(|file| file.chunk.clone()),
            parent: disk.parent.clone(),
        })
    }

    /// Returns the file that a reference leads to; none is looked for outside the archive.
    fn member_at(&self, href: &str) -> Result<Option<Member>> {
        let find = |name: &str| self.members.iter().find(|member| member.name == name).cloned();
        // An address of another machine: nobody follows it.
        if href.contains("://") {
            return Ok(None);
        }
        let name = archive::plain_name(href.as_bytes())?;
        if let Some(member) = find(&name) {
            return Ok(Some(member));
        }
        // A reference is a URI: what is no letter may be written as its number.
        let decoded = name::path(&format!("file:{name}"));
        Ok(archive::plain_name(decoded.as_os_str().as_bytes()).ok().and_then(|name| find(&name)))
    }

    /// Returns the disk of that ID or in that file; without a name the only one that has a file.
    ///
    /// `NotFound` or `Invalid` with a list of those that there are.
    pub fn disk(&self, wanted: Option<&str>) -> Result<OvaDisk> {
        let disks = self.disks()?;
        let list = || {
            let shown = disks.iter().map(|disk| match &disk.href {
                Some(href) => format!("{} ({href})", disk.id),
                None => format!("{} (without a file)", disk.id),
            });
            shown.take(32).collect::<Vec<_>>().join(", ")
        };
        let is_meant = |disk: &&OvaDisk| wanted.map_or(disk.href.is_some(), |name| disk.is_called(name));
        let mut found = disks.iter().filter(is_meant);
        match (found.next(), found.next(), wanted) {
            (Some(disk), None, _) => Ok(disk.clone()),
            (None, ..) if disks.is_empty() => Err(Error::new(ErrorKind::NotFound, "has no disk")),
            (None, _, None) => {
                Err(Error::new(ErrorKind::NotFound, format!("has no disk with a file: {}", list())))
            }
            (None, _, Some(name)) => {
                Err(Error::new(ErrorKind::NotFound, format!("has no disk '{name}': there is {}", list())))
            }
            (Some(_), Some(_), Some(name)) => {
                Err(Error::invalid(format!("has more than one disk that could be '{name}': {}", list())))
            }
            (Some(_), Some(_), None) => Err(Error::invalid(format!(
                "has {} disks, and which one is meant is to be said: {}",
                disks.len(),
                list()
            ))),
        }
        .in_file(self.file.path())
    }

    /// Returns one of its files, to be read where it lies.
    pub fn window(&self, member: &Member) -> Arc<dyn File> {
        Arc::new(window(&self.file, member))
    }

    /// Returns what the manifest says of one of its files.
    pub fn promise(&self, member: &Member) -> Option<&Promise> {
        self.manifest.as_ref().and_then(|(_, manifest)| manifest.promise(&member.name))
    }
}

fn window(file: &Arc<dyn File>, member: &Member) -> Window {
    Window::new(Arc::clone(file), named(file.as_ref(), member), member.range)
}

/// How one of an archive's files is called in messages.
fn named(file: &dyn File, member: &Member) -> PathBuf {
    file.path().join(&member.name)
}

/// Returns the only file whose name ends so; `Corrupt` where there are several.
fn only(members: &[Member], ending: &str) -> Result<Option<Member>> {
    let mut found = members.iter().filter(|member| member.name.to_ascii_lowercase().ends_with(ending));
    match (found.next(), found.next()) {
        (Some(one), Some(two)) => {
            let what =
                format!("has '{}' and '{}', and one {ending} is the most there can be", one.name, two.name);
            Err(Error::corrupt(what))
        }
        (found, _) => Ok(found.cloned()),
    }
}

/// Reads a file that says something.
fn text(file: &Arc<dyn File>, member: &Member) -> Result<Vec<u8>> {
    let window = window(file, member);
    if member.range.bytes > TEXT_BYTES_MAX {
        let what = format!("has {} bytes, at most {TEXT_BYTES_MAX} are read", member.range.bytes);
        return Err(Error::unsupported(what).path(window.path()));
    }
    let mut bytes = vec![0; index(member.range.bytes)];
    window.read_at(HostOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
