//! A snapshot that is read: through its directory where it is a file ([`Catalog`]), or forwards, once ([`Bundle`]).
//!
//! Both believe the archive only as far as it is exactly what `snapshot.json` in front says and `checksums.json` at the end
//! confirms: the same entries in the same order with the same sizes, nothing more and nothing less.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::content;
use crate::device::{Access, Device, DeviceKind, ReadAt, limited};
use crate::error::{Error, Exit, Fault, FaultKind, Result};
use crate::json;
use crate::report::Progress;
use crate::snapshot::store::{Class, open_kept};
use crate::snapshot::{
    CHECKSUMS, CHECKSUMS_SHA256, Checksum, Checksums, Marks, SNAPSHOT, Snapshot, check_sha256_line,
    image_name,
};
use crate::stream::archive::TextEntry;
use crate::stream::image::whole::image_error;
use crate::stream::input::{Input, Supply};
use crate::stream::unzip::{Body, Directory, Unzip};
use crate::stream::zip::{self, Entry, EntrySums};
use crate::units::{to_u64, to_usize};

/// Largest partition table or boot area in bytes: they are held in memory.
const MAX_DISK_BYTES: u64 = 64 << 20;

/// A local header (APPNOTE 4.3.7) and the name of the first entry.
const FIRST_BYTES: usize = 30 + SNAPSHOT.len();

/// Most bytes up to the end of the first text: its header, name and extra field, and the longest text that is read.
const MAX_TOLD_BYTES: usize = (128 << 10) + json::MAX_BYTES;

/// How much of the beginning is looked at, in bytes: in it a newer floe says of itself that it is one.
const HEAD_BYTES: usize = 64 << 10;

/// Whether a file that begins so is a snapshot, of a format that is known here: what a newer floe made may be laid out in other ways.
fn check_first(subject: &str, head: &[u8]) -> Result<()> {
    if !zip::begins_so(head) {
        let what = match head.starts_with(&[0x1f, 0x8b]) {
            true => "a gzip file, as dump makes them",
            false => content::foreign(head).unwrap_or("no zip archive"),
        };
        return Err(Error::corrupt(format_args!(
            "{subject}: is {what}, and no snapshot"
        )));
    }
    let Some(first) = head.get(..FIRST_BYTES) else {
        return Ok(());
    };
    if !first.ends_with(SNAPSHOT.as_bytes()) {
        return Err(not_ours(subject));
    }
    match zip::first_text(head).map(Snapshot::from_json) {
        Some(Err(fault)) if fault.exit() == Exit::Refused => {
            Err(entry_error(subject, SNAPSHOT, fault))
        }
        _ => Ok(()),
    }
}

fn not_ours(subject: &str) -> Error {
    Error::corrupt(format_args!(
        "{subject}: a zip archive, but not a snapshot of floe: {SNAPSHOT} does not come first; an image in it: unzip -p FILE NAME | floe restore - TARGET"
    ))
}

/// The line for a fault in an entry of a snapshot.
pub fn entry_error(subject: &str, path: &str, fault: Fault) -> Error {
    let error = Error::fault(format_args!("{subject}: {path}"), fault);
    match fault.kind() {
        FaultKind::Unsupported => error.with_exit(Exit::Corrupt),
        _ => error,
    }
}

/// Whether `checksums.json` says of an entry what was found.
fn same(checksum: &Checksum, path: &str, sums: EntrySums) -> bool {
    checksum.path == path
        && checksum.size_bytes == sums.raw_bytes
        && checksum.stored_bytes == sums.stored_bytes
        && checksum.crc32 == sums.crc32
}

/// The size an entry must have, or a bound for the texts whose size is theirs alone.
fn size_of(snapshot: &Snapshot, path: &str, stored_bytes: u64) -> std::result::Result<u64, Fault> {
    match snapshot.entry_bytes(path) {
        Some(bytes) => Ok(bytes),
        None if stored_bytes <= to_u64(json::MAX_BYTES) => Ok(stored_bytes),
        None => Err(Fault::corrupt("size of a text of the snapshot")),
    }
}

