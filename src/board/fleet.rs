//! Many boards: so many at a time, each with a thread of its own, and what a person sees of them meanwhile and at the end.
//!
//! The waiting thread alone writes to stderr; the others tell it what to write. A signal calls all of them off; each ends its ssh and
//! removes its part file, and the waiting thread waits for that.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::threads::{Lock, Receiver, RecvTimeoutError, Sender, channel};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::board::heard::{Far, Listener};
use crate::board::host::Host;
use crate::board::receive::Arrived;
use crate::board::unable::is_unproven;
use crate::cli::Common;
use crate::error::{Error, Result};
use crate::report::{self, Bytes, Elapsed, JsonObject, Manner, Pace, Step};
use crate::signals::Signals;
use crate::units::{to_u64, to_usize};

/// Most boards of one run.
const MAX_HOSTS: usize = 4096;
/// Largest file of hosts, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Boards at a time, unless `-P` says otherwise.
pub(crate) const PARALLEL: usize = 4;
/// Stack of a board's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;
/// How often the lines of a terminal are drawn anew.
const PAUSE: Duration = Duration::from_millis(200);

/// Most lines of one board that wait to be shown; while nobody reads our stderr the others are dropped.
const MAX_WAITING: usize = 64;

/// How long the threads may take to clean up after a signal.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long a thread waits for the terminal to be left alone.
const LEAVE: Duration = Duration::from_secs(1);

/// What is done with one board.
pub(crate) type BoardJob = dyn Fn(&Host, &Board) -> Result<Arrived> + Send + Sync;

/// One board, as its thread knows it.
pub(crate) struct Board {
    index: usize,
    events: Sender<BoardEvent>,
    quiet: bool,
    /// Set when the work is called off.
    pub stop: Arc<AtomicBool>,
    /// Bytes of the stream so far.
    pub bytes: Arc<AtomicU64>,
    /// Of how many; 0: only the board knows.
    pub total: Arc<AtomicU64>,
    /// What the board says of it.
    pub far: Arc<Lock<Far>>,
}

impl Board {
    /// A line of ours about it, shown at once.
    pub(crate) fn note(&self, line: String) {
        if !self.quiet {
            let _ = self.events.send(BoardEvent::Note(self.index, line));
        }
    }

    /// For a session that is about to start: what the board says is told to the waiting thread, as long as that takes it. Its ssh may
    /// ask something on the terminal: nothing is drawn there any more, until the board is heard.
    pub(crate) fn listener(&self) -> Listener {
        self.far.lock().heard = false;
        let (left, erased) = channel();
        if self.events.send(BoardEvent::Asks(left)).is_ok() {
            let _ = erased.recv_timeout(LEAVE);
        }
        let (index, events) = (self.index, self.events.clone());
        let waiting = Arc::new(AtomicUsize::new(0));
        Listener {
            stop: Arc::clone(&self.stop),
            far: Arc::clone(&self.far),
            hear: Box::new(move |line| {
                // What push sends was checked here.
                if is_unproven(line) {
                    return;
                }
                if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                let line = BoardLine(line.to_owned(), Arc::clone(&waiting));
                let _ = events.send(BoardEvent::Line(index, line));
            }),
        }
    }
}

/// A line on its way to the waiting thread, and the count of those on their way.
struct BoardLine(String, Arc<AtomicUsize>);

impl BoardLine {
    fn take(self) -> String {
        self.1.fetch_sub(1, Ordering::Relaxed);
        self.0
    }
}

enum BoardEvent {
    Started(usize, Counts),
    /// An ssh is about to start; answered once nothing is drawn.
    Asks(Sender<()>),
    Line(usize, BoardLine),
    Note(usize, String),
    Done(usize, Result<Arrived>),
}

/// What became of a board.
pub(crate) struct BoardOutcome {
    /// Which one.
    pub host: Host,
    /// What it sent, or why not.
    pub result: Result<Arrived>,
    took: Duration,
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
            "{failed} of {} boards failed; the others are complete",
            outcomes.len()
        ))),
    }
}

