//! What a simulated disk holds, and the events that change it.

use crate::{
    base::{
        HostOffset, HostRange,
        seed::Seeded,
        units::{count, index},
    },
    io::pages::Pages,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Files by inode, and names. A clone shares what neither side changes.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<u64, Arc<Inode>>,
    /// Absolute, without `.` and `..`.
    pub(super) names: BTreeMap<PathBuf, Node>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) pages: Pages,
    /// When it was changed last, in steps of the machine's time.
    pub(super) modified: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(u64),
    Folder,
}

/// What the machine was asked to do, in order.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A file's bytes or length change.
    Content { inode: u64, change: Change, time: u64 },
    /// A folder's names change.
    Name(NameChange),
    /// What went before in this file is durable.
    Flush { inode: u64, has_time: bool },
    /// What went before in this folder's names is durable.
    Sync { folder: PathBuf },
}

/// `grows`: the file was shorter, so that a new length is to be written too.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: HostOffset, data: Arc<[u8]>, grows: bool },
    Zero { range: HostRange, grows: bool },
    Grow { bytes: u64 },
    Cut { bytes: u64 },
}

/// A change to one name; renaming takes the old one away in the same step.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    /// The name that changes, and whose folder must be synced.
    pub(super) path: PathBuf,
    /// What it stands for from now on; `None`: removed.
    pub(super) node: Option<Node>,
    /// The name that goes in the same step.
    pub(super) replaces: Option<PathBuf>,
}

impl NameChange {
    /// Whether both concern the same name or file, so that one cannot be durable without the other.
    pub(super) fn depends_on(&self, other: &Self) -> bool {
        let names = |change: &Self| [Some(change.path.clone()), change.replaces.clone()];
        let shares_name = names(self).iter().flatten().any(|name| names(other).contains(&Some(name.clone())));
        let shares_file = matches!(self.node, Some(Node::File(_))) && self.node == other.node;
        shares_name || shares_file
    }

    pub(super) fn is_in(&self, folder: &Path) -> bool {
        self.path.parent() == Some(folder)
    }
}

/// How much of one change reached the disk when the power went.
#[derive(Clone, Copy, Debug)]
pub(super) enum Landed {
    /// None of the bytes.
    Nothing,
    /// All of the bytes.
    All,
    /// Each aligned unit of so many bytes by itself, or not.
    Torn(u64),
}

impl Disk {
    pub(super) fn new() -> Self {
        Self { files: BTreeMap::new(), names: BTreeMap::from([(PathBuf::from("/"), Node::Folder)]) }
    }

    pub(super) fn inode(&self, inode: u64) -> Option<&Inode> {
        self.files.get(&inode).map(|inode| &**inode)
    }

    fn inode_mut(&mut self, inode: u64) -> &mut Inode {
        Arc::make_mut(self.files.entry(inode).or_default())
    }

    /// Lets a change happen as a whole.
    pub(super) fn apply(&mut self, inode: u64, change: &Change) {
        let pages = &mut self.inode_mut(inode).pages;
        match change {
            Change::Write { at, data, .. } => pages.write(*at, data),
            Change::Zero { range, grows } => {
                pages.zero(*range);
                if *grows {
                    pages.grow(range.end().bytes());
                }
            }
            Change::Grow { bytes } => pages.grow(*bytes),
            Change::Cut { bytes } => pages.cut(*bytes),
        }
    }

    /// Lets a part of a change happen: some of its bytes, and the new length or not.
    ///
    /// Bytes that land past the length are there when a later length covers them; [`Disk::settle`] takes
    /// away what none did.
    pub(super) fn apply_part(&mut self, inode: u64, change: &Change, landed: Landed, seed: &mut Seeded) {
        let pages = &mut self.inode_mut(inode).pages;
        let grows = seed.chance(1, 2);
        let mut pieces = |range: HostRange| -> Vec<HostRange> {
            match landed {
                Landed::Nothing => vec![],
                Landed::All => vec![range],
                Landed::Torn(unit) => range.pieces(unit).filter(|_| seed.chance(1, 2)).collect(),
            }
        };
        match change {
            Change::Write { at, data, grows: asked } => {
                let range = at.range(count(data.len()));
                for piece in pieces(range) {
                    let start = index(piece.start.since(*at));
                    pages.put(piece.start, data.get(start..start + index(piece.bytes)).unwrap_or_default());
                }
                if grows && *asked {
                    pages.grow(range.end().bytes());
                }
            }
            Change::Zero { range, grows: asked } => {
                for piece in pieces(*range) {
                    pages.zero(piece);
                }
                if grows && *asked {
                    pages.grow(range.end().bytes());
                }
            }
            Change::Grow { bytes } if grows => pages.grow(*bytes),
            Change::Cut { bytes } if grows => pages.cut(*bytes),
            Change::Grow { .. } | Change::Cut { .. } => {}
        }
    }

    /// Sets the time of change that a crash left.
    pub(super) fn set_modified(&mut self, inode: u64, time: u64) {
        self.inode_mut(inode).modified = time;
    }

    /// Lets a name change.
    pub(super) fn rename(&mut self, change: &NameChange) {
        let moved = |found: Option<&Node>| found == change.node.as_ref();
        if let Some(old) = change.replaces.as_ref().filter(|old| moved(self.names.get(*old))) {
            self.names.remove(old);
        }
        match change.node {
            Some(node) => {
                if let Node::File(inode) = node {
                    self.files.entry(inode).or_default();
                }
                self.names.insert(change.path.clone(), node);
            }
            None => drop(self.names.remove(&change.path)),
        }
    }

    /// Takes away what no reboot shows: names in folders that are not there, files without a name, bytes past
    /// a file's end.
    pub(super) fn settle(&mut self) {
        let names = std::mem::take(&mut self.names);
        for (path, node) in names {
            let is_reachable = path.parent().is_none_or(|folder| self.names.contains_key(folder));
            if is_reachable {
                self.names.insert(path, node);
            }
        }
        let named: Vec<u64> = self.names.values().filter_map(|node| node.file()).collect();
        self.files.retain(|inode, _| named.contains(inode));
        for inode in self.files.values_mut().filter(|inode| inode.pages.passes_end()) {
            let pages = &mut Arc::make_mut(inode).pages;
            pages.cut(pages.bytes());
        }
    }
}

impl Node {
    pub(super) const fn file(self) -> Option<u64> {
        match self {
            Self::File(inode) => Some(inode),
            Self::Folder => None,
        }
    }
}
