//! Opening: from a header or a descriptor to extents.

use super::{
    check::check_metadata,
    descriptor::{self, Descriptor, NO_PARENT, Use},
    desk::{self, Desk, PARENT_FORMAT},
    image::{State, VmdkImage},
    layout::{Coding, ENTRIES_MAX, Layout, read_directory},
    space::{Space, start},
    tables::{Body, Extent, Grains, PAGE_BYTES, Tables},
};
use crate::{
    base::{
        Budget, Error, ErrorKind, GuestOffset, HostOffset, Result,
        budget::Part,
        error::InFile,
        units::{SECTOR_BYTES, count},
    },
    format::{
        Format, Identity, ParentName, Parts,
        pages::{Pages, WRITERS_LEAST},
    },
    io::File,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What stands in an image's own file.
#[derive(Debug)]
pub(super) enum Head {
    /// A sparse extent, with the descriptor that it may have inside.
    Sparse(Box<Layout>, Option<Descriptor>),
    /// A descriptor alone.
    Text(Descriptor),
}

impl Head {
    /// Reads header and descriptor.
    pub(super) fn read(file: &dyn File) -> Result<Self> {
        let Some(layout) = Layout::read(file)? else { return desk::read_beside(file).map(Self::Text) };
        let text = layout.descriptor.map(|place| desk::read_inside(file, place)).transpose()?;
        Ok(Self::Sparse(Box::new(layout), text))
    }
}

/// Opens the image in `file`, and the files of its extents through `parts`.
pub(super) fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<VmdkImage> {
    let path = file.path().to_path_buf();
    open_head(file, is_writable, parts).in_file(&path)
}

fn open_head(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<VmdkImage> {
    let budget = parts.budget();
    let (desk, space, extents, beside) = match Head::read(file.as_ref())? {
        Head::Sparse(layout, text) => {
            if is_writable && text.is_none() {
                let what =
                    "is an extent without a descriptor: what is to be written is the disk that it belongs to";
                return Err(Error::unsupported(what));
            }
            let grains = grains(&file, *layout, 0, &budget)?;
            let guest = GuestOffset::new(0).range(layout.bytes);
            let extent = Extent { guest, is_writable: true, body: Body::Grains(Box::new(grains)) };
            let desk = text.map(|text| Desk::new(&file, layout.descriptor, text));
            (desk, Space::new(file.path(), vec![Arc::clone(&file)])?, vec![extent], None)
        }
        Head::Text(text) => {
            let (files, extents) = described(&file, &text, parts)?;
            (Some(Desk::new(&file, None, text)), Space::new(file.path(), files)?, extents, Some(file))
        }
    };
    if let Some(desk) = &desk {
        // What a child is linked by has to be there.
        let _ = (desk.descriptor.cid()?, desk.descriptor.parent_cid()?);
    }
    if is_writable {
        check_writable(&space, &extents)?;
    }
    let pages = Pages::new(PAGE_BYTES, PAGE_BYTES, budget.join(), WRITERS_LEAST);
    let state = State::new(Tables::new(Arc::new(space), extents, pages));
    Ok(VmdkImage::new(state, desk, beside, is_writable, budget))
}

/// Refuses to write what can only be read.
fn check_writable(space: &Space, extents: &[Extent]) -> Result<()> {
    for grains in extents.iter().filter_map(Extent::grains) {
        let what = match grains.layout.coding {
            Coding::Packed { .. } => {
                "is a stream (compressed grains), which is written once: convert it to write to the disk"
            }
            Coding::Se { .. } => "is space-efficient sparse (seSparse), which is only read here",
            Coding::Hosted { .. } | Coding::Cowd => {
                let (target, _) = space.part(grains.base)?;
                check_metadata(grains, target.file.bytes()?).in_file(target.file.path())?;
                continue;
            }
        };
        return Err(Error::unsupported(what));
    }
    Ok(())
}

/// The files of a descriptor's extents while they are opened.
struct Files<'a> {
    parts: &'a dyn Parts,
    descriptor: &'a Descriptor,
    /// The descriptor's own.
    own: &'a Arc<dyn File>,
    opened: Vec<Arc<dyn File>>,
    /// Which file has a name, and whether a sparse extent is all of it.
    names: BTreeMap<Vec<u8>, (usize, bool)>,
}

impl Files<'_> {
    /// Returns the number of the file of an extent. Flat extents may share one; a sparse one is its file.
    fn number(&mut self, name: &[u8], is_sparse: bool) -> Result<usize> {
        let shown = || String::from_utf8_lossy(name).escape_debug().to_string();
        match self.names.get(name) {
            Some((nth, false)) if !is_sparse => return Ok(*nth),
            Some(_) => {
                let what = format!("its descriptor has the sparse extent '{}' twice", shown());
                return Err(Error::corrupt(what));
            }
            None => {}
        }
        let other = self.descriptor.in_utf8(name);
        let part = self.parts.open_part(name).or_else(|error| match other {
            Some(other) if error.kind() == ErrorKind::NotFound => self.parts.open_part(&other),
            _ => Err(error),
        })?;
        let witness = part.witness()?;
        if witness.same_file(&self.own.witness()?) {
            return Err(Error::corrupt(format!("its descriptor names itself as the extent '{}'", shown())));
        }
        let nth = self.opened.len();
        self.opened.push(part);
        self.names.insert(name.to_vec(), (nth, is_sparse));
        Ok(nth)
    }
}

