//! What a snapshot says of itself at its beginning, whatever became of the rest.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Bundle, FIRST_BYTES};
use crate::device::{Access, Device, DeviceKind, limited};
use crate::error::{Error, Exit, Fault, Result};
use crate::json;
use crate::snapshot::{Marks, SNAPSHOT, Snapshot};
use crate::stream::input::Input;
use crate::stream::zip;
use crate::units::to_u64;

/// Most bytes up to the end of the first text: its header, name and extra field, and the longest text that is read.
const MAX_CLAIM_BYTES: usize = (128 << 10) + json::MAX_BYTES;

/// Opens what the user named: only a regular file, and without waiting for anybody.
pub fn open_file(path: &Path) -> Result<File> {
    let fail = |fault| Error::fault(path.display(), fault);
    let device = Device::open(path, Access::Read).map_err(fail)?;
    match device.kind() {
        DeviceKind::File => device.duplicate().map_err(fail),
        DeviceKind::Block => Err(fail(Fault::refused("is a device, not a file"))),
    }
}

/// Whether the first file of a zip archive is a snapshot's: its name stands behind a local header of 30 bytes (APPNOTE 4.3.7).
pub(crate) fn begins_so(path: &Path) -> bool {
    let mut head = [0; FIRST_BYTES];
    let read = open_file(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok());
    read && head.ends_with(SNAPSHOT.as_bytes())
}

/// What a snapshot says about itself, even when the rest of it is broken; opened by [`open_file`] or [`open_kept`].
pub fn beginning(path: &Path, open: fn(&Path) -> Result<File>) -> Option<Snapshot> {
    let input = Input::file(open(path).ok()?, None).ok()?;
    Some(
        Bundle::open(&path.display().to_string(), input)
            .ok()?
            .snapshot,
    )
}

/// What the beginning of a snapshot says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Not all of it is there.
    NotYet,
    /// As what it is to be kept.
    Marks(Marks),
    /// That a newer floe made it: what else it says is not known here.
    Newer,
    /// Nothing, however much follows: it is none, or damaged.
    Nothing,
}

/// What the bytes from the first on say. Only the header is looked at until all of the text is there, and the text once.
pub(crate) fn claim(head: &[u8]) -> Claim {
    let Some(first) = head.get(..FIRST_BYTES) else {
        return Claim::NotYet;
    };
    let range = zip::first_range(head).filter(|_| first.ends_with(SNAPSHOT.as_bytes()));
    match range {
        Some(range) if range.end > MAX_CLAIM_BYTES => Claim::Nothing,
        Some(range) if range.end > head.len() => Claim::NotYet,
        Some(_) => match zip::first_text(head).map(Snapshot::from_json) {
            Some(Ok(snapshot)) => Claim::Marks(snapshot.marks()),
            Some(Err(fault)) if fault.exit() == Exit::Refused => Claim::Newer,
            _ => Claim::Nothing,
        },
        None => Claim::Nothing,
    }
}

/// The same of a file, of which no more is read than that.
pub(crate) fn claim_of(path: &Path) -> Result<Claim> {
    let mut file = open_file(path)?;
    let mut head = Vec::new();
    let read = limited(&mut file, to_u64(MAX_CLAIM_BYTES)).read_to_end(&mut head);
    read.map_err(|error| Error::std(path.display(), "read", &error))?;
    Ok(claim(&head))
}
