//! Who lies on whom, by number: each question is answered at once, whatever the number of images.

use crate::{chain::Family, io::Witness};
use std::collections::BTreeMap;

/// The links among the images of a family.
pub(super) struct Links {
    parents: Vec<Option<usize>>,
    children: Vec<Vec<usize>>,
    /// How many layers the chain below and with each has, as far as it is here; 0 in a ring, and above one.
    depths: Vec<usize>,
    /// Each ring, under the first of its members.
    rings: BTreeMap<usize, Vec<usize>>,
}

/// What is known of a depth while it is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Not,
    /// On the way down that is being walked.
    Here,
    Depth(usize),
}

fn file(witness: &Witness) -> (u128, u64) {
    (witness.file_system, witness.inode)
}

impl Links {
    pub(super) fn new(family: &Family) -> Self {
        let members = family.members.iter().enumerate();
        let by_file: BTreeMap<_, usize> = members.map(|(at, member)| (file(&member.witness), at)).collect();
        let parent = |link: &crate::chain::Link| by_file.get(&file(&link.witness?)).copied();
        let parents: Vec<_> = family.members.iter().map(|m| m.link.as_ref().and_then(parent)).collect();
        let mut children = vec![Vec::new(); parents.len()];
        for (child, parent) in parents.iter().enumerate() {
            if let Some(list) = parent.and_then(|parent| children.get_mut(parent)) {
                list.push(child);
            }
        }
        let mut links = Self { depths: vec![0; parents.len()], parents, children, rings: BTreeMap::new() };
        links.measure();
        links
    }

    /// Walks from each image down to what is known already, and back.
    fn measure(&mut self) {
        let mut found = vec![Found::Not; self.parents.len()];
        for start in 0..self.parents.len() {
            let (mut way, mut next) = (Vec::new(), Some(start));
            let mut depth = loop {
                let Some(at) = next else { break Some(0) };
                match found.get(at).copied() {
                    Some(Found::Not) => {}
                    Some(Found::Here) => {
                        self.note_ring(&way, at);
                        break None;
                    }
                    Some(Found::Depth(0)) | None => break None,
                    Some(Found::Depth(depth)) => break Some(depth),
                }
                set(&mut found, at, Found::Here);
                way.push(at);
                next = self.parent(at);
            };
            while let Some(at) = way.pop() {
                depth = depth.map(|depth| depth + 1);
                set(&mut found, at, Found::Depth(depth.unwrap_or(0)));
                set(&mut self.depths, at, depth.unwrap_or(0));
            }
        }
    }

    fn note_ring(&mut self, way: &[usize], at: usize) {
        let ring: Vec<usize> = way.iter().copied().skip_while(|on_way| *on_way != at).collect();
        if let Some(first) = ring.iter().min() {
            self.rings.insert(*first, ring.clone());
        }
    }

    pub(super) fn parent(&self, at: usize) -> Option<usize> {
        self.parents.get(at).copied().flatten()
    }

    pub(super) fn children(&self, at: usize) -> &[usize] {
        self.children.get(at).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns how many layers the chain has, as far as it is here; 0 if it ends in a ring.
    pub(super) fn depth(&self, at: usize) -> usize {
        self.depths.get(at).copied().unwrap_or(0)
    }

    /// Returns the ring of parents whose first member it is.
    pub(super) fn ring_of(&self, at: usize) -> Option<Vec<usize>> {
        self.rings.get(&at).cloned()
    }

    /// Returns all images, no parent behind its children; those of rings first.
    pub(super) fn parents_first(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.parents.len()).collect();
        all.sort_by_key(|at| self.depth(*at));
        all
    }
}

fn set<T>(list: &mut [T], at: usize, to: T) {
    if let Some(place) = list.get_mut(at) {
        *place = to;
    }
}
