//! What a report says of a key, without a parser: so that a report that is no JSON still tells.

use std::fs;
use std::path::Path;

/// The text of a field, without its quotes.
pub fn field(report: &str, key: &str) -> Option<String> {
    let rest = report.split(&format!("\"{key}\":")).nth(1)?;
    let end = rest.find([',', '}', '\n']).unwrap_or(rest.len());
    Some(rest[..end].trim().trim_matches('"').to_owned())
}

/// The same of a report's file, which must have it.
#[track_caller]
pub fn field_in(report: &Path, key: &str) -> String {
    let report = fs::read_to_string(report).expect("report");
    field(&report, key).unwrap_or_else(|| panic!("no {key}: {report}"))
}

/// The same of a number.
#[track_caller]
pub fn number_in(report: &Path, key: &str) -> u64 {
    field_in(report, key).parse().expect("number")
}
