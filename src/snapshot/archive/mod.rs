//! A snapshot that is read: through its directory where it is a file ([`Catalog`]), or forwards, once ([`Bundle`]).
//!
//! Both believe the archive only as far as it is exactly what `snapshot.json` in front says and `checksums.json` at the end
//! confirms: the same entries in the same order with the same sizes, nothing more and nothing less.

mod beginning;
mod bundle;
mod catalog;

pub(crate) use self::beginning::{Claim, begins_so, claim, claim_of};
pub use self::beginning::{beginning, open_file};
pub use self::bundle::Bundle;
pub use self::catalog::Catalog;
use crate::content;
use crate::error::{Error, Exit, Fault, Result};
use crate::json;
use crate::snapshot::{Checksum, SNAPSHOT, Snapshot};
use crate::stream::zip::{self, EntrySums};
use crate::units::to_u64;

/// Largest partition table or boot area in bytes: they are held in memory.
const MAX_DISK_BYTES: u64 = 64 << 20;

/// A local header (APPNOTE 4.3.7) and the name of the first entry.
const FIRST_BYTES: usize = 30 + SNAPSHOT.len();

/// How much of the beginning is looked at, in bytes: in it a newer floe says of itself that it is one.
const HEAD_BYTES: usize = 64 << 10;

/// Whether a file that begins so is a snapshot, of a format that is known here: what a newer floe made may be laid out in other ways.
fn check_first(subject: &str, head: &[u8]) -> Result<()> {
    if !zip::begins_so(head) {
        let what = match head.starts_with(&[0x1f, 0x8b]) {
            true => "a gzip file, as dump makes them",
            false => content::foreign(head).unwrap_or("no zip archive"),
        };
        return Err(Error::corrupt(format_args!(
            "{subject}: is {what}, and no snapshot"
        )));
    }
    let Some(first) = head.get(..FIRST_BYTES) else {
        return Ok(());
    };
    if !first.ends_with(SNAPSHOT.as_bytes()) {
        return Err(not_ours(subject));
    }
    match zip::first_text(head).map(Snapshot::from_json) {
        Some(Err(fault)) if fault.exit() == Exit::Refused => {
            Err(entry_error(subject, SNAPSHOT, fault))
        }
        _ => Ok(()),
    }
}

fn not_ours(subject: &str) -> Error {
    Error::corrupt(format_args!(
        "{subject}: a zip archive, but not a snapshot of floe: {SNAPSHOT} does not come first; an image in it: unzip -p FILE NAME | floe restore - TARGET"
    ))
}

/// The line for a fault in an entry of a snapshot.
pub fn entry_error(subject: &str, path: &str, fault: Fault) -> Error {
    Error::input(format_args!("{subject}: {path}"), fault)
}

/// Whether `checksums.json` says of an entry what was found.
fn same(checksum: &Checksum, path: &str, sums: EntrySums) -> bool {
    checksum.path == path
        && checksum.size_bytes == sums.raw_bytes
        && checksum.stored_bytes == sums.stored_bytes
        && checksum.crc32 == sums.crc32
}

/// The size an entry must have, or a bound for the texts whose size is theirs alone.
fn size_of(snapshot: &Snapshot, path: &str, stored_bytes: u64) -> std::result::Result<u64, Fault> {
    match snapshot.entry_bytes(path) {
        Some(bytes) => Ok(bytes),
        None if stored_bytes <= to_u64(json::MAX_BYTES) => Ok(stored_bytes),
        None => Err(Fault::corrupt("size of a text of the snapshot")),
    }
}

fn corrupt(what: &'static str, offset: u64) -> Fault {
    Fault::corrupt(what).with_offset(offset)
}
