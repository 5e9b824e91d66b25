//! The kernel's binary trace: the texts that say where its fields lie, and the pages of a ring buffer that hold the records.
//!
//! Nothing is assumed about offsets: `events/header_page` and each event's `format` are read first, for they differ between
//! kernels and word sizes. The packing of record headers is that of include/linux/ring_buffer.h (`enum ring_buffer_type`) and
//! has not changed since 2.6.28. All floe's machines are little-endian.

use crate::layout::le;
use crate::units::to_usize;

/// A field of a record or of a page's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventField {
    offset: usize,
    size: usize,
}

impl EventField {
    /// The field called `name` in a text of lines `field:TYPE NAME[N]; offset:N; size:N; signed:N;`.
    pub fn find(text: &str, name: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once("field:")?;
            let mut parts = rest.split(';').map(str::trim);
            let declared = parts.next()?.rsplit(char::is_whitespace).next()?;
            let declared = declared.split('[').next()?;
            (declared == name).then_some(())?;
            let mut number = |key: &str| parts.next()?.strip_prefix(key)?.parse::<u16>().ok();
            Some(Self {
                offset: usize::from(number("offset:")?),
                size: usize::from(number("size:")?),
            })
        })
    }

    /// Its bytes; `None` past the end.
    fn of(self, record: &[u8]) -> Option<&[u8]> {
        record.get(self.offset..)?.get(..self.size)
    }

    /// Its value, where it is a number of 4 or 8 bytes.
    fn number(self, record: &[u8]) -> Option<u64> {
        match self.size {
            4 => le::<u32>(record, self.offset).map(u64::from),
            8 => le(record, self.offset),
            _ => None,
        }
    }
}

/// How a page of the ring buffer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    commit: EventField,
    data: usize,
    page_bytes: usize,
}

/// The kernel adds these to the length of what is committed: records were lost before this page, and their number follows it
/// (kernel/trace/ring_buffer.c, RB_MISSED_EVENTS and RB_MISSED_STORED).
const MISSED: u64 = 3 << 30;

/// Why a page is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The kernel says that records before this page are lost.
    Missed,
    /// It breaks its format.
    Garbled,
}

impl PageHeader {
    /// From the text of `events/header_page`.
    pub fn parse(text: &str) -> Option<Self> {
        let commit = EventField::find(text, "commit")?;
        let data = EventField::find(text, "data")?;
        let page_bytes = data.offset.checked_add(data.size)?;
        let sane = matches!(commit.size, 4 | 8)
            && commit.offset.checked_add(commit.size)? <= data.offset
            && (512..=1 << 20).contains(&page_bytes);
        sane.then_some(Self {
            commit,
            data: data.offset,
            page_bytes,
        })
    }

    /// Bytes of one page, header included.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Gives every record of a page, without its header, to `each`; the number of records.
    pub fn records(&self, page: &[u8], mut each: impl FnMut(&[u8])) -> Result<u64, Bad> {
        let commit = self.commit.number(page).ok_or(Bad::Garbled)?;
        if commit & MISSED != 0 {
            return Err(Bad::Missed);
        }
        let data = page.get(self.data..).unwrap_or_default();
        let mut rest = data.get(..to_usize(commit)).ok_or(Bad::Garbled)?;
        let mut count = 0;
        while !rest.is_empty() {
            let head: u32 = le(rest, 0).ok_or(Bad::Garbled)?;
            // The second word is the length of what follows the first, itself included, where it is one.
            let second = || {
                let length: u32 = le(rest, 4)?;
                usize::try_from(length).ok()?.checked_add(4)
            };
            let (begin, end) = match head & 31 {
                0 => (8, second()),
                29 if head >> 5 == 0 => break, // the rest of the page is empty
                29 => (usize::MAX, second()),  // a record that was taken back
                30 | 31 => (usize::MAX, Some(8)),
                words => (4, usize::try_from(words * 4 + 4).ok()),
            };
            let end = end.filter(|end| *end >= 8).ok_or(Bad::Garbled)?;
            let (record, next) = rest.split_at_checked(end).ok_or(Bad::Garbled)?;
            if let Some(record) = record.get(begin..) {
                each(record);
                count += 1;
            }
            rest = next;
        }
        Ok(count)
    }
}

/// Where one event of the block layer has what we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventFormat {
    /// Its number, the first field of its records.
    pub id: u16,
    kind: EventField,
    dev: EventField,
    sector: EventField,
    count: EventField,
    words: EventField,
}

/// One event of the block layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The device: major << 20 | minor.
    pub dev: u32,
    /// The first sector, of 512 bytes.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// What is done.
    pub action: Action,
}

/// What an event says is done to its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They are read; nothing changes.
    Read,
    /// There are no sectors: a flush, a command that is none of the block layer's.
    Nothing,
    /// They are written.
    Write,
    /// They are discarded, and not erased: also written.
    Discard,
    /// They are zeroed, erased, reset, or something that is not known here: also written, but without sectors it may be anything.
    Other,
}

impl EventFormat {
    /// From the text of `events/block/NAME/format`; `None` when a field is missing or of another size.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID:"))?;
        let format = Self {
            id: id.trim().parse().ok()?,
            kind: EventField::find(text, "common_type")?,
            dev: EventField::find(text, "dev")?,
            sector: EventField::find(text, "sector")?,
            count: EventField::find(text, "nr_sector")?,
            words: EventField::find(text, "rwbs")?,
        };
        let sane = (format.kind.offset, format.kind.size) == (0, 2)
            && format.dev.size == 4
            && matches!(format.sector.size, 4 | 8)
            && format.count.size == 4
            && (2..=64).contains(&format.words.size);
        sane.then_some(format)
    }

    /// The event in a record of this format; `None` when the record is another one, or too short (which `is_of` tells).
    pub fn event(&self, record: &[u8]) -> Option<Event> {
        let sectors = self.count.number(record)?;
        Some(Event {
            dev: le(record, self.dev.offset)?,
            sector: self.sector.number(record)?,
            sectors,
            action: action(self.words.of(record)?, sectors == 0),
        })
    }

    /// Whether a record is of this event.
    pub fn is_of(&self, record: &[u8]) -> bool {
        le(record, 0) == Some(self.id)
    }
}

/// What `rwbs` means (`blk_fill_rwbs` in kernel/trace/blktrace.c): an F for a flush before it, then the operation: R read, W
/// write, D discard, DE secure erase, Z… zones, F flush; N what has no letter, which is write-zeroes in most kernels, and
/// commands that bypass the block layer, which have no sectors. Flags follow, among them E for secure before Linux 4.8 (where a
/// discard is a W). Whatever is not known to change nothing counts as a write. A W without sectors is the end of a flush
/// (blk-flush.c completes its request once more; the data had a completion of its own).
fn action(words: &[u8], empty: bool) -> Action {
    let end = words.iter().position(|byte| *byte == 0);
    let words = words.get(..end.unwrap_or(words.len())).unwrap_or_default();
    match words {
        [b'R', ..] => Action::Read,
        [b'F' | b'N' | b'W', ..] if empty => Action::Nothing,
        [b'W', ..] => Action::Write,
        [b'D', flags @ ..] if !flags.contains(&b'E') => Action::Discard,
        _ => Action::Other,
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
