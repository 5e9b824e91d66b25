//! A command on another machine, through the system's `ssh` as a child process.
//!
//! One thread owns a [`Session`] and its child: whoever reads the stream or writes the input takes the board's stderr along in the
//! same wait, line by line, so that neither end can block the other. Host keys, passwords and the configuration are ssh's
//! business. Nothing here ever passes through a shell of this machine, and what passes through the board's login shell was
//! quoted by [`quote`]. Everything that comes from a board is bounded: the lines of its stderr, their length, how many of them
//! are kept in a second, and the time in which no byte comes or goes that was asked for: what else it writes does not put off
//! the end.

mod ended;
mod silence;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Signal, WaitStatus};

pub(crate) use self::ended::CommandEnd;
use self::silence::{MAX_NOISE, Noise};
use crate::board::heard::{Heard, LineLimit, Listener};
use crate::board::host::Host;
use crate::board::unable::is_too_old;
use crate::error::{Error, Fault, Result};
use crate::report::clean;
use crate::sys::spawn::{self, Child, Command, Ties};

/// How long a wait lasts before the order to stop is looked at again.
pub(crate) const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// How long a wait for its end lasts when there is nothing more to hear.
const STEP: Duration = Duration::from_millis(5);
/// How long ssh may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// Most of a stdout that nobody wants any more that is read all the same, in bytes: the end of a report fits.
const MOST_UNHEARD: usize = 1 << 20;
/// Longest line of the board's stderr, in bytes: the report of 64 entries fits.
const MAX_LINE: usize = 64 * 1024;
/// Most lines for the program that are kept.
const MAX_KEPT: usize = 16;
/// Most lines for people that wait until the board is heard.
const MAX_EARLY: usize = 64;
/// Longest line for people, in characters.
const MAX_SHOWN: usize = 400;
/// What a line begins with that is meant for us and for nobody's eyes.
pub(crate) const MARK: &str = "floe-send: ";

/// Appends `word` so that a POSIX shell reads exactly it, whatever it holds: plain words as they are, all others between
/// single quotes (in which only the single quote itself ends them).
pub(crate) fn quote(out: &mut OsString, word: &OsStr) {
    if !out.is_empty() {
        out.push(" ");
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:,+@%".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        out.push(word);
        return;
    }
    out.push("'");
    for (index, part) in word.as_bytes().split(|byte| *byte == b'\'').enumerate() {
        if index > 0 {
            out.push("'\\''");
        }
        out.push(OsStr::from_bytes(part));
    }
    out.push("'");
}

/// How boards are reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ssh {
    /// `--ssh-option`, one argument each; they come before ours, and for ssh the first one counts.
    pub options: Vec<OsString>,
}

/// What a session is joined to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionPipes {
    /// Something will be written to the command.
    pub input: bool,
    /// Its stdout is data; otherwise it is lines, like stderr.
    pub stream: bool,
    /// What is on its way, as messages name it.
    pub carries: &'static str,
    /// Whether ssh shall compress; `None` leaves it to its configuration.
    pub compress: Option<bool>,
    /// What only an older floe says is not for people: it is answered by another try.
    pub hush: bool,
    /// How long it may be silent.
    pub patience: Patience,
    /// How floe is run there.
    pub by: By,
}

/// How floe is run on a board.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct By {
    /// Through sudo.
    pub sudo: bool,
    /// It is brought along.
    pub sent: bool,
}

/// How long no byte may come or go, in either direction, before the board counts as lost. Only the time spent waiting counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// While it logs in and while a stream flows.
    pub stall: Duration,
    /// While the board works and has nothing to say: it copies, or writes what was sent to the end.
    pub finish: Duration,
}

/// Long enough for a password that is typed and for a slow card that is synced; and for a large one that is read back.
impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(5 * 60),
            finish: Duration::from_secs(60 * 60),
        }
    }
}

