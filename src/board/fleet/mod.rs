//! Many boards: so many at a time, each with a thread of its own, and what a person sees of them meanwhile and at the end.
//!
//! The waiting thread alone writes to stderr; the others tell it what to write. A signal calls all of them off; each ends its ssh and
//! removes its part file, and the waiting thread waits for that.

mod outcome;
mod screen;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use self::outcome::BoardOutcome;
pub(crate) use self::outcome::{end, report_of};
use self::screen::{BoardRow, Screen};
use crate::board::heard::{Far, Listener};
use crate::board::host::Host;
use crate::board::receive::Arrived;
use crate::board::unable::is_unproven;
use crate::cli::Common;
use crate::error::{Error, Fault, Result};
use crate::report;
use crate::signals::Signals;
use crate::threads::{Lock, Sender, channel};
use crate::units::to_usize;

/// Most boards of one run.
const MAX_HOSTS: usize = 4096;
/// Largest file of hosts, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Boards at a time, unless `-P` says otherwise.
pub(crate) const PARALLEL: usize = 4;
/// Stack of a board's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;
/// Most lines of one board that wait to be shown; while nobody reads our stderr the others are dropped.
const MAX_WAITING: usize = 64;

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
            .map_err(|e| Error::fault("floe", Fault::io("start a thread", e)))?;
    }
    drop(events);
    let mut view = Screen::new(&hosts, common);
    let interrupted = view.follow(&told, &signals, &stop);
    view.end();
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

/// A number of boards at a time.
pub(crate) fn parallel(text: &str) -> Option<usize> {
    let number = crate::cli::number(text).map(to_usize)?;
    (1..=256).contains(&number).then_some(number)
}
