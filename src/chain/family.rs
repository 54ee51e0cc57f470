//! Families: which images of a folder are children of which. Only headers are read, nothing is locked.
//!
//! Children elsewhere cannot be seen from a parent, but for folders where some were made by us, which is noted beside it:
//! what lies there on an image of the family is found, too. Whoever asks says where it was looked.

use super::{
    link::{is_plain, join},
    policy::is_special,
};
use crate::{
    base::{Error, ErrorKind, Result},
    format::{self, Format, ParentName},
    io::{Access, EntryKind, Host, Witness},
    store::{Draft, FOLDER, elsewhere, noted_format},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// An image that was found.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it is, without links.
    pub path: PathBuf,
    /// Its format, by its header.
    pub format: Format,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Which file it is.
    pub witness: Witness,
    /// The parent that its header names.
    pub link: Option<Link>,
    /// The further files that its bytes are in: a data file, or extents.
    pub data: Vec<DataFile>,
    /// Whether it is known as a raw disk, whatever its header.
    pub is_known_raw: bool,
}

/// A further file of an image.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// Which file it is.
    pub witness: Witness,
}

/// A child's link to its parent.
#[derive(Clone, Debug)]
pub struct Link {
    /// As the header has it.
    pub name: ParentName,
    /// Where that leads, without links; `None` if nothing is there, or if it is not a plain file name.
    pub place: Option<PathBuf>,
    /// Which file is there, or where QEMU takes a name that is not plain for a file.
    pub witness: Option<Witness>,
}

/// The images of some folders.
#[derive(Debug, Default)]
pub struct Family {
    /// The folders, without links.
    pub folders: Vec<PathBuf>,
    /// What was found, by folder and name. Files without a known header count as raw only where it is noted,
    /// where a child names them, or where their name ends in `.raw` or `.img`.
    pub members: Vec<Member>,
    /// Images in other folders that lie on those of the family, as far as it is known where to look.
    pub elsewhere: Vec<Member>,
    /// Files of the folders without a known header that do not count as images.
    pub plain: Vec<Member>,
    /// Files that have an image's header but could not be read, with the reason.
    pub unreadable: Vec<(PathBuf, Error)>,
    /// Where in `members` each file is.
    by_file: BTreeMap<FileKey, usize>,
    /// Where in `members` the children of each file are.
    by_parent: BTreeMap<FileKey, Vec<usize>>,
}

/// File system and inode.
type FileKey = (u128, u64);

const fn key(file: &Witness) -> FileKey {
    (file.file_system, file.inode)
}

impl Family {
    /// Looks at every file of `folders` (not of the folders inside them), and for children of theirs elsewhere.
    pub fn scan(host: &dyn Host, folders: &[PathBuf]) -> Result<Self> {
        Self::scan_near(host, folders, folders)
    }

    /// The same, but children elsewhere are looked for of images in `parents` alone, which are among the folders: a folder
    /// of golden images may have them in a thousand others.
    pub fn scan_near(host: &dyn Host, folders: &[PathBuf], parents: &[PathBuf]) -> Result<Self> {
        let mut family = Self::default();
        let mut plain = Vec::new();
        for folder in folders {
            let folder = host.canonical(folder)?;
            if family.folders.contains(&folder) {
                continue;
            }
            for entry in host.list(&folder)? {
                if entry.kind == EntryKind::File && !Draft::is_left_over(&entry.path) {
                    family.look_at(host, &entry.path, &mut plain);
                }
            }
            family.folders.push(folder);
        }
        family.look_elsewhere(host, parents, &plain)?;
        family.set_extents_aside(host);
        family.add_raw(plain);
        family.members.sort_by(|a, b| a.path.cmp(&b.path));
        for (at, member) in family.members.iter().enumerate() {
            family.by_file.entry(key(&member.witness)).or_insert(at);
            if let Some(parent) = member.link.as_ref().and_then(|link| link.witness) {
                family.by_parent.entry(key(&parent)).or_default().push(at);
            }
        }
        Ok(family)
    }

