//! Where the entries come from: a file, whose checksums are checked before the first write, or a pipe that is read once.

use std::ffi::OsString;
use std::sync::Arc;

use crate::content::Content;
use crate::device::Device;
use crate::error::{Error, Fault, Result};
use crate::report;
use crate::snapshot::archive::{Bundle, Catalog};
use crate::snapshot::{self, Checksums, Snapshot, image_path};
use crate::stream::image::ImageReader;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::probed::Image;
use crate::stream::image::whole::Any;
use crate::stream::input::{Input, Supply};
use crate::threads::Lock;

/// Where the entries come from.
pub(super) enum EntrySource {
    /// A file, all of it checked beforehand.
    File(Box<Catalog>),
    /// A pipe, read once.
    Pipe(Arc<Lock<Bundle>>),
}

pub(super) fn origin(opened: OpenedImage) -> Result<EntrySource> {
    let regular = opened.file.metadata().is_ok_and(|meta| meta.is_file());
    if regular && opened.input.length_bytes().is_some() {
        let fd = rustix::io::fcntl_dupfd_cloexec(&opened.file, 3)
            .map_err(|e| Error::fault(&opened.subject, Fault::io("dup", e)))?;
        let device = Device::from_fd(fd, false).map_err(|f| Error::fault(&opened.subject, f))?;
        return Ok(EntrySource::File(Box::new(Catalog::read(
            &opened.subject,
            device,
        )?)));
    }
    let bundle = Bundle::open(&opened.subject, opened.input)?;
    Ok(EntrySource::Pipe(Arc::new(Lock::new(bundle))))
}

impl EntrySource {
    /// What messages call it, and what it says of itself.
    pub(super) fn subject_and_snapshot(&self) -> (String, Snapshot) {
        match self {
            Self::File(catalog) => (catalog.subject.clone(), catalog.snapshot.clone()),
            Self::Pipe(bundle) => {
                let bundle = bundle.lock();
                (bundle.subject.clone(), bundle.snapshot.clone())
            }
        }
    }

    /// Bytes of an entry in the archive, once its end was seen.
    pub(super) fn stored_bytes(&self, path: &str) -> u64 {
        let of = |sums: &Checksums| sums.find(path).map_or(0, |sums| sums.stored_bytes);
        match self {
            Self::File(catalog) => of(&catalog.checksums),
            Self::Pipe(bundle) => of(&bundle.lock().checksums),
        }
    }
}

/// Of a file: the checksums of what will be written; gives the bytes there are to read, `None` for a pipe.
pub(super) fn check_bytes(
    origin: &EntrySource,
    snapshot: &Snapshot,
    pairs: &[(String, OsString)],
    everything: bool,
    line: &mut report::Progress,
) -> Result<Option<u64>> {
    let EntrySource::File(catalog) = origin else {
        return Ok(None);
    };
    let mut bytes = 0u64;
    for path in snapshot.paths() {
        let Some(checksum) = catalog.checksums.find(&path) else {
            continue;
        };
        let name = snapshot::image_name(&path);
        if everything || name.is_none_or(|name| pairs.iter().any(|(wanted, _)| wanted == name)) {
            catalog.check_bytes(&path, line)?;
            bytes = bytes.saturating_add(checksum.size_bytes);
        }
    }
    Ok(Some(bytes))
}

/// What an entry of a file begins with.
pub(super) fn content_of(catalog: &Catalog, name: &str, file: &std::fs::File) -> Result<Content> {
    let path = image_path(name);
    let subject = format!("{}: {path}", catalog.subject);
    let fail = |fault| Error::fault(&subject, fault);
    let reader = Input::source(catalog.reader(&path)?).and_then(ImageReader::raw);
    let reader = reader.map_err(fail)?;
    let file = file.try_clone();
    let file = file.map_err(|e| Error::failed(format_args!("{subject}: dup: {e}")))?;
    Ok(Image::head_of(subject.clone(), file, reader, Any::Yes)?.content)
}

/// Skips to an entry.
pub(super) fn advance(bundle: &Lock<Bundle>, path: &str) -> Result<()> {
    let mut bundle = bundle.lock();
    loop {
        match bundle.next()? {
            Some(next) if next == path => return Ok(()),
            Some(_) => {}
            None => {
                let fault = Fault::corrupt("is missing");
                return Err(crate::snapshot::archive::entry_error(
                    &bundle.subject,
                    path,
                    fault,
                ));
            }
        }
    }
}

pub(super) struct PipeReader(pub Arc<Lock<Bundle>>);

impl Supply for PipeReader {
    fn supply(&mut self, out: &mut [u8]) -> std::result::Result<usize, Fault> {
        self.0.lock().read(out)
    }

    fn take_zeros(&mut self, unit: u64) -> u64 {
        let mut bundle = self.0.lock();
        bundle.take_zeros(unit)
    }
}
