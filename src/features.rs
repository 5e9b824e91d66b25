//! What this executable was built with: cargo's features, as busybox has them. What is left out is refused by name, or read whole.
//!
//! Each is a constant and not a `cfg`: everything is compiled, and so checked, in every set; what no constant lets through is left
//! out by the linker.

/// A feature's name, and whether it is there.
struct Feature {
    name: &'static str,
    is_there: bool,
    /// The verbs that it brings.
    verbs: &'static [&'static str],
    /// What is said where it is missed.
    without: &'static str,
}

/// `pull`, `push`, `artifact`, and `list` of a board: what runs on a host.
pub const HOST: bool = cfg!(feature = "host");
/// `clone`, and a medium laid anew.
pub const CLONE: bool = cfg!(feature = "clone");
/// `create`, `list`, `delete`, and what other verbs know of snapshots.
pub const SNAPSHOTS: bool = cfg!(feature = "snapshots");
/// The used blocks of XFS, its growth and its uuid.
pub const XFS: bool = cfg!(feature = "xfs");
/// The used blocks of btrfs, and its growth.
pub const BTRFS: bool = cfg!(feature = "btrfs");
/// The used blocks of f2fs.
pub const F2FS: bool = cfg!(feature = "f2fs");
/// The used clusters of FAT, and its serial number.
pub const FAT: bool = cfg!(feature = "fat");

const FEATURES: &[Feature] = &[
    Feature {
        name: "host",
        is_there: HOST,
        verbs: &["pull", "push", "artifact"],
        without: "this floe was built without what reaches other machines",
    },
    Feature {
        name: "clone",
        is_there: CLONE,
        verbs: &["clone"],
        without: "this floe was built without clone",
    },
    Feature {
        name: "snapshots",
        is_there: SNAPSHOTS,
        verbs: &["create", "list", "delete", "kept"],
        without: WITHOUT_SNAPSHOTS,
    },
    Feature {
        name: "xfs",
        is_there: XFS,
        verbs: &[],
        without: "this floe was built without XFS",
    },
    Feature {
        name: "btrfs",
        is_there: BTRFS,
        verbs: &[],
        without: "this floe was built without btrfs",
    },
    Feature {
        name: "f2fs",
        is_there: F2FS,
        verbs: &[],
        without: "this floe was built without f2fs",
    },
    Feature {
        name: "vfat",
        is_there: FAT,
        verbs: &[],
        without: "this floe was built without FAT",
    },
];

/// What a verb says of a snapshot where nothing is known of them.
pub const WITHOUT_SNAPSHOTS: &str = "this floe was built without snapshots";

/// The names of what is there, for `--version`.
pub fn names() -> impl Iterator<Item = &'static str> {
    let there = FEATURES.iter().filter(|feature| feature.is_there);
    there.map(|feature| feature.name)
}

/// What is said where this verb was left out.
pub fn without_verb(verb: &str) -> Option<&'static str> {
    missing(|feature| feature.verbs.contains(&verb))
}

/// What is said where the filesystem that the kernel calls so was left out.
pub fn without_filesystem(name: &str) -> Option<&'static str> {
    missing(|feature| feature.name == name)
}

fn missing(is_it: impl Fn(&Feature) -> bool) -> Option<&'static str> {
    let mut missing = FEATURES.iter().filter(|feature| !feature.is_there);
    let found = missing.find(|feature| is_it(feature))?;
    Some(found.without)
}