// ---- as a file ------------------------------------------------------------------------------------------------------

/// A snapshot in a file: its directory, metadata and checksums, each checked against the others.
pub struct Catalog {
    /// As the user named it.
    pub subject: String,
    /// What it says about itself.
    pub snapshot: Snapshot,
    /// What its end says.
    pub checksums: Checksums,
    directory: Directory,
    device: Arc<Device>,
}

impl Catalog {
    /// Reads what `device`, a regular file, holds.
    pub fn read(subject: &str, device: Device) -> Result<Self> {
        let fail = |fault| image_error(&format!("{subject}: zip archive"), fault);
        let device = Arc::new(device);
        let mut head = vec![0; to_usize(device.size_bytes().min(to_u64(HEAD_BYTES)))];
        device.read_at(0, &mut head).map_err(fail)?;
        check_first(subject, &head)?;
        let directory = Directory::read(&*device).map_err(fail)?;
        let text = |path: &str| {
            let entry = directory
                .find(path)
                .ok_or_else(|| entry_error(subject, path, Fault::corrupt("is missing")))?;
            read_text(&device, entry).map_err(|fault| entry_error(subject, path, fault))
        };
        let snapshot = Snapshot::from_json(&text(SNAPSHOT)?)
            .map_err(|fault| entry_error(subject, SNAPSHOT, fault))?;
        let json = text(CHECKSUMS)?;
        check_sha256_line(&json, &text(CHECKSUMS_SHA256)?)
            .map_err(|fault| entry_error(subject, CHECKSUMS_SHA256, fault))?;
        let checksums =
            Checksums::from_json(&json).map_err(|fault| entry_error(subject, CHECKSUMS, fault))?;
        let catalog = Self {
            subject: subject.into(),
            snapshot,
            checksums,
            directory,
            device,
        };
        catalog.check()?;
        Ok(catalog)
    }

    /// Opens and reads a path.
    pub fn open(path: &Path) -> Result<Self> {
        let subject = path.display().to_string();
        let device = Device::open(path, Access::Read).map_err(|f| Error::fault(&subject, f))?;
        if device.kind() != DeviceKind::File {
            return Err(Error::refused(format_args!("{subject}: is not a file")));
        }
        Self::read(&subject, device)
    }

    /// The same of a file of a store ([`open_kept`]).
    pub fn open_kept(path: &Path) -> Result<Self> {
        let subject = path.display().to_string();
        let device = Device::from_fd(open_kept(path)?.into(), false);
        Self::read(&subject, device.map_err(|f| Error::fault(&subject, f))?)
    }

    fn check(&self) -> Result<()> {
        let entries = &self.directory.entries;
        let paths = self.snapshot.paths();
        for (index, entry) in entries.iter().enumerate() {
            let name = entry.name.as_str();
            let fail = |what| {
                Err(entry_error(
                    &self.subject,
                    name,
                    corrupt(what, entry.offset),
                ))
            };
            if paths.get(index).is_none_or(|path| path != name) {
                return fail("is not what snapshot.json has in this place");
            }
            let size = size_of(&self.snapshot, name, entry.sums.raw_bytes);
            if size.ok() != Some(entry.sums.raw_bytes) {
                return fail("has another size than snapshot.json says");
            }
            let is_last = name == CHECKSUMS || name == CHECKSUMS_SHA256;
            let checksum = self.checksums.entries.get(index);
            if !is_last && !checksum.is_some_and(|sum| same(sum, name, entry.sums)) {
                return fail("is not what checksums.json says");
            }
        }
        let complete =
            entries.len() == paths.len() && self.checksums.entries.len() + 2 == paths.len();
        if complete {
            return Ok(());
        }
        Err(Error::corrupt(format_args!(
            "{}: entries are missing; the snapshot is incomplete",
            self.subject
        )))
    }

