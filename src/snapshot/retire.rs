//! Which of the snapshots that are kept make room for a new one.

use std::path::Path;

use crate::snapshot::Snapshot;
use crate::snapshot::kept::{Condition, Kept};
use crate::snapshot::store::Class;

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
    let kept = Kept::look_in_store(path.to_owned());
    let Some(kept) = kept.filter(|kept| kept.stays().is_none()) else {
        return Class::Kept;
    };
    let consistent = kept.checksums.as_ref().map(|sums| sums.consistent.as_str());
    match (&kept.snapshot, kept.state) {
        (_, Condition::Foreign) => Class::Kept,
        (Some(found), _) if !like.is_like(found, consistent) => Class::Kept,
        (_, Condition::Complete) => Class::Good,
        _ => Class::Broken,
    }
}