/// The files of a disk, and its extents.
type Described = (Vec<Arc<dyn File>>, Vec<Extent>);

/// Opens the extents of a descriptor that is a file of its own.
fn described(file: &Arc<dyn File>, descriptor: &Descriptor, parts: &dyn Parts) -> Result<Described> {
    let budget = parts.budget();
    let mut files = Files { parts, descriptor, own: file, opened: Vec::new(), names: BTreeMap::new() };
    let (mut extents, mut at, mut entries) = (Vec::new(), GuestOffset::new(0), 0);
    for line in descriptor.extents()? {
        let guest = at.range(line.bytes);
        at = guest.end();
        if line.kind == descriptor::Kind::Zero || line.access == Use::Nothing {
            extents.push(Extent { guest, is_writable: false, body: Body::Zero });
            continue;
        }
        let nth = files.number(&line.name, line.kind == descriptor::Kind::Sparse)?;
        let part = files.opened.get(nth).ok_or_else(|| Error::invalid("an extent without a file"))?;
        let body = body(part, &line, nth, &budget).in_file(part.path())?;
        if let Body::Grains(grains) = &body {
            entries += grains.layout.all_entries();
        }
        if entries > ENTRIES_MAX {
            let what = format!("its extents' directories have more than {ENTRIES_MAX} entries together");
            return Err(Error::corrupt(what));
        }
        extents.push(Extent { guest, is_writable: line.access == Use::ReadWrite, body });
    }
    check_apart(&files.opened, &extents)?;
    Ok((files.opened, extents))
}

/// Opens one extent.
fn body(part: &Arc<dyn File>, line: &descriptor::Extent, nth: usize, budget: &Budget) -> Result<Body> {
    if let descriptor::Kind::Flat { at } = line.kind {
        let (from, held) = (at * SECTOR_BYTES, part.bytes()?);
        let needed = from + line.bytes;
        if needed > held {
            return Err(Error::corrupt(format!(
                "has 0x{held:x} bytes, and its extent line says 0x{needed:x}"
            )));
        }
        return Ok(Body::Flat(start(nth).plus(from)));
    }
    let unknown = || Error::corrupt("is named as a sparse extent, and has no header of one");
    let layout = Layout::read(part.as_ref())?.ok_or_else(unknown)?;
    if layout.bytes < line.bytes {
        let (has, says) = (layout.bytes, line.bytes);
        return Err(Error::corrupt(format!("its header gives 0x{has:x} bytes, its extent line 0x{says:x}")));
    }
    Ok(Body::Grains(Box::new(grains(part, layout, nth, budget)?)))
}

/// Refuses extents that share bytes of a file, under one name or several.
fn check_apart(files: &[Arc<dyn File>], extents: &[Extent]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for file in files {
        let witness = file.witness()?;
        if !seen.insert((witness.file_system, witness.inode)) {
            let what = format!("its descriptor has {} under two names", file.path().display());
            return Err(Error::corrupt(what));
        }
    }
    let flat = extents.iter().filter_map(|extent| match extent.body {
        Body::Flat(at) => Some(at.range(extent.guest.bytes)),
        _ => None,
    });
    let mut flat: Vec<_> = flat.collect();
    flat.sort_unstable_by_key(|range| range.start);
    if flat.windows(2).any(|pair| matches!(pair, [one, next] if one.end() > next.start)) {
        return Err(Error::corrupt("its descriptor has two flat extents that share bytes of one file"));
    }
    Ok(())
}

