//! What `-o` replaces without being told to: an image an image, a snapshot a snapshot, a Mender artifact an artifact. Anything else was
//! hardly meant. A snapshot that is to be kept goes only for one that is to be kept as the same: a factory snapshot for a factory
//! snapshot, a rescue snapshot for a rescue snapshot.
//!
//! One rule for every verb that writes a file. Of which filesystem or entries it is, is not asked, scripts use one name for many; nor
//! whether it is whole, as what was cut is what is best replaced.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Exit, Result};
use crate::json;
use crate::snapshot::kept::Kept;
use crate::snapshot::{Marks, archive};
use crate::stream::deflate::FINAL_BLOCK;
use crate::stream::gzip;
use crate::stream::image::Format;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::probed::Image;
use crate::stream::image::whole::Any;
use crate::stream::partfile::{self, piece};

/// What is to come in the place of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coming {
    /// An image: raw, or packed with gzip.
    Image(Format),
    /// As what it is to be kept; `None`: what arrives will tell ([`Arriving`]).
    Snapshot(Option<Marks>),
    /// A Mender artifact.
    Artifact,
}

impl Coming {
    fn name(self) -> &'static str {
        match self {
            Self::Image(Format::Raw) => "a raw image",
            Self::Image(_) => "an image packed with gzip",
            Self::Snapshot(_) => "a snapshot",
            Self::Artifact => "a Mender artifact",
        }
    }
}

/// That there is nothing at `path` (an empty file is nothing), or an older one of what comes.
pub(crate) fn check(path: &Path, coming: Coming) -> Result<()> {
    refuse_beside_pieces(path)?;
    let is_there = |meta: std::fs::Metadata| meta.is_file() && meta.len() > 0;
    if !std::fs::metadata(path).is_ok_and(is_there) {
        return Ok(());
    }
    let no_image = |error: &Error| error.exit() == Some(Exit::Corrupt);
    let opened = match OpenedImage::look(path.as_os_str()) {
        Ok(opened) => opened,
        Err(error) if no_image(&error) => return Err(refusal(path, "is there and is no image")),
        // What cannot be read is for who writes to say.
        Err(_) => return Ok(()),
    };
    let what = match (opened.format, coming) {
        // Zip archives of others (documents, programs) are not ours.
        (Format::Zip, _) if !begins_a_snapshot(path) => Some("is there and is no image".into()),
        (Format::Zip, Coming::Snapshot(None)) => None,
        (Format::Zip, Coming::Snapshot(Some(marks))) => kept_from(path, marks),
        (Format::Zip, _) => Some(instead("a snapshot", coming)),
        (Format::Mender, Coming::Artifact) => None,
        (Format::Mender, _) => Some(instead("a Mender artifact", coming)),
        (_, _) => match (Image::read(opened, Any::No), coming) {
            (Err(error), _) if no_image(&error) => Some("is there and is no image".into()),
            (Err(_), _) => None,
            (Ok(_), Coming::Image(_)) => None,
            (Ok(_), _) => Some(instead("an image", coming)),
        },
    };
    match what {
        Some(what) => Err(refusal(path, &what)),
        None => Ok(()),
    }
}

/// Why the snapshot there is kept from one with these marks.
fn kept_from(path: &Path, marks: Marks) -> Option<String> {
    let there = Kept::look(path.to_owned()).marks();
    (!marks.covers(there)).then(|| {
        let (there, comes) = (there.name(), marks.name());
        format!("is there and is {there}, which is kept: what comes is {comes}")
    })
}

/// A snapshot that comes from elsewhere for a file: what it may replace is judged by what it says of itself, once its beginning is there.
pub(crate) struct Arriving {
    path: PathBuf,
    /// Its beginning, until it was judged.
    first: Vec<u8>,
    is_judged: bool,
}

