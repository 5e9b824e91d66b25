//! Zip archives written as a stream, and the one description of their records that writer and readers share.
//!
//! Source: APPNOTE.TXT 6.3.10 (PKWARE). Never seeks back: a streamed entry's CRC and sizes follow its data, always in the
//! 24-byte form that a zip64 extra field in its local header announces; a stored entry's stand in its local header, so that
//! programs that read from a pipe find its end. The central directory uses zip64 only where a number needs it, which is what
//! the small unzip programs understand.
//!
//! The writer gives header bytes; the data between them comes from the chunk pipeline. After [`ZipWriter::new`] nothing here
//! allocates, because entries end and begin while filesystems are frozen.

use heapless::{String, Vec};

use crate::error::Fault;
use crate::layout::Field;
use crate::units::to_u64;
use crate::utc::Utc;

/// Most entries of an archive that is written or read.
pub const MAX_ENTRIES: usize = 256;
/// Longest name in bytes.
pub const MAX_NAME: usize = 96;
/// Largest record with its name and extra fields, in bytes.
pub const MAX_RECORD: usize = 256;

/// The bytes of one or a few records.
pub type Record = Vec<u8, MAX_RECORD>;

/// Describes a record: its signature, then its fields in order without gaps, all little-endian.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident $signature:literal { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) struct $name { $(pub $field: $ty),* }

        impl $name {
            pub(super) const SIGNATURE: [u8; 4] = u32::to_le_bytes($signature);
            /// Bytes on disk, the signature included.
            pub(super) const SIZE: usize = 4 $(+ <$ty as Field>::SIZE)*;

            /// `None` for another signature or too few bytes.
            #[allow(unused_assignments, dead_code)] // a descriptor is only ever compared
            pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
                let mut at = 4;
                bytes.starts_with(&Self::SIGNATURE).then_some(())?;
                $(
                    let $field = <$ty as Field>::le(bytes, at)?;
                    at += <$ty as Field>::SIZE;
                )*
                Some(Self { $($field),* })
            }

            fn put(&self, out: &mut Record) -> Result<(), Fault> {
                put(out, &Self::SIGNATURE)?;
                $( put(out, &self.$field.to_le_bytes())?; )*
                Ok(())
            }
        }
    };
}

record! {
    /// In front of an entry's name, extra field and data (4.3.7).
    Local 0x0403_4b50 {
        version: u16, flags: u16, method: u16, time: u16, date: u16, crc32: u32,
        stored_bytes: u32, raw_bytes: u32, name_bytes: u16, extra_bytes: u16,
    }
}

record! {
    /// Behind the data of a streamed entry (4.3.9), in the form of zip64.
    Descriptor 0x0807_4b50 { crc32: u32, stored_bytes: u64, raw_bytes: u64 }
}

record! {
    /// An entry of the central directory (4.3.12), in front of its name, extra field and comment.
    Central 0x0201_4b50 {
        made_by: u16, version: u16, flags: u16, method: u16, time: u16, date: u16, crc32: u32,
        stored_bytes: u32, raw_bytes: u32, name_bytes: u16, extra_bytes: u16, comment_bytes: u16,
        disk: u16, internal: u16, external: u32, offset: u32,
    }
}

record! {
    /// The end of the central directory with wide numbers (4.3.14).
    End64 0x0606_4b50 {
        size: u64, made_by: u16, version: u16, disk: u32, start_disk: u32,
        entries_here: u64, entries: u64, directory_bytes: u64, directory_offset: u64,
    }
}

record! {
    /// Says where [`End64`] is (4.3.15).
    Locator 0x0706_4b50 { disk: u32, offset: u64, disks: u32 }
}

record! {
    /// The end (4.3.16).
    End 0x0605_4b50 {
        disk: u16, start_disk: u16, entries_here: u16, entries: u16,
        directory_bytes: u32, directory_offset: u32, comment_bytes: u16,
    }
}

/// "Look into the zip64 extra field".
pub(super) const WIDE: u32 = u32::MAX;
/// Identifier of the zip64 extra field (4.5.3).
pub(super) const EXTRA_ZIP64: u16 = 0x0001;
/// Flag bit 3: CRC and sizes follow the data.
pub(super) const FLAG_STREAMED: u16 = 1 << 3;
/// Bytes of a local header's extra field with both sizes.
pub(super) const LOCAL_EXTRA: u16 = 20;
/// Made on Unix, by the version that knows zip64.
const MADE_BY: u16 = 3 << 8 | VERSION_ZIP64;
const VERSION_ZIP64: u16 = 45;
const VERSION_PLAIN: u16 = 20;
/// A regular file of mode 0600: snapshots carry credentials.
const EXTERNAL: u32 = 0o100_600 << 16;