impl Ssh {
    /// Starts `words` on the host.
    pub(crate) fn start(
        &self,
        host: &Host,
        words: &[OsString],
        pipes: SessionPipes,
        listener: Listener,
    ) -> Result<Session> {
        let mut line = OsString::new();
        for word in words {
            quote(&mut line, word);
        }
        let mut ssh = Command::new("ssh".as_ref(), "ssh");
        for option in &self.options {
            ssh.word(option.as_bytes());
        }
        ssh.words(&["-T", "-o", "ServerAliveInterval=10"]);
        ssh.words(&["-o", "ServerAliveCountMax=3", "-o", "ConnectTimeout=30"]);
        match pipes.compress {
            Some(true) => ssh.words(&["-o", "Compression=yes"]),
            Some(false) => ssh.words(&["-o", "Compression=no"]),
            None => {}
        }
        if let Some(user) = &host.user {
            ssh.words(&["-l", user]);
        }
        if let Some(port) = host.port {
            ssh.words(&["-p", &port.to_string()]);
        }
        ssh.words(&["--", &host.name]);
        ssh.word(line.as_bytes());
        let fail = |errno| Error::failed(format_args!("{}: start ssh: {errno}", host.shown));
        let started = start(&ssh, pipes).map_err(fail)?;
        Ok(Session {
            stdin: started.stdin,
            stdout: started.stdout,
            stderr: Some(started.stderr),
            child: started.child,
            shown: host.shown.clone(),
            part: Vec::new(),
            marks: VecDeque::new(),
            listener,
            told: Heard::default(),
            pace: LineLimit::new(),
            hush: pipes.hush,
            patience: pipes.patience,
            by: pipes.by,
            called: None,
            heard: false,
            early: Vec::new(),
            pipe_bytes: 0,
            limit: pipes.patience.stall,
            silent: Duration::ZERO,
            silent_before: Duration::ZERO,
            idle: Duration::ZERO,
            noise: Noise::default(),
            misheard_bytes: 0,
            waits_for: For::Stderr,
            moved: false,
            carries: pipes.carries,
            lines_on: match pipes.stream {
                true => "stderr",
                false => "stdout or stderr",
            },
        })
    }
}

/// A child and our ends of its streams.
struct SshChild {
    child: Child,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: File,
}

/// The far ends are closed here once the child has them. A killed floe must not leave an ssh that goes on waiting: not every
/// server hears that nobody reads any more.
fn start(ssh: &Command, pipes: SessionPipes) -> rustix::io::Result<SshChild> {
    let (stderr, error) = spawn::pipe()?;
    let (stdin, input) = match pipes.input {
        true => {
            let (input, stdin) = spawn::pipe()?;
            rustix::fs::fcntl_setfl(&stdin, OFlags::NONBLOCK)?;
            (Some(stdin.into()), input)
        }
        false => (None, spawn::null()?),
    };
    let (stdout, output) = match pipes.stream {
        true => spawn::pipe().map(|(stdout, output)| (Some(stdout.into()), Some(output)))?,
        false => (None, None),
    };
    let lines = error.as_fd();
    let output = output.as_ref().map_or(lines, |output| output.as_fd());
    let streams = [Some(input.as_fd()), Some(output), Some(lines)];
    Ok(SshChild {
        child: ssh.spawn(streams, &Ties::Close)?,
        stdin,
        stdout,
        stderr: stderr.into(),
    })
}

/// A running command. Dropping it ends ssh.
pub(crate) struct Session {
    child: Child,
    /// The host, as messages name it.
    shown: String,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    /// The line of stderr that is not complete yet.
    part: Vec<u8>,
    marks: VecDeque<String>,
    listener: Listener,
    told: Heard,
    pace: LineLimit,
    hush: bool,
    patience: Patience,
    by: By,
    /// What the board calls one of its streams, and what that is here.
    called: Option<(&'static str, String)>,
    /// Whether the board gave a sign of life: what ssh itself says is none.
    heard: bool,
    /// Lines for people that came before.
    early: Vec<String>,
    /// What was written to a pipe that ssh reads only once it is logged in.
    pipe_bytes: usize,
    /// Which of the two holds now.
    limit: Duration,
    /// How long we have waited since the last byte.
    silent: Duration,
    /// The same before what is being heard.
    silent_before: Duration,
    /// How long since the last sign of life: a byte or a line that floe asked for.
    idle: Duration,
    /// What came since then.
    noise: Noise,
    /// Of stdout, what no floe writes.
    misheard_bytes: usize,
    /// What was waited for last.
    waits_for: For,
    /// Whether a byte of what it carries came or went.
    moved: bool,
    carries: &'static str,
    /// Where its lines come from.
    lines_on: &'static str,
}

/// What a wait is for, besides stderr.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Stdout,
    Stdin,
    Stderr,
}