impl Arriving {
    /// For this file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            first: Vec::new(),
            is_judged: false,
        }
    }

    /// Its next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        // A beginning that is longer is none.
        if self.is_judged || self.first.len() > 2 * json::MAX_BYTES {
            return Ok(());
        }
        self.first.extend_from_slice(bytes);
        let Some(snapshot) = archive::told(&self.first) else {
            return Ok(());
        };
        (self.is_judged, self.first) = (true, Vec::new());
        check(&self.path, Coming::Snapshot(Some(snapshot.marks())))
    }

    /// All of it has come.
    pub(crate) fn end(&self) -> Result<()> {
        match self.is_judged {
            true => Ok(()),
            false => check(&self.path, Coming::Snapshot(Some(Marks::default()))),
        }
    }
}

fn instead(is: &str, coming: Coming) -> String {
    format!("is there and is {is}, not {}", coming.name())
}

fn refusal(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::refused(format_args!("{path}: {what}; --overwrite replaces it"))
        .leaving("nothing was written")
}

/// Whether the first file of a zip archive is a snapshot's: its name stands behind a local header of 30 bytes (APPNOTE 4.3.7).
fn begins_a_snapshot(path: &Path) -> bool {
    let mut head = [0; 43];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head.ends_with(b"snapshot.json")
}

/// A file of its own must not be taken for the first of pieces that lie there.
fn refuse_beside_pieces(path: &Path) -> Result<()> {
    let stem = path.with_extension("");
    let is_first = piece(&stem, 1) == path;
    match there(&stem).into_iter().find(|other| other != path) {
        Some(other) if is_first => Err(Error::refused(format_args!(
            "{}: {} is there, and would be taken for a piece of it; move that, or take another name; --overwrite writes it all the same",
            path.display(),
            other.display()
        ))
        .leaving("nothing was written")),
        _ => Ok(()),
    }
}

/// Whatever bears the name of a piece of `path`.
fn there(path: &Path) -> Vec<PathBuf> {
    let names = (1..=partfile::MOST_PIECES).map(|number| piece(path, number));
    names
        .filter(|name| name.symlink_metadata().is_ok())
        .collect()
}

/// The same of all that bears the name of a piece of `path`: it must be one older set, without a gap, or `overwrite` be given. Gives
/// what is there, all of which goes.
pub(crate) fn check_pieces(path: &Path, coming: Coming, overwrite: bool) -> Result<Vec<PathBuf>> {
    let there = there(path);
    let lengths: Vec<u64> = there
        .iter()
        .map(|piece| {
            let meta = piece.symlink_metadata().ok();
            let meta = meta.filter(std::fs::Metadata::is_file);
            meta.map_or(0, |meta| meta.size())
        })
        .collect();
    if let Some(name) = there
        .iter()
        .find(|name| name.is_dir() && !name.is_symlink())
    {
        return Err(Error::refused(format_args!(
            "{}: is a folder, and has the name of a piece; move it",
            name.display()
        ))
        .leaving("nothing was written"));
    }
    let (Some(first), Some(last), false) = (there.first(), there.last(), overwrite) else {
        return Ok(there);
    };
    // None stands behind a gap; and no link, no notes: pieces are of one size, but for the last.
    let mut wanted = (1..).map(|number| piece(path, number));
    let odd = there
        .iter()
        .find(|name| wanted.next().as_ref() != Some(name));
    let piece_bytes = lengths.first().copied().unwrap_or(0);
    let before = lengths.len().saturating_sub(1);
    let mut sizes = there.iter().zip(&lengths).enumerate();
    let fits = |place, length| length == piece_bytes || place == before && length < piece_bytes;
    let odd = odd.or_else(|| {
        let odd = sizes.find(|(place, (_, length))| **length == 0 || !fits(*place, **length));
        odd.map(|(_, (name, _))| name)
    });
    match odd {
        Some(name) => Err(no_piece(name)),
        None if check_set(first, &there, &lengths, coming)? => Ok(there),
        None => Err(no_piece(last)),
    }
}

fn no_piece(name: &Path) -> Error {
    refusal(
        name,
        "is there, has the name of a piece, and is no piece of an older image, or not of all of it",
    )
}

