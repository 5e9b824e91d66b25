//! An image whose head was read: what `restore`, `verify` and `show` share. Its beginning is held in memory, so that what it is and
//! how long it must be are known before anything else happens with it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::cli::Common;
use crate::content::{Content, Format, HEAD_BYTES, Head};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::features;
use crate::report::Progress;
use crate::stream::artifact::{self, ArtifactLabels};
use crate::stream::bmap;
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::image::open::OpenedImage;
use crate::stream::image::whole::{
    Any, check_end, check_partitions, cut_off, image_error, image_is_empty, not_an_image,
};
use crate::stream::image::{ImageReader, ImageRun, lanes};
use crate::stream::input::Input;
use crate::sys::memory::Pages;

/// An image whose head was read.
pub(crate) struct Image {
    /// As the user named it.
    pub subject: String,
    /// What follows the head comes from here.
    pub reader: ImageReader<'static>,
    head: Pages,
    head_bytes: usize,
    /// What the head shows.
    pub content: Content,
    /// The open file, for comparing it with targets.
    pub file: File,
    /// What the artifact says of itself, where it is one.
    pub artifact: Option<ArtifactLabels>,
    /// As in [`OpenedImage`].
    pub come_bytes: Option<u64>,
    any: Any,
}

impl Image {
    /// Opens a path or `-` only to look at it, and reads the head.
    pub(crate) fn look(path: &OsStr, any: Any) -> Result<Self> {
        Self::read(OpenedImage::look(path)?, any)
    }

    /// Reads the head of what is no snapshot.
    pub(crate) fn read(opened: OpenedImage, any: Any) -> Result<Self> {
        let OpenedImage {
            subject,
            file,
            input,
            format,
            come_bytes,
        } = opened;
        let fail = |fault| image_error(&subject, fault);
        let (reader, artifact) = match format {
            Format::Zip => {
                return Err(Error::refused(match features::SNAPSHOTS {
                    true => format!("{subject}: is a snapshot, not an image"),
                    false => format!(
                        "{subject}: {}",
                        features::without(".zip").unwrap_or_default()
                    ),
                }));
            }
            Format::Frames => {
                return Err(Error::corrupt(format_args!(
                    "{subject}: is what floe dump --frames sends, not an image: floe restore, verify and artifact take it, and make one of it"
                )));
            }
            Format::Mender if !features::MENDER => {
                let why = features::without(".mender").unwrap_or_default();
                return Err(Error::refused(format_args!("{subject}: {why}")));
            }
            Format::Mender => {
                let (labels, payload) = artifact::open(input).map_err(fail)?;
                let input = Input::source(Box::new(payload)).map_err(fail)?;
                (ImageReader::payload(input).map_err(fail)?, Some(labels))
            }
            Format::Raw | Format::Gzip => (ImageReader::new(input).map_err(fail)?, None),
        };
        let image = Self::head_of(subject, file, reader, any)?;
        image.check_head()?;
        Ok(Self {
            artifact,
            come_bytes,
            ..image
        })
    }

    /// Reads the head of an image that comes through `reader`; `file` is what it comes from.
    pub(crate) fn head_of(
        subject: String,
        file: File,
        mut reader: ImageReader<'static>,
        any: Any,
    ) -> Result<Self> {
        let fail = |fault| image_error(&subject, fault);
        let mut head = Pages::new(HEAD_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
        let head_bytes = reader.head(&mut head).map_err(fail)?;
        if head_bytes == 0 {
            return Err(image_is_empty(&subject));
        }
        let any = match (reader.is_as_it_is(), any) {
            (true, Any::No) => Any::AsItIs,
            // A payload is what was wrapped, cut or not.
            (_, Any::No) if reader.format() == Format::Mender => Any::Never,
            (_, any) => any,
        };
        let is_taken = matches!(any, Any::Yes | Any::AsItIs);
        let content = match Content::probe(&Head(head.get(..head_bytes).unwrap_or_default())) {
            // A damaged filesystem, and a copy of it as it is.
            Err(fault) if is_taken && fault.kind() != FaultKind::Io => Content::default(),
            content => content.map_err(|fault| image_error(&subject, fault))?,
        };
        reader.watch(&content, head.get(..head_bytes).unwrap_or_default());
        Ok(Self {
            subject,
            reader,
            head,
            head_bytes,
            content,
            file,
            artifact: None,
            come_bytes: None,
            any,
        })
    }

    /// What can be said before the rest is read: whether it begins as an image does, and of a raw file whether it is long enough.
    pub(crate) fn check_head(&self) -> Result<()> {
        self.check_head_of(self.reader.length_bytes())
    }

    /// The same of an image whose length is known otherwise.
    pub(crate) fn check_head_of(&self, length: Option<u64>) -> Result<()> {
        if matches!(self.any, Any::Yes | Any::AsItIs) {
            return Ok(());
        }
        let word = self.content.judge_head(self.head());
        word.map_err(|what| not_an_image(&self.subject, &what))?;
        let cut = length.and_then(|length| self.content.cut_off(length));
        cut.map_or(Ok(()), |what| Err(cut_off(&self.subject, self.any, &what)))?;
        check_partitions(&self.subject, self.reader.seen())
    }

    /// Reads all of a second one that comes from the same file, when that is a regular one and was read from its beginning, and so
    /// checks it; then goes back to where this one stands. Nothing where that cannot be.
    pub(crate) fn check_beforehand(
        &self,
        common: &Common,
        line: &mut Progress,
    ) -> Result<Option<Ended>> {
        let again = self.again()?;
        again
            .map(|mut again| read_all(&mut again, common, line))
            .transpose()
    }

    /// A second one from the same file.
    fn again(&self) -> Result<Option<Self>> {
        let is_file = self.file.metadata().is_ok_and(|meta| meta.is_file());
        if !is_file || self.reader.input_length_bytes().is_none() && self.artifact.is_none() {
            return Ok(None);
        }
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let again = File::open(path).map_err(|_| crate::mounts::not_mounted("/proc", "proc"))?;
        Self::read(OpenedImage::of(self.subject.clone(), again)?, self.any).map(Some)
    }

    /// `--bmap`: that every range of it is in the image as it says.
    pub(crate) fn check_bmap(&self, path: &Path) -> Result<()> {
        let name = &path.display();
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| Error::std(name, "open", &error))?;
        let read = file.take(bmap::MOST_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| Error::std(name, "read", &error))?;
        let text = bmap::BmapText::new(bytes).map_err(|fault| Error::fault(name, fault))?;
        let Some(mut again) = self.again()? else {
            return Err(Error::refused(format_args!(
                "{}: cannot be read twice, and --bmap checks all of it before the first write; give it as a file",
                self.subject
            )));
        };
        let head = again.head.get(..again.head_bytes).unwrap_or_default();
        let checked = text.check(head, &mut again.reader);
        let subject = &self.subject;
        checked.map_err(|fault| image_error(&format!("{subject}, by {name}"), fault))
    }