    /// Hashes the bytes of an entry and compares them with its checksum, without unpacking.
    pub fn check_bytes(&self, path: &str, line: &mut Progress) -> Result<()> {
        let missing = || entry_error(&self.subject, path, Fault::corrupt("is missing"));
        let entry = self.directory.find(path).ok_or_else(missing)?;
        let checksum = self.checksums.find(path).ok_or_else(missing)?;
        let mut section = self.section(entry);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        let total_bytes = section.left;
        while section.left > 0 {
            let count = section
                .supply(&mut buffer)
                .map_err(|fault| entry_error(&self.subject, path, fault))?;
            line.checking(total_bytes - section.left, total_bytes);
            hash.update(buffer.get(..count).unwrap_or_default());
        }
        if <[u8; 32]>::from(hash.finalize()) == checksum.sha256 {
            return Ok(());
        }
        let fault = corrupt(
            "SHA-256 is not what checksums.json says",
            entry.data_offset(),
        );
        Err(entry_error(&self.subject, path, fault))
    }

    fn section(&self, entry: &Entry) -> Section {
        Section {
            device: Arc::clone(&self.device),
            offset: entry.data_offset(),
            left: entry.sums.stored_bytes,
        }
    }

    /// Where the deflated bytes of an entry lie; `None`: there is none, or it is stored.
    pub(crate) fn packed(&self, path: &str) -> Option<Range<u64>> {
        let entry = self.directory.find(path)?;
        let from = entry.data_offset();
        let end = from.checked_add(entry.sums.stored_bytes)?;
        entry.is_streamed().then_some(from..end)
    }

    /// The unpacked bytes of an entry, as something to read.
    pub fn reader(&self, path: &str) -> Result<Box<dyn Supply>> {
        let fail = |fault| entry_error(&self.subject, path, fault);
        let entry = self
            .directory
            .find(path)
            .ok_or_else(|| Fault::corrupt("is missing"))
            .map_err(fail)?;
        let mut body = Body::of(entry).map_err(fail)?;
        Body::expect(&mut body, entry.sums.raw_bytes);
        Ok(Box::new(EntryReader {
            input: Input::reader(self.section(entry)).map_err(fail)?,
            body,
            entry: entry.clone(),
        }))
    }

    /// What stands in front of the images.
    pub fn front(&self) -> Result<Vec<TextEntry>> {
        let entries = self.directory.entries.iter();
        let front = entries.take_while(|entry| image_name(&entry.name).is_none());
        front
            .map(|entry| {
                let path = entry.name.as_str();
                let bytes = match path {
                    SNAPSHOT => read_text(&self.device, entry)
                        .map_err(|fault| entry_error(&self.subject, path, fault)),
                    _ => self.bytes(path),
                };
                let path = path.to_owned();
                bytes.map(|bytes| TextEntry { path, bytes })
            })
            .collect()
    }

    /// All bytes of a part of the disk.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let fail = |fault| entry_error(&self.subject, path, fault);
        let length = self.snapshot.entry_bytes(path);
        let Some(length) = length.filter(|length| *length <= MAX_DISK_BYTES) else {
            return Err(fail(Fault::corrupt("is too large")));
        };
        let mut input = Input::source(self.reader(path)?).map_err(fail)?;
        // One more than there is, so that the end is seen.
        let mut bytes = vec![0; to_usize(length).saturating_add(1)];
        let count = input.read(&mut bytes).map_err(fail)?;
        if to_u64(count) != length {
            return Err(fail(Fault::corrupt(
                "has another length than snapshot.json says",
            )));
        }
        bytes.truncate(count);
        Ok(bytes)
    }
}

fn corrupt(what: &'static str, offset: u64) -> Fault {
    Fault::corrupt(what).with_offset(offset)
}

