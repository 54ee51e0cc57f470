//! Headers of formats that are not read here. A file that a person names without saying its format, and that has one of
//! these, is no raw disk: its first sectors belong to who made it, and a guest that writes there destroys it.

use crate::{
    base::{HostOffset, Result},
    io::File,
};

/// What a file of a format has where.
const HEADERS: [(&str, usize, &[u8]); 4] = [
    // As qemu's block/vdi.c, block/qed.c and block/parallels.c have them.
    ("VDI", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("QED", 0, b"QED\0"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
];

/// Returns the name of the format, not one of ours, whose header the file has.
pub fn foreign(file: &dyn File) -> Result<Option<&'static str>> {
    let mut start = [0; 68];
    file.read_at(HostOffset::new(0), &mut start)?;
    let has =
        |(_, at, magic): &&(&str, usize, &[u8])| start.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(HEADERS.iter().find(has).map(|(name, ..)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Host, faulty::SimHost};
    use std::path::Path;

    #[test]
    fn a_header_of_another_format_is_known() {
        let host = SimHost::new();
        let named = |name: &str, parts: &[(u64, &[u8])]| {
            let file = host.create(Path::new(name)).unwrap();
            for (at, bytes) in parts {
                file.write_at(HostOffset::new(*at), bytes).unwrap();
            }
            foreign(file.as_ref()).unwrap()
        };
        for (nth, (name, at, magic)) in HEADERS.into_iter().enumerate() {
            let parts: [(u64, &[u8]); 2] = [(u64::try_from(at).unwrap(), magic), (4096, &[1])];
            assert_eq!(named(&format!("/{nth}"), &parts), Some(name));
        }
        assert_eq!(named("/disk", &[(0, &[0xeb, 0x63]), (8192, &[1])]), None);
        assert_eq!(named("/short", &[(0, b"WithoutFree")]), None);
        assert_eq!(named("/empty", &[]), None);
    }
}