/// How an entry's data is kept, and where its CRC and sizes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is, CRC and size in front of it.
    Stored,
    /// RFC 1951, CRC and sizes behind it.
    Deflated,
}

impl Compression {
    const fn number(self) -> u16 {
        match self {
            Self::Stored => 0,
            Self::Deflated => 8,
        }
    }

    pub(super) const fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::Stored),
            8 => Some(Self::Deflated),
            _ => None,
        }
    }
}

/// CRC and sizes of an entry's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntrySums {
    /// CRC-32 of the raw bytes.
    pub crc32: u32,
    /// Bytes in the archive.
    pub stored_bytes: u64,
    /// Bytes they stand for.
    pub raw_bytes: u64,
}

/// An entry as the central directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: see [`check_name`].
    pub name: String<MAX_NAME>,
    /// How its data is kept.
    pub method: Compression,
    /// CRC and sizes.
    pub sums: EntrySums,
    /// Where its local header stands.
    pub offset: u64,
}

impl Entry {
    /// Whether CRC and sizes follow the data.
    pub fn is_streamed(&self) -> bool {
        self.method == Compression::Deflated
    }

    /// Where its data begins.
    pub fn data_offset(&self) -> u64 {
        let head = to_u64(Local::SIZE + self.name.len());
        let extra = if self.is_streamed() { LOCAL_EXTRA } else { 0 };
        self.offset.saturating_add(head + u64::from(extra))
    }

    /// Bytes from its local header to the end of its descriptor.
    pub fn extent_bytes(&self) -> u64 {
        let tail = if self.is_streamed() {
            to_u64(Descriptor::SIZE)
        } else {
            0
        };
        (self.data_offset().saturating_sub(self.offset) + tail)
            .saturating_add(self.sums.stored_bytes)
    }
}

/// A name that is safe to use below a folder: letters, digits and `._-` in parts between single slashes, no `..`.
pub fn check_name(name: &str) -> Result<String<MAX_NAME>, Fault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = name
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain));
    if !good {
        return Err(Fault::corrupt("unsafe name of an entry"));
    }
    String::try_from(name).map_err(|_| Fault::corrupt("name of an entry too long"))
}

fn put(out: &mut Record, bytes: &[u8]) -> Result<(), Fault> {
    out.extend_from_slice(bytes)
        .map_err(|_| Fault::refused("zip record too large"))
}

/// A date and time as MS-DOS keeps them (4.4.6), in UTC; before 1980 it is 1980, after 2107 it is 2107.
pub fn dos_time(unix_seconds: u64) -> (u16, u16) {
    let utc = Utc::from_unix(unix_seconds);
    let year = match u16::try_from(utc.year) {
        Ok(year) if year < 1980 => return (0, 1 << 5 | 1),
        Ok(year) => year.min(2107),
        Err(_) => 2107,
    };
    let [month, day, hour, minute, second] =
        [utc.month, utc.day, utc.hour, utc.minute, utc.second].map(u16::from);
    let time = hour << 11 | minute << 5 | (second / 2);
    (time, (year - 1980) << 9 | month << 5 | day)
}

/// Writes an archive's records; see the module's page.
#[derive(Debug)]
pub struct ZipWriter {
    entries: std::vec::Vec<Entry>,
    offset: u64,
    streaming: bool,
    time: u16,
    date: u16,
}

impl ZipWriter {
    /// For an archive of at most `entries` entries, all dated `unix_seconds`.
    pub fn new(entries: usize, unix_seconds: u64) -> Result<Self, Fault> {
        if entries > MAX_ENTRIES {
            return Err(Fault::refused("too many entries for a snapshot"));
        }
        let (time, date) = dos_time(unix_seconds);
        Ok(Self::dated(entries, time, date))
    }

    /// The same with the date of an archive that is being read.
    pub(super) fn dated(entries: usize, time: u16, date: u16) -> Self {
        Self {
            entries: std::vec::Vec::with_capacity(entries),
            offset: 0,
            streaming: false,
            time,
            date,
        }
    }

    /// What has been written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of the archive so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Puts the header of a stored entry into `out`; its `sums.stored_bytes` bytes of data follow at once.
    pub fn stored(
        &mut self,
        name: &str,
        crc32: u32,
        bytes: u32,
        out: &mut Record,
    ) -> Result<(), Fault> {
        let sums = EntrySums {
            crc32,
            stored_bytes: u64::from(bytes),
            raw_bytes: u64::from(bytes),
        };
        self.add(name, Compression::Stored, sums, out)
    }

    /// Puts the header of a streamed, deflated entry into `out`; [`Self::end`] comes after its data.
    pub fn begin(&mut self, name: &str, out: &mut Record) -> Result<(), Fault> {
        self.add(name, Compression::Deflated, EntrySums::default(), out)?;
        self.streaming = true;
        Ok(())
    }