    /// An extent with a header of its own is no image: whoever takes it for one shows a piece of a disk. What names a parent
    /// stays, whoever claims its bytes: it has to be seen where that parent is to change or go.
    fn set_extents_aside(&mut self, host: &dyn Host) {
        let further = self.members.iter().filter(|m| m.format == Format::Vmdk);
        let extents: BTreeSet<FileKey> =
            further.flat_map(|m| m.data.iter().map(|file| key(&file.witness))).collect();
        // What names itself as its extent is an image, though a bad one.
        let names_itself = |m: &Member| m.data.iter().any(|file| file.witness.same_file(&m.witness));
        let is_extent = |m: &Member| m.format == Format::Vmdk && extents.contains(&key(&m.witness));
        self.members.retain(|m| names_itself(m) || m.link.is_some() || !is_extent(m));
        let is_piece = |path: &Path| -> Result<bool> {
            let file = host.open(path, Access::ReadShared)?;
            Ok(extents.contains(&key(&file.witness()?)) && format::is_piece(file.as_ref())?)
        };
        self.unreadable.retain(|(path, _)| !is_piece(path).unwrap_or(false));
    }

    fn look_at(&mut self, host: &dyn Host, path: &Path, plain: &mut Vec<Member>) {
        match member(host, path) {
            Ok(found) if found.format == Format::Raw => plain.push(found),
            Ok(found) => self.members.push(found),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.unreadable.push((path.to_path_buf(), error)),
        }
    }

    /// Looks for children in the folders that are noted beside the images. What cannot be read there may be anything.
    fn look_elsewhere(&mut self, host: &dyn Host, parents: &[PathBuf], plain: &[Member]) -> Result<()> {
        let mut hinted = BTreeSet::new();
        for folder in parents {
            let others = elsewhere(host, folder)?.into_iter();
            hinted.extend(others.filter_map(|other| host.canonical(&other).ok()));
        }
        hinted.retain(|other| !is_special(other) && !self.folders.contains(other));
        if hinted.is_empty() {
            return Ok(());
        }
        let own: BTreeSet<FileKey> = self.members.iter().chain(plain).map(|m| key(&m.witness)).collect();
        let is_child = |found: &Member| {
            found.link.as_ref().and_then(|link| link.witness).is_some_and(|file| own.contains(&key(&file)))
        };
        for entry in hinted.iter().filter_map(|other| host.list(other).ok()).flatten() {
            if entry.kind == EntryKind::File && !Draft::is_left_over(&entry.path) {
                self.elsewhere.extend(member(host, &entry.path).ok().filter(is_child));
            }
        }
        Ok(())
    }

    fn add_raw(&mut self, plain: Vec<Member>) {
        let all = self.members.iter().chain(&self.elsewhere);
        let parents = all.filter_map(|m| m.link.as_ref().and_then(|link| link.witness));
        let parents: BTreeSet<FileKey> = parents.map(|parent| key(&parent)).collect();
        let named = |file: &Member| parents.contains(&key(&file.witness));
        let called = |file: &Member| file.path.extension().is_some_and(|e| e == "raw" || e == "img");
        let (raw, rest): (Vec<_>, Vec<_>) =
            plain.into_iter().partition(|file| file.is_known_raw || named(file) || called(file));
        self.members.extend(raw);
        self.plain = rest;
    }

    /// Fails with `Policy`, that file being its subject as well, if a file could not be read: whether it is a child of what
    /// is to change or go is not known. What a consolidation has retired is none.
    pub fn refuse_unreadable(&self, host: &dyn Host) -> Result<()> {
        let open = |path: &Path| host.open(path, Access::ReadShared);
        let is_retired =
            |path: &Path| open(path).is_ok_and(|f| format::is_retired(f.as_ref()).unwrap_or(false));
        match self.unreadable.iter().find(|(path, _)| !is_retired(path)) {
            Some((path, why)) => {
                let what = format!(
                    "might lie on a layer that is to change or go, and cannot be read: {}",
                    why.what()
                );
                Err(Error::policy(what).subject(path).path(path))
            }
            None => Ok(()),
        }
    }

    /// Returns the images whose parent is that file, whatever name they call it by.
    pub fn children_of(&self, parent: &Witness) -> impl Iterator<Item = &Member> {
        let children = self.by_parent.get(&key(parent)).map(Vec::as_slice).unwrap_or_default();
        children.iter().filter_map(|at| self.members.get(*at)).chain(self.children_elsewhere(*parent))
    }

