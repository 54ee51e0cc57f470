//! The conformance suite: what every kind of image that can be written does alike. One test for each rule and kind, so
//! that a failure names both: `format::conformance::vhdx_child::zeros_are_read_where_they_were_put`.
//!
//! A kind is a format with options that have code of their own; a child is a kind of its own. A new one is one line in the
//! lists below, and every rule holds for it. What is particular to a format is tested beside it, with the same [`Pair`].
//! Not here: streamOptimized VMDKs, which are made in one go and never written again.

mod cut;
mod history;
mod pair;
mod rules;

pub(crate) use cut::OnHost;
pub(crate) use history::step;
pub(crate) use pair::{Beside, Bytes, Pair, copied, named, noise, told};

use super::{Creation, Format};
use crate::base::{GuestOffset, GuestRange, units::SECTOR_BYTES};

/// A kind of image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) format: Format,
    /// Bytes that it allocates at once, or, where it does not allocate, some that do as well.
    pub(crate) block: u64,
    /// Options of its making.
    pub(crate) options: &'static [(&'static str, &'static str)],
    /// Whether it lies on a parent.
    pub(crate) is_child: bool,
}

const fn kind(format: Format, block: u64, options: &'static [(&'static str, &'static str)]) -> Kind {
    Kind { format, block, options, is_child: false }
}

impl Kind {
    const fn child(self) -> Self {
        Self { is_child: true, ..self }
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.options.contains(&(name, value))
    }

    /// Returns whether the image has a place for every byte from the start, and says so.
    fn is_whole(&self) -> bool {
        self.has("data_file_raw", "on") || self.format == Format::Vhdx && self.has("subformat", "fixed")
    }

    /// Returns the guest's smallest unit in bytes.
    fn sector(&self) -> u64 {
        if self.has("logical_sector_size", "4096") { 4096 } else { SECTOR_BYTES }
    }

    /// Returns the size of the disk in bytes: several blocks, and a part of one.
    fn size(&self) -> u64 {
        self.block * (48 << 10).max(3 * self.block).div_ceil(self.block) + 3 * self.sector()
    }

    /// Returns how a disk of this kind is made.
    pub(crate) fn creation(&self, size: u64) -> Creation {
        let options = self.options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let parent = self.is_child.then(|| named(self.format, "base", self.format));
        Creation { size, parent, options: options.collect() }
    }

    /// Returns ranges of a disk of `size` bytes that are easily got wrong.
    fn places(&self, size: u64) -> Vec<GuestRange> {
        let (block, range) = (self.block, |at: u64, bytes: u64| GuestOffset::new(at).range(bytes));
        vec![
            // Whole blocks, whole sectors, parts of them, and the border between two.
            range(block, block),
            range(512, 1024),
            range(700, 100),
            range(block - 512, 1024),
            range(2 * block - 300, 700),
            range(block / 2 + 1, 2 * block),
            // What begins or ends a disk, whose last block is not whole.
            range(0, 1),
            range(size - 1, 1),
            range(size - 3 * self.sector() - 5, 3 * self.sector() + 5),
            range(size, 0),
        ]
    }
}

/// Makes a list of kinds, and the tests of each.
macro_rules! kinds {
    ($list:ident, $rules:ident: $($name:ident = $kind:expr;)*) => {
        /// Kinds of images by name.
        const $list: &[(&str, Kind)] = &[$((stringify!($name), $kind)),*];
        $(mod $name {
            use super::*;
            const KIND: Kind = $kind;
            $rules!();
        })*
    };
}

macro_rules! tests {
    ($($module:ident::$rule:ident,)*) => {$(
        #[test]
        fn $rule() {
            super::$module::$rule(&KIND);
        }
    )*};
}

macro_rules! for_all {
    () => {
        tests! {
            rules::a_new_disk_shows_nothing_of_its_own,
            rules::what_is_written_is_read,
            rules::what_comes_from_a_file_is_read,
            rules::zeros_are_read_where_they_were_put,
            rules::what_passes_the_end_is_refused_and_changes_nothing,
            rules::what_is_empty_or_of_no_size_changes_nothing,
            rules::a_reader_changes_not_one_byte,
            rules::a_map_tells_what_is_held,
            rules::a_part_of_a_map_is_the_map_of_that_part,
            rules::what_a_disk_had_no_room_for_is_zero,
            rules::many_writers_of_the_same_blocks_lose_nothing,
            rules::what_is_given_up_is_used_again,
            rules::a_record_stays_until_it_is_taken_out,
            rules::an_identity_changes_with_the_first_write_unless_it_is_kept,
            cut::what_was_flushed_outlives_a_power_cut,
            history::a_disk_of_any_past_is_the_one_that_was_written,
        }
    };
}