fn read_text(device: &Arc<Device>, entry: &Entry) -> std::result::Result<Vec<u8>, Fault> {
    if entry.is_streamed() || entry.sums.raw_bytes > to_u64(json::MAX_BYTES) {
        return Err(corrupt("is not a small stored text", entry.offset));
    }
    let mut body = Body::of(entry)?;
    Body::expect(&mut body, entry.sums.raw_bytes);
    let mut input = Input::reader(Section {
        device: Arc::clone(device),
        offset: entry.data_offset(),
        left: entry.sums.stored_bytes,
    })?;
    // One more than there is, so that the end is seen.
    let mut bytes = vec![0; to_usize(entry.sums.raw_bytes).saturating_add(1)];
    let count = body.read(&mut input, &mut bytes)?;
    body.check(entry)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// A range of the file.
struct Section {
    device: Arc<Device>,
    offset: u64,
    left: u64,
}

impl Supply for Section {
    fn supply(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Fault> {
        let count = to_usize(self.left).min(buffer.len());
        let part = buffer.get_mut(..count).unwrap_or_default();
        self.device.read_at(self.offset, part)?;
        self.offset = self.offset.saturating_add(to_u64(count));
        self.left -= to_u64(count);
        Ok(count)
    }
}

/// The unpacked bytes of an entry; its end is an error unless CRC and sizes are right.
struct EntryReader {
    input: Input<'static>,
    body: Body,
    entry: Entry,
}

impl Supply for EntryReader {
    fn supply(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Fault> {
        let place = self.entry.data_offset();
        // What is wrong in the section is told by its place in the file.
        let moved = |fault: Fault| match (fault.kind(), fault.offset()) {
            (FaultKind::Corrupt, Some(at)) => fault.with_offset(at.saturating_add(place)),
            _ => fault,
        };
        let count = self.body.read(&mut self.input, buffer).map_err(moved)?;
        if count < buffer.len() {
            self.body.check(&self.entry)?;
        }
        Ok(count)
    }

    fn take_zeros(&mut self, unit: u64) -> u64 {
        self.body.take_zeros(unit)
    }
}

// ---- as a stream ----------------------------------------------------------------------------------------------------

/// A snapshot read forwards. [`Self::next`] gives the entries behind `snapshot.json`, [`Self::read`] their bytes.
pub struct Bundle {
    /// As the user named it.
    pub subject: String,
    /// What it says about itself.
    pub snapshot: Snapshot,
    /// What its end says, once [`Self::next`] gave `None`.
    pub checksums: Checksums,
    input: Input<'static>,
    unzip: Unzip,
    paths: Vec<String>,
    /// Index of the current entry in `paths`.
    at: usize,
    /// Of every entry that was read, in order.
    found: Vec<(EntrySums, [u8; 32])>,
    /// The entry behind the current one was begun already.
    ahead: bool,
}

impl Bundle {
    /// Reads the beginning up to `snapshot.json`.
    pub fn open(subject: &str, mut input: Input<'static>) -> Result<Self> {
        let mut unzip = Unzip::new();
        // What another program made has other headers, too: first whose it is.
        // No byte behind that entry: in a pipe it may come only when its sender has frozen.
        let first = input.peek(FIRST_BYTES).ok().and_then(zip::first_range);
        let length = first.map_or(FIRST_BYTES, |range| range.end.min(HEAD_BYTES));
        if let Ok(head) = input.peek(length) {
            check_first(subject, head)?;
        }
        let fail = |fault| image_error(&format!("{subject}: zip archive"), fault);
        let first = unzip.next(&mut input).map_err(fail)?;
        let Some(entry) = first.filter(|entry| entry.name == SNAPSHOT && !entry.is_streamed())
        else {
            return Err(not_ours(subject));
        };
        let size = entry.sums.raw_bytes;
        let mut bundle = Self {
            subject: subject.into(),
            snapshot: Snapshot::default(),
            checksums: Checksums::default(),
            input,
            unzip,
            paths: vec![SNAPSHOT.into()],
            at: 0,
            found: Vec::new(),
            ahead: false,
        };
        let fail = |fault| entry_error(subject, SNAPSHOT, fault);
        let text = bundle.text(size).map_err(fail)?;
        bundle.snapshot = Snapshot::from_json(&text).map_err(fail)?;
        bundle.paths = bundle.snapshot.paths();
        Ok(bundle)
    }

    /// Bytes taken from the input.
    pub fn input_bytes(&self) -> u64 {
        self.input.offset()
    }

    /// Length of the input in bytes, where it is known.
    pub(crate) fn input_length_bytes(&self) -> Option<u64> {
        self.input.length_bytes()
    }

    /// The NAMEs of the images.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.snapshot.images.iter().map(|image| image.name.as_str())
    }

    /// Raw bytes of all images.
    pub fn size_bytes(&self) -> u64 {
        let images = self.snapshot.images.iter();
        images.fold(0, |sum, image| sum.saturating_add(image.size_bytes))
    }

    /// The bytes of the next entry, which must be this one; nothing where its recorded length is 0.
    pub fn small(&mut self, path: &str, length_bytes: u64) -> Result<Vec<u8>> {
        if length_bytes == 0 {
            return Ok(Vec::new());
        }
        let fail = |bundle: &Self, what| entry_error(&bundle.subject, path, Fault::corrupt(what));
        if length_bytes > MAX_DISK_BYTES {
            return Err(fail(self, "is too large"));
        }
        if self.next()?.as_deref() != Some(path) {
            return Err(fail(self, "is missing"));
        }
        let mut bytes = vec![0; to_usize(length_bytes).saturating_add(1)];
        let count = self.read(&mut bytes).map_err(|fault| self.error(fault))?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// The archive's name of the next image or disk entry; what was left of the one before is skipped. `None` at the end, when
    /// the checksums of everything were right.
    #[allow(clippy::should_implement_trait)] // it fails, and says where
    pub fn next(&mut self) -> Result<Option<String>> {
        let mut skipped = vec![0; 256 * 1024];
        while !self.ahead {
            self.read(&mut skipped).map_err(|fault| self.error(fault))?;
        }
        self.ahead = false;
        self.at += 1;
        let path = self.path().to_owned();
        let result = match path.as_str() {
            CHECKSUMS => self.finish().map(|()| None),
            _ => self.begin().map(|_| Some(path)),
        };
        result.map_err(|fault| self.error(fault))
    }

    /// The line for a fault that [`Self::read`] gave.
    pub fn error(&self, fault: Fault) -> Error {
        entry_error(&self.subject, self.path(), fault)
    }

    fn path(&self) -> &str {
        self.paths
            .get(self.at)
            .map_or("behind the last entry", String::as_str)
    }

    /// States the size of the entry that was just begun.
    fn begin(&mut self) -> std::result::Result<u64, Fault> {
        let offset = self.input.offset();
        let path = self.paths.get(self.at).cloned().unwrap_or_default();
        let entry = self.unzip.entries().last();
        let entry = entry.ok_or_else(|| corrupt("is missing", offset))?;
        if entry.name != path.as_str() {
            return Err(corrupt(
                "expected here, but another entry stands in its place",
                entry.offset,
            ));
        }
        let size = size_of(&self.snapshot, &path, entry.sums.raw_bytes)?;
        let stored_size = entry.sums.raw_bytes;
        if !entry.is_streamed() && stored_size != size {
            return Err(corrupt(
                "has another size than snapshot.json says",
                entry.offset,
            ));
        }
        if let Some(body) = self.unzip.body() {
            Body::expect(body, size);
            body.hash();
        }
        Ok(size)
    }

    /// Fills `out` from the current entry; fewer bytes only at its end, when its CRC and sizes were right.
    pub fn read(&mut self, out: &mut [u8]) -> std::result::Result<usize, Fault> {
        if self.ahead {
            return Ok(0);
        }
        let body = self
            .unzip
            .body()
            .ok_or_else(|| Fault::corrupt("entry without data"))?;
        let count = body.read(&mut self.input, out)?;
        if count < out.len() {
            self.settle()?;
        }
        Ok(count)
    }

    /// Takes zeros of the current entry that come next: a multiple of `unit`, or 0.
    pub fn take_zeros(&mut self, unit: u64) -> u64 {
        match self.unzip.body() {
            Some(body) if !self.ahead => body.take_zeros(unit),
            _ => 0,
        }
    }

    /// Behind the last byte of an entry: its checksums, and the beginning of what follows.
    fn settle(&mut self) -> std::result::Result<(), Fault> {
        let body = self
            .unzip
            .body()
            .ok_or_else(|| Fault::corrupt("entry without data"))?;
        let found = (body.sums(), body.sha256().unwrap_or_default());
        let more = self.unzip.next(&mut self.input)?.is_some();
        self.found.push(found);
        if more != (self.at + 1 < self.paths.len()) {
            return Err(corrupt("number of entries", self.input.offset()));
        }
        self.ahead = true;
        Ok(())
    }

    /// The whole of a small entry that was just begun.
    fn text(&mut self, size: u64) -> std::result::Result<Vec<u8>, Fault> {
        if size > to_u64(json::MAX_BYTES) {
            return Err(Fault::corrupt("size of a text of the snapshot"));
        }
        let body = self
            .unzip
            .body()
            .ok_or_else(|| Fault::corrupt("entry without data"))?;
        Body::expect(body, size);
        body.hash();
        let mut bytes = vec![0; to_usize(size)];
        body.read(&mut self.input, &mut bytes)?;
        // Only now may more entries be expected than this one.
        let found = (body.sums(), body.sha256().unwrap_or_default());
        self.unzip.next(&mut self.input)?;
        self.found.push(found);
        self.ahead = true;
        Ok(bytes)
    }

    /// Reads both texts at the end and compares everything with them.
    fn finish(&mut self) -> std::result::Result<(), Fault> {
        let size = self.begin()?;
        let json = self.text(size)?;
        self.at += 1;
        let size = self.begin()?;
        let line = self.text(size)?;
        check_sha256_line(&json, &line)?;
        self.at -= 1;
        let checksums = Checksums::from_json(&json)?;
        if checksums.entries.len() + 2 != self.paths.len() {
            return Err(Fault::corrupt("another number of entries than there are"));
        }
        for (index, checksum) in checksums.entries.iter().enumerate() {
            let path = self.paths.get(index).map_or("", String::as_str);
            let good = self.found.get(index).is_some_and(|(sums, hash)| {
                same(checksum, path, *sums) && checksum.sha256 == *hash
            });
            if !good {
                self.at = index;
                return Err(Fault::corrupt("is not what checksums.json says"));
            }
        }
        self.checksums = checksums;
        Ok(())
    }
}

/// The snapshot for which old ones retire. One of other entries or sources is no older state of it; nor is a consistent one of what
/// was read moving, or a whole one of what was emptied.
pub struct Like<'a> {
    /// What it says of itself.
    pub snapshot: &'a Snapshot,
    /// The report's word for how its sources were held.
    pub consistent: &'a str,
}

impl Like<'_> {
    fn is_like(&self, other: &Snapshot, consistent: Option<&str>) -> bool {
        let entries = |snapshot: &Snapshot| {
            let images = snapshot.images.iter();
            let mut entries: Vec<_> = images.map(|i| (i.name.clone(), i.source.clone())).collect();
            crate::units::sort(&mut entries, |a, b| a < b);
            entries
        };
        let emptied = |snapshot: &Snapshot| (snapshot.golden, snapshot.empty.clone());
        let disk = |snapshot: &Snapshot| snapshot.disk.as_ref().map(|disk| disk.device.clone());
        let is_live = |consistent: &str| consistent == "live";
        entries(self.snapshot) == entries(other)
            && emptied(self.snapshot) == emptied(other)
            && disk(self.snapshot) == disk(other)
            && consistent.is_none_or(|held| is_live(held) == is_live(self.consistent))
    }
}

/// What a kept snapshot is when old ones retire; contents are not read. Only what is `like` the new one is counted and may go.
pub fn class(path: &Path, like: &Like) -> Class {
    let stays = |snapshot: &Snapshot, consistent: Option<&str>| {
        snapshot.marks().any() || !like.is_like(snapshot, consistent)
    };
    if !std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Class::Foreign;
    }
    match Catalog::open_kept(path) {
        Ok(found) if stays(&found.snapshot, Some(&found.checksums.consistent)) => Class::Kept,
        Ok(_) => Class::Good,
        // What a newer floe made is not ours to judge, and so not to remove.
        Err(error) if error.exit() == Some(Exit::Refused) => Class::Kept,
        // Whatever says of itself that it is to be kept is kept, broken or not.
        Err(error) => match beginning(path, open_kept) {
            Some(snapshot) if stays(&snapshot, None) => Class::Kept,
            // Of what cannot be read nobody knows.
            None if error.exit() == Some(Exit::Failed) => Class::Kept,
            _ => Class::Broken,
        },
    }
}

