//! What is said of a snapshot that was made: the report, and the last line.

use std::path::PathBuf;
use std::time::Duration;

use crate::fs::Coverage;
use crate::report::{self, Bytes, Elapsed, JsonObject, Told};
use crate::snapshot::{self, Checksums, ImageEntry, Snapshot};
use crate::take::capture::CaptureFigures;
use crate::take::options;

/// Everything the report says.
pub(super) struct CreateReport {
    pub path: String,
    pub snapshot: Snapshot,
    pub checksums: Checksums,
    pub figures: CaptureFigures,
    pub written_bytes: u64,
    pub retired: Vec<PathBuf>,
    pub total: Duration,
}

impl CreateReport {
    fn sum(&self, of: fn(&ImageEntry) -> u64) -> u64 {
        self.snapshot
            .images
            .iter()
            .fold(0, |sum, image| sum.saturating_add(of(image)))
    }

    fn used_bytes(&self) -> u64 {
        let outcomes = self.figures.outcomes.iter();
        outcomes.fold(0, |sum, outcome| sum.saturating_add(outcome.used_bytes))
    }
}

impl Told for CreateReport {
    fn json(&self) -> JsonObject {
        let mut entries = Vec::new();
        for (image, outcome) in self.snapshot.images.iter().zip(&self.figures.outcomes) {
            let path = snapshot::image_path(&image.name);
            let sums = self.checksums.find(&path);
            let mut object = JsonObject::new();
            object
                .str("name", &image.name)
                .str("source", &image.source)
                .str("device", &image.device)
                .str("filesystem", &image.filesystem)
                .str("map", outcome.coverage.name())
                .u64("size_bytes", image.size_bytes)
                .u64("used_bytes", outcome.used_bytes);
            // Of frames the other end knows it.
            match sums.filter(|sums| sums.stored_bytes > 0) {
                Some(sums) => object.u64("stored_bytes", sums.stored_bytes),
                None => object.null("stored_bytes"),
            };
            object.str(
                "crc32",
                &format!("{:08x}", sums.map_or(0, |sums| sums.crc32)),
            );
            entries.push(object.finish());
        }
        let mut object = JsonObject::new();
        object
            .str("path", &self.path)
            .raw("entries", &format!("[{}]", entries.join(",")))
            .u64("size_bytes", self.sum(|image| image.size_bytes))
            .u64("used_bytes", self.used_bytes())
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.written_bytes);
        self.figures.window(&mut object);
        object
            .u64("total_ms", report::millis(self.total))
            .str("consistent", &self.checksums.consistent);
        self.figures.emptied.json(&mut object);
        object
    }

    fn words(&self) -> String {
        let names: Vec<&str> = self
            .snapshot
            .images
            .iter()
            .map(|image| image.name.as_str())
            .collect();
        let coverages = self.figures.outcomes.iter().map(|one| one.coverage);
        let worst = coverages.reduce(|a, b| if a == b { a } else { Coverage::Partial });
        let worst = worst.unwrap_or(Coverage::Whole);
        let held = options::held_words(&self.checksums.consistent, self.figures.frozen_ms);
        let retired = match self.retired.len() {
            0 => String::new(),
            count => format!(", {count} older removed (--keep)"),
        };
        format!(
            "{}: {}: {}, {}, {} read, {} written{}, {held}, {} in all{retired}",
            self.path,
            names.join(" "),
            Bytes(self.sum(|image| image.size_bytes)),
            options::used_words(worst.name(), self.used_bytes()),
            Bytes(self.figures.read_bytes),
            Bytes(self.written_bytes),
            self.figures.emptied.words(),
            Elapsed(self.total)
        )
    }
}