macro_rules! for_children {
    () => {
        for_all!();
        tests! {
            rules::a_parent_may_be_shorter_or_longer,
            rules::what_a_child_does_not_hold_is_its_parents,
            rules::a_child_that_loses_its_parent_keeps_what_it_holds,
        }
    };
}

const QCOW2: Kind = kind(Format::Qcow2, 64 << 10, &[]);
const QCOW2_V2: Kind = kind(Format::Qcow2, 512, &[("cluster_size", "512"), ("compat", "v2")]);
const QCOW2_SUBCLUSTERS: Kind =
    kind(Format::Qcow2, 16 << 10, &[("cluster_size", "16k"), ("extended_l2", "on")]);
const QCOW2_DATA: Kind = kind(Format::Qcow2, 4 << 10, &[("cluster_size", "4k"), ("data_file", "data")]);
const VHDX: Kind = kind(Format::Vhdx, 1 << 20, &[("block_size", "1M")]);
const VHDX_4096: Kind = kind(Format::Vhdx, 1 << 20, &[("block_size", "1M"), ("logical_sector_size", "4096")]);
const VHD: Kind = kind(Format::Vpc, 4 << 10, &[("block_size", "4k")]);
const VMDK: Kind = kind(Format::Vmdk, 64 << 10, &[]);
const VMDK_ZEROED: Kind = kind(Format::Vmdk, 4 << 10, &[("cluster_size", "4k"), ("zeroed_grain", "on")]);
const VMDK_PIECES: Kind =
    kind(Format::Vmdk, 1 << 10, &[("cluster_size", "1k"), ("subformat", "twoGbMaxExtentSparse")]);
const VMDK_ESX: Kind = kind(Format::Vmdk, 512, &[("subformat", "vmfsSparse")]);

kinds! { ALONE, for_all:
    raw = kind(Format::Raw, 4 << 10, &[]);
    qcow2 = QCOW2;
    qcow2_v2 = QCOW2_V2;
    qcow2_subclusters = QCOW2_SUBCLUSTERS;
    qcow2_data_file = QCOW2_DATA;
    qcow2_raw_data_file = kind(
        Format::Qcow2,
        4 << 10,
        &[("cluster_size", "4k"), ("data_file", "data"), ("data_file_raw", "on")],
    );
    vhdx = VHDX;
    vhdx_4096 = VHDX_4096;
    vhdx_fixed = kind(Format::Vhdx, 1 << 20, &[("block_size", "1M"), ("subformat", "fixed")]);
    vhd = VHD;
    vhd_fixed = kind(Format::Vpc, 4 << 10, &[("subformat", "fixed")]);
    vmdk = VMDK;
    vmdk_zeroed = VMDK_ZEROED;
    vmdk_pieces = VMDK_PIECES;
    vmdk_esx = VMDK_ESX;
    vmdk_flat = kind(Format::Vmdk, 4 << 10, &[("subformat", "monolithicFlat")]);
    vmdk_flat_pieces = kind(Format::Vmdk, 4 << 10, &[("subformat", "twoGbMaxExtentFlat")]);
}

kinds! { CHILDREN, for_children:
    qcow2_child = QCOW2.child();
    qcow2_v2_child = QCOW2_V2.child();
    qcow2_subclusters_child = QCOW2_SUBCLUSTERS.child();
    qcow2_data_file_child = QCOW2_DATA.child();
    vhdx_child = VHDX.child();
    vhdx_4096_child = VHDX_4096.child();
    vhd_child = VHD.child();
    vmdk_child = VMDK.child();
    vmdk_zeroed_child = VMDK_ZEROED.child();
    vmdk_pieces_child = VMDK_PIECES.child();
    vmdk_esx_child = VMDK_ESX.child();
}

/// Returns every kind, with its name.
pub(crate) fn kinds() -> impl Iterator<Item = (&'static str, Kind)> {
    ALONE.iter().chain(CHILDREN).copied()
}

#[test]
fn every_format_is_here_and_every_one_that_has_children_with_one() {
    for format in Format::ALL {
        let is_in = |list: &[(&str, Kind)]| list.iter().any(|(_, kind)| kind.format == format);
        assert!(is_in(ALONE) && (is_in(CHILDREN) || format == Format::Raw), "{format}");
    }
}
