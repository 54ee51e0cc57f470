//! Runs of equal bits in a sector bitmap, the lowest bit of a byte first (MS-VHDX 2.4).

/// Returns the bit at `nth`.
fn is_set(bits: &[u8], nth: usize) -> bool {
    bits.get(nth / 8).is_some_and(|byte| byte >> (nth % 8) & 1 != 0)
}

/// Returns the runs of the `length` bits from `from` on: how many alike, and whether they are set.
pub(super) fn runs(bits: &[u8], from: usize, length: usize) -> impl Iterator<Item = (usize, bool)> {
    let (mut at, end) = (from, from + length);
    std::iter::from_fn(move || {
        let start = at;
        let kind = (at < end).then(|| is_set(bits, at))?;
        let alike = if kind { u8::MAX } else { 0 };
        while at < end {
            if at % 8 == 0 && at + 8 <= end && bits.get(at / 8) == Some(&alike) {
                at += 8;
            } else if is_set(bits, at) == kind {
                at += 1;
            } else {
                break;
            }
        }
        Some((at - start, kind))
    })
}

/// Sets the `length` bits from `from` on.
pub(super) fn set(bits: &mut [u8], from: usize, length: usize) {
    for nth in from..from + length {
        if let Some(byte) = bits.get_mut(nth / 8) {
            *byte |= 1 << (nth % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_bytes() {
        let mut bits = [0; 8];
        set(&mut bits, 3, 30);
        assert_eq!(runs(&bits, 0, 64).collect::<Vec<_>>(), [(3, false), (30, true), (31, false)]);
        assert_eq!(runs(&bits, 5, 3).collect::<Vec<_>>(), [(3, true)]);
        assert_eq!(runs(&bits, 8, 0).count(), 0);
    }
}