/// A HOST, or `@FILE` with one on each line.
pub(crate) fn add_hosts(hosts: &mut Vec<Host>, value: &OsStr) -> Result<()> {
    if let Some(path) = value.as_bytes().strip_prefix(b"@") {
        let path = Path::new(OsStr::from_bytes(path));
        let shown = path.display();
        let fail = |e: std::io::Error| Error::std(&shown, "open", &e);
        let length = std::fs::metadata(path).map_err(fail)?.len();
        if length > MAX_FILE {
            return Err(Error::usage(format_args!(
                "{shown}: is no list of hosts: too long"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        let before = hosts.len();
        for (number, line) in (1u32..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                add_host(hosts, line).map_err(|error| {
                    Error::usage(format_args!("{shown}: line {number}: {error}"))
                })?;
            }
        }
        if hosts.len() == before {
            return Err(Error::usage(format_args!("{shown}: names no board")));
        }
        return Ok(());
    }
    let text = value
        .to_str()
        .ok_or_else(|| Error::usage(format_args!("'{}' is no HOST", value.display())))?;
    add_host(hosts, text)
}

fn add_host(hosts: &mut Vec<Host>, text: &str) -> Result<()> {
    let host = Host::parse(text)?;
    // Two streams into one file would be neither.
    if let Some(same) = hosts
        .iter()
        .find(|known| known.file_stem() == host.file_stem())
    {
        return Err(Error::usage(format_args!(
            "'{text}' and '{}' are the same board",
            same.shown
        )));
    }
    if hosts.len() == MAX_HOSTS {
        return Err(Error::usage(format_args!("more than {MAX_HOSTS} boards")));
    }
    hosts.push(host);
    Ok(())
}

/// Where a signal came in between.
#[derive(Clone, Copy)]
pub(crate) struct Interruption<'a> {
    /// The boards to or from which something went, and which had not ended.
    pub begun: &'a str,
    /// How many had ended.
    pub ended: usize,
}

/// Does `job` for all of them, `parallel` at a time, and gives what became of each, in the order of `hosts`. `left`: the words for
/// what an interruption leaves.
pub(crate) fn run_leaving(
    hosts: Vec<Host>,
    parallel: usize,
    common: &Common,
    left: &dyn Fn(Interruption<'_>) -> String,
    job: Arc<BoardJob>,
) -> Result<Vec<BoardOutcome>> {
    let signals = Signals::block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicUsize::new(0));
    let hosts: Arc<[Host]> = hosts.into();
    let (events, told) = channel();
    for _ in 0..parallel.min(hosts.len()) {
        let worker = BoardWorker {
            hosts: Arc::clone(&hosts),
            next: Arc::clone(&next),
            stop: Arc::clone(&stop),
            events: events.clone(),
            job: Arc::clone(&job),
            quiet: common.quiet,
        };
        crate::threads::start(c"board", STACK_BYTES, Box::new(move || worker.run()))
            .map_err(|e| Error::failed(format_args!("floe: start a thread: {e}")))?;
    }
    drop(events);
    let mut view = Screen::new(&hosts, common);
    let interrupted = view.follow(&told, &signals, &stop);
    view.erase();
    if let Some(number) = interrupted {
        report::interrupted("", &left(view.cut(&view.begun())));
        return Err(Error::signal(number));
    }
    let Screen { rows, .. } = view;
    let outcome = |(host, row): (&Host, BoardRow)| BoardOutcome {
        host: host.clone(),
        result: row.result.unwrap_or_else(|| {
            Err(Error::failed(format_args!(
                "{}: its thread died",
                host.shown
            )))
        }),
        took: row.took,
    };
    Ok(hosts.iter().zip(rows).map(outcome).collect())
}

struct BoardWorker {
    hosts: Arc<[Host]>,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    events: Sender<BoardEvent>,
    job: Arc<BoardJob>,
    quiet: bool,
}

impl BoardWorker {
    fn run(self) {
        // Each turn takes a host that nobody else takes.
        while !self.stop.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(host) = self.hosts.get(index) else {
                return;
            };
            let board = Board {
                index,
                events: self.events.clone(),
                quiet: self.quiet,
                stop: Arc::clone(&self.stop),
                bytes: Arc::default(),
                total: Arc::default(),
                far: Arc::default(),
            };
            let counts = Counts {
                bytes: Arc::clone(&board.bytes),
                total: Arc::clone(&board.total),
                far: Arc::clone(&board.far),
            };
            let started = BoardEvent::Started(index, counts);
            let _ = self.events.send(started);
            let result = (self.job)(host, &board);
            let _ = self.events.send(BoardEvent::Done(index, result));
        }
    }
}

/// How far a board is, as its thread says.
#[derive(Default)]
struct Counts {
    bytes: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
    far: Arc<Lock<Far>>,
}

/// One board, as the waiting thread knows it.
#[derive(Default)]
struct BoardRow {
    /// While it works: since when.
    working: Option<Instant>,
    counts: Option<Counts>,
    /// The last thing it said: shown when something follows, because at the end it may be the reason.
    said: Option<String>,
    result: Option<Result<Arrived>>,
    took: Duration,
}

impl BoardRow {
    /// What it is at: by its own words, or by the bytes that came or went. Then since when.
    fn now(&self) -> Option<(Step<'static>, Option<Instant>)> {
        let counts = self.counts.as_ref()?;
        let far = *counts.far.lock();
        let (bytes, total) = self.so_far()?;
        let (phase, done_bytes, total_bytes) = match (bytes, total) {
            // What went by now is in a pipe to ssh.
            _ if !far.heard => ("waiting for ssh", 0, total),
            _ if !far.phase.is_empty() => (far.phase, far.done_bytes, far.total_bytes),
            (0, _) => ("at work", bytes, total),
            (_, 0) => ("receiving", bytes, total),
            (bytes, total) if bytes < total => ("sending", bytes, total),
            _ => ("sent, at work", bytes, total),
        };
        let step = Step {
            phase,
            subject: "",
            done_bytes,
            total_bytes,
        };
        Some((step, far.since.or(self.working)))
    }

    /// Whether its ssh may be asking something on the terminal.
    fn may_ask(&self) -> bool {
        let is_heard = |counts: &Counts| counts.far.lock().heard;
        self.working.is_some() && !self.counts.as_ref().is_some_and(is_heard)
    }

    /// Bytes, and of how many; 0 where that is not known.
    fn so_far(&self) -> Option<(u64, u64)> {
        let counts = self.counts.as_ref()?;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some((load(&counts.bytes), load(&counts.total)))
    }

    /// The same of the whole run, in the words of the board where it has some.
    fn whole(&self) -> Option<(u64, u64)> {
        let far = *self.counts.as_ref()?.far.lock();
        match (far.whole_bytes, &self.result) {
            (0, None) if !far.heard => self.so_far().map(|(_, total)| (0, total)),
            (0, _) => self.so_far(),
            (whole, Some(Ok(_))) => Some((whole, whole)),
            (whole, _) => Some((far.most_done_bytes, whole)),
        }
    }
}

/// Of all boards together, and of how many; 0 as long as that is not known of one. Who is done has done what he has done.
fn in_all(rows: &[BoardRow]) -> (u64, u64) {
    let done = rows.iter().filter_map(BoardRow::whole);
    let done = done.fold(0u64, |sum, (done, _)| sum.saturating_add(done));
    let of = |row: &BoardRow| match (row.whole()?, &row.result) {
        ((done, _), Some(_)) => Some(done),
        ((_, 0), None) => None,
        ((done, total), None) => Some(total.max(done)),
    };
    let total = rows
        .iter()
        .try_fold(0u64, |sum, row| sum.checked_add(of(row)?));
    (done, total.unwrap_or(0))
}

/// What is seen on stderr.
struct Screen<'a> {
    hosts: &'a [Host],
    rows: Vec<BoardRow>,
    manner: Manner,
    start: Instant,
    drawn: usize,
    last: Instant,
}

