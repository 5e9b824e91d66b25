//! Formats before the tools that own them: used maps, identities, partition tables, archives.

mod btrfs;
mod earlier;
mod ext;
mod f2fs;
mod golden;
mod identity;
mod ptable;
mod smallfs;
mod xfs;
mod zip;
