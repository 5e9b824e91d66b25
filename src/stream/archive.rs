//! The emitter of an archive: the pipeline's images as streamed entries, between texts that stand whole.
//!
//! In front: entries that are known before anything freezes, written at once, so that a sink that asks first has asked by then.
//! Behind: entries that only the end of the run knows (checksums), asked for after the thaw. In between nothing allocates.
//! Each entry's bytes in the archive are hashed on the way.

use sha2::{Digest, Sha256};

use super::deflate::FINAL_BLOCK;
use super::output::{Output, Sum, Totals, TotalsCell, write_deflated_zeros};
use super::pipeline::{Emit, Encoded, Problem};
use super::zip::{EntrySums, MAX_ENTRIES, Record, ZipWriter};
use crate::crc;
use crate::error::Fault;

/// An entry that stands whole in memory.
#[derive(Clone, Debug)]
pub struct TextEntry {
    /// The archive's name of it.
    pub path: String,
    /// Its bytes, less than 4 GiB.
    pub bytes: Vec<u8>,
}

/// An entry that was written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The archive's name of it.
    pub path: String,
    /// CRC and sizes.
    pub sums: EntrySums,
    /// SHA-256 of its bytes in the archive.
    pub sha256: [u8; 32],
}

/// Gives the entries behind the images, from what was written in front; called once, after the thaw, and may allocate.
pub(crate) type LastEntries = Box<dyn FnMut(&[Written]) -> Result<Vec<TextEntry>, Fault> + Send>;

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Internal(fault)
    }
}

/// Writes an archive; see the module's page.
pub(crate) struct ZipEmitter {
    output: Output,
    writer: ZipWriter,
    record: Record,
    /// One for each text in front and each image, whose figures are filled in as it ends.
    written: Vec<Written>,
    /// Index into `written` of the image that is current or comes next.
    next: usize,
    /// Where the current image's data began; `None` between images.
    start: Option<u64>,
    sum: Sum,
    ending: LastEntries,
    totals: TotalsCell,
}

impl ZipEmitter {
    /// Writes `front` at once; `images` are the archive's names of the images that the pipeline will bring, in its order.
    /// `output` need not hash.
    pub(crate) fn new(
        output: Output,
        unix_seconds: u64,
        front: &[TextEntry],
        images: Vec<String>,
        ending: LastEntries,
        totals: TotalsCell,
    ) -> Result<Self, Problem> {
        let mut emitter = Self {
            output,
            writer: ZipWriter::new(MAX_ENTRIES, unix_seconds)?,
            record: Record::new(),
            written: Vec::with_capacity(front.len() + images.len()),
            next: front.len(),
            start: None,
            sum: Sum::new(),
            ending,
            totals,
        };
        for text in front {
            emitter.text(text)?;
        }
        let image = |path| Written {
            path,
            sums: EntrySums::default(),
            sha256: [0; 32],
        };
        emitter.written.extend(images.into_iter().map(image));
        Ok(emitter)
    }

    fn text(&mut self, text: &TextEntry) -> Result<(), Problem> {
        let crc32 = crc::crc32(0, &text.bytes);
        let length =
            u32::try_from(text.bytes.len()).map_err(|_| Fault::refused("entry too large"))?;
        self.record.clear();
        self.writer
            .stored(&text.path, crc32, length, &mut self.record)?;
        self.output.write_all(&self.record)?;
        self.output.write_all(&text.bytes)?;
        self.written.push(Written {
            path: text.path.clone(),
            sums: EntrySums {
                crc32,
                stored_bytes: u64::from(length),
                raw_bytes: u64::from(length),
            },
            sha256: Sha256::digest(&text.bytes).into(),
        });
        Ok(())
    }

    /// The local header in front of an image's first byte.
    fn begin(&mut self) -> Result<(), Problem> {
        if self.start.is_some() {
            return Ok(());
        }
        let image = self
            .written
            .get(self.next)
            .ok_or_else(|| Fault::refused("an image without a name"))?;
        self.record.clear();
        self.writer.begin(&image.path, &mut self.record)?;
        self.output.write_all(&self.record)?;
        self.output.hash_anew();
        self.start = Some(self.output.written_bytes());
        self.sum = Sum::new();
        Ok(())
    }
}

impl Emit for ZipEmitter {
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem> {
        self.begin()?;
        self.sum.data(chunk.crc32, chunk.raw_bytes);
        self.output.write_parts(chunk.parts())
    }

    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem> {
        self.begin()?;
        self.sum.zeros(length_bytes);
        write_deflated_zeros(&mut self.output, length_bytes)
    }

    fn end_image(&mut self, _image: usize) -> Result<(), Problem> {
        self.begin()?;
        self.output.write_all(&FINAL_BLOCK)?;
        let start = self.start.take().unwrap_or(0);
        let sums = EntrySums {
            crc32: self.sum.crc32,
            stored_bytes: self.output.written_bytes().saturating_sub(start),
            raw_bytes: self.sum.raw_bytes,
        };
        if let Some(image) = self.written.get_mut(self.next) {
            image.sums = sums;
            image.sha256 = self.output.sha256().unwrap_or_default();
        }
        self.next += 1;
        self.record.clear();
        self.writer.end(sums, &mut self.record)?;
        self.output.write_all(&self.record)
    }

