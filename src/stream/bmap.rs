//! `.bmap` beside an image: which blocks of it a flashing tool has to write, with a SHA-256 for each range of them.
//!
//! Version 2.0 as bmap-tools reads it (bmaptool/BmapCreate.py and BmapCopy.py: sizes and ranges as text in XML elements, blocks of
//! 4096 bytes, the file's own SHA-256 taken with zeros in its place). A range is hashed as the image gives it, in order and in the
//! memory of one buffer. What is not in a range a copier leaves as it was, so that whoever makes one must name every block whose
//! stale content would mean something, not only those that hold data.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::Fault;
use crate::report::hex;
use crate::stream::copy::BUFFER_BYTES;
use crate::stream::image::{ImageReader, ImageRun};
use crate::stream::input::at_most;
use crate::sys::memory::{Pages, ZEROS};
use crate::units::{Extent, to_u64};

/// Bytes of a block.
const BLOCK_BYTES: u64 = 4096;
/// Longest file that is read: a million ranges.
pub(crate) const MOST_BYTES: u64 = 128 << 20;
/// Digits of a SHA-256.
const DIGITS: usize = 64;

/// Blocks from the first to before the last one.
type BlockRange = (u64, u64);

/// Where the next extent that has to be written begins, at or after an offset.
pub(crate) type NextMapped<'a> = dyn Fn(u64) -> Option<Extent> + 'a;

fn next_range(mapped: &NextMapped<'_>, from: u64) -> Option<BlockRange> {
    let first = mapped(from.checked_mul(BLOCK_BYTES)?)?;
    let start = (first.offset / BLOCK_BYTES).max(from);
    let mut end = first.end().div_ceil(BLOCK_BYTES);
    while let Some(next) = mapped(end.saturating_mul(BLOCK_BYTES))
        && next.offset / BLOCK_BYTES <= end
        && next.end().div_ceil(BLOCK_BYTES) > end
    {
        end = next.end().div_ceil(BLOCK_BYTES);
    }
    (end > start).then_some((start, end))
}

/// Hashes ranges of an image whose first bytes are `head`; `each` gets the digits of each. Gives the image's length.
fn hash_ranges(
    head: &[u8],
    reader: &mut ImageReader<'_>,
    next: &mut dyn FnMut() -> Result<Option<BlockRange>, Fault>,
    each: &mut dyn FnMut(BlockRange, &str) -> Result<(), Fault>,
) -> Result<u64, Fault> {
    let mut buffer = Pages::new(BUFFER_BYTES).map_err(|errno| Fault::io("mmap", errno))?;
    let (mut range, mut hash) = (next()?, Sha256::new());
    let (mut offset, mut is_head) = (0u64, true);
    loop {
        // Bytes, or else so many zeros.
        let (data, length) = match is_head {
            true => (Some(head), to_u64(head.len())),
            false => match reader.next(&mut buffer)? {
                ImageRun::Data(count) => (buffer.get(..count), to_u64(count)),
                ImageRun::Zeros(count) => (None, count),
                ImageRun::End => break,
            },
        };
        is_head = false;
        let limit = offset.saturating_add(length);
        while let Some((start, end)) = range {
            let (start_bytes, end_bytes) = (
                start.saturating_mul(BLOCK_BYTES),
                end.saturating_mul(BLOCK_BYTES),
            );
            let from = offset.max(start_bytes);
            if from >= limit {
                break;
            }
            let mut left = end_bytes.min(limit) - from;
            let at = at_most(from - offset, usize::MAX);
            while left > 0 {
                let part = match data {
                    Some(data) => data.get(at..).unwrap_or_default(),
                    None => &ZEROS,
                };
                let part = part.get(..at_most(left, part.len())).unwrap_or_default();
                if part.is_empty() {
                    return Err(Fault::short("range of the .bmap"));
                }
                hash.update(part);
                left -= to_u64(part.len());
            }
            if end_bytes > limit {
                break;
            }
            each((start, end), &digits(&mut hash))?;
            range = next()?;
        }
        offset = limit;
    }
    // The last block may be cut short by the end of the image.
    if let Some((start, end)) = range {
        let begun = start.saturating_mul(BLOCK_BYTES) < offset;
        if !begun || end != offset.div_ceil(BLOCK_BYTES) {
            return Err(Fault::corrupt("the image ends before its .bmap does"));
        }
        each((start, end), &digits(&mut hash))?;
        if next()?.is_some() {
            return Err(Fault::corrupt("the image ends before its .bmap does"));
        }
    }
    Ok(offset)
}