/// Whether what looks like a set is one: an older image of the kind that comes, which ends in its last piece and not before.
fn check_set(first: &Path, there: &[PathBuf], lengths: &[u64], coming: Coming) -> Result<bool> {
    let Ok(opened) = OpenedImage::look(first.as_os_str()) else {
        return Ok(false);
    };
    let Ok(image) = Image::read(opened, Any::No) else {
        return Err(refusal(first, "is there and is no image"));
    };
    let Coming::Image(format) = coming else {
        return Ok(false);
    };
    let is_gzip = image.reader.format() == Format::Gzip;
    if is_gzip != (format == Format::Gzip) {
        let is = match is_gzip {
            true => "the first piece of an image packed with gzip",
            false => "the first piece of a raw image",
        };
        return Err(refusal(first, &instead(is, coming)));
    }
    let Some((_, before)) = lengths.split_last() else {
        return Ok(true);
    };
    if !is_gzip {
        return Ok(before.is_empty()
            || before
                .iter()
                .fold(0, |sum: u64, length| sum.saturating_add(*length))
                < image.content.least_bytes());
    }
    let begins = |name: &PathBuf| {
        let mut magic = [0; 3];
        let read = File::open(name).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && gzip::HEADER.starts_with(&magic)
    };
    Ok(!there.iter().skip(1).any(begins) && ends_packed(there, lengths))
}

/// Whether files, one behind the other, end as our gzip does: with an empty last block before checksum and length.
fn ends_packed(there: &[PathBuf], lengths: &[u64]) -> bool {
    let wanted = FINAL_BLOCK.len().saturating_add(8);
    let mut tail: Vec<u8> = Vec::new();
    for (name, length) in there.iter().zip(lengths).rev() {
        let missing = crate::units::to_u64(wanted.saturating_sub(tail.len()));
        let count = missing.min(*length);
        let mut bytes = vec![0; crate::units::to_usize(count)];
        let read = File::open(name).and_then(|file| file.read_exact_at(&mut bytes, length - count));
        if read.is_err() {
            return false;
        }
        bytes.append(&mut tail);
        tail = bytes;
    }
    tail.len() == wanted && tail.starts_with(&FINAL_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing;

    #[test]
    fn a_snapshot_that_is_kept_goes_only_for_one_that_is_kept_as_the_same() {
        let folder = std::env::temp_dir().join(format!("floe-replace-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("x.zip");
        let all = [(false, false), (true, false), (false, true), (true, true)];
        let all = all.map(|(factory, rescue)| Marks { factory, rescue });
        for (at, there) in all.into_iter().enumerate() {
            let bytes = testing::marked(there);
            // One that was cut is kept as well: it still says what it is.
            std::fs::write(&path, &bytes[..bytes.len() - at]).unwrap();
            for comes in all {
                let may = (!there.factory || comes.factory) && (!there.rescue || comes.rescue);
                let said = check(&path, Coming::Snapshot(Some(comes)));
                assert_eq!(said.is_ok(), may, "{there:?} {comes:?}");
                // The same of what arrives, in whatever pieces, and before the end of it.
                let bytes = testing::marked(comes);
                for size in [1, 100, 1 << 20] {
                    let mut arriving = Arriving::new(path.clone());
                    let mut pieces = bytes[..bytes.len() - 200].chunks(size);
                    let taken = pieces.try_for_each(|piece| arriving.take(piece));
                    assert!(arriving.is_judged);
                    assert_eq!(taken.is_ok(), may, "{there:?} {comes:?}");
                    if let Err(error) = taken {
                        let error = error.to_string();
                        assert!(error.contains(there.name()), "{error}");
                        assert!(error.contains("which is kept"), "{error}");
                        assert!(error.contains("--overwrite replaces it"), "{error}");
                    }
                }
                check(&path, Coming::Snapshot(None)).unwrap();
            }
            // What does not say what it is replaces what anything may replace.
            let mut arriving = Arriving::new(path.clone());
            arriving.take(b"PK").unwrap();
            assert_eq!(arriving.end().is_ok(), !there.any());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
