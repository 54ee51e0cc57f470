//! Refcounts as they are packed in a refcount block (`qcow2.rst`, "Host cluster management"). Pure.

use crate::base::units;

/// Returns the refcount at `index` in a block whose refcounts have `1 << order` bits; `None` past its end.
pub(super) fn read(block: &[u8], order: u32, index: u64) -> Option<u64> {
    let at = units::index(index);
    Some(match order {
        0..=2 => {
            let (byte, shift) = place(order, index);
            u64::from(block.get(byte)? >> shift) & mask(order)
        }
        3 => u64::from(*block.get(at)?),
        4 => u64::from(u16::from_be_bytes(*block.get(at.checked_mul(2)?..)?.first_chunk()?)),
        5 => u64::from(u32::from_be_bytes(*block.get(at.checked_mul(4)?..)?.first_chunk()?)),
        _ => u64::from_be_bytes(*block.get(at.checked_mul(8)?..)?.first_chunk()?),
    })
}

/// Sets the refcount at `index`, cut to its width; nothing happens past the block's end.
pub(super) fn write(block: &mut [u8], order: u32, index: u64, count: u64) {
    if order < 3 {
        let (byte, shift) = place(order, index);
        if let Some(byte) = block.get_mut(byte) {
            let count = count.to_le_bytes()[0] & mask(order).to_le_bytes()[0];
            *byte = *byte & !(mask(order).to_le_bytes()[0] << shift) | count << shift;
        }
        return;
    }
    let width = 1 << (order - 3);
    let from = units::index(index).saturating_mul(width);
    let Some(place) = block.get_mut(from..).and_then(|rest| rest.get_mut(..width)) else { return };
    let bytes = count.to_be_bytes();
    place.iter_mut().rev().zip(bytes.iter().rev()).for_each(|(to, from)| *to = *from);
}

/// Widths below a byte fill each byte from its least significant bit.
const fn place(order: u32, index: u64) -> (usize, u32) {
    let per_byte = 8 >> order;
    #[expect(clippy::cast_possible_truncation, reason = "below 8")]
    (units::index(index / per_byte), (index % per_byte) as u32 * (1 << order))
}

const fn mask(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let mut block = vec![0; 64];
            let entries = (64 * 8) >> order;
            for index in 0..entries {
                write(&mut block, order, index, index * 0x0101_0101_0101 + 1);
            }
            for index in 0..entries {
                let expected = (index * 0x0101_0101_0101 + 1) & mask(order);
                assert_eq!(read(&block, order, index), Some(expected), "order {order}, index {index}");
            }
            assert_eq!(read(&block, order, entries), None);
            write(&mut block, order, entries, 1);
        }
        let mut one = vec![0; 1];
        write(&mut one, 0, 1, 1);
        assert_eq!(one, [2], "bit 0 is the least significant");
    }
}
