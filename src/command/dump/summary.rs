//! What is said of an image that was dumped: the report, and the last line.

use std::time::Duration;

use crate::fs::Coverage;
use crate::report::{self, Bytes, Elapsed, JsonObject, Told, hex};
use crate::stream::output::Totals;
use crate::take::capture::CaptureFigures;
use crate::take::options;
use crate::take::source::Prepared;

/// What the report says of the source.
pub(super) struct SourceFacts {
    source: String,
    device: String,
    filesystem: &'static str,
    consistent: &'static str,
    pub(super) size_bytes: u64,
}

impl SourceFacts {
    pub(super) fn of(source: &Prepared) -> Self {
        Self {
            source: source.name.clone(),
            device: source.shown.clone(),
            filesystem: source.filesystem,
            consistent: source.consistent(),
            size_bytes: source.size_bytes,
        }
    }
}

/// Everything the report says.
pub(super) struct DumpReport {
    pub(super) facts: SourceFacts,
    pub(super) figures: CaptureFigures,
    pub(super) totals: Totals,
    pub(super) total: Duration,
}

impl DumpReport {
    fn coverage(&self) -> Coverage {
        self.figures
            .outcomes
            .first()
            .map_or(Coverage::Whole, |outcome| outcome.coverage)
    }

    fn used_bytes(&self) -> u64 {
        self.figures
            .outcomes
            .iter()
            .fold(0, |sum, outcome| sum.saturating_add(outcome.used_bytes))
    }
}

impl Told for DumpReport {
    fn json(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("source", &self.facts.source)
            .str("device", &self.facts.device)
            .str("filesystem", self.facts.filesystem)
            .str("map", self.coverage().name())
            .u64("size_bytes", self.facts.size_bytes)
            .u64("used_bytes", self.used_bytes())
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.totals.written_bytes);
        self.figures.window(&mut object);
        object
            .u64("total_ms", report::millis(self.total))
            .str("crc32", &format!("{:08x}", self.totals.crc32));
        match self.totals.sha256 {
            Some(hash) => object.str("sha256", &hex(&hash)),
            None => object.null("sha256"),
        };
        object.str("consistent", self.facts.consistent);
        self.figures.emptied.json(&mut object);
        object
    }

    fn words(&self) -> String {
        let held = options::held_words(self.facts.consistent, self.figures.frozen_ms);
        let why = match self.figures.outcomes.first().and_then(|o| o.doubt) {
            Some(doubt) => format!(" (map {}: {doubt})", self.coverage().name()),
            None => String::new(),
        };
        format!(
            "{}: {} {}, {}, {} read{why}, {} written{}, {held}, {} in all",
            self.facts.source,
            self.facts.filesystem,
            Bytes(self.facts.size_bytes),
            options::used_words(self.coverage().name(), self.used_bytes()),
            Bytes(self.figures.read_bytes),
            Bytes(self.totals.written_bytes),
            self.figures.emptied.words(),
            Elapsed(self.total)
        )
    }
}
