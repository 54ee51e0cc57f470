//! `dchain tree`: every hierarchy in folders, children as well as parents.

use crate::{
    failure::{Exit, Failure},
    options,
    output::{Answer, Output},
    size, svg,
};
use clap::Args;
use deltachain::{
    base::name,
    chain::{Family, Member, Policy},
    io::{Access, EntryKind, Host},
    store::{self, Used},
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Show every hierarchy in folders: children as well as parents
///
/// `--output svg` draws a picture, `--output dot` writes input for Graphviz.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Folders, or images whose folders are meant
    #[arg(default_value = ".")]
    paths: Vec<PathBuf>,
}

/// An image and what stands on it.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Where the image is.
    pub filename: String,
    /// Its format's name.
    pub format: &'static str,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Space that it takes on the host, in bytes.
    pub actual_size: u64,
    /// The parent as the header names it, where it is not the node above.
    pub missing_parent: Option<String>,
    /// Who uses it, as far as they say so by a lease.
    pub used_by: Vec<String>,
    /// The images that stand on it.
    pub children: Vec<Node>,
    /// What a person calls it: by its whole path, if it is not in one of the folders.
    #[serde(skip)]
    pub name: String,
}

impl Node {
    /// Returns who uses it, in words that can follow others.
    pub fn users(&self) -> String {
        self.used_by.iter().fold(String::new(), |said, who| said + ", in use by " + who)
    }
}

impl Arguments {
    /// Looks and draws.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let folders =
            self.paths.iter().map(|p| options::folder(host.as_ref(), p)).collect::<Result<Vec<_>, _>>()?;
        let family = Family::scan(host.as_ref(), &folders)?;
        let mut leases = Vec::new();
        for folder in &family.folders {
            leases.extend(store::leases(host.as_ref(), folder)?);
        }
        let forest = Forest { host: host.as_ref(), family: &family, leases };
        let roots = forest.grow()?;
        let unreadable: Vec<String> = family.unreadable.iter().map(|(_, error)| error.to_string()).collect();
        answer.print_list(&roots, |roots, out| {
            let lines = match answer.output() {
                Output::Svg => svg::draw(roots, &unreadable),
                Output::Dot => dot(roots, &unreadable),
                Output::Human | Output::Json => {
                    let mut lines = Vec::new();
                    for root in roots {
                        text(root, "", "", &mut lines);
                    }
                    lines.extend(unreadable.iter().map(|error| format!("unreadable: {error}")));
                    lines
                }
            };
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))
        })?;
        Ok(Exit::Done)
    }
}

struct Forest<'a> {
    host: &'a dyn Host,
    family: &'a Family,
    leases: Vec<Used>,
}

impl Forest<'_> {
    /// Returns the images that stand on nothing here, with all that stands on them.
    fn grow(&self) -> Result<Vec<Node>, Failure> {
        let mut placed = BTreeSet::new();
        let is_root = |m: &&Member| {
            let parent = m.link.as_ref().and_then(|l| l.witness);
            parent.and_then(|p| self.family.member(&p)).is_none()
        };
        let mut roots = Vec::new();
        for member in self.family.members.iter().filter(is_root) {
            roots.push(self.node((member, 1), &mut placed)?);
        }
        // What is left stands on itself in a circle, or on more layers than anybody opens.
        for member in &self.family.members {
            if !placed.contains(&member.path) {
                roots.push(self.node((member, 1), &mut placed)?);
            }
        }
        Ok(roots)
    }

    /// A chain of any length would use up the stack: its further layers are roots of their own.
    fn node(
        &self,
        (member, depth): (&Member, usize),
        placed: &mut BTreeSet<PathBuf>,
    ) -> Result<Node, Failure> {
        placed.insert(member.path.clone());
        let mut children = Vec::new();
        for child in self.family.children_of(&member.witness) {
            if depth < Policy::default().depth_max && !placed.contains(&child.path) {
                children.push(self.node((child, depth + 1), placed)?);
            }
        }
        let lost = |l: &&deltachain::chain::Link| l.witness.is_none_or(|p| self.family.member(&p).is_none());
        let held = |path: &Path| self.host.open(path, Access::ReadShared)?.allocated_bytes();
        // A header may name anything.
        let is_beside = |path: &&PathBuf| {
            path.parent() == member.path.parent()
                && self.host.kind(path).is_ok_and(|kind| kind == Some(EntryKind::File))
        };
        let data = member.data.iter().map(|file| &file.path).filter(is_beside);
        let actual_size =
            held(&member.path)? + data.map(|path| held(path)).sum::<deltachain::base::Result<u64>>()?;
        let is_here = |folder: &PathBuf| member.path.parent() == Some(folder);
        let shown = member.path.file_name().filter(|_| self.family.folders.iter().any(is_here));
        Ok(Node {
            name: shown.unwrap_or(member.path.as_os_str()).to_string_lossy().into_owned(),
            filename: name::text(&member.path).into_owned(),
            format: member.format.name(),
            virtual_size: member.size,
            actual_size,
            missing_parent: member
                .link
                .as_ref()
                .filter(lost)
                .map(|l| String::from_utf8_lossy(&l.name.name).into_owned()),
            used_by: self
                .leases
                .iter()
                .filter(|used| used.means(&member.witness))
                .map(ToString::to_string)
                .collect(),
            children,
        })
    }
}

fn label(node: &Node) -> String {
    let name = &node.name;
    let lost = node.missing_parent.as_ref().map_or_else(String::new, |p| format!(", on '{p}', not here"));
    let (disk, held) = (size::show(node.virtual_size), size::show(node.actual_size));
    format!("{name} ({}, {disk}, {held} on the host{lost}{})", node.format, node.users())
}

fn text(node: &Node, stem: &str, branch: &str, lines: &mut Vec<String>) {
    lines.push(format!("{stem}{branch}{}", label(node)));
    let below = match branch {
        "" => String::new(),
        "└── " => format!("{stem}    "),
        _ => format!("{stem}│   "),
    };
    for (at, child) in node.children.iter().enumerate() {
        let branch = if at + 1 == node.children.len() { "└── " } else { "├── " };
        text(child, &below, branch, lines);
    }
}

fn dot(roots: &[Node], unreadable: &[String]) -> Vec<String> {
    fn walk(node: &Node, lines: &mut Vec<String>) {
        lines.push(format!("  {:?} [label={:?}];", node.filename, label(node)));
        for child in &node.children {
            lines.push(format!("  {:?} -> {:?};", child.filename, node.filename));
            walk(child, lines);
        }
    }
    let mut lines = vec!["digraph layers {".to_owned()];
    for root in roots {
        walk(root, &mut lines);
    }
    lines.extend(unreadable.iter().map(|error| format!("  // unreadable: {}", error.escape_debug())));
    lines.push("}".to_owned());
    lines
}
