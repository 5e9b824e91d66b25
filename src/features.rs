//! What this executable was built with: cargo's features, as busybox has them. What is left out is refused by name, or read whole.
//!
//! Each is a constant and not a `cfg`: everything is compiled, and so checked, in every set; what no constant lets through is left
//! out by the linker.

/// `pull`, `push`, `artifact`, and `list` of a board: what runs on a host.
pub(crate) const HOST: bool = cfg!(feature = "host");
/// `clone`, and a medium laid anew.
pub(crate) const CLONE: bool = cfg!(feature = "clone");
/// `create`, `list`, `delete`, and what other verbs know of snapshots.
pub(crate) const SNAPSHOTS: bool = cfg!(feature = "snapshots");
/// What two floes say to each other.
pub(crate) const FRAMES: bool = cfg!(feature = "frames");
/// Most is read before the freeze.
pub(crate) const PRECOPY: bool = cfg!(feature = "precopy");
/// Files that come out empty.
pub(crate) const GOLDEN: bool = cfg!(feature = "golden");
/// Mender's artifacts as images, and floe under the names that Mender's tools call.
pub(crate) const MENDER: bool = cfg!(feature = "mender");
/// The used blocks of XFS, its growth and its uuid.
pub(crate) const XFS: bool = cfg!(feature = "xfs");
/// The used blocks of btrfs, and its growth.
pub(crate) const BTRFS: bool = cfg!(feature = "btrfs");
/// The used blocks of f2fs.
pub(crate) const F2FS: bool = cfg!(feature = "f2fs");
/// The used clusters of FAT, and its serial number.
pub(crate) const FAT: bool = cfg!(feature = "fat");

struct Feature {
    name: &'static str,
    is_there: bool,
    /// The verbs and options that it brings, and the filesystem as the kernel calls it.
    words: &'static [&'static str],
    /// What is said where it is missed.
    without: &'static str,
}

const fn feature(
    name: &'static str,
    is_there: bool,
    words: &'static [&'static str],
    without: &'static str,
) -> Feature {
    Feature {
        name,
        is_there,
        words,
        without,
    }
}

const FEATURES: &[Feature] = &[
    feature(
        "host",
        HOST,
        &["pull", "push", "artifact"],
        "this floe was built without what reaches other machines",
    ),
    feature(
        "clone",
        CLONE,
        &["clone"],
        "this floe was built without clone",
    ),
    feature(
        "snapshots",
        SNAPSHOTS,
        &["create", "list", "delete", "kept", ".zip"],
        "this floe was built without snapshots",
    ),
    feature(
        "frames",
        FRAMES,
        &["--frames", "--frames-known"],
        "this floe was built without frames",
    ),
    // Without it every source is read while it is frozen, as with --precopy off.
    feature("precopy", PRECOPY, &[], ""),
    feature(
        "golden",
        GOLDEN,
        &["--golden", "--empty", "--identity"],
        "this floe was built without golden images",
    ),
    feature(
        "mender",
        MENDER,
        &[".mender"],
        "this floe was built without Mender artifacts",
    ),
    feature("xfs", XFS, &["xfs"], "this floe was built without XFS"),
    feature(
        "btrfs",
        BTRFS,
        &["btrfs"],
        "this floe was built without btrfs",
    ),
    feature("f2fs", F2FS, &["f2fs"], "this floe was built without f2fs"),
    feature("fat", FAT, &["vfat"], "this floe was built without FAT"),
];

/// The names of what is there, for `--version`.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    let there = FEATURES.iter().filter(|feature| feature.is_there);
    there.map(|feature| feature.name)
}

/// What is said where this verb, option or filesystem was left out; `.zip` stands for a
/// snapshot, `.mender` for an artifact.
pub(crate) fn without(word: &str) -> Option<&'static str> {
    let mut missing = FEATURES.iter().filter(|feature| !feature.is_there);
    let found = missing.find(|feature| feature.words.contains(&word))?;
    Some(found.without)
}