    fn finish(&mut self) -> Result<(), Problem> {
        if self.next != self.written.len() {
            return Err(Fault::refused("an image that did not come").into());
        }
        for text in (self.ending)(&self.written)? {
            self.text(&text)?;
        }
        let output = &mut self.output;
        self.writer.finish(|bytes| output.write_all(bytes))?;
        self.output.flush(false)?;
        *self.totals.lock() = Totals {
            written_bytes: self.output.written_bytes(),
            ..Totals::default()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Access, Device};
    use crate::map::UsedMap;
    use crate::stream::input::Input;
    use crate::stream::pipeline::{Encoding, Meter, Outlet, Pipeline, Settings};
    use crate::stream::plan::{Part, PartContent, Plan};
    use crate::stream::unzip::{Body, Directory};
    use crate::threads::Lock;
    use crate::units::{BlockSize, to_usize};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    struct NoMeter;
    impl Meter for NoMeter {
        fn read(&self, _: u64) {}
        fn taken(&self, _: u64) {}
    }

    /// Nothing is used.
    fn free() -> PartContent {
        let mut map = UsedMap::new(1, BlockSize::from_bytes(1024).unwrap()).unwrap();
        map.set_all_free();
        PartContent::Used(map)
    }

    fn part(length_bytes: u64, content: PartContent) -> Part {
        Part {
            device: 0,
            device_offset: 0,
            length_bytes,
            content,
        }
    }

    #[test]
    fn images_of_the_pipeline_become_entries_whose_checksums_hold() {
        let folder = std::env::temp_dir();
        let source = folder.join(format!("floe-archive-source-{}", std::process::id()));
        let target = folder.join(format!("floe-archive-{}.zip", std::process::id()));
        let data: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n / 5).to_le_bytes())
            .collect();
        std::fs::write(&source, &data).unwrap();
        let device = Device::open(&source, Access::Read).unwrap();
        let size = u64::try_from(data.len()).unwrap();

        let output = Output::new(
            OwnedFd::from(std::fs::File::create(&target).unwrap()),
            &NoMeter,
            false,
        );
        let seen = Arc::new(Lock::new(Vec::new()));
        let told = Arc::clone(&seen);
        let ending: LastEntries = Box::new(move |written| {
            told.lock().extend_from_slice(written);
            Ok(vec![TextEntry {
                path: "checksums.json".into(),
                bytes: b"{}".to_vec(),
            }])
        });
        let front = [TextEntry {
            path: "snapshot.json".into(),
            bytes: b"{\"format\":1}".to_vec(),
        }];
        let images = ["a", "b", "c"].map(|name| format!("images/{name}.img"));
        let totals = TotalsCell::default();
        let emit = ZipEmitter::new(
            output,
            0,
            &front,
            images.to_vec(),
            ending,
            Arc::clone(&totals),
        );
        let settings = Settings {
            jobs: 2,
            encoding: Encoding::Deflate(1),
            spool_bytes: 0,
            precopy: None,
            spool_file: None,
            hashes: None,
        };
        let pipeline = Pipeline::new(
            settings,
            vec![device],
            Outlet::Stream(Box::new(emit.ok().unwrap())),
            &NoMeter,
        )
        .unwrap();
        pipeline.start(Plan::new(vec![
            vec![part(size, PartContent::Whole), part(10_000_000, free())],
            vec![part(5000, free())],
            vec![part(77_777, PartContent::Whole)],
        ]));
        pipeline.permit();
        while !pipeline.state().finished {
            assert!(pipeline.state().problem.is_none());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }

        let zip = std::fs::read(&target).unwrap();
        let _ = (std::fs::remove_file(&source), std::fs::remove_file(&target));
        let directory = Directory::read(&zip).unwrap();
        assert_eq!(directory.entries.len(), 5);
        let mut first = data.clone();
        first.resize(data.len() + 10_000_000, 0);
        let expected = [first, vec![0; 5000], data[..77_777].to_vec()];
        for (written, bytes) in seen.lock()[1..].iter().zip(&expected) {
            let entry = directory.find(&written.path).unwrap();
            assert_eq!(entry.sums, written.sums);
            let stored = to_usize(entry.data_offset())
                ..to_usize(entry.data_offset() + entry.sums.stored_bytes);
            let hash: [u8; 32] = Sha256::digest(&zip[stored.clone()]).into();
            assert_eq!(hash, written.sha256);
            let mut input = Input::reader(&zip[stored.start..]).unwrap();
            let mut body = Body::of(entry).unwrap();
            body.expect(entry.sums.raw_bytes);
            let mut found = vec![0; bytes.len() + 1];
            let count = body.read(&mut input, &mut found).unwrap();
            body.check(entry).unwrap();
            assert!(found[..count] == bytes[..], "{}", written.path);
        }
        assert_eq!(
            totals.lock().written_bytes,
            u64::try_from(zip.len()).unwrap()
        );
    }
}