/// Opens what the user named: only a regular file, and without waiting for anybody.
pub fn open_file(path: &Path) -> Result<File> {
    let fail = |fault| Error::fault(path.display(), fault);
    let device = Device::open(path, Access::Read).map_err(fail)?;
    match device.kind() {
        DeviceKind::File => device.duplicate().map_err(fail),
        DeviceKind::Block => Err(fail(Fault::refused("is a device, not a file"))),
    }
}

/// What a snapshot says about itself, even when the rest of it is broken; opened by [`open_file`] or [`open_kept`].
pub fn beginning(path: &Path, open: fn(&Path) -> Result<File>) -> Option<Snapshot> {
    let input = Input::file(open(path).ok()?, None).ok()?;
    Some(
        Bundle::open(&path.display().to_string(), input)
            .ok()?
            .snapshot,
    )
}

/// What the beginning of a snapshot says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Not all of it is there.
    NotYet,
    /// As what it is to be kept.
    Marks(Marks),
    /// That a newer floe made it: what else it says is not known here.
    Newer,
    /// Nothing, however much follows: it is none, or damaged.
    Nothing,
}

/// What the bytes from the first on say. Only the header is looked at until all of the text is there, and the text once.
pub(crate) fn told(head: &[u8]) -> Told {
    let Some(first) = head.get(..FIRST_BYTES) else {
        return Told::NotYet;
    };
    let range = zip::first_range(head).filter(|_| first.ends_with(SNAPSHOT.as_bytes()));
    match range {
        Some(range) if range.end > MAX_TOLD_BYTES => Told::Nothing,
        Some(range) if range.end > head.len() => Told::NotYet,
        Some(_) => match zip::first_text(head).map(Snapshot::from_json) {
            Some(Ok(snapshot)) => Told::Marks(snapshot.marks()),
            Some(Err(fault)) if fault.exit() == Exit::Refused => Told::Newer,
            _ => Told::Nothing,
        },
        None => Told::Nothing,
    }
}

/// The same of a file, of which no more is read than that.
pub(crate) fn told_by(path: &Path) -> Result<Told> {
    let mut file = open_file(path)?;
    let mut head = Vec::new();
    let read = limited(&mut file, to_u64(MAX_TOLD_BYTES)).read_to_end(&mut head);
    read.map_err(|error| Error::std(path.display(), "read", &error))?;
    Ok(told(&head))
}