impl Session {
    /// Waits a moment at most, and takes what stderr has; true when what is wanted is ready.
    fn wait(&mut self, wanted: For) -> std::io::Result<bool> {
        if self.listener.stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        if self.stalled().is_some() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.waits_for = wanted;
        let start = Instant::now();
        let mut fds = Vec::with_capacity(2);
        let other = match wanted {
            For::Stdout => self.stdout.as_ref().map(|s| PollFd::new(s, PollFlags::IN)),
            For::Stdin => self.stdin.as_ref().map(|s| PollFd::new(s, PollFlags::OUT)),
            For::Stderr => None,
        };
        fds.extend(self.stderr.as_ref().map(|s| PollFd::new(s, PollFlags::IN)));
        fds.extend(other);
        match poll(&mut fds, Some(&PAUSE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        let stderr_is_open = self.stderr.is_some();
        let heard = stderr_is_open && is_ready(fds.first());
        let ready = is_ready(fds.get(usize::from(stderr_is_open)));
        let waited = start.elapsed();
        self.silent = self.silent.saturating_add(waited);
        self.idle = self.idle.saturating_add(waited);
        if heard {
            // To hear a flood takes longer than to wait for it.
            let start = Instant::now();
            self.hear();
            self.idle = self.idle.saturating_add(start.elapsed());
        }
        Ok(ready)
    }

    /// From now on it is the board that is at work, and no ssh that asks.
    fn hears(&mut self) {
        if !self.heard {
            self.heard = true;
            self.listener.far.lock().heard = true;
            self.tell_early();
        }
    }

    fn tell_early(&mut self) {
        for line in std::mem::take(&mut self.early) {
            (self.listener.hear)(&line);
        }
    }

    /// One read of stderr; its lines go where they belong.
    fn hear(&mut self) {
        let Some(stderr) = &mut self.stderr else {
            return;
        };
        let mut buffer = [0; 4096];
        let count = stderr.read(&mut buffer).unwrap_or(0);
        if count > 0 {
            self.silent_before = std::mem::take(&mut self.silent);
        }
        for byte in buffer.iter().take(count) {
            if *byte == b'\n' || self.part.len() >= MAX_LINE {
                self.line();
            } else {
                self.part.push(*byte);
            }
        }
        // A long report on a slow line.
        if count > 0 && self.noise.lines < MAX_NOISE && is_of_floe(&self.part) {
            self.idle = Duration::ZERO;
        }
        if count == 0 {
            self.stderr = None;
            if !self.part.is_empty() {
                self.line();
            }
        }
    }

    fn line(&mut self) {
        let part = std::mem::take(&mut self.part);
        let text = String::from_utf8_lossy(&part);
        if is_of_floe(&part) {
            self.hears();
        }
        self.noise.lines = self.noise.lines.saturating_add(1);
        let text = text.trim_end_matches('\r');
        if let Some(mark) = text.strip_prefix(MARK) {
            // Nobody waits for more than a few: a board that floods us fills no memory.
            if self.marks.len() < MAX_KEPT {
                self.lives();
                self.marks.push_back(clean(mark));
            }
        } else if text.starts_with("{\"phase\":") {
            // Who only says that he is where he was has said nothing.
            let is_further = self.listener.far.lock().take(text);
            match is_further {
                true => self.lives(),
                false => self.silent = self.silent_before,
            }
        } else if text.starts_with("{\"") && text.ends_with('}') {
            if self.told.reports.len() < MAX_KEPT {
                self.lives();
                self.told.behind.clear();
                self.told.reports.push(text.to_owned());
            }
        } else if !text.is_empty() {
            let end = text.char_indices().nth(MAX_SHOWN).map(|(end, _)| end);
            let text = clean(text.get(..end.unwrap_or(text.len())).unwrap_or_default());
            let said = match text.strip_prefix("floe: ") {
                Some(said) => {
                    self.noise.said = self.noise.said.saturating_add(1);
                    if self.noise.said <= MAX_NOISE {
                        self.idle = Duration::ZERO;
                    }
                    said
                }
                None => {
                    self.told.behind.clone_from(&text);
                    &text
                }
            };
            let said = match &self.called {
                Some((stream, name)) => renamed(said, stream, name),
                None => said.to_owned(),
            };
            let said = said.as_str();
            let hushed = self.hush && is_too_old(said);
            if !hushed && self.pace.take() {
                match self.heard {
                    true => {
                        self.tell_left_out();
                        (self.listener.hear)(said);
                    }
                    // It would stand behind what ssh asks.
                    false if self.early.len() < MAX_EARLY => self.early.push(said.to_owned()),
                    false => self.pace.left_out = self.pace.left_out.saturating_add(1),
                }
            }
            self.told.last = said.to_owned();
        }
    }

    fn tell_left_out(&mut self) {
        let count = std::mem::take(&mut self.pace.left_out);
        if count > 0 {
            (self.listener.hear)(&format!("({count} lines were left out)"));
        }
    }

    /// What the board calls `stream` is called `name` from now on: nobody here typed stdin or stdout.
    pub(crate) fn call(&mut self, stream: &'static str, name: &str) {
        self.called = Some((stream, clean(name)));
    }

    /// From now on the board works, and need not say anything for long.
    pub(crate) fn works_alone(&mut self) {
        if self.stalled().is_none() {
            self.limit = self.patience.finish;
        }
    }

    /// The next line for the program (see [`MARK`]); an error when the command ends without one.
    pub(crate) fn mark(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(mark) = self.marks.pop_front() {
                return Ok(mark);
            }
            if self.stderr.is_none() || self.child.try_wait()?.is_some() {
                self.drain();
                let ended = std::io::ErrorKind::UnexpectedEof;
                return self.marks.pop_front().ok_or(ended.into());
            }
            self.wait(For::Stderr)?;
        }
    }

    /// Takes what is left of stderr without waiting: a master connection of ssh may hold it open for long.
    fn drain(&mut self) {
        // Bounded, in case somebody goes on writing.
        for _ in 0..1024 {
            let Some(stderr) = &self.stderr else { return };
            let mut fds = [PollFd::new(stderr, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(ready) if ready > 0 => self.hear(),
                _ => break,
            }
        }
        if !self.part.is_empty() {
            self.line();
        }
        self.stderr = None;
    }

    /// The command's stdin, which does not block, for who writes to it while we read.
    pub(crate) fn take_stdin(&mut self) -> Option<File> {
        self.stdin.take()
    }

    /// The end of the command's stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has said something, or has ended.
    pub(crate) fn first_word(&mut self) -> std::io::Result<()> {
        while self.told.last.is_empty() && self.stderr.is_some() && self.child.try_wait()?.is_none()
        {
            self.wait(For::Stderr)?;
        }
        Ok(())
    }

    /// Reads stdout to its end, or to ssh's, within bounds: to a client whose stdout is closed early sshd may send no more of stderr.
    pub(crate) fn hear_out(&mut self) {
        let (mut rest, mut heard) = ([0; 4096], 0);
        while self.stdout.is_some()
            && heard < MOST_UNHEARD
            && matches!(self.child.try_wait(), Ok(None))
        {
            let count = match (self.wait(For::Stdout), &mut self.stdout) {
                (Ok(true), Some(stdout)) => stdout.read(&mut rest),
                (Ok(_), _) => continue,
                (Err(_), _) => return,
            };
            match count {
                Ok(count) if count > 0 => heard = heard.saturating_add(count),
                _ => return,
            }
        }
    }

    /// Waits for ssh's end; what is left on stdout is not looked at.
    pub(crate) fn end(mut self) -> Result<CommandEnd> {
        // Who is given up may die of it that nobody reads any more.
        let given_up = self.stalled();
        self.stdin = None;
        self.stdout = None;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.drain();
                    self.tell_left_out();
                    let code = WaitStatus::exit_status(status);
                    if let (Some(error), true) = (given_up, code != Some(0)) {
                        return Err(error);
                    }
                    return Ok(CommandEnd {
                        code,
                        by: self.by,
                        told: std::mem::take(&mut self.told),
                    });
                }
                // Nothing more to hear: it ends any moment.
                Ok(None) if self.stderr.is_none() => {
                    std::thread::sleep(STEP);
                    self.silent = self.silent.saturating_add(STEP);
                    self.idle = self.idle.saturating_add(STEP);
                }
                Ok(None) => {
                    if let Err(e) = self.wait(For::Stderr) {
                        let other = || Error::std(&self.shown, "ssh", &e);
                        return Err(self.stalled().unwrap_or_else(other));
                    }
                }
                Err(e) => return Err(Error::fault("ssh", Fault::io("wait", e))),
            }
            if self.listener.stop.load(Ordering::Relaxed) {
                return Err(Error::failed("interrupted"));
            }
            if let Some(error) = self.stalled() {
                return Err(error);
            }
        }
    }
}

