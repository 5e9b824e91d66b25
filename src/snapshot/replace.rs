//! What `-o` replaces without being told to: an image an image, a snapshot a snapshot, a Mender artifact an artifact. Anything else was
//! hardly meant. A snapshot that is to be kept goes only for one that is to be kept as the same: a factory snapshot for a factory
//! snapshot, a rescue snapshot for a rescue snapshot. What a newer floe made may be one of them, and so does not go; nor may they for it.
//!
//! One rule for every verb that writes a file. Of which filesystem or entries it is, is not asked, scripts use one name for many; nor
//! whether it is whole, as what was cut is what is best replaced, as long as it still says what it is.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Exit, Result};
use crate::snapshot::Marks;
use crate::snapshot::archive::{self, Claim};
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
    /// A snapshot of which nothing is known but that a newer floe made it.
    Newer,
    /// A Mender artifact.
    Artifact,
}

impl Coming {
    fn name(self) -> &'static str {
        match self {
            Self::Image(Format::Raw) => "a raw image",
            Self::Image(_) => "an image packed with gzip",
            Self::Snapshot(_) => "a snapshot",
            Self::Newer => "a snapshot of a newer floe",
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
        Err(error) => return Err(unread(path, &error)),
    };
    let what = match (opened.format, coming) {
        // Zip archives of others (documents, programs) are not ours.
        (Format::Zip, _) if !archive::begins_so(path) => Some("is there and is no image".into()),
        (Format::Zip, Coming::Snapshot(None)) => None,
        (Format::Zip, Coming::Snapshot(Some(marks))) => kept_from(path, marks, marks.name())?,
        (Format::Zip, Coming::Newer) => kept_from(path, Marks::default(), coming.name())?,
        (Format::Zip, _) => Some(instead("a snapshot", coming)),
        (Format::Mender, Coming::Artifact) => None,
        (Format::Mender, _) => Some(instead("a Mender artifact", coming)),
        (_, _) => match (Image::read(opened, Any::No), coming) {
            (Err(error), _) if no_image(&error) => Some("is there and is no image".into()),
            (Err(error), _) if error.exit() == Some(Exit::Failed) => {
                return Err(unread(path, &error));
            }
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

/// Why the snapshot there is kept from what comes, which has these marks.
fn kept_from(path: &Path, marks: Marks, comes: &str) -> Result<Option<String>> {
    let claim = archive::claim_of(path).map_err(|error| unread(path, &error))?;
    Ok(match claim {
        Claim::Marks(there) if !marks.covers(there) => Some(format!(
            "is there and is {}, which is kept: what comes is {comes}",
            there.name()
        )),
        Claim::Newer => Some(
            "is there and is a snapshot of a newer floe, which may be one to be kept".to_owned(),
        ),
        Claim::NotYet | Claim::Nothing => {
            Some("is there and is a damaged snapshot, which may be one to be kept".to_owned())
        }
        Claim::Marks(_) => None,
    })
}

/// Of what cannot be read nobody knows whether it is to be kept; why may as well be a limit of ours as the disk.
fn unread(path: &Path, error: &Error) -> Error {
    let (text, subject) = (error.to_string(), format!("{}: ", path.display()));
    let why = text.strip_prefix(&subject).unwrap_or(&text);
    refusal(path, &format!("is there and cannot be read ({why})")).with_exit(Exit::Failed)
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
        if self.is_judged {
            return Ok(());
        }
        self.first.extend_from_slice(bytes);
        let coming = match archive::claim(&self.first) {
            Claim::NotYet => return Ok(()),
            Claim::Marks(marks) => Coming::Snapshot(Some(marks)),
            Claim::Newer => Coming::Newer,
            Claim::Nothing => Coming::Snapshot(Some(Marks::default())),
        };
        (self.is_judged, self.first) = (true, Vec::new());
        check(&self.path, coming)
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
    let no_image = |error: Error| match error.exit() {
        Some(Exit::Failed) => unread(first, &error),
        _ => refusal(first, "is there and is no image"),
    };
    let opened = OpenedImage::look(first.as_os_str()).map_err(no_image)?;
    let image = Image::read(opened, Any::No).map_err(no_image)?;
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
    Ok(!there.iter().skip(1).any(begins) && ends_packed(there, lengths)?)
}

/// Whether files, one behind the other, end as our gzip does: with an empty last block before checksum and length.
fn ends_packed(there: &[PathBuf], lengths: &[u64]) -> Result<bool> {
    let wanted = FINAL_BLOCK.len().saturating_add(8);
    let mut tail: Vec<u8> = Vec::new();
    for (name, length) in there.iter().zip(lengths).rev() {
        let missing = crate::units::to_u64(wanted.saturating_sub(tail.len()));
        let count = missing.min(*length);
        let mut bytes = vec![0; crate::units::to_usize(count)];
        let read = File::open(name).and_then(|file| file.read_exact_at(&mut bytes, length - count));
        read.map_err(|error| unread(name, &Error::failed(error)))?;
        bytes.append(&mut tail);
        tail = bytes;
    }
    Ok(tail.len() == wanted && tail.starts_with(&FINAL_BLOCK))
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

    #[test]
    fn what_a_newer_floe_made_neither_goes_nor_takes_the_place_of_what_is_kept() {
        let folder = std::env::temp_dir().join(format!("floe-newer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("x.zip");
        let newer = testing::newer();
        let all = [(false, false), (true, false), (false, true), (true, true)];
        let all = all.map(|(factory, rescue)| Marks { factory, rescue });
        // Whatever comes, and also where it was cut behind what says it.
        for length in [newer.len(), newer.len() - 200] {
            std::fs::write(&path, &newer[..length]).unwrap();
            let coming = all.map(|marks| Coming::Snapshot(Some(marks)));
            for coming in coming.into_iter().chain([Coming::Newer]) {
                let error = check(&path, coming).unwrap_err();
                assert_eq!(error.exit(), Some(Exit::Refused));
                let error = error.to_string();
                for part in [
                    "x.zip: is there and is a snapshot of a newer floe, which may be one to be kept",
                    "; --overwrite replaces it",
                ] {
                    assert!(error.contains(part), "{error}");
                }
            }
        }
        check(&path, Coming::Snapshot(None)).unwrap();
        for there in all {
            std::fs::write(&path, testing::marked(there)).unwrap();
            for size in [1, 100, 1 << 20] {
                let mut arriving = Arriving::new(path.clone());
                // Long before its end.
                let mut pieces = newer[..newer.len() - 200].chunks(size);
                let taken = pieces.try_for_each(|piece| arriving.take(piece));
                assert!(arriving.is_judged);
                assert_eq!(taken.is_ok(), !there.any(), "{there:?}");
                if let Err(error) = taken {
                    let error = error.to_string();
                    let comes = "which is kept: what comes is a snapshot of a newer floe";
                    assert!(error.contains(comes), "{error}");
                }
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_beginning_that_says_nothing_is_held_no_longer_than_it_may() {
        let folder = std::env::temp_dir().join(format!("floe-says-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("x.zip");
        let whole = testing::marked(Marks::default());
        let changed = |at: usize, bytes: &[u8]| {
            let mut broken = whole.clone();
            broken[at..at + bytes.len()].copy_from_slice(bytes);
            broken
        };
        // The fields are at the offsets of APPNOTE 4.3.7; each with the number of bytes after which it is clear.
        let text =
            43 + usize::try_from(u32::from_le_bytes(whole[22..26].try_into().unwrap())).unwrap();
        for (what, bytes, clear) in [
            ("no archive", vec![0; 4096], 43),
            ("another name", changed(30, b"x"), 43),
            ("another method", changed(8, &[8]), text),
            ("another checksum", changed(14, b"abcd"), text),
            ("broken text", changed(50, b"\0"), text),
            ("too long", changed(22, &[0, 0, 0x20, 0]), 43),
            ("streamed", changed(22, &[0xff; 4]), 43),
        ] {
            for marks in [
                Marks::default(),
                Marks {
                    factory: true,
                    rescue: false,
                },
            ] {
                std::fs::write(&path, testing::marked(marks)).unwrap();
                let mut arriving = Arriving::new(path.clone());
                let (before, last) = bytes[..clear].split_at(clear - 1);
                before
                    .chunks(1)
                    .for_each(|byte| arriving.take(byte).unwrap());
                assert!(!arriving.is_judged, "{what}");
                // It replaces what anything may replace.
                assert_eq!(arriving.take(last).is_ok(), !marks.any(), "{what}");
                assert!(arriving.is_judged && arriving.first.is_empty(), "{what}");
                arriving.take(&bytes).unwrap();
                assert!(arriving.first.is_empty(), "{what}");
            }
        }
        // The longest text there may be is waited for, and looked at when it is there.
        let mut long = changed(22, &0x10_0000u32.to_le_bytes());
        long.resize(text + 0x20_0000, b' ');
        let mut arriving = Arriving::new(folder.join("none.zip"));
        let mut taken = 0;
        for byte in long.chunks(1) {
            arriving.take(byte).unwrap();
            taken += usize::from(!arriving.is_judged);
        }
        assert_eq!(taken, 43 + 0x10_0000 - 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
