//! Where the entries come from: a file, whose checksums are checked before the first write, or a pipe that is read once.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use crate::content::Content;
use crate::device::Device;
use crate::error::{Error, Fault, Result};
use crate::put::options::Options;
use crate::report;
use crate::snapshot::archive::{Bundle, Catalog};
use crate::snapshot::{self, Checksums, Snapshot, entry};
use crate::stream::image::open::OpenedImage;
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

/// What was found good in a file before anything is written.
pub(super) struct Checked {
    /// The bytes there are to read.
    pub bytes: u64,
    /// What the images that will be written begin with, by their names.
    pub contents: Vec<(String, Content)>,
}

/// Of a file: the checksums of what will be written, and whether its images are such. `None` for a pipe.
pub(super) fn check(
    origin: &EntrySource,
    options: &Options,
    (snapshot, file): (&Snapshot, &File),
    pairs: &[(String, OsString)],
) -> Result<Option<Checked>> {
    let EntrySource::File(catalog) = origin else {
        return Ok(None);
    };
    let mut line = report::Progress::new(&options.common);
    let (mut bytes, mut contents) = (0u64, Vec::new());
    for path in snapshot.paths() {
        let Some(checksum) = catalog.checksums.find(&path) else {
            continue;
        };
        let name = snapshot::image_name(&path);
        let is_named = |name| pairs.iter().any(|(wanted, _)| wanted == name);
        if options.disk.is_none() && !name.is_none_or(is_named) {
            continue;
        }
        catalog.check_bytes(&path, &mut line)?;
        bytes = bytes.saturating_add(checksum.size_bytes);
        if let Some(image) = name.and_then(|name| snapshot.image(name)) {
            let found = entry::check(catalog, file, image, options.any, &options.common)?;
            contents.push((image.name.clone(), found.content));
        }
    }
    Ok(Some(Checked { bytes, contents }))
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
