//! Changing the persistent bitmaps of an open image.
//!
//! Every change writes what is new into free clusters: bits, then their table, then a whole new directory. When
//! all of it and its refcounts are durable, one flip of the header names the new directory; only then is the old
//! one given up. A cut leaves the old bitmaps or the new ones, and leaks at worst.

use super::{AUTO, BITMAPS_MAX, DATA_BYTES_MAX, DIRECTORY_BYTES_MAX, Entry, IN_USE, Stored, directory, read};
use crate::{
    base::{
        Error, ErrorKind, HostOffset, HostRange, Result,
        units::{count, index},
    },
    format::{
        BitmapEdit, Bits,
        qcow2::{
            change,
            extension::{self, BitmapsExtension},
            feature,
            header::{Header, Table},
            image::Qcow2Image,
            tables::read_words,
        },
    },
};
use byteorder::{BigEndian, ByteOrder};

/// Bits of a bitmap table entry that hold an offset (`qcow2.rst`, "Bitmap table").
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A table entry without an offset: all bits of its cluster are set.
pub(super) const ALL_ONES: u64 = 1;

impl Qcow2Image {
    /// Returns the bits of a bitmap; `NotFound` if there is none of that name, `Invalid` if it is in use.
    pub(in crate::format::qcow2) fn read_bitmap(&self, name: &str) -> Result<Bits> {
        let header = self.header.lock();
        let list = read(&*self.file, &header)?;
        self.bits(&header, sound(find(&list, name)?)?)
    }

    fn bits(&self, header: &Header, stored: &Stored) -> Result<Bits> {
        let cluster = index(self.shape.cluster());
        let mut bits = Bits::new(header.disk_bytes, stored.bitmap.granularity_bytes);
        let words = self.words(stored)?;
        for (word, bytes) in words.into_iter().zip(bits.bytes_mut().chunks_mut(cluster)) {
            match word & OFFSET {
                0 => bytes.fill(if word & ALL_ONES != 0 { 0xff } else { 0 }),
                at => self.file.read_at(HostOffset::new(at), bytes)?,
            }
        }
        bits.trim();
        Ok(bits)
    }

    pub(super) fn words(&self, stored: &Stored) -> Result<Vec<u64>> {
        read_words(&*self.file, "bitmap table", stored.table.at, stored.table.entries)
    }

    /// Changes the bitmaps, durably.
    pub(in crate::format::qcow2) fn change_bitmaps(&self, edit: &BitmapEdit) -> Result<()> {
        self.check_writable()?;
        let mut header = self.header.lock();
        if header.geometry.version == 2 {
            return Err(Error::unsupported("has version 2, which knows no bitmaps"));
        }
        let done = self.change_under(&mut header, edit);
        // A bitmap that records is to be told before the next write.
        self.forget_begun();
        done
    }

    /// The same, where what bitmaps know of changes under way stays in them.
    pub(super) fn change_under(&self, header: &mut Header, edit: &BitmapEdit) -> Result<()> {
        self.flush_under(header)?;
        let old = read(&*self.file, header)?;
        let mut given_up: Vec<HostRange> = directory(header)?.map(|(range, _)| range).into_iter().collect();
        let mut taken = Vec::new();
        let done = self.write_changed(header, (&old, edit), &mut taken, &mut given_up);
        let done = done.and_then(|extension| {
            // Bits, tables, directory and their refcounts: all durable before the header names them.
            self.flush_under(header)?;
            let place = (extension::BITMAPS, extension.as_ref().map(<[u8; 24]>::as_slice));
            let is_named = change::write_extension(&*self.file, header, place, feature::BITMAPS);
            if is_named.inspect_err(|e| self.state.write().poison = Some(e.to_string()))? {
                return Ok(());
            }
            Err(Error::invalid("the first cluster has no room for the bitmaps' place"))
        });
        let left = if done.is_ok() { given_up } else { taken };
        self.state.write().dropped.extend(left);
        // Makes the header durable, then gives up what it no longer names.
        done.and(self.flush_under(header))
    }

