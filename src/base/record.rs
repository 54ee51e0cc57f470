//! On-disk records, written the way the specification prints them.

/// Declares a fixed-size record: `offset => field: type`, in file order.
///
/// Types: `u8`, `u16`, `u32`, `u64`, and `[u8; N]` as `bytes N`. The compiler rejects a gap, an overlap or
/// a wrong total, so the table cannot drift from the specification that it was copied from.
#[macro_export]
macro_rules! record {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident: $order:ident, $size:literal bytes {
            $( $(#[$fmeta:meta])* $at:literal => $field:ident: $ty:ident $($n:literal)?, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis struct $name { $( $(#[$fmeta])* pub $field: $crate::record!(@type $ty $($n)?), )+ }

        const _: () = {
            let mut next = 0;
            $( assert!($at == next, "gap or overlap"); next += size_of::<$crate::record!(@type $ty $($n)?)>(); )+
            assert!(next == $size, "fields do not add up to the record size");
        };

        impl $name {
            /// Size on disk, in bytes.
            #[allow(dead_code, reason = "not every record's size is asked for")]
            $vis const SIZE: usize = $size;

            /// Reads the record from its on-disk bytes.
            #[allow(clippy::indexing_slicing, reason = "the table is checked against the size at compile time")]
            $vis fn parse(bytes: &[u8; $size]) -> Self {
                Self { $( $field: $crate::record!(@read $order, $ty $($n)?, bytes, $at), )+ }
            }

            /// Reads the record from the start of `bytes`; `None` if they are too few.
            #[allow(dead_code, reason = "not every record is read from a longer buffer")]
            $vis fn parse_start(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk::<$size>().map(Self::parse)
            }

            /// Returns the record's on-disk bytes.
            #[allow(dead_code, reason = "not every record is written")]
            #[allow(clippy::indexing_slicing, reason = "the table is checked against the size at compile time")]
            $vis fn to_bytes(self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $( $crate::record!(@write $order, $ty $($n)?, bytes, $at, self.$field); )+
                bytes
            }
        }
    };
    (@type bytes $n:literal) => { [u8; $n] };
    (@type $ty:ident) => { $ty };
    (@read $o:ident, bytes $n:literal, $b:ident, $at:literal) => {{
        let mut field = [0; $n];
        field.copy_from_slice(&$b[$at..$at + $n]);
        field
    }};
    (@read $o:ident, u8, $b:ident, $at:literal) => { $b[$at] };
    (@read $o:ident, u16, $b:ident, $at:literal) => {
        <byteorder::$o as byteorder::ByteOrder>::read_u16(&$b[$at..$at + 2])
    };
    (@read $o:ident, u32, $b:ident, $at:literal) => {
        <byteorder::$o as byteorder::ByteOrder>::read_u32(&$b[$at..$at + 4])
    };
    (@read $o:ident, u64, $b:ident, $at:literal) => {
        <byteorder::$o as byteorder::ByteOrder>::read_u64(&$b[$at..$at + 8])
    };
    (@write $o:ident, bytes $n:literal, $b:ident, $at:literal, $v:expr) => {
        $b[$at..$at + $n].copy_from_slice(&$v)
    };
    (@write $o:ident, u8, $b:ident, $at:literal, $v:expr) => { $b[$at] = $v };
    (@write $o:ident, u16, $b:ident, $at:literal, $v:expr) => {
        <byteorder::$o as byteorder::ByteOrder>::write_u16(&mut $b[$at..$at + 2], $v)
    };
    (@write $o:ident, u32, $b:ident, $at:literal, $v:expr) => {
        <byteorder::$o as byteorder::ByteOrder>::write_u32(&mut $b[$at..$at + 4], $v)
    };
    (@write $o:ident, u64, $b:ident, $at:literal, $v:expr) => {
        <byteorder::$o as byteorder::ByteOrder>::write_u64(&mut $b[$at..$at + 8], $v)
    };
}

#[cfg(test)]
mod tests {
    record! {
        /// One field of each type.
        struct Sample: BigEndian, 18 bytes {
            0 => magic: bytes 3,
            3 => version: u8,
            4 => order: u16,
            6 => count: u32,
            10 => at: u64,
        }
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        let bytes: [u8; 18] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let sample = Sample::parse(&bytes);
        assert_eq!((sample.order, sample.count), (0x0405, 0x0607_0809));
        assert_eq!(sample.to_bytes(), bytes);
        assert!(Sample::parse_start(&bytes[..17]).is_none());
    }
}
