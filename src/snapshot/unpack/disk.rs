//! An empty disk that gets the recorded table: chosen, and what would happen to it.

use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::put::options::Options;
use crate::put::target::Chosen;
use crate::report;
use crate::snapshot::relaid::{self, Laid};
use crate::snapshot::unpack::origin::EntrySource;
use crate::snapshot::{self, BOOT, Snapshot, TABLE};

/// An empty disk that gets the recorded table.
pub(super) struct EmptyDisk {
    chosen: Chosen,
    facts: snapshot::DiskEntry,
}

impl EmptyDisk {
    pub(super) fn choose(
        name: &std::ffi::OsStr,
        options: &Options,
        subject: &str,
        found: &Snapshot,
        file: &std::fs::File,
    ) -> Result<Self> {
        let facts = found.disk.clone().ok_or_else(|| {
            Error::refused(format_args!(
                "{subject}: holds no partition table (create --disk keeps one)"
            ))
        })?;
        let chosen = Chosen::find(name, file)?;
        chosen.check_size(facts.size_bytes)?;
        chosen.check_content(options.overwrite)?;
        Ok(Self { chosen, facts })
    }

    /// What would happen to the table and to each partition; makes nothing, not even a file that is to be the disk.
    pub(super) fn would(
        &self,
        found: &Snapshot,
        chosen: &[(String, Chosen)],
        origin: &EntrySource,
    ) -> Result<Vec<String>> {
        let shown = self.chosen.named().0.display();
        let (table, _) = self.bytes(origin)?;
        let sector = u32::try_from(self.facts.sector_bytes).unwrap_or(0);
        let table = relaid::recorded(&table, sector)?;
        let mut filled = Vec::new();
        for image in &found.images {
            if chosen.iter().all(|(name, _)| *name != image.name) {
                filled.push((relaid::place_of(&table, image)?, image));
            }
        }
        let mut lines = vec![format!(
            "{shown}: {}would get the recorded partition table ({}, {}), and everything else on it would be gone",
            self.chosen
                .holds()?
                .map_or(String::new(), |holds| holds + ", "),
            table.scheme.name(),
            match table.partitions.len() {
                1 => "1 partition".into(),
                count => format!("{count} partitions"),
            }
        )];
        lines.extend(table.partitions.iter().map(|partition| {
            let image = filled.iter().find(|(place, _)| *place == partition.extent);
            let what = image.map_or("be left empty".into(), |(_, image)| {
                format!(
                    "be written with {} ({}, {})",
                    image.name,
                    image.filesystem,
                    report::Bytes(image.size_bytes)
                )
            });
            format!("{shown} partition {}: would {what}", partition.number)
        }));
        Ok(lines)
    }

    /// Reads the recorded table and boot area, and opens the disk.
    pub(super) fn open(self, origin: &EntrySource) -> Result<Laid> {
        let (table, boot) = self.bytes(origin)?;
        let laid = Laid::new(self.chosen, self.facts, table, boot);
        laid.map_err(|error| error.leaving(NOTHING_WRITTEN))
    }

    /// The recorded table and boot area.
    pub(super) fn bytes(&self, origin: &EntrySource) -> Result<(Vec<u8>, Vec<u8>)> {
        let nothing = |error: Error| error.leaving(NOTHING_WRITTEN);
        Ok(match origin {
            EntrySource::File(catalog) => {
                let bytes = |path, length| match length {
                    0 => Ok(Vec::new()),
                    _ => catalog.bytes(path),
                };
                (
                    bytes(TABLE, self.facts.table_bytes).map_err(nothing)?,
                    bytes(BOOT, self.facts.boot_bytes).map_err(nothing)?,
                )
            }
            EntrySource::Pipe(bundle) => {
                let mut bundle = bundle.lock();
                let table = bundle
                    .small(TABLE, self.facts.table_bytes)
                    .map_err(nothing)?;
                let boot = bundle.small(BOOT, self.facts.boot_bytes).map_err(nothing)?;
                (table, boot)
            }
        })
    }
}
