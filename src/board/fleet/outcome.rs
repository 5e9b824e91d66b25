//! What became of the boards of a run: the report, the table, and how the run ends.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::board::host::Host;
use crate::board::receive::Arrived;
use crate::error::{Error, Result};
use crate::report::{self, Bytes, Elapsed, JsonObject};
use crate::units::to_u64;

/// What became of a board.
pub(crate) struct BoardOutcome {
    /// Which one.
    pub host: Host,
    /// What it sent, or why not.
    pub result: Result<Arrived>,
    pub(super) took: Duration,
}

impl BoardOutcome {
    fn object(&self) -> String {
        let mut object = JsonObject::new();
        object.str("board", &self.host.shown);
        match &self.result {
            Ok(arrived) => {
                object
                    .str("result", "done")
                    .str("path", &arrived.path)
                    .u64("size_bytes", arrived.size_bytes)
                    .u64("stream_bytes", arrived.stream_bytes)
                    .u64("sent_bytes", arrived.stream_bytes)
                    .u64("reused_bytes", arrived.reused_bytes)
                    .str("sha256", &arrived.sha256);
                match arrived.frozen_ms {
                    Some(frozen_ms) => object.u64("frozen_ms", frozen_ms),
                    None => object.null("frozen_ms"),
                };
            }
            Err(error) => {
                object
                    .str("result", "failed")
                    .str("error", &error.to_string());
            }
        }
        object.u64("total_ms", milliseconds(self.took));
        if let Ok(arrived) = &self.result
            && !arrived.report.is_empty()
        {
            object.raw("report", &arrived.report);
        }
        object.finish()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The report of all boards.
pub(crate) fn report_of(outcomes: &[BoardOutcome], start: Instant) -> JsonObject {
    let failed = outcomes.iter().filter(|one| one.result.is_err()).count();
    let boards: Vec<String> = outcomes.iter().map(BoardOutcome::object).collect();
    let mut object = JsonObject::new();
    object
        .raw("boards", &format!("[{}]", boards.join(",")))
        .u64("failed", to_u64(failed))
        .u64("total_ms", milliseconds(start.elapsed()));
    object
}

/// The table at the end: board, result, size of the images, what went over the line or was written, frozen, time, and why not.
fn table(outcomes: &[BoardOutcome], went: &str) -> String {
    let names = outcomes.iter().map(|one| one.host.shown.chars().count());
    let width = names.max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:width$}  {:7} {:>10} {:>10} {:>10} {:>10}\n",
        "board", "result", "size", went, "frozen", "time"
    );
    for one in outcomes {
        let time = Elapsed(one.took).to_string();
        let name = &one.host.shown;
        let (result, size, went, frozen, why) = match &one.result {
            Ok(arrived) => (
                "done",
                Bytes(arrived.size_bytes).to_string(),
                Bytes(arrived.stream_bytes).to_string(),
                arrived.frozen_ms.map_or("-".into(), |frozen_ms| {
                    Elapsed(Duration::from_millis(frozen_ms)).to_string()
                }),
                String::new(),
            ),
            Err(error) => {
                let error = error.to_string();
                let why = error.strip_prefix(name.as_str()).unwrap_or(&error);
                let why = why.strip_prefix(": ").unwrap_or(why);
                let none = || "-".to_owned();
                ("failed", none(), none(), none(), format!("  {why}"))
            }
        };
        let _ = writeln!(
            text,
            "{name:width$}  {result:7} {size:>10} {went:>10} {frozen:>10} {time:>10}{why}"
        );
    }
    text
}

/// How a run over several boards ends: the table, and a failure if one failed. `went`: what its bytes that were counted did.
pub(crate) fn end(outcomes: &[BoardOutcome], quiet: bool, went: &str) -> Result<()> {
    let failed = outcomes.iter().filter(|one| one.result.is_err()).count();
    if !quiet || failed > 0 {
        report::lines(&table(outcomes, went));
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::failed(format_args!(
            "{failed} of {} boards failed{}",
            outcomes.len(),
            match failed == outcomes.len() {
                true => "",
                false => "; the others are complete",
            }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_what_an_image_is_long_from_what_travelled() {
        let outcome = |size_bytes, stream_bytes| BoardOutcome {
            host: Host::parse("board").unwrap(),
            result: Ok(Arrived {
                size_bytes,
                stream_bytes,
                ..Arrived::default()
            }),
            took: Duration::from_millis(7),
        };
        let table = table(&[outcome(256 << 20, 33 << 10)], "sent");
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").filter(|cell| !cell.is_empty()).collect())
            .map(|cells: Vec<&str>| cells.into_iter().map(str::trim).collect())
            .collect();
        assert_eq!(lines[0][..4], ["board", "result", "size", "sent"]);
        assert_eq!(lines[1][..4], ["board", "done", "256 MiB", "33.0 KiB"]);
    }
}
