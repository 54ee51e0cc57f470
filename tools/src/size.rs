//! Sizes as people write and read them: `K M G T P E` of 1024, no suffix means bytes.

/// Reads a size: digits, at most one `.` with a suffix, and a suffix.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size (digits, then at most one of K M G T P E)");
    let suffix = text.chars().last().filter(|c| !c.is_ascii_digit());
    let shift = match suffix.map(|c| c.to_ascii_uppercase()) {
        None | Some('B') => 0,
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some('P') => 50,
        Some('E') => 60,
        Some(_) => return Err(wrong()),
    };
    let digits = text.get(..text.len() - suffix.map_or(0, char::len_utf8)).unwrap_or_default();
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let has_point = digits.contains('.');
    if whole.is_empty()
        || !all_digits(whole)
        || !all_digits(part)
        || (has_point && (part.is_empty() || shift == 0))
    {
        return Err(wrong());
    }
    let too_large = || format!("'{text}' is more than any disk has");
    let unit = 1_u128 << shift;
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    // More digits than 18 are below one byte, whatever the suffix.
    let part = part.get(..part.len().min(18)).unwrap_or(part);
    let scale = 10_u128.pow(u32::try_from(part.len()).unwrap_or(0));
    let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| too_large())? };
    let bytes = whole.checked_mul(unit).and_then(|b| b.checked_add(part * unit / scale));
    let bytes = bytes.and_then(|b| u64::try_from(b).ok());
    bytes.filter(|b| *b <= i64::MAX.cast_unsigned()).ok_or_else(too_large)
}

/// A size that a resize is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That size.
    Exactly(u64),
    /// That much more.
    More(u64),
    /// That much less.
    Less(u64),
}

impl Wanted {
    /// Reads `SIZE`, `+SIZE` or `-SIZE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => parse(more).map(Self::More),
            (_, Some(less)) => parse(less).map(Self::Less),
            _ => parse(text).map(Self::Exactly),
        }
    }

    /// Returns the new size, `None` if it is below zero or beyond any disk.
    pub fn from(self, size: u64) -> Option<u64> {
        match self {
            Self::Exactly(bytes) => Some(bytes),
            Self::More(bytes) => size.checked_add(bytes).filter(|b| *b <= i64::MAX.cast_unsigned()),
            Self::Less(bytes) => size.checked_sub(bytes),
        }
    }
}

/// Shows a size with three digits, as qemu-img does: `1.5 GiB`.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (u64::BITS - 1 - bytes.max(1).leading_zeros()) / 10;
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut shown = bytes as f64 / 2_f64.powi(power.cast_signed() * 10);
    let mut unit = usize::try_from(power).unwrap_or(0);
    if shown >= 1000.0 && unit + 1 < UNITS.len() {
        (shown, unit) = (shown / 1024.0, unit + 1);
    }
    let digits = match shown {
        s if s >= 100.0 => 0,
        s if s >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{shown:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {}", UNITS.get(unit).unwrap_or(&"EiB"))
}

/// Shows two sizes so that they look different where they are.
pub fn show_apart(bytes: [u64; 2]) -> [String; 2] {
    let [one, other] = bytes.map(show);
    if one == other && bytes[0] != bytes[1] { bytes.map(|bytes| format!("{bytes} B")) } else { [one, other] }
}

/// Reads a part of the whole: above 0, and at most 1.
pub fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("a number above 0 and at most 1 is wanted".to_owned()),
    }
}

/// Reads how many milliseconds.
pub fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms >= 0.0 && ms.is_finite() => Ok(ms),
        _ => Err("a number of milliseconds is wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        let good =
            [("0", 0), ("512", 512), ("64k", 65536), ("64K", 65536), ("1.5G", 3 << 29), ("2T", 2 << 40)];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.5", "1.", "1.K", ".5G", "1KB", "8E", "16E", "0x10", "1 G", "é", "1é"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        assert_eq!(
            (part("0.5"), part("1"), milliseconds("0"), milliseconds("2.5")),
            (Ok(0.5), Ok(1.0), Ok(0.0), Ok(2.5))
        );
        for text in ["nan", "inf", "-1", "x", ""] {
            assert!(part(text).is_err() && milliseconds(text).is_err(), "{text}");
        }
        assert!(part("0").is_err() && part("1.1").is_err());
    }

    #[test]
    fn a_resize_may_be_relative() {
        assert_eq!(Wanted::parse("+1K").unwrap().from(512), Some(1536));
        assert_eq!(Wanted::parse("-1K").unwrap().from(512), None);
        assert_eq!(Wanted::parse("1K").unwrap().from(512), Some(1024));
        assert!(Wanted::parse("+-1K").is_err());
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let small = [(0, "0 B"), (512, "512 B"), (1023, "1 KiB"), (200704, "196 KiB"), (1 << 20, "1 MiB")];
        for (bytes, text) in small.into_iter().chain([(3 << 29, "1.5 GiB"), (u64::MAX, "16 EiB")]) {
            assert_eq!(show(bytes), text);
        }
        assert_eq!(show_apart([1 << 20, 1 << 21]), ["1 MiB", "2 MiB"]);
        assert_eq!(show_apart([1 << 20, (1 << 20) + 512]), ["1048576 B", "1049088 B"]);
    }
}
