//! The part of a buffer that stands for a part of what it holds.

use crate::base::{Error, GuestRange, Result, units::index};

/// Returns the part of `buf`, which stands for `whole`, that stands for `range`.
pub(super) fn part(buf: &mut [u8], whole: GuestRange, range: GuestRange) -> Result<&mut [u8]> {
    let from = index(range.start.since(whole.start));
    let missing = || Error::invalid(format!("guest byte 0x{:x} is outside its buffer", range.start));
    buf.get_mut(from..from + index(range.bytes)).ok_or_else(missing)
}
