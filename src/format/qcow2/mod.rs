//! qcow2, versions 2 and 3 (QEMU `docs/interop/qcow2.rst` is the specification).

/// The first four bytes of every qcow2 file: `QFI\xfb`.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
