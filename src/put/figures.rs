//! What a restore came to: its report and its last line.

use std::time::Duration;

use crate::put::options::Options;
use crate::report::{self, Bytes, Elapsed, JsonObject};
use crate::stream::copy::Ended;

/// What a finished restore did.
pub(crate) struct RestoreReport {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    pub(crate) written_bytes: u64,
    pub(crate) zeroed_bytes: u64,
    pub(crate) skipped_bytes: u64,
    pub(crate) unchanged_bytes: u64,
    pub(crate) notes: Vec<String>,
}

pub(crate) fn figures(
    options: &Options,
    done: &RestoreReport,
    filesystem: &str,
    took: Duration,
) -> JsonObject {
    let mut object = JsonObject::new();
    object
        .str("device", &done.name)
        .str("filesystem", filesystem)
        .u64("size_bytes", done.ended.size_bytes)
        .u64("read_bytes", done.ended.input_bytes)
        .u64("written_bytes", done.written_bytes)
        .u64("unchanged_bytes", done.unchanged_bytes)
        .u64("zeroed_bytes", done.zeroed_bytes)
        .u64(
            "total_ms",
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        )
        .str("crc32", &format!("{:08x}", done.ended.crc32))
        .u64("skipped_bytes", done.skipped_bytes)
        .bool("skipped_free", options.skip_free)
        .bool("verified", options.verify);
    object
}

pub(crate) fn last_line(options: &Options, done: &RestoreReport, filesystem: &str, took: Duration) {
    let name = &done.name;
    for note in &done.notes {
        report::line(format_args!("{name}: {note}"));
    }
    let verified = if options.verify {
        ", read back and equal"
    } else {
        ""
    };
    let mut skipped = String::new();
    if options.skip_free {
        skipped = format!(", {} free and left as it was", Bytes(done.skipped_bytes));
    }
    let unchanged = unchanged(options.only_changes, done.unchanged_bytes);
    report::line(format_args!(
        "{name}: restored {} bytes ({filesystem}), {} written, {} zeroed{unchanged}{skipped}{verified}, in {}",
        done.ended.size_bytes,
        Bytes(done.written_bytes),
        Bytes(done.zeroed_bytes),
        Elapsed(took),
    ));
}

/// What `--only-changes` came to, for people.
pub(crate) fn unchanged(only_changes: bool, bytes: u64) -> String {
    match only_changes {
        true => format!(", {} there already and left alone", Bytes(bytes)),
        false => String::new(),
    }
}
