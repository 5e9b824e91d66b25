//! A snapshot as a stream.

use super::{
    FIRST_BYTES, HEAD_BYTES, MAX_DISK_BYTES, check_first, corrupt, entry_error, not_ours, same,
    size_of,
};
use crate::error::{Error, Fault, Result};
use crate::json;
use crate::snapshot::{CHECKSUMS, Checksums, SNAPSHOT, Snapshot, check_sha256_line};
use crate::stream::image::whole::image_error;
use crate::stream::input::Input;
use crate::stream::unzip::{Body, Unzip};
use crate::stream::zip::{self, EntrySums};
use crate::units::{to_u64, to_usize};

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
        let body = body(&mut self.unzip)?;
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
        let body = body(&mut self.unzip)?;
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
        let body = body(&mut self.unzip)?;
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

/// The data of the entry that was just begun.
fn body(unzip: &mut Unzip) -> std::result::Result<&mut Body, Fault> {
    unzip
        .body()
        .ok_or_else(|| Fault::corrupt("entry without data"))
}