    /// Writes what the edit makes new; returns the header's extension then, `None` if no bitmap is left.
    fn write_changed(
        &self,
        header: &mut Header,
        (old, edit): (&[Stored], &BitmapEdit),
        taken: &mut Vec<HostRange>,
        given_up: &mut Vec<HostRange>,
    ) -> Result<Option<[u8; BitmapsExtension::SIZE]>> {
        let mut list = old.to_vec();
        let name = edit.name();
        let replaced = match edit {
            BitmapEdit::Add { granularity_bytes, .. } => {
                list.push(self.fresh(header, old, name, *granularity_bytes)?);
                Some(Bits::new(header.disk_bytes, granularity_bytes.unwrap_or(self.default_granularity())))
            }
            BitmapEdit::Remove { .. } => {
                self.give_up(find(old, name)?, given_up)?;
                list.retain(|stored| stored.bitmap.name != name);
                None
            }
            BitmapEdit::Clear { .. } => {
                let bitmap = &sound(find(old, name)?)?.bitmap;
                Some(Bits::new(header.disk_bytes, bitmap.granularity_bytes))
            }
            BitmapEdit::Union { bits, .. } => {
                let mut union = self.bits(header, sound(find(old, name)?)?)?;
                union.add(bits);
                Some(union)
            }
            BitmapEdit::Put { bits, is_auto, .. } => {
                let mut new = self.fresh(header, &[], name, Some(bits.granularity_bytes()))?;
                new.flags = if *is_auto { AUTO } else { 0 };
                match list.iter_mut().find(|stored| stored.bitmap.name == name) {
                    // Its table is given up below.
                    Some(stored) => *stored = Stored { table: stored.table, ..new },
                    None => list.push(new),
                }
                let mut exact = Bits::new(header.disk_bytes, bits.granularity_bytes());
                exact.add(bits);
                Some(exact)
            }
            BitmapEdit::Record { is_auto, .. } => {
                sound(find(old, name)?)?;
                let flags = if *is_auto { AUTO } else { 0 };
                let named = list.iter_mut().filter(|stored| stored.bitmap.name == name);
                named.for_each(|stored| stored.flags = stored.flags & !AUTO | flags);
                None
            }
        };
        if let Some(bits) = replaced {
            let table = self.write_bits(header, &bits, taken)?;
            for stored in list.iter_mut().filter(|stored| stored.bitmap.name == name) {
                if stored.table.entries > 0 {
                    self.give_up(stored, given_up)?;
                }
                stored.table = table;
            }
        }
        self.write_directory(header, &list, taken)
    }

    /// Returns the granularity that qemu gives new bitmaps.
    fn default_granularity(&self) -> u64 {
        self.shape.cluster().clamp(4096, 65536)
    }

    /// Returns a new bitmap that has no table yet.
    fn fresh(&self, header: &Header, old: &[Stored], name: &str, wanted: Option<u64>) -> Result<Stored> {
        if old.iter().any(|stored| stored.bitmap.name == name) {
            return Err(Error::new(ErrorKind::Exists, format!("has a bitmap '{name}' already")));
        }
        let granularity_bytes = wanted.unwrap_or(self.default_granularity());
        let is_fit = granularity_bytes.is_power_of_two() && (512..=1 << 31).contains(&granularity_bytes);
        let wrong = if !(1..=1023).contains(&name.len()) {
            "a bitmap's name has 1 to 1023 bytes"
        } else if !is_fit {
            "a bitmap's granularity is a power of two from 512 bytes to 2 GiB"
        } else if header.disk_bytes == 0 {
            "a disk without bytes has no bitmaps"
        } else if header.disk_bytes.div_ceil(granularity_bytes).div_ceil(8) > DATA_BYTES_MAX {
            "a bitmap of this granularity would be longer than allowed"
        } else if count(old.len()) >= u64::from(BITMAPS_MAX) {
            "has as many bitmaps as allowed"
        } else {
            let bitmap = crate::format::Bitmap {
                name: name.to_owned(),
                granularity_bytes,
                is_in_use: false,
                is_auto: true,
            };
            let (at, flags) = (HostOffset::new(0), AUTO);
            return Ok(Stored { bitmap, table: Table::default(), at, flags });
        };
        Err(Error::invalid(wrong))
    }

