//! The options of `--partition`, and how large each role becomes: the contract's defaults, which are the original's.

use std::ffi::{OsStr, OsString};

use crate::cli::{self, Args};
use crate::error::{Error, Result};
use crate::medium::RoleSource;
use crate::ptable::Scheme;
use crate::report::Bytes;

/// Below this a medium gets no swap by default.
const SWAP_FROM_BYTES: u64 = 128 << 20;

/// What a partition is for; in the order on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// What a boot loader reads.
    Boot,
    /// `/`.
    Root,
    Config,
    /// Anything else.
    Data,
    Swap,
}

impl Role {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Boot, Self::Root, Self::Config, Self::Data, Self::Swap];

    /// As it is typed, and the name of the partition.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Root => "root",
            Self::Config => "config",
            Self::Data => "data",
            Self::Swap => "swap",
        }
    }

    /// As a partition table records it, from 1.
    pub(crate) fn number(self) -> u8 {
        let mut all = (1..).zip(Self::ALL);
        all.find(|(_, role)| *role == self)
            .map_or(0, |(number, _)| number)
    }

    /// The TARGET of a pair.
    pub(crate) fn parse(name: &OsStr) -> Result<Self> {
        let mut all = Self::ALL.into_iter().filter(|role| *role != Self::Swap);
        all.find(|role| name == role.name()).ok_or_else(|| {
            Error::usage(format_args!(
                "clone: '{}': with --media the TARGET of a pair is a role: boot, root, config or data",
                name.display()
            ))
        })
    }
}

/// What was typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct MediumOptions {
    /// `--media`.
    pub media: Option<OsString>,
    /// `--partition`, or anything that implies it.
    pub partition: bool,
    /// `--table`.
    pub scheme: Option<Scheme>,
    /// `--as-primary`.
    pub as_primary: bool,
    /// By role, in bytes.
    sizes: [Option<u64>; 5],
}

impl MediumOptions {
    /// Takes an option that is one of ours.
    pub(crate) fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
        match name {
            "--media" => self.media = Some(args.value()?),
            "--partition" => self.partition = true,
            "--as-primary" => self.as_primary = true,
            "--table" => {
                self.scheme = Some(args.parsed(scheme, "gpt or mbr")?);
                self.partition = true;
            }
            _ => {
                let role = name
                    .strip_prefix("--")
                    .and_then(|n| n.strip_suffix("-size"));
                let mut all = Role::ALL.iter().zip(&mut self.sizes);
                let Some((_, size)) = all.find(|(known, _)| Some(known.name()) == role) else {
                    return Ok(false);
                };
                *size = Some(args.parsed(
                    megabytes,
                    "a size such as 64M (K M G T are 1024-based; a bare number is megabytes)",
                )?);
                self.partition = true;
            }
        }
        Ok(true)
    }

    /// Whether what was typed fits together.
    pub(crate) fn check(&self) -> Result<()> {
        let why = match () {
            () if self.partition && self.media.is_none() => {
                "--partition needs --media: which disk is laid out anew"
            }
            () if self.as_primary && !self.partition => "--as-primary needs --partition",
            () => return Ok(()),
        };
        Err(Error::usage(format_args!("clone: {why}")))
    }

    fn size(&self, role: Role) -> Option<u64> {
        let mut all = Role::ALL.iter().zip(self.sizes);
        all.find(|(known, _)| **known == role)?.1
    }

    /// The roles that get a partition, with their lengths; `None` is the rest.
    pub(crate) fn lengths(
        &self,
        sources: &[RoleSource],
        disk_bytes: u64,
        shown: &str,
    ) -> Result<Vec<(Role, Option<u64>)>> {
        let mut lengths = Vec::new();
        for role in Role::ALL {
            let source = sources.iter().find(|source| source.role == role);
            let size = match (self.size(role), role, source) {
                (Some(bytes), Role::Boot | Role::Root | Role::Config, None) if bytes > 0 => {
                    return Err(Error::usage(format_args!(
                        "clone: --{}-size: no pair has the role {}; nothing would be in it",
                        role.name(),
                        role.name()
                    )));
                }
                (Some(bytes), _, _) => Some(bytes),
                (None, Role::Root, Some(_)) => None,
                (None, Role::Boot | Role::Data, Some(source)) => Some(source.size_bytes),
                (None, Role::Config, Some(source)) => Some(source.size_bytes.max(disk_bytes / 10)),
                (None, Role::Swap, _) if disk_bytes >= SWAP_FROM_BYTES => Some(memory_bytes() / 3),
                (None, _, _) => Some(0),
            };
            if let (Some(bytes), Some(source)) = (size, source)
                && bytes < source.size_bytes
            {
                return Err(Error::refused(format_args!(
                    "{shown}: --{}-size: {} is too small, {} needs {} ({} bytes)",
                    role.name(),
                    Bytes(bytes),
                    source.name,
                    Bytes(source.size_bytes),
                    source.size_bytes
                )));
            }
            if size != Some(0) {
                lengths.push((role, size));
            }
        }
        Ok(lengths)
    }
}

