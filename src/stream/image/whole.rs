//! Whether an image that was read is one, and whole: the rule of [`content`](crate::content), and the lines where it says no.

use std::path::{Path, PathBuf};

use crate::content::{Content, Seen, SeenAt};
use crate::error::{Cause, Error, Fault, Result};
use crate::stream::copy::Ended;
use crate::stream::partfile;

/// Whether bytes that show no image are taken for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Any {
    /// No: they are corrupt input.
    #[default]
    No,
    /// The stream says that it is a copy of something as it is, and that is believed; before it was read the same as [`Any::No`].
    AsItIs,
    /// No, even where the stream says so: what is made of it could not say it again.
    Never,
    /// `--any-content` was given.
    Yes,
}

/// An image that ended must be whole: the rule is [`Content::judge`].
pub(super) fn check_end(
    subject: &str,
    any: Any,
    content: &Content,
    head: &[u8],
    ended: &Ended,
) -> Result<()> {
    match any {
        Any::Yes => return Ok(()),
        Any::AsItIs => return check_alone(subject, ended),
        Any::No | Any::Never => {}
    }
    // Appended with >> to an older one: what came back would be the older one.
    let mut seen = ended.seen.iter();
    let second = seen.find_map(|seen| Some((content.second(ended.size_bytes, seen)?, seen)));
    if let Some((what, seen)) = second {
        return Err(appended(subject, &what, seen, &ended.seen));
    }
    let word = content.judge(head, ended.size_bytes, &ended.tail);
    let cut = content.cut_off(ended.size_bytes);
    word.map_err(|what| match cut {
        Some(_) => cut_off(subject, any, &what),
        None => not_an_image(subject, &what),
    })?;
    check_partitions(subject, &ended.seen)
}

/// No dump makes such a one, but with --whole, and then says so.
pub(super) fn check_partitions(subject: &str, seen: &[Seen]) -> Result<()> {
    match seen.iter().find_map(Seen::too_large) {
        Some(what) => Err(not_an_image(subject, &what)),
        None => Ok(()),
    }
}

/// A copy of something as it is was written in one go, as one member: what follows was appended, whatever it is.
fn check_alone(subject: &str, ended: &Ended) -> Result<()> {
    let is_more = |seen: &Seen| matches!(seen.place, SeenAt::Member(_)) && !seen.bytes.is_empty();
    match ended.seen.iter().find(|seen| is_more(seen)) {
        None => Ok(()),
        Some(seen) => Err(appended(
            subject,
            &format!(
                "holds something else behind the copy that ends at byte {}: was it appended with >>?",
                seen.offset
            ),
            seen,
            &ended.seen,
        )),
    }
}

/// What follows the image came with >>, or as a file that has the name of a piece.
fn appended(subject: &str, what: &str, second: &Seen, all: &[Seen]) -> Error {
    let place_of = |seen: &Seen| match seen.place {
        SeenAt::Member(place) => Some(place),
        _ => (!seen.is_packed).then_some(seen.offset),
    };
    let same = all.iter().filter(|seen| seen.offset == second.offset);
    let piece = same
        .filter_map(place_of)
        .find_map(|begin| surplus_piece(subject, begin));
    piece.unwrap_or_else(|| not_an_image(subject, what))
}

pub(super) fn not_an_image(subject: &str, what: &str) -> Error {
    let help = piece_of_another(subject);
    let help = help.unwrap_or_else(|| "; --any-content takes it as it is".into());
    Error::corrupt(format_args!("{subject}: {what}{help}"))
}

/// There is nothing at all.
pub(crate) fn image_is_empty(subject: &str) -> Error {
    Error::corrupt(format_args!("{subject}: the image is empty"))
}

/// What is an image, and not all of it.
pub(super) fn cut_off(subject: &str, any: Any, what: &str) -> Error {
    let help = match (piece_of_another(subject), missing_piece(subject)) {
        (Some(help), _) => help,
        (None, missing) if missing.is_empty() => match any {
            Any::Never => "; bring the whole file, or --any-content takes it as it is",
            _ => "; bring the whole file",
        }
        .into(),
        (None, missing) => missing,
    };
    Error::corrupt(format_args!("{subject}: {what}{help}"))
}

/// What helps where a later piece of `--split` was named.
fn piece_of_another(subject: &str) -> Option<String> {
    let first = partfile::first_of(Path::new(subject))?;
    Some(format!(
        "; it is a piece of an image: name the first one, {}, with all the others beside it",
        first.display()
    ))
}

/// Of pieces of `--split` whose image ends where one of them begins: that this one is none.
fn surplus_piece(subject: &str, offset: u64) -> Option<Error> {
    let (piece, begin) = piece_at(subject, offset)?;
    let piece = piece.display();
    (begin == offset).then(|| {
        Error::corrupt(format_args!(
            "{piece}: has the name of a piece of {subject}, and is none: the image ends before it; move it"
        ))
    })
}

/// Of several pieces the one in which that byte of the image lies, and where it begins.
fn piece_at(subject: &str, offset: u64) -> Option<(PathBuf, u64)> {
    let stem = Path::new(subject.strip_suffix(".001")?);
    let mut begin = 0u64;
    for number in 1..=partfile::MOST_PIECES {
        let piece = partfile::piece(stem, number);
        let length = std::fs::metadata(&piece).ok()?.len();
        let end = begin.checked_add(length)?;
        if offset < end {
            let is_one_of_many = number > 1 || partfile::piece(stem, 2).exists();
            return is_one_of_many.then_some((piece, begin));
        }
        begin = end;
    }
    None
}

/// What stands behind the gzip stream in pieces of `--split`.
fn behind_pieces(subject: &str, fault: Fault) -> Option<Error> {
    let offset = fault.offset().filter(|_| fault.is(Cause::Behind))?;
    let (piece, begin) = piece_at(subject, offset)?;
    let stem = subject.strip_suffix(".001")?;
    surplus_piece(subject, offset).or_else(|| {
        Some(Error::corrupt(format_args!(
            "{subject}: data after the end of the gzip stream, from byte {} of {} on; 'cat {stem}.[0-9][0-9][0-9] | zcat | floe restore - TARGET' takes what is in front of it",
            offset - begin,
            piece.display()
        )))
    })
}

/// Of pieces of `--split` that end early: the one that would come next.
fn missing_piece(subject: &str) -> String {
    let stem = subject.strip_suffix(".001").unwrap_or_default();
    let mut next =
        (2..=partfile::MOST_PIECES).map(|number| partfile::piece(Path::new(stem), number));
    match next.find(|piece| !stem.is_empty() && !piece.exists()) {
        Some(piece) => format!("; {}, which would be next, is not there", piece.display()),
        None => String::new(),
    }
}

/// The line for a fault of the image itself: what is not ours to read is exit 3, like what is corrupt.
pub(crate) fn image_error(subject: &str, fault: Fault) -> Error {
    if let Some(error) = behind_pieces(subject, fault) {
        return error;
    }
    match fault.is(Cause::EndsEarly) {
        true => {
            let missing = missing_piece(subject);
            Error::with(fault.exit(), format_args!("{subject}: {fault}{missing}"))
        }
        false => Error::input(subject, fault),
    }
}