impl<'a> Screen<'a> {
    fn new(hosts: &'a [Host], common: &Common) -> Self {
        Self {
            hosts,
            rows: hosts.iter().map(|_| BoardRow::default()).collect(),
            manner: Manner::of(common),
            start: Instant::now(),
            drawn: 0,
            last: Instant::now(),
        }
    }

    /// Until all threads have ended; gives the signal that called them off.
    fn follow(
        &mut self,
        told: &Receiver<BoardEvent>,
        signals: &Signals,
        stop: &AtomicBool,
    ) -> Option<i32> {
        let mut interrupted: Option<(i32, Instant)> = None;
        loop {
            if let Some(number) = signals.take() {
                interrupted = interrupted.or(Some((number, Instant::now())));
                stop.store(true, Ordering::Relaxed);
            }
            // A thread that cannot end (a disk that hangs) does not hold up the end of the process for ever.
            if let Some((number, since)) = interrupted
                && since.elapsed() > PATIENCE
            {
                return Some(number);
            }
            match told.recv_timeout(PAUSE) {
                Ok(event) => self.event(event, interrupted.is_some()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return interrupted.map(|(number, _)| number);
                }
            }
            self.draw();
        }
    }

    /// The boards in whose middle a signal came: something went, and they have no result.
    fn begun(&self) -> String {
        let all = self.hosts.iter().zip(&self.rows);
        let is_begun =
            |row: &BoardRow| row.result.is_none() && row.so_far().is_some_and(|(n, _)| n > 0);
        let names = all.filter(|(_, row)| is_begun(row));
        let names: Vec<&str> = names.map(|(host, _)| host.shown.as_str()).collect();
        names.join(" ")
    }