fn scheme(text: &str) -> Option<Scheme> {
    [Scheme::Gpt, Scheme::Mbr]
        .into_iter()
        .find(|scheme| scheme.name() == text)
}

/// A size whose bare numbers are megabytes.
fn megabytes(text: &str) -> Option<u64> {
    match cli::number(text) {
        Some(number) => number.checked_mul(1 << 20),
        None => cli::size(text),
    }
}

/// `MemTotal`.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| cli::number(rest.trim().trim_end_matches(" kB")));
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(role: Role, mib: u64) -> RoleSource {
        RoleSource {
            role,
            name: "/".into(),
            filesystem: "ext4".into(),
            size_bytes: mib << 20,
            dev: None,
        }
    }

    #[test]
    fn bare_numbers_are_megabytes_and_unknown_suffixes_are_none() {
        assert_eq!(megabytes("64"), Some(64 << 20));
        assert_eq!(megabytes("64K"), Some(64 << 10));
        assert_eq!(megabytes("2G"), Some(2 << 30));
        for wrong in ["64X", "", "M", "-1", "1.5G", "99999999999999999999"] {
            assert_eq!(megabytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_original() {
        let sources = [
            source(Role::Root, 100),
            source(Role::Config, 10),
            source(Role::Boot, 16),
        ];
        let wanted = MediumOptions::default();
        let lengths = wanted.lengths(&sources, 1000 << 20, "disk").unwrap();
        let swap = memory_bytes() / 3;
        assert_eq!(
            lengths,
            [
                (Role::Boot, Some(16 << 20)),
                (Role::Root, None),
                (Role::Config, Some(100 << 20)),
                (Role::Swap, Some(swap)),
            ]
        );
        let small = wanted.lengths(&sources, 120 << 20, "disk").unwrap();
        assert_eq!(small.len(), 3, "no swap on a small medium");
        let alone = wanted.lengths(&sources[..1], 120 << 20, "disk").unwrap();
        assert_eq!(alone, [(Role::Root, None)]);
    }

    #[test]
    fn a_size_below_its_source_and_a_size_for_nothing_are_refused() {
        let mut wanted = MediumOptions::default();
        wanted.sizes[1] = Some(50 << 20);
        let error = wanted
            .lengths(&[source(Role::Root, 100)], 1 << 30, "disk")
            .unwrap_err();
        assert!(error.to_string().contains("--root-size"), "{error}");
        wanted.sizes = [None, None, Some(1 << 20), None, None];
        let error = wanted
            .lengths(&[source(Role::Root, 100)], 1 << 30, "disk")
            .unwrap_err();
        assert!(error.to_string().contains("no pair"), "{error}");
    }
}