/// Whether a line is floe's own. What else comes may be ssh's: a banner, or that the password was wrong.
fn is_of_floe(line: &[u8]) -> bool {
    let begins = ["{\"", "floe: ", MARK];
    begins
        .iter()
        .any(|begin| line.starts_with(begin.as_bytes()))
}

/// A line in which every word `stream` is `name`.
fn renamed(line: &str, stream: &str, name: &str) -> String {
    let end = |word: &str| word.trim_end_matches([':', ',', ';']).len();
    let words = line.split(' ').map(|word| match word.split_at(end(word)) {
        (whole, behind) if whole == stream => format!("{name}{behind}"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<String>>().join(" ")
}

/// The error of a session that was called off: not the kind that readers take for "try again".
fn stopped() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::ConnectionAborted,
        crate::error::Fault::short("interrupted"),
    )
}

/// The command's stdout.
impl Read for Session {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while !self.wait(For::Stdout)? {}
        self.lives();
        let count = self.stdout.as_mut().map_or(Ok(0), |it| it.read(buffer))?;
        if count > 0 {
            self.moved = true;
            self.hears();
        }
        Ok(count)
    }
}

/// The command's stdin.
impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            while !self.wait(For::Stdin)? {}
            let Some(stdin) = &mut self.stdin else {
                return Ok(0);
            };
            match stdin.write(bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                result => {
                    let count = result?;
                    let room = rustix::pipe::fcntl_getpipe_size(&*stdin);
                    self.lives();
                    self.moved = true;
                    self.pipe_bytes = self.pipe_bytes.saturating_add(count);
                    if room.is_ok_and(|room| self.pipe_bytes > room) {
                        self.hears();
                    }
                    return Ok(count);
                }
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// ssh does not outlive what it worked for: asked first, so that it can give the terminal its echo back, then killed.
impl Drop for Session {
    fn drop(&mut self) {
        self.tell_early();
        self.stdin = None;
        self.stdout = None;
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.child.signal(Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_the_board_has_the_name_that_it_has_here() {
        let renamed = |line| renamed(line, "stdin", "a b.img");
        assert_eq!(
            renamed("/dev/x: would be written with stdin (ext4)"),
            "/dev/x: would be written with a b.img (ext4)"
        );
        assert_eq!(
            renamed("stdin: stdin, no  more"),
            "a b.img: a b.img, no  more"
        );
        assert_eq!(renamed("/dev/stdin: stdin2"), "/dev/stdin: stdin2");
    }

    #[test]
    fn a_shell_reads_back_exactly_what_was_quoted() {
        let words = [
            "plain",
            "",
            "a b",
            "it's",
            "''",
            "$(reboot)`x`",
            "\\",
            "a\nb",
            "*",
            "~",
            "-n",
            "a=b",
            "#x",
            "ü!",
        ];
        let mut line = OsString::from("printf '%s\\0'");
        for word in words {
            quote(&mut line, OsStr::new(word));
        }
        for shell in [&["sh"][..], &["busybox", "ash"], &["bash"]] {
            let Ok(out) = std::process::Command::new(shell[0])
                .args(&shell[1..])
                .arg("-c")
                .arg(&line)
                .output()
            else {
                continue;
            };
            let text = String::from_utf8(out.stdout).unwrap();
            let found: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
            assert_eq!(found, words, "{shell:?}");
        }
    }
}