    fn cut<'b>(&self, begun: &'b str) -> Interruption<'b> {
        let ended = self.rows.iter().filter(|row| row.result.is_some()).count();
        Interruption { begun, ended }
    }

    fn event(&mut self, event: BoardEvent, silent: bool) {
        let index = match &event {
            BoardEvent::Started(index, _)
            | BoardEvent::Line(index, _)
            | BoardEvent::Note(index, _)
            | BoardEvent::Done(index, _) => *index,
            BoardEvent::Asks(left) => {
                self.erase();
                let _ = left.send(());
                return;
            }
        };
        let Some(row) = self.rows.get_mut(index) else {
            return;
        };
        let earlier = match event {
            BoardEvent::Started(_, counts) => {
                row.working = Some(Instant::now());
                row.counts = Some(counts);
                None
            }
            BoardEvent::Asks(_) => None,
            BoardEvent::Line(_, line) => row.said.replace(line.take()),
            BoardEvent::Note(_, line) => Some(line),
            BoardEvent::Done(_, result) => {
                row.took = row.working.take().map_or(Duration::ZERO, |w| w.elapsed());
                let said = row.said.take().filter(|said| match &result {
                    Ok(_) => true,
                    Err(error) => !error.to_string().contains(said.as_str()),
                });
                // Who failed after a signal was called off.
                row.result = Some(result).filter(|result| result.is_ok() || !silent);
                said
            }
        };
        let host = self.hosts.get(index);
        if let (Some(line), Some(host), false) = (earlier, host, silent) {
            self.erase();
            report::line(format_args!("{}: {line}", host.shown));
        }
    }

    /// A line for each board that works, and a sum: drawn anew on a terminal, now and then elsewhere. A terminal on which an ssh may
    /// be asking something is left alone.
    fn draw(&mut self) {
        let is_terminal = self.manner == Manner::Terminal;
        if is_terminal && self.rows.iter().any(BoardRow::may_ask) {
            return;
        }
        let is_gone = is_terminal && self.drawn == 0;
        if self.manner == Manner::Off || (self.last.elapsed() < self.manner.pause() && !is_gone) {
            return;
        }
        self.erase();
        self.last = Instant::now();
        let (lines, columns) = match is_terminal {
            true => report::window(),
            false => (usize::MAX, 100),
        };
        let (mut done, mut drawn) = (0, 0);
        for (host, row) in self.hosts.iter().zip(&self.rows) {
            done += usize::from(row.result.is_some());
            let (Some((step, phase)), Some(since)) = (row.now(), row.working) else {
                continue;
            };
            let step = Step {
                subject: &host.shown,
                ..step
            };
            // Two lines for the sum and the cursor.
            if drawn + 2 < lines {
                self.one(&step, phase.unwrap_or(since), since, columns);
                drawn += 1;
            }
        }
        if self.hosts.len() > 1 {
            let subject = match self.manner {
                Manner::Json => String::new(),
                _ => format!("{done} of {} boards done", self.hosts.len()),
            };
            let (done_bytes, total_bytes) = in_all(&self.rows);
            let step = Step {
                phase: "in all",
                subject: &subject,
                done_bytes,
                total_bytes,
            };
            self.one(&step, self.start, self.start, columns);
            drawn += 1;
        }
        self.drawn = if is_terminal { drawn } else { 0 };
    }

    fn one(&self, step: &Step<'_>, phase: Instant, since: Instant, columns: usize) {
        let pace = Pace::new(step, phase.elapsed(), since.elapsed());
        let text = match self.manner {
            Manner::Json => pace.json(step),
            _ => format!("{}\n", report::FittedLine::new(step, &pace, columns).text()),
        };
        crate::sys::stderr::write_if_ready(text.as_bytes());
    }

    /// Takes the drawn lines away.
    fn erase(&mut self) {
        if self.drawn > 0 {
            let text = format!("\x1b[{}A\r\x1b[J", self.drawn);
            crate::sys::stderr::write_if_ready(text.as_bytes());
            self.drawn = 0;
        }
    }
}

