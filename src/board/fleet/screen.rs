//! What a person sees of the boards meanwhile: a line for each that works and one for all, drawn by the waiting thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{BoardEvent, Counts, Interruption};
use crate::board::host::Host;
use crate::board::receive::Arrived;
use crate::cli::Common;
use crate::error::Result;
use crate::report::{self, Manner, Pace, Step};
use crate::signals::Signals;
use crate::threads::{Receiver, RecvTimeoutError};

/// How often the lines of a terminal are drawn anew.
const PAUSE: Duration = Duration::from_millis(200);

/// Lines that wait at most.
const MOST_WAITING: usize = 500;

/// How long the threads may take to clean up after a signal.
const PATIENCE: Duration = Duration::from_secs(6);

/// One board, as the waiting thread knows it.
#[derive(Default)]
pub(super) struct BoardRow {
    /// While it works: since when.
    working: Option<Instant>,
    counts: Option<Counts>,
    /// The last thing it said: shown when something follows, because at the end it may be the reason.
    said: Option<String>,
    pub(super) result: Option<Result<Arrived>>,
    pub(super) took: Duration,
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
        let step = Step::new(phase, done_bytes, total_bytes);
        Some((step, far.since.or(self.working)))
    }

    /// Whether its ssh may be asking something on the terminal.
    fn may_ask(&self) -> bool {
        let is_heard = |counts: &Counts| counts.far.lock().heard;
        let is_early =
            |since: Instant| since.elapsed() < report::ASKING || report::is_typed_unseen();
        self.working.is_some_and(is_early) && !self.counts.as_ref().is_some_and(is_heard)
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
pub(super) struct Screen<'a> {
    hosts: &'a [Host],
    pub(super) rows: Vec<BoardRow>,
    manner: Manner,
    start: Instant,
    drawn: usize,
    last: Instant,
    /// Lines that wait until no ssh may be asking something, at most [`MOST_WAITING`]; of the others only how many.
    waiting: Vec<String>,
    left_out: usize,
}

impl<'a> Screen<'a> {
    pub(super) fn new(hosts: &'a [Host], common: &Common) -> Self {
        Self {
            hosts,
            rows: hosts.iter().map(|_| BoardRow::default()).collect(),
            manner: Manner::of(common),
            start: Instant::now(),
            drawn: 0,
            last: Instant::now(),
            waiting: Vec::new(),
            left_out: 0,
        }
    }

    /// Until all threads have ended; gives the signal that called them off.
    pub(super) fn follow(
        &mut self,
        told: &Receiver<BoardEvent>,
        signals: &Signals,
        stop: &AtomicBool,
    ) -> Option<i32> {
        let mut interrupted: Option<(i32, Instant)> = None;
        loop {
            let event = told.recv_timeout(PAUSE);
            // What came before this event is seen first: ^C ends ssh, too, and whose ssh ended by it has no result.
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
            match event {
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
    pub(super) fn begun(&self) -> String {
        let all = self.hosts.iter().zip(&self.rows);
        let is_begun =
            |row: &BoardRow| row.result.is_none() && row.so_far().is_some_and(|(n, _)| n > 0);
        let names = all.filter(|(_, row)| is_begun(row));
        let names: Vec<&str> = names.map(|(host, _)| host.shown.as_str()).collect();
        names.join(" ")
    }

    pub(super) fn cut<'b>(&self, begun: &'b str) -> Interruption<'b> {
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
            match self.waiting.len() < MOST_WAITING {
                true => self.waiting.push(format!("{}: {line}", host.shown)),
                false => self.left_out = self.left_out.saturating_add(1),
            }
        }
        self.tell();
    }

    /// A terminal on which an ssh may be asking something is left alone.
    fn is_held(&self) -> bool {
        self.manner == Manner::Terminal && self.rows.iter().any(BoardRow::may_ask)
    }

    /// Says what waits, once nothing is asked.
    fn tell(&mut self) {
        if !self.waiting.is_empty() && !self.is_held() {
            self.end();
        }
    }

    /// Takes the drawn lines away, and says what waits.
    pub(super) fn end(&mut self) {
        self.erase();
        self.waiting.drain(..).for_each(report::line);
        if let left_out @ 1.. = std::mem::take(&mut self.left_out) {
            report::line(format_args!(
                "{left_out} more lines of boards came while ssh was asking, and are not shown"
            ));
        }
    }

    /// A line for each board that works, and a sum: drawn anew on a terminal, now and then elsewhere.
    fn draw(&mut self) {
        let is_terminal = self.manner == Manner::Terminal;
        if self.is_held() {
            return;
        }
        self.tell();
        let is_gone = is_terminal && self.drawn == 0;
        if self.manner == Manner::Off || (self.last.elapsed() < self.manner.pause() && !is_gone) {
            return;
        }
        self.erase();
        self.last = Instant::now();
        let (lines, columns) = match is_terminal {
            true => report::window(),
            false => (usize::MAX, report::COLUMNS),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

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
    fn a_silent_board_keeps_the_terminal_for_half_a_minute_and_what_others_say_waits_within_bounds()
    {
        let hosts = ["asks", "speaks"].map(|name| Host::parse(name).unwrap());
        let mut view = Screen::new(&hosts, &Common::default());
        view.manner = Manner::Terminal;
        view.rows = vec![BoardRow::default(), row(1, 9, None)];
        let since = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        view.rows[0].working = since(29);
        assert!(view.is_held());
        for _ in 0..MOST_WAITING + 7 {
            view.event(BoardEvent::Note(1, "said".to_owned()), false);
        }
        assert_eq!((view.waiting.len(), view.left_out), (MOST_WAITING, 7));
        view.rows[0].working = since(31);
        assert!(!view.is_held());
        view.tell();
        assert_eq!((view.waiting.len(), view.left_out), (0, 0));
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
