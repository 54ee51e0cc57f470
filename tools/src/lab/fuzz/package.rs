//! OVAs: a sound one, and what may not come of a damaged one.

use super::{
    bounded::{Bounded, Budget},
    feed::{Fed, Wrong, memory, sane},
};
use deltachain::{
    base::{HostOffset, units::index},
    io::File,
    job::ova::verify,
    store::ova::{Algorithm, Ova},
};
use std::sync::Arc;

/// Bytes in a tar header, and where its checksum stands.
const HEADER_BYTES: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;
/// What is read of a disk at once.
const PIECE_BYTES: u64 = 64 << 10;

const DESCRIPTOR: &str = "<?xml version=\"1.0\"?>\n<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
    xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File ovf:id=\"f1\" ovf:href=\"a%20b.raw\" \
    ovf:size=\"1000\"/><File ovf:id=\"f2\" ovf:href=\"d.gz\" ovf:compression=\"gzip\" ovf:chunkSize=\"7\"/></References>\
    <DiskSection><Info>&lt;disks&gt;</Info><Disk ovf:diskId=\"d1\" ovf:fileRef=\"f1\" ovf:capacity=\"8\" \
    ovf:capacityAllocationUnits=\"byte * 2^10\" ovf:format=\"http://x/raw\"/><Disk ovf:diskId=\"d2\" ovf:fileRef=\"f2\" \
    ovf:parentRef=\"d1\" ovf:capacity=\"${size}\"/></DiskSection><VirtualSystem ovf:id=\"vm\"/></Envelope>\n";

/// A header with its sum, and the file behind it.
fn entry(kind: u8, name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![0; HEADER_BYTES];
    let fields = [
        (0, name.to_owned()),
        (100, "0000644\0".to_owned()),
        (124, format!("{:011o}\0", bytes.len())),
        (156, char::from(kind).to_string()),
        (257, "ustar\x0000".to_owned()),
    ];
    for (at, text) in fields {
        all.iter_mut().skip(at).zip(text.bytes()).for_each(|(to, from)| *to = from);
    }
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(HEADER_BYTES), 0);
    all
}

/// Returns an OVA with a disk, a manifest, and names as pax and GNU write them.
pub(super) fn sound() -> Vec<u8> {
    let disk = [0x5a; 1000];
    let digest = |bytes: &[u8]| {
        let mut hasher = Algorithm::Sha256.hasher();
        hasher.update(bytes);
        hasher.finish()
    };
    let (descriptor, disk_digest) = (digest(DESCRIPTOR.as_bytes()), digest(&disk));
    let manifest = format!("SHA256(vm.ovf)= {descriptor}\nSHA256(a b.raw)= {disk_digest}\n");
    let parts = [
        entry(b'5', "./", &[]),
        entry(b'0', "./vm.ovf", DESCRIPTOR.as_bytes()),
        entry(b'L', "././@LongLink", b"vm.mf\0"),
        entry(b'0', "vm", manifest.as_bytes()),
        entry(b'x', "PaxHeaders/a", b"16 path=a b.raw\n13 size=1000\n"),
        entry(b'0', "a", &disk),
        vec![0; 2 * HEADER_BYTES],
    ];
    with_sums(&parts.concat())
}

/// Returns the same with the sums of all that look like headers put right: else damages would end there.
fn with_sums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(HEADER_BYTES) {
        if block.get(257..262) != Some(b"ustar") {
            continue;
        }
        let (_, rest) = block.split_at_mut(SUM.start);
        let (sum, _) = rest.split_at_mut(SUM.len());
        sum.fill(b' ');
        let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let text = format!("{all:06o}\0 ");
        block.iter_mut().skip(SUM.start).zip(text.bytes()).for_each(|(to, from)| *to = from);
    }
    bytes
}

/// Reads an OVA, and all its disks where they lie.
pub(super) fn ova(input: &[u8]) -> Result<Fed, Wrong> {
    let budget = Budget::new();
    let file: Arc<dyn File> = Bounded::new(&with_sums(input), &budget).map_err(|e| memory(&e))?;
    sane("recognise", Ova::is_one(file.as_ref()))?;
    let Some(ova) = sane("open", Ova::open(Arc::clone(&file)))? else { return Ok(Fed::default()) };
    let end = file.bytes().map_err(|e| memory(&e))?;
    for member in ova.members() {
        let is_inside = member.range.end().bytes() <= end;
        let is_plain = !member.name.starts_with('/') && !member.name.split('/').any(|part| part == "..");
        if !is_inside || !is_plain {
            return Err(format!("takes {member:?} for a plain file in {end} bytes"));
        }
        let window = ova.window(member);
        for piece in HostOffset::new(0).range(member.range.bytes).pieces(PIECE_BYTES) {
            sane("read", window.read_at(piece.start, &mut vec![0; index(piece.bytes)]))?;
        }
    }
    for disk in sane("disks", ova.disks())?.unwrap_or_default() {
        sane("verify", verify(&ova, &disk, &|| Ok(())))?;
    }
    if budget.is_spent() {
        return Err("more I/O than any input is worth".to_owned());
    }
    Ok(Fed { is_past_header: true, ..Fed::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sound_one_is_read_to_the_end() {
        assert!(ova(&sound()).unwrap().is_past_header);
        let file: Arc<dyn File> = Bounded::new(&sound(), &Budget::new()).unwrap();
        let ova = Ova::open(file).unwrap();
        let disk = ova.disk(Some("d1")).unwrap();
        assert_eq!((disk.refusal(), disk.member.as_ref().unwrap().range.bytes), (None, 1000));
        assert!(verify(&ova, &disk, &|| Ok(())).unwrap().algorithm.is_some());
    }
}