/// A number of boards at a time.
pub(crate) fn parallel(text: &str) -> Option<usize> {
    let number = crate::cli::number(text).map(to_usize)?;
    (1..=256).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: u64, total: u64, result: Option<Result<Arrived>>) -> BoardRow {
        let counts = Counts::default();
        counts.bytes.store(bytes, Ordering::Relaxed);
        counts.total.store(total, Ordering::Relaxed);
        counts.far.lock().heard = true;
        BoardRow {
            counts: Some(counts),
            result,
            ..BoardRow::default()
        }
    }

    #[test]
    fn the_sum_has_a_total_when_all_boards_have_one() {
        let gone = || Some(Err(Error::failed("gone")));
        let mut rows = vec![row(10, 100, None), row(7, 50, gone()), row(300, 200, None)];
        assert_eq!(in_all(&rows), (10 + 7 + 300, 100 + 7 + 300));
        rows.push(row(5, 0, None));
        assert_eq!(in_all(&rows), (10 + 7 + 300 + 5, 0));
        rows.pop();
        // One that has not begun.
        rows.push(BoardRow::default());
        assert_eq!(in_all(&rows).1, 0);
    }

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

    #[test]
    fn an_interruption_names_who_had_begun_and_not_ended() {
        let hosts = ["done", "cut", "asked", "refused", "waiting"];
        let hosts = hosts.map(|name| Host::parse(name).unwrap());
        let mut view = Screen::new(&hosts, &Common::default());
        let refused = Some(Err(Error::refused("is mounted")));
        let rows = [
            row(9, 9, Some(Ok(Arrived::default()))),
            row(1, 9, None),
            row(0, 9, None),
            row(5, 9, refused),
        ];
        view.rows = rows.into_iter().chain([BoardRow::default()]).collect();
        // Called off: what it fails with is no end.
        let failed = Err(Error::failed("interrupted"));
        view.event(BoardEvent::Done(1, failed), true);
        let begun = view.begun();
        assert_eq!((begun.as_str(), view.cut(&begun).ended), ("cut", 2));
    }

    #[test]
    fn the_sum_counts_what_boards_say_that_they_do() {
        let far = |done, whole, result| {
            let row = row(3, 0, result);
            let counts = row.counts.as_ref().unwrap();
            let mut far = counts.far.lock();
            far.set("sending", 1, whole);
            (far.most_done_bytes, far.whole_bytes) = (done, whole);
            drop(far);
            row
        };
        let rows = [
            far(40, 100, None),
            far(30, 60, Some(Ok(Arrived::default()))),
            far(20, 70, Some(Err(Error::failed("gone")))),
        ];
        assert_eq!(in_all(&rows), (40 + 60 + 20, 100 + 60 + 20));
        let (step, _) = rows[0].now().unwrap();
        assert_eq!(
            (step.phase, step.done_bytes, step.total_bytes),
            ("sending", 1, 100)
        );
    }
}