    /// Returns those of them that are in other folders.
    pub fn children_elsewhere(&self, parent: Witness) -> impl Iterator<Item = &Member> {
        let is_it = move |link: &Link| link.witness.is_some_and(|file| file.same_file(&parent));
        self.elsewhere.iter().filter(move |found| found.link.as_ref().is_some_and(is_it))
    }

    /// Returns the images other than the one at `own` that keep their bytes in that file.
    pub fn users_of<'f>(&'f self, data: &Witness, own: &Path) -> impl Iterator<Item = &'f Member> {
        let is_it = |member: &Member| member.data.iter().any(|file| file.witness.same_file(data));
        self.members.iter().filter(move |member| is_it(member) && member.path != own)
    }

    /// Returns the image at that file.
    pub fn member(&self, file: &Witness) -> Option<&Member> {
        self.by_file.get(&key(file)).and_then(|at| self.members.get(*at))
    }
}

/// Reads the header of the image at `path`.
pub fn member(host: &dyn Host, path: &Path) -> Result<Member> {
    let file = host.open(path, Access::ReadShared)?;
    let notes = [path.parent().unwrap_or(Path::new("/")).join(FOLDER)];
    let is_raw = noted_format(host, &notes, file.as_ref())?.as_deref() == Some(Format::Raw.name());
    let format = if is_raw { Format::Raw } else { Format::recognise(file.as_ref())? };
    let peek = format::peek(format, file.as_ref())?;
    let path = host.canonical(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let data = peek.data_names.iter().filter_map(|name| {
        let path = join(folder, Path::new(OsStr::from_bytes(name)));
        host.witness(&path).ok().map(|witness| DataFile { path, witness })
    });
    let data = data.collect();
    let link = peek.parent.map(|name| find(host, &path, name));
    Ok(Member { path, format, size: peek.size, witness: file.witness()?, link, data, is_known_raw: is_raw })
}

fn find(host: &dyn Host, child: &Path, name: ParentName) -> Link {
    let folder = child.parent().unwrap_or(Path::new("/"));
    let at = |name: &[u8]| {
        let path = join(folder, Path::new(OsStr::from_bytes(name)));
        Some(path).filter(|_| is_plain(name)).and_then(|p| host.canonical(&p).ok())
    };
    let place = at(&name.name).or_else(|| name.others.iter().find_map(|other| at(other)));
    // A name that is not followed still says which file must stay as it is.
    let literal = || PathBuf::from(OsStr::from_bytes(&name.name));
    let named = || host.canonical(&join(folder, &qemu_file(&name.name).unwrap_or_else(literal))).ok();
    let witness = place.clone().or_else(named).and_then(|p| host.witness(&p).ok());
    Link { name, place, witness }
}

/// Returns the file of a name that only QEMU follows: `file:NAME`, or `json:` with options that lead to a file.
fn qemu_file(name: &[u8]) -> Option<PathBuf> {
    if let Some(name) = name.strip_prefix(b"file:") {
        return Some(PathBuf::from(OsStr::from_bytes(name)));
    }
    let options: Value = serde_json::from_slice(name.strip_prefix(b"json:")?).ok()?;
    let mut node = &options;
    loop {
        let is_file = |key: &str| key.split('.').rev().skip(1).all(|part| part == "file");
        let mut names = node.as_object()?.iter().filter(|(key, _)| key.ends_with("filename") && is_file(key));
        if let Some(name) = names.find_map(|(_, value)| value.as_str()) {
            return Some(PathBuf::from(name));
        }
        node = node.get("file")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_named_in_qemus_own_way_is_found() {
        let file = |name: &str| qemu_file(name.as_bytes());
        let base = || Some(PathBuf::from("/vm/base"));
        assert_eq!(file("file:/vm/base"), base());
        assert_eq!(file(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/vm/base"}}"#), base());
        assert_eq!(
            file(r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"/vm/base"}"#),
            base()
        );
        assert_eq!(file(r#"json:{"backing.file.filename":"/vm/base"}"#), None);
        assert_eq!(file("nbd:localhost:10809"), None);
        assert_eq!(file("base"), None);
    }
}