    fn add(
        &mut self,
        name: &str,
        method: Compression,
        sums: EntrySums,
        out: &mut Record,
    ) -> Result<(), Fault> {
        let full = self.entries.len() == self.entries.capacity();
        let twice = self.entries.iter().any(|entry| entry.name == name);
        if self.streaming || full || twice {
            return Err(Fault::refused("order of entries"));
        }
        let entry = Entry {
            name: check_name(name)?,
            method,
            sums,
            offset: self.offset,
        };
        let streamed = entry.is_streamed();
        let size = if streamed {
            WIDE
        } else {
            narrow(sums.raw_bytes)
        };
        let start = out.len();
        Local {
            version: version(&entry),
            flags: flags(&entry),
            method: method.number(),
            time: self.time,
            date: self.date,
            crc32: sums.crc32,
            stored_bytes: size,
            raw_bytes: size,
            name_bytes: name_bytes(&entry),
            extra_bytes: if streamed { LOCAL_EXTRA } else { 0 },
        }
        .put(out)?;
        put(out, entry.name.as_bytes())?;
        if streamed {
            // Both sizes are wide and unknown.
            put_extra(out, &[0, 0])?;
        }
        self.offset += to_u64(out.len() - start);
        if !streamed {
            self.offset = self.offset.saturating_add(sums.stored_bytes);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Puts what follows the data of the entry that [`Self::begin`] began into `out`.
    pub fn end(&mut self, sums: EntrySums, out: &mut Record) -> Result<(), Fault> {
        let entry = self
            .entries
            .last_mut()
            .filter(|_| self.streaming)
            .ok_or_else(|| Fault::refused("order of entries"))?;
        entry.sums = sums;
        Descriptor {
            crc32: sums.crc32,
            stored_bytes: sums.stored_bytes,
            raw_bytes: sums.raw_bytes,
        }
        .put(out)?;
        self.offset = self.offset.saturating_add(sums.stored_bytes) + to_u64(Descriptor::SIZE);
        self.streaming = false;
        Ok(())
    }

    /// The central directory and the end, a record at a time, to `write`.
    pub fn finish<E: From<Fault>>(
        &mut self,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.offset;
        let mut out = Record::new();
        for index in 0..self.entries.len() {
            out.clear();
            if let Some(entry) = self.entries.get(index) {
                self.central(entry, &mut out)?;
            }
            write(&out)?;
            self.offset += to_u64(out.len());
        }
        out.clear();
        self.put_end(start, &mut out)?;
        self.offset += to_u64(out.len());
        write(&out)
    }

    fn central(&self, entry: &Entry, out: &mut Record) -> Result<(), Fault> {
        let mut wide = Vec::<u64, 3>::new();
        let mut field = |value: u64| match u32::try_from(value) {
            Ok(narrow) if narrow != WIDE => narrow,
            _ => {
                // Three fields, three places.
                let _ = wide.push(value);
                WIDE
            }
        };
        // The order of the extra field's numbers is theirs: raw, stored, offset.
        let raw_bytes = field(entry.sums.raw_bytes);
        let stored_bytes = field(entry.sums.stored_bytes);
        let offset = field(entry.offset);
        let version = if wide.is_empty() {
            version(entry)
        } else {
            VERSION_ZIP64
        };
        let extra_bytes = match u16::try_from(wide.len()).unwrap_or(0) {
            0 => 0,
            count => 4 + 8 * count,
        };
        Central {
            made_by: MADE_BY,
            version,
            flags: flags(entry),
            method: entry.method.number(),
            time: self.time,
            date: self.date,
            crc32: entry.sums.crc32,
            stored_bytes,
            raw_bytes,
            name_bytes: name_bytes(entry),
            extra_bytes,
            comment_bytes: 0,
            disk: 0,
            internal: 0,
            external: EXTERNAL,
            offset,
        }
        .put(out)?;
        put(out, entry.name.as_bytes())?;
        if !wide.is_empty() {
            put_extra(out, &wide)?;
        }
        Ok(())
    }

    fn put_end(&self, start: u64, out: &mut Record) -> Result<(), Fault> {
        let bytes = self.offset - start;
        let count = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        let needs64 = start >= u64::from(WIDE) || bytes >= u64::from(WIDE);
        if needs64 {
            End64 {
                size: to_u64(End64::SIZE) - 12,
                made_by: MADE_BY,
                version: VERSION_ZIP64,
                disk: 0,
                start_disk: 0,
                entries_here: u64::from(count),
                entries: u64::from(count),
                directory_bytes: bytes,
                directory_offset: start,
            }
            .put(out)?;
            Locator {
                disk: 0,
                offset: self.offset,
                disks: 1,
            }
            .put(out)?;
        }
        End {
            disk: 0,
            start_disk: 0,
            entries_here: count,
            entries: count,
            directory_bytes: narrow(bytes),
            directory_offset: narrow(start),
            comment_bytes: 0,
        }
        .put(out)
    }
}

/// Most bytes a central directory with its end can have.
pub const MAX_DIRECTORY: usize =
    MAX_ENTRIES * (Central::SIZE + MAX_NAME + 28) + End64::SIZE + Locator::SIZE + End::SIZE;

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(WIDE)
}

fn version(entry: &Entry) -> u16 {
    if entry.is_streamed() {
        VERSION_ZIP64
    } else {
        VERSION_PLAIN
    }
}

fn flags(entry: &Entry) -> u16 {
    if entry.is_streamed() {
        FLAG_STREAMED
    } else {
        0
    }
}

fn name_bytes(entry: &Entry) -> u16 {
    u16::try_from(entry.name.len()).unwrap_or(u16::MAX)
}

fn put_extra(out: &mut Record, numbers: &[u64]) -> Result<(), Fault> {
    let bytes = u16::try_from(numbers.len() * 8).unwrap_or(0);
    put(out, &EXTRA_ZIP64.to_le_bytes())?;
    put(out, &bytes.to_le_bytes())?;
    for number in numbers {
        put(out, &number.to_le_bytes())?;
    }
    Ok(())
}

/// Whether what begins so may be an archive: with the signature of an entry, as far as that is there (APPNOTE 4.3.7).
pub(crate) fn begins_so(head: &[u8]) -> bool {
    let length = head.len().min(Local::SIGNATURE.len());
    head.get(..length) == Local::SIGNATURE.get(..length)
}

/// Where the first entry of an archive lies, as its header in `head` says.
pub(crate) fn first_range(head: &[u8]) -> Option<core::ops::Range<usize>> {
    let local = Local::parse(head)?;
    let start = Local::SIZE + usize::from(local.name_bytes) + usize::from(local.extra_bytes);
    let length = usize::try_from(local.raw_bytes).ok()?;
    Some(start..start.checked_add(length)?)
}

/// The first entry of an archive, where it is stored, whole in `head`, and right.
pub(crate) fn first_text(head: &[u8]) -> Option<&[u8]> {
    let local = Local::parse(head)?;
    let text = head.get(first_range(head)?)?;
    let is_right = local.method == 0 && crate::crc::crc32(0, text) == local.crc32;
    is_right.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_of_the_specification() {
        let sizes = [
            Local::SIZE,
            Descriptor::SIZE,
            Central::SIZE,
            End64::SIZE,
            Locator::SIZE,
            End::SIZE,
        ];
        assert_eq!(sizes, [30, 24, 46, 56, 20, 22]);
        let mut out = Record::new();
        let mut writer = ZipWriter::new(1, 0).unwrap();
        writer.begin("images/root.img", &mut out).unwrap();
        assert_eq!(&out[..8], b"PK\x03\x04\x2d\0\x08\0");
        assert_eq!(out.len(), 30 + 15 + 20);
        assert_eq!(Local::parse(&out).unwrap().raw_bytes, WIDE);
    }

    #[test]
    fn names_that_leave_their_folder_are_unsafe() {
        for good in ["a", "images/root.img", "checksums.sha256", "a/b/c..d"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "c:a", "a\0", "ä", &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_of_dos_are_right_at_the_edges() {
        let date = |time, date| {
            let (t, d) = dos_time(time);
            assert_eq!((t, d), date, "{time}");
        };
        date(0, (0, 33));
        date(315_532_800, (0, 33)); // 1980-01-01
        date(951_782_399, (49_021, 20 << 9 | 2 << 5 | 28)); // 2000-02-28 23:59:59
        date(951_782_400, (0, 20 << 9 | 2 << 5 | 29)); // 2000-02-29
        date(
            1_795_000_000,
            (11 << 11 | 6 << 5 | 20, 46 << 9 | 11 << 5 | 18),
        ); // 2026-11-18 11:06:40
        date(u64::MAX, dos_time(u64::MAX));
    }

    #[test]
    fn entries_out_of_order_and_names_given_twice_are_refused() {
        let mut out = Record::new();
        let mut writer = ZipWriter::new(3, 0).unwrap();
        assert!(writer.end(EntrySums::default(), &mut out).is_err());
        writer.begin("a", &mut out).unwrap();
        out.clear();
        assert!(writer.begin("b", &mut out).is_err());
        writer.end(EntrySums::default(), &mut out).unwrap();
        out.clear();
        assert!(writer.stored("a", 0, 0, &mut out).is_err());
        writer.stored("b", 0, 0, &mut out).unwrap();
        assert!(ZipWriter::new(MAX_ENTRIES + 1, 0).is_err());
    }
}
