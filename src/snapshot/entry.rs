//! An entry of a snapshot as the image that it is, judged by the one rule for images ([`content`](crate::content)): a sound archive
//! proves that its bytes are those that were put in, and not what they are.

use std::fs::File;
use std::sync::Arc;

use crate::cli::Common;
use crate::content::UNKNOWN;
use crate::error::{Error, Fault, Result};
use crate::report::Progress;
use crate::snapshot::archive::{Bundle, Catalog, entry_error};
use crate::snapshot::{ImageEntry, image_name, image_path};
use crate::stream::image::ImageReader;
use crate::stream::image::probed::{self, Image};
use crate::stream::image::whole::Any;
use crate::stream::input::{Input, Supply};
use crate::threads::Lock;

/// Reads the beginning of an entry and judges it. `file` is what the archive comes from.
pub(crate) fn open(
    subject: &str,
    file: &File,
    supply: Box<dyn Supply>,
    entry: &ImageEntry,
    any: Any,
) -> Result<Image> {
    let path = image_path(&entry.name);
    let fail = |fault| entry_error(subject, &path, fault);
    // Of what showed nothing known it was said so; that is taken as what a dump says to be a copy as it is.
    let any = match any {
        Any::No if entry.filesystem == UNKNOWN => Any::AsItIs,
        any => any,
    };
    let input = Input::source(supply).map_err(fail)?;
    // Other checksums say that it is one, as of a payload.
    let reader = ImageReader::payload(input).map_err(fail)?;
    let file = file.try_clone();
    let file = file.map_err(|e| Error::std(subject, "dup", &e))?;
    let image = Image::head_of(format!("{subject}: {path}"), file, reader, any)?;
    image.check_head_of(Some(entry.size_bytes))?;
    Ok(image)
}

/// Judges an entry of a file before anything is written: where its beginning does not tell, all of it.
pub(crate) fn check(
    catalog: &Catalog,
    file: &File,
    entry: &ImageEntry,
    any: Any,
    common: &Common,
) -> Result<Image> {
    let path = image_path(&entry.name);
    let open = || open(&catalog.subject, file, catalog.reader(&path)?, entry, any);
    let image = open()?;
    if !image.content.is_told_by_head() {
        probed::read_all(&mut open()?, common, &mut Progress::new(common))?;
    }
    Ok(image)
}

/// Reads all of a snapshot with every check, of its archive and of its images, and gives it back.
pub(crate) fn read_all(bundle: Bundle, file: &File, any: Any, common: &Common) -> Result<Bundle> {
    let mut line = Progress::new(common);
    let subject = bundle.subject.clone();
    let entries = bundle.snapshot.images.clone();
    let total_bytes = bundle.input_length_bytes().unwrap_or(0);
    let bundle = Arc::new(Lock::new(bundle));
    loop {
        // What is no image is passed over here, and so checked.
        let next = bundle.lock().next()?;
        let Some(path) = next else { break };
        let name = image_name(&path);
        let Some(entry) = entries.iter().find(|entry| name == Some(&entry.name)) else {
            continue;
        };
        let supply = Box::new(BundleReader(Arc::clone(&bundle)));
        let mut image = open(&subject, file, supply, entry, any)?;
        probed::read_on(&mut image, &mut |_| {
            line.checking(bundle.lock().input_bytes(), total_bytes);
        })?;
    }
    line.clear();
    let whole = Arc::into_inner(bundle).map(Lock::into_inner);
    whole.ok_or_else(|| Error::failed(format_args!("{subject}: is still being read")))
}

/// The entry at which a snapshot that is read forwards stands.
pub(crate) struct BundleReader(pub Arc<Lock<Bundle>>);

impl Supply for BundleReader {
    fn supply(&mut self, out: &mut [u8]) -> std::result::Result<usize, Fault> {
        self.0.lock().read(out)
    }

    fn take_zeros(&mut self, unit: u64) -> u64 {
        self.0.lock().take_zeros(unit)
    }
}
