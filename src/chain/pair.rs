//! Two views side by side: where they surely read the same, without reading.

use super::{Run, View};
use crate::{
    base::{GuestRange, Result},
    io::Witness,
    map::State,
};

/// Two views side by side.
#[derive(Debug)]
pub struct Pair<'a> {
    left: Side<'a>,
    right: Side<'a>,
}

#[derive(Debug)]
struct Side<'a> {
    view: &'a View,
    /// Which file each layer keeps its bytes in.
    files: Vec<Witness>,
}

/// A run that is one run on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Both {
    /// What the left view says.
    pub left: Run,
    /// What the right view says, of the same range.
    pub right: Run,
    /// Whether both are the same bytes of the same file, or both zeros.
    pub is_same: bool,
}

impl Both {
    /// Returns which bytes the run is about.
    pub const fn range(&self) -> GuestRange {
        self.left.range
    }
}

impl<'a> Pair<'a> {
    /// Puts two views side by side.
    pub fn new(left: &'a View, right: &'a View) -> Result<Self> {
        Ok(Self { left: Side::new(left)?, right: Side::new(right)? })
    }

    /// Returns whether the right view's topmost layer is one of the left view's.
    pub fn right_is_inside_left(&self) -> bool {
        let Some(top) = self.right.files.first() else { return true };
        self.left.files.iter().any(|file| file.same_file(top))
    }

    /// Appends both maps of `range`, cut where either changes; past a view's end it is zero.
    pub fn runs(&self, range: GuestRange, out: &mut Vec<Both>) -> Result<()> {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        self.left.view.runs(range, &mut left)?;
        self.right.view.runs(range, &mut right)?;
        let (mut i, mut j) = (0, 0);
        while let (Some(x), Some(y)) = (left.get(i), right.get(j)) {
            let both = x.range.clip(y.range);
            if !both.is_empty() {
                out.push(self.both(x.clip(both), y.clip(both)));
            }
            i += usize::from(x.range.end() <= y.range.end());
            j += usize::from(y.range.end() <= x.range.end());
        }
        Ok(())
    }

    fn both(&self, left: Run, right: Run) -> Both {
        let is_same = match (left.state, right.state) {
            (State::Zero { .. }, State::Zero { .. }) => true,
            (State::Data { host: a }, State::Data { host: b }) => {
                let files = (self.left.file(&left), self.right.file(&right));
                a == b && matches!(files, (Some(a), Some(b)) if a.same_file(b))
            }
            _ => false,
        };
        Both { left, right, is_same }
    }
}

impl<'a> Side<'a> {
    fn new(view: &'a View) -> Result<Self> {
        let files = view.images().iter().map(|i| i.data_file().witness()).collect::<Result<_>>()?;
        Ok(Self { view, files })
    }

    fn file(&self, run: &Run) -> Option<&Witness> {
        run.layer.and_then(|layer| self.files.get(layer))
    }
}