/// Takes in the directories of a sparse file, which is number `nth` of the space.
fn grains(file: &Arc<dyn File>, layout: Layout, nth: usize, budget: &Budget) -> Result<Grains> {
    let tables = read_directory(file.as_ref(), &layout, layout.directory)?;
    let twins = match layout.twin {
        Some(at) => read_directory(file.as_ref(), &layout, at)?,
        None => Vec::new(),
    };
    let held = file.bytes()?.max(layout.overhead);
    // The last grain may be cut off where the file ends: what it lacks are zeros, and nobody else's room.
    let is_cut = !(held - layout.overhead).is_multiple_of(layout.grain);
    let end = HostOffset::new(held).ceil(layout.grain).plus(if is_cut { layout.grain } else { 0 });
    let held = budget.hold(Part::FirstLevels, count(tables.len() + twins.len()) * 4);
    Ok(Grains {
        layout,
        base: start(nth),
        tables,
        twins,
        changed: BTreeSet::new(),
        end: start(nth).plus(end.bytes()),
        free: Vec::new(),
        _held: held,
    })
}

/// Returns the parent that a descriptor names.
pub(super) fn parent(descriptor: &Descriptor) -> Option<ParentName> {
    let cid = descriptor.parent_cid().ok().filter(|cid| *cid != NO_PARENT)?;
    let own = Format::Vmdk.name();
    let format = descriptor.shown(PARENT_FORMAT).unwrap_or_else(|| own.to_owned());
    let identity = (format == own).then_some(Identity::Cid(cid));
    // Without a hint the name is empty, and is refused when it is followed.
    let hint = descriptor.value("parentFileNameHint").unwrap_or_default();
    let mut names = names(hint);
    names.extend(descriptor.in_utf8(hint).iter().flat_map(|hint| self::names(hint)));
    if identity.is_none() {
        // A file beside the child may be another one of that name: only one that says whose it is is noticed.
        names.truncate(1);
    }
    let first = if names.is_empty() { Vec::new() } else { names.remove(0) };
    Some(ParentName { others: names, identity, ..ParentName::new(first, Some(format)) })
}

/// Returns the names under which the parent of that hint may be found: as it stands, or as Windows means it; beside the
/// child.
fn names(hint: &[u8]) -> Vec<Vec<u8>> {
    let is_drive = matches!(hint, [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic());
    let is_windows = is_drive || (hint.contains(&b'\\') && !hint.contains(&b'/'));
    let slash = |byte: &u8| *byte == b'/' || (is_windows && *byte == b'\\');
    let base = hint.rsplit(slash).next().unwrap_or_default().to_vec();
    let first = match is_windows {
        false => hint.to_vec(),
        true if is_drive || hint.starts_with(b"\\\\") => base.clone(),
        true => hint.iter().map(|byte| if slash(byte) { b'/' } else { *byte }).collect(),
    };
    let mut names = vec![first];
    if !base.is_empty() && !names.contains(&base) {
        names.push(base);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_read_as_the_system_meant_it_that_wrote_it() {
        let cases: [(&str, &[&str]); 6] = [
            ("base.vmdk", &["base.vmdk"]),
            ("../golden/base.vmdk", &["../golden/base.vmdk", "base.vmdk"]),
            ("/vmfs/volumes/ds/vm/base.vmdk", &["/vmfs/volumes/ds/vm/base.vmdk", "base.vmdk"]),
            (r"C:\VMs\vm\base.vmdk", &["base.vmdk"]),
            (r"..\golden\base.vmdk", &["../golden/base.vmdk", "base.vmdk"]),
            (r"\\server\share\base.vmdk", &["base.vmdk"]),
        ];
        for (hint, expected) in cases {
            let found = names(hint.as_bytes());
            assert_eq!(
                found,
                expected.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>(),
                "{hint}"
            );
        }
    }
}