fn digits(hash: &mut Sha256) -> String {
    hex(&std::mem::take(hash).finalize())
}

/// Writes the one of an image of `size_bytes` that is read from its beginning.
pub(crate) fn write(
    file: &File,
    reader: &mut ImageReader<'_>,
    size_bytes: u64,
    mapped: &NextMapped<'_>,
) -> Result<(), Fault> {
    let (mut count, mut from) = (0u64, 0);
    while let Some((start, end)) = next_range(mapped, from) {
        (count, from) = (count + (end - start), end);
    }
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    let head = format!(
        "<?xml version=\"1.0\" ?>
<!-- Blocks of an image that have to be written; all others may stay as they are. -->
<bmap version=\"2.0\">
    <ImageSize> {size_bytes} </ImageSize>
    <BlockSize> {BLOCK_BYTES} </BlockSize>
    <BlocksCount> {blocks} </BlocksCount>
    <MappedBlocksCount> {count} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> "
    );
    let fail =
        |error: std::io::Error| Fault::short("write of the .bmap").with_errno(error.raw_os_error());
    let mut out = std::io::BufWriter::new(file);
    let mut own = Sha256::new();
    let mut put = |text: &str| {
        own.update(text.as_bytes());
        out.write_all(text.as_bytes()).map_err(fail)
    };
    put(&head)?;
    put(&"0".repeat(DIGITS))?;
    put(" </BmapFileChecksum>\n    <BlockMap>\n")?;
    let mut from = 0;
    let length = hash_ranges(
        &[],
        reader,
        &mut || {
            let range = next_range(mapped, from);
            from = range.map_or(from, |(_, end)| end);
            Ok(range)
        },
        &mut |(start, end), sum| {
            put(&match end - start {
                1 => format!("        <Range chksum=\"{sum}\"> {start} </Range>\n"),
                _ => format!(
                    "        <Range chksum=\"{sum}\"> {start}-{} </Range>\n",
                    end - 1
                ),
            })
        },
    )?;
    if length != size_bytes {
        return Err(Fault::short("read of the image"));
    }
    put("    </BlockMap>\n</bmap>\n")?;
    out.flush().map_err(fail)?;
    file.write_all_at(digits(&mut own).as_bytes(), to_u64(head.len()))
        .and_then(|()| file.sync_all())
        .map_err(fail)
}

/// Whether nothing is lost when a `.bmap` takes this name: nothing is there, or one is. Of what is no file nothing is read, for it need
/// not have an end: that is refused by who makes the file.
pub(crate) fn is_replaceable(path: &Path) -> bool {
    let mut first = [0; 5];
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() > 0 => {
            let read = File::open(path).and_then(|file| file.read_exact_at(&mut first, 0));
            read.is_ok() && first == *b"<?xml"
        }
        _ => true,
    }
}

/// Checks an image, whose first bytes are `head`, against the text of a `.bmap`. The fault is of the image, except where
/// [`BmapText::new`] has one of the text.
pub(crate) struct BmapText {
    text: String,
    size_bytes: u64,
}