    /// The first bytes of the image.
    pub(crate) fn head(&self) -> &[u8] {
        self.head.get(..self.head_bytes).unwrap_or_default()
    }

    /// That it ended well: gives back how.
    pub(crate) fn check_end(&self, ended: &Ended) -> Result<Ended> {
        let (content, head) = (&self.content, self.head());
        check_end(&self.subject, self.any, content, head, ended)?;
        Ok(ended.clone())
    }

    /// Splits it for a copy: the reader goes to a thread of its own.
    pub(crate) fn into_parts(self) -> (ImageHead, ImageReader<'static>) {
        let head = ImageHead {
            subject: self.subject,
            head: self.head,
            head_bytes: self.head_bytes,
            content: self.content,
            any: self.any,
        };
        (head, self.reader)
    }
}

/// An image without its reader.
pub(crate) struct ImageHead {
    /// As the user named it.
    pub subject: String,
    /// Its beginning, in aligned memory.
    pub head: Pages,
    /// How much of `head` is the image's.
    pub head_bytes: usize,
    /// What the head shows.
    pub content: Content,
    any: Any,
}

impl ImageHead {
    /// The first bytes of the image.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.head.get(..self.head_bytes).unwrap_or_default()
    }

    /// See [`check_end`].
    pub(crate) fn check_end(&self, ended: &Ended) -> Result<()> {
        check_end(&self.subject, self.any, &self.content, self.bytes(), ended)
    }
}

/// Reads all of an image, and so checks it; on as many CPUs as were asked for, where it can be.
pub(crate) fn read_all(found: &mut Image, common: &Common, line: &mut Progress) -> Result<Ended> {
    let length = found.reader.input_length_bytes();
    let one_file = length.filter(|length| {
        found
            .file
            .metadata()
            .is_ok_and(|meta| meta.len() == *length)
            && found.reader.begins_as_ours()
            // What stands in partitions is looked at in order.
            && found.content.partitions().is_empty()
    });
    let in_lanes = one_file.and_then(|length_bytes| {
        lanes::read(&found.file, length_bytes, common.jobs, &mut |done_bytes| {
            line.checking(done_bytes, length_bytes);
        })
    });
    if let Some(ended) = in_lanes {
        line.clear();
        return found.check_end(&ended);
    }
    let least_bytes = found.content.least_bytes();
    let ended = read_on(found, &mut |reader| {
        // Of a pipe the image says by itself how long it is at least.
        let (done_bytes, total_bytes) = match length {
            Some(length) => (reader.input_bytes(), length),
            None => (reader.offset(), least_bytes),
        };
        line.checking(done_bytes, total_bytes);
    });
    line.clear();
    ended
}

/// Reads what follows the head to the end, and judges it.
pub(crate) fn read_on(
    found: &mut Image,
    step: &mut dyn FnMut(&ImageReader<'static>),
) -> Result<Ended> {
    let fail = |fault| image_error(&found.subject, fault);
    let mut buffer = Pages::new(BUFFER_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
    // Each turn takes at least one granule of the input, or is the last.
    while found.reader.next(&mut buffer).map_err(fail)? != ImageRun::End {
        step(&found.reader);
    }
    found.check_end(&Ended::of(&found.reader))
}