    /// Notes the clusters of a bitmap that is replaced or removed.
    fn give_up(&self, stored: &Stored, given_up: &mut Vec<HostRange>) -> Result<()> {
        let data = self.words(stored)?.into_iter().map(|word| word & OFFSET).filter(|at| *at != 0);
        given_up.extend(data.map(|at| HostOffset::new(at).range(self.shape.cluster())));
        given_up.push(stored.table.range(8));
        Ok(())
    }

    /// Takes clusters in a row and fills them with `bytes` and zeros.
    fn put(&self, header: &mut Header, bytes: &[u8], taken: &mut Vec<HostRange>) -> Result<HostOffset> {
        let clusters = header.geometry.clusters(count(bytes.len()));
        let range = self.attempt_under(header, |state| state.allocate_span(clusters))?;
        taken.push(range);
        let mut whole = bytes.to_vec();
        whole.resize(index(range.bytes), 0);
        self.file.write_at(range.start, &whole)?;
        Ok(range.start)
    }

    /// Writes bits and their table; clusters without a set bit take no space.
    fn write_bits(&self, header: &mut Header, bits: &Bits, taken: &mut Vec<HostRange>) -> Result<Table> {
        let mut words = Vec::new();
        for bytes in bits.bytes().chunks(index(self.shape.cluster())) {
            let is_clear = bytes.iter().all(|byte| *byte == 0);
            words.push(if is_clear { 0 } else { self.put(header, bytes, taken)?.bytes() });
        }
        let mut table = vec![0; words.len() * 8];
        BigEndian::write_u64_into(&words, &mut table);
        Ok(Table { at: self.put(header, &table, taken)?, entries: count(words.len()) })
    }

    fn write_directory(
        &self,
        header: &mut Header,
        list: &[Stored],
        taken: &mut Vec<HostRange>,
    ) -> Result<Option<[u8; BitmapsExtension::SIZE]>> {
        if list.is_empty() {
            return Ok(None);
        }
        let bytes: Vec<u8> = list.iter().flat_map(entry).collect();
        if count(bytes.len()) > DIRECTORY_BYTES_MAX {
            return Err(Error::invalid("the bitmaps' names are longer than allowed together"));
        }
        let at = self.put(header, &bytes, taken)?;
        let bitmaps = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let (directory_bytes, directory_at) = (count(bytes.len()), at.bytes());
        Ok(Some(BitmapsExtension { bitmaps, reserved: 0, directory_bytes, directory_at }.to_bytes()))
    }
}

/// Returns a directory entry's bytes.
fn entry(stored: &Stored) -> Vec<u8> {
    let name = stored.bitmap.name.as_bytes();
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let head = Entry {
        table_at: stored.table.at.bytes(),
        table_entries: narrow(stored.table.entries),
        flags: stored.flags,
        kind: 1,
        granularity_bits: stored.bitmap.granularity_bytes.trailing_zeros().to_le_bytes()[0],
        name_bytes: u16::try_from(name.len()).unwrap_or(u16::MAX),
        extra_bytes: 0,
    };
    let mut bytes = head.to_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn find<'a>(list: &'a [Stored], name: &str) -> Result<&'a Stored> {
    let missing = || Error::new(ErrorKind::NotFound, format!("has no bitmap '{name}'"));
    list.iter().find(|stored| stored.bitmap.name == name).ok_or_else(missing)
}

/// Refuses a bitmap whose bits are not to be trusted: it can only be removed.
fn sound(stored: &Stored) -> Result<&Stored> {
    if stored.flags & IN_USE == 0 {
        return Ok(stored);
    }
    let name = &stored.bitmap.name;
    Err(Error::invalid(format!("bitmap '{name}' missed writes (it is in use): it can only be removed")))
}
