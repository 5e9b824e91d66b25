//! A snapshot in a file.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{HEAD_BYTES, MAX_DISK_BYTES, check_first, corrupt, entry_error, same, size_of};
use crate::device::{Access, Device, DeviceKind, ReadAt};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::json;
use crate::report::Progress;
use crate::snapshot::store::open_kept;
use crate::snapshot::{
    CHECKSUMS, CHECKSUMS_SHA256, Checksums, SNAPSHOT, Snapshot, check_sha256_line, image_name,
};
use crate::stream::archive::TextEntry;
use crate::stream::image::whole::image_error;
use crate::stream::input::{Input, Supply};
use crate::stream::unzip::{Body, Directory};
use crate::stream::zip::Entry;
use crate::units::{to_u64, to_usize};

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
