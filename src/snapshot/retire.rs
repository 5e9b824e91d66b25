//! Which of the snapshots that are kept make room for a new one.

use std::path::Path;

use crate::error::Exit;
use crate::snapshot::Snapshot;
use crate::snapshot::archive::{Catalog, beginning, begins_so};
use crate::snapshot::store::{Class, open_kept};

/// The snapshot for which old ones retire. One of other entries or sources is no older state of it; nor is a consistent one of what
/// was read moving, or a whole one of what was emptied.
pub(crate) struct Like<'a> {
    /// What it says of itself.
    pub snapshot: &'a Snapshot,
    /// The report's word for how its sources were held.
    pub consistent: &'a str,
}

impl Like<'_> {
    fn is_like(&self, other: &Snapshot, consistent: Option<&str>) -> bool {
        let entries = |snapshot: &Snapshot| {
            let images = snapshot.images.iter();
            let mut entries: Vec<_> = images.map(|i| (i.name.clone(), i.source.clone())).collect();
            crate::units::sort(&mut entries, |a, b| a < b);
            entries
        };
        let emptied = |snapshot: &Snapshot| (snapshot.golden, snapshot.empty.clone());
        let disk = |snapshot: &Snapshot| snapshot.disk.as_ref().map(|disk| disk.device.clone());
        let is_live = |consistent: &str| consistent == "live";
        entries(self.snapshot) == entries(other)
            && emptied(self.snapshot) == emptied(other)
            && disk(self.snapshot) == disk(other)
            && consistent.is_none_or(|held| is_live(held) == is_live(self.consistent))
    }
}

/// What a kept snapshot is when old ones retire; contents are not read. Only what is `like` the new one is counted and may go.
pub(crate) fn class(path: &Path, like: &Like) -> Class {
    let stays = |snapshot: &Snapshot, consistent: Option<&str>| {
        snapshot.marks().any() || !like.is_like(snapshot, consistent)
    };
    if !std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Class::Foreign;
    }
    match Catalog::open_kept(path) {
        Ok(found) if stays(&found.snapshot, Some(&found.checksums.consistent)) => Class::Kept,
        Ok(_) => Class::Good,
        // What a newer floe made is not ours to judge, and so not to remove.
        Err(error) if error.exit() == Some(Exit::Refused) => Class::Kept,
        // Whatever says of itself that it is to be kept is kept, broken or not. Of what cannot be read, or is damaged where it says what
        // it is, nobody knows.
        Err(error) => match beginning(path, open_kept) {
            Some(snapshot) if stays(&snapshot, None) => Class::Kept,
            None if error.exit() == Some(Exit::Failed) || begins_so(path) => Class::Kept,
            _ => Class::Broken,
        },
    }
}