impl BmapText {
    /// What the file says, where all of it is well.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, Fault> {
        let bad = Fault::corrupt;
        let mut text = String::from_utf8(bytes).map_err(|_| bad("is no text"))?;
        if !text.contains("<bmap version=\"2.") {
            return Err(bad("is no .bmap of version 2"));
        }
        let number = |name| element(&text, name).and_then(|word| word.parse::<u64>().ok());
        let size_bytes = number("ImageSize").ok_or_else(|| bad("has no ImageSize"))?;
        if number("BlockSize") != Some(BLOCK_BYTES) {
            return Err(bad("has blocks of another size than 4096 bytes"));
        }
        if element(&text, "ChecksumType") != Some("sha256") {
            return Err(bad("has checksums of another kind than sha256"));
        }
        let own = element(&text, "BmapFileChecksum").filter(|own| own.len() == DIGITS);
        let own = own
            .ok_or_else(|| bad("has no checksum of its own"))?
            .to_owned();
        let zeros = text.replacen(&own, &"0".repeat(DIGITS), 1);
        let mut hash = Sha256::new();
        hash.update(zeros.as_bytes());
        if !digits(&mut hash).eq_ignore_ascii_case(&own) {
            return Err(bad("its own checksum is wrong"));
        }
        text.drain(..text.find("<BlockMap>").unwrap_or(0));
        let found = Self { text, size_bytes };
        let mut from = 0;
        for range in found.ranges() {
            let ((start, end), _) = range?;
            if start < from || end > size_bytes.div_ceil(BLOCK_BYTES) {
                return Err(bad(
                    "its ranges are not in order, or lie outside of the image",
                ));
            }
            from = end;
        }
        Ok(found)
    }

    fn ranges(&self) -> impl Iterator<Item = Result<(BlockRange, &str), Fault>> {
        self.text.split("<Range").skip(1).map(|part| {
            let read = || {
                let (tag, rest) = part.split_once('>')?;
                let sum = tag.split(['"', '\'']).nth(1)?;
                let words = rest.split_once('<')?.0.trim();
                let (first, last) = words.split_once('-').unwrap_or((words, words));
                let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                let end = last.checked_add(1).filter(|end| *end > first)?;
                tag.contains("chksum").then_some(((first, end), sum))
            };
            read().ok_or_else(|| Fault::corrupt("has a range that cannot be read"))
        })
    }

    /// Compares the image.
    pub(crate) fn check(&self, head: &[u8], reader: &mut ImageReader<'_>) -> Result<(), Fault> {
        let mut ranges = self.ranges();
        let wanted = std::cell::Cell::new("");
        let length = hash_ranges(
            head,
            reader,
            &mut || {
                let Some((range, sum)) = ranges.next().transpose()? else {
                    return Ok(None);
                };
                wanted.set(sum);
                Ok(Some(range))
            },
            &mut |(start, end), sum| match sum.eq_ignore_ascii_case(wanted.get()) {
                true => Ok(()),
                false => Err(Fault::corrupt("is not what the .bmap says").at(
                    start.saturating_mul(BLOCK_BYTES),
                    (end - start).saturating_mul(BLOCK_BYTES),
                )),
            },
        )?;
        match length == self.size_bytes {
            true => Ok(()),
            false => Err(Fault::corrupt("has another length than the .bmap says")),
        }
    }
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::input::Input;

    fn image() -> Vec<u8> {
        // 300 KiB and a half block: data, zeros that are used, zeros that are free, data at the end.
        let mut bytes = vec![0u8; 300 * 1024 + 2048];
        bytes[5000..9000].fill(7);
        bytes[300 * 1024..].fill(9);
        bytes
    }

    /// Data, and a used run of zeros.
    fn mapped(from: u64) -> Option<Extent> {
        let size = to_u64(image().len());
        let used = [
            (5000, 9000),
            (9100, 9200),
            (100_000, 200_000),
            (300 * 1024, size),
        ];
        let mut used = used
            .into_iter()
            .map(|(start, end): (u64, u64)| Extent::between(start.max(from), end));
        used.find(|extent| extent.length_bytes > 0)
    }

    fn made(name: &str) -> String {
        let name = format!("floe-bmap-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::create(&path).unwrap();
        let bytes = image();
        let mut reader = ImageReader::new(Input::reader(bytes.as_slice()).unwrap()).unwrap();
        write(&file, &mut reader, to_u64(bytes.len()), &mapped).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    }

    fn check(text: &str, bytes: &[u8]) -> Result<(), Fault> {
        let text = BmapText::new(text.as_bytes().to_vec())?;
        let mut reader = ImageReader::new(Input::reader(bytes).unwrap()).unwrap();
        let mut head = vec![0; 65_536];
        let count = reader.head(&mut head).unwrap();
        text.check(&head[..count], &mut reader)
    }

    #[test]
    fn ranges_are_whole_blocks_and_zeros_in_use_are_named() {
        let text = made("ranges");
        for part in [
            "> 1-2 <",
            "> 24-48 <",
            "> 75 <",
            " 309248 ",
            "<MappedBlocksCount> 28 <",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        check(&text, &image()).unwrap();
    }

    #[test]
    fn a_changed_byte_in_a_range_and_any_in_the_file_is_found() {
        let text = made("changed");
        for (place, is_found) in [
            (5000, true),
            (150_000, true),
            (309_247, true),
            (50_000, false),
        ] {
            let mut bytes = image();
            bytes[place] ^= 1;
            assert_eq!(check(&text, &bytes).is_err(), is_found, "{place}");
        }
        assert!(check(&text, &image()[..300_000]).is_err());
        assert!(check(&text, &[image(), vec![0; 4096]].concat()).is_err());
        for (old, new) in [
            ("1-2", "1-3"),
            ("2.0", "1.4"),
            ("sha256", "sha1"),
            ("BlockMap>", "B>"),
        ] {
            assert!(
                check(&text.replacen(old, new, 1), &image()).is_err(),
                "{old}"
            );
        }
    }
}
