//! What can go wrong, and the exit code it becomes.
//!
//! Two types. [`Fault`] is small, `Copy` and made without the heap, so that code running while a filesystem is frozen can
//! return it: it says what, where and with which numbers. [`Error`] is the line a person reads, its exit code, and the state the
//! user is left in; the verbs make it from a fault once they know the subject. Neither ever stands for a mere warning: an `Error`
//! always ends in a non-zero exit. Both are handles, since they travel up through most functions of the program.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};

/// The exit codes of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: the environment failed (I/O, permission, closed pipe, watchdog). What was written is not complete.
    Failed,
    /// 2: bad command line; nothing was touched.
    Usage,
    /// 3: the input is corrupt, truncated, or of a format that is not ours.
    Corrupt,
    /// 4: understood and refused; nothing was written.
    Refused,
}

impl Exit {
    /// The number the process exits with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Corrupt => 3,
            Self::Refused => 4,
        }
    }
}

/// The class of a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A system call failed.
    Io,
    /// The bytes break their specification.
    Corrupt,
    /// Valid, but not something this reader handles.
    Unsupported,
    /// Our own policy says no.
    Refused,
}

/// What a fault is to those who do something about it; the words are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is done about it.
    Other,
    /// The input ends before it should.
    EndsEarly,
    /// Something else follows where the input should end.
    Behind,
    /// There is no room for what has to be held.
    NoRoom,
}

/// What a [`Fault`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Details {
    /// Which fault the entry belongs to; entries are used again.
    number: u32,
    what: Option<&'static str>,
    offset: Option<u64>,
    length_bytes: Option<u64>,
    unit: Option<(&'static str, u64)>,
    errno: Option<i32>,
    cause: Cause,
}

impl Details {
    /// All zeros, so that the table needs no room in the executable.
    const NONE: Self = Self {
        number: 0,
        what: None,
        offset: None,
        length_bytes: None,
        unit: None,
        errno: None,
        cause: Cause::Other,
    };

    fn words(&self) -> &'static str {
        self.what
            .unwrap_or("an earlier fault, whose details gave way to later ones")
    }
}

/// Entries of the table of faults, in memory that nothing touches before the first fault. Our tests read thousands of broken
/// filesystems in one process.
const ENTRIES: u32 = if cfg!(any(test, debug_assertions)) {
    1 << 17
} else {
    1024
};

#[cfg(test)]
thread_local! {
    /// Faults that this thread has made.
    pub(crate) static MADE: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// The details of all faults. They live here and not in the faults, because a fault travels up through every `?` of the program,
/// and moving 90 bytes each time costs an eighth of the executable. The first half is never used again, so that the first
/// doubt about a filesystem keeps its words however many follow. For the same reason a fault is made where something is wrong, and not
/// beforehand in case it will be.
struct FaultTable {
    next: u32,
    entries: [Details; ENTRIES as usize],
}

static TABLE: Mutex<FaultTable> = Mutex::new(FaultTable::EMPTY);

impl FaultTable {
    const EMPTY: Self = Self {
        next: 0,
        entries: [Details::NONE; ENTRIES as usize],
    };

    /// Where the details of the fault with this number stand.
    const fn place(number: u32) -> usize {
        const FIRST: u32 = ENTRIES / 2;
        let place = match number < FIRST {
            true => number,
            false => FIRST + (number - FIRST) % FIRST,
        };
        place as usize
    }

    /// The kind is part of the handle, so that the exit code is right whatever became of the details.
    fn keep(&mut self, kind: FaultKind, mut details: Details) -> Fault {
        let number = self.next;
        self.next = number.wrapping_add(1) & (u32::MAX >> 3);
        details.number = number;
        if let Some(entry) = self.entries.get_mut(Self::place(number)) {
            *entry = details;
        }
        Fault(NonZeroU32::MIN.saturating_add(number << 2 | kind as u32))
    }

    fn find(&self, fault: Fault) -> Details {
        let number = (fault.0.get() - 1) >> 2;
        match self.entries.get(Self::place(number)) {
            Some(entry) if entry.number == number => *entry,
            _ => Details::NONE,
        }
    }
}

/// A failure with its place and numbers; `Copy`, four bytes, and made without the heap.
#[derive(Clone, Copy)]
pub struct Fault(NonZeroU32);

impl Fault {
    #[cold]
    #[inline(never)]
    fn keep(kind: FaultKind, details: Details) -> Self {
        #[cfg(test)]
        MADE.set(MADE.get() + 1);
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        table.keep(kind, details)
    }

    #[inline(never)]
    fn details(self) -> Details {
        let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        table.find(self)
    }

    #[cold]
    #[inline(never)]
    fn new(kind: FaultKind, what: &'static str) -> Self {
        Self::keep(
            kind,
            Details {
                what: Some(what),
                ..Details::NONE
            },
        )
    }

    /// The class, which decides the exit code.
    pub fn kind(self) -> FaultKind {
        match (self.0.get() - 1) & 3 {
            0 => FaultKind::Io,
            1 => FaultKind::Corrupt,
            2 => FaultKind::Unsupported,
            _ => FaultKind::Refused,
        }
    }

    /// What was being done or what is wrong, e.g. `read` or `group descriptor checksum`.
    pub fn what(self) -> &'static str {
        self.details().words()
    }

    /// Byte offset on the device or in the stream, where one is known.
    pub fn offset(self) -> Option<u64> {
        self.details().offset
    }

    /// A numbered thing, e.g. `("group", 17)` or `("inode", 12)`.
    #[cfg(test)]
    pub(crate) fn unit(self) -> Option<(&'static str, u64)> {
        self.details().unit
    }

    /// The raw errno of the failed system call.
    pub fn errno(self) -> Option<i32> {
        self.details().errno
    }

    /// A failed system call.
    #[cold]
    #[inline(never)]
    pub fn io(what: &'static str, errno: rustix::io::Errno) -> Self {
        let errno = Some(errno.raw_os_error());
        Self::keep(
            FaultKind::Io,
            Details {
                what: Some(what),
                errno,
                ..Details::NONE
            },
        )
    }

    /// A source or stream that ended before it should.
    pub fn short(what: &'static str) -> Self {
        Self::new(FaultKind::Io, what)
    }

    /// Bytes that break their specification.
    pub fn corrupt(what: &'static str) -> Self {
        Self::new(FaultKind::Corrupt, what)
    }

    /// A valid thing that is not ours to handle.
    pub fn unsupported(what: &'static str) -> Self {
        Self::new(FaultKind::Unsupported, what)
    }

    /// A refusal by policy.
    pub fn refused(what: &'static str) -> Self {
        Self::new(FaultKind::Refused, what)
    }

    /// The same fault of another class.
    #[must_use]
    pub fn with_kind(self, kind: FaultKind) -> Self {
        Self::keep(kind, self.details())
    }

    /// The same fault with another errno.
    #[must_use]
    pub fn with_errno(self, errno: Option<i32>) -> Self {
        let details = self.details();
        Self::keep(self.kind(), Details { errno, ..details })
    }

    /// Adds what it is to those who do something about it.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn because(self, cause: Cause) -> Self {
        let mut details = self.details();
        details.cause = cause;
        Self::keep(self.kind(), details)
    }

    /// Whether it is this.
    pub fn is(self, cause: Cause) -> bool {
        self.details().cause == cause
    }

    /// The same fault at another offset.
    #[must_use]
    pub fn with_offset(self, offset: u64) -> Self {
        let mut details = self.details();
        details.offset = Some(offset);
        Self::keep(self.kind(), details)
    }

    /// Adds the place: offset and length in bytes.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn at(self, offset: u64, length_bytes: u64) -> Self {
        let mut details = self.details();
        details.offset = Some(offset);
        details.length_bytes = Some(length_bytes);
        Self::keep(self.kind(), details)
    }

    /// Adds a length.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn with_length(self, length_bytes: u64) -> Self {
        let mut details = self.details();
        details.length_bytes = Some(length_bytes);
        Self::keep(self.kind(), details)
    }

    /// Adds the numbered thing it happened in.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn in_unit(self, name: &'static str, number: u64) -> Self {
        let mut details = self.details();
        details.unit = Some((name, number));
        Self::keep(self.kind(), details)
    }

    /// The exit code this fault leads to when nothing was written yet.
    pub fn exit(&self) -> Exit {
        match self.kind() {
            // A path that does not exist was understood, and nothing came of it.
            FaultKind::Io if self.is_missing() => Exit::Refused,
            FaultKind::Io => Exit::Failed,
            FaultKind::Corrupt => Exit::Corrupt,
            FaultKind::Unsupported | FaultKind::Refused => Exit::Refused,
        }
    }

    /// Whether a name was opened that is not there, or a folder's where a file's was wanted.
    fn is_missing(&self) -> bool {
        use rustix::io::Errno;
        let details = self.details();
        // A chain of links or a name too long leads nowhere; behind a node may be no device, and in that no medium.
        let missing = [
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::LOOP,
            Errno::NAMETOOLONG,
            Errno::NXIO,
            Errno::NODEV,
            Errno::NOMEDIUM,
        ];
        let is_missing = missing.iter().any(|errno| self.is_errno(*errno));
        match details.what {
            Some("open" | "stat") => is_missing,
            Some("read") => self.is_errno(Errno::ISDIR),
            _ => false,
        }
    }

    /// The doubt that a fault of the bytes is: what they say is not believed, and counts as used. A fault of the device is no doubt,
    /// and ends the walk.
    pub fn doubted(self) -> std::result::Result<Self, Self> {
        match self.kind() {
            FaultKind::Io => Err(self),
            FaultKind::Corrupt | FaultKind::Unsupported | FaultKind::Refused => Ok(self),
        }
    }

    /// What was read, or nothing where it cannot be believed.
    pub fn believed<T>(read: std::result::Result<T, Self>) -> std::result::Result<Option<T>, Self> {
        match read {
            Ok(found) => Ok(Some(found)),
            Err(fault) => fault.doubted().map(|_| None),
        }
    }

    /// True for a failed system call with this errno.
    pub fn is_errno(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        let details = |fault: &Self| Details {
            number: 0,
            ..fault.details()
        };
        self.kind() == other.kind() && details(self) == details(other)
    }
}

impl Eq for Fault {}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = self.details();
        f.write_str(details.words())?;
        if let Some((name, number)) = details.unit {
            write!(f, " in {name} {number}")?;
        }
        if let Some(length) = details.length_bytes {
            write!(f, " of {length} bytes")?;
        }
        if let Some(offset) = details.offset {
            write!(f, " at {offset:#x}")?;
        }
        if let Some(errno) = details.errno {
            write!(f, ": {}{}", ErrnoText(errno), denied(errno))?;
        }
        Ok(())
    }
}

/// So that a reader of std can carry one.
impl std::error::Error for Fault {}

/// What helps where the kernel does not let us.
pub fn denied(errno: i32) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_raw_os_error(errno) {
        Errno::ACCESS | Errno::PERM if rustix::process::geteuid().is_root() => {
            " (even for root: a container without CAP_SYS_ADMIN or this device?)"
        }
        Errno::ACCESS | Errno::PERM => " (run it as root; pull and push: with --sudo)",
        Errno::ROFS => " (mounted read-only: name another place, or 'mount -o remount,rw' there)",
        _ => "",
    }
}

/// The C library's words for an errno, without the `(os error N)` that std appends.
pub struct ErrnoText(pub i32);

impl fmt::Display for ErrnoText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        let end = text.find(" (os error").unwrap_or(text.len());
        f.write_str(text.get(..end).unwrap_or(&text))
    }
}

/// How a run ends when it does not end in success.
#[derive(Debug)]
pub enum Ending {
    /// One line for a person and an exit code.
    Message {
        /// The exit code.
        exit: Exit,
        /// `SUBJECT: WHAT: WHY` without the leading `floe: `.
        line: String,
        /// What state the user is left in; empty where that is not known yet.
        state: String,
    },
    /// Exit with this code and without a word (`verify` that has printed its finding itself).
    Silent(Exit),
    /// `--help` or `--version`: this text goes to stdout, and the exit code is 0.
    Answer(String),
    /// Die by this signal (after the thaw): the signal's number.
    Signal(i32),
}

/// Why a run did not end in success: one pointer, because it travels up through every `?` of the verbs.
#[derive(Debug)]
pub struct Error(Box<Ending>);

/// The result of everything a verb does.
pub type Result<T> = std::result::Result<T, Error>;

/// What a refusal leaves, unless it says otherwise.
pub const NOTHING_WRITTEN: &str = "nothing was written";

#[cold]
#[inline(never)]
fn message(exit: Exit, line: &dyn fmt::Display) -> Error {
    Error(Box::new(Ending::Message {
        exit,
        line: line.to_string(),
        state: String::new(),
    }))
}

impl Error {
    /// The environment failed (exit 1).
    pub fn failed(line: impl fmt::Display) -> Self {
        message(Exit::Failed, &line)
    }

    /// A bad command line (exit 2).
    pub fn usage(line: impl fmt::Display) -> Self {
        message(Exit::Usage, &line)
    }

    /// Corrupt, truncated or foreign input (exit 3).
    pub fn corrupt(line: impl fmt::Display) -> Self {
        message(Exit::Corrupt, &line)
    }

    /// Understood and refused (exit 4).
    pub fn refused(line: impl fmt::Display) -> Self {
        message(Exit::Refused, &line)
    }

    /// With the exit code of something else.
    pub fn with(exit: Exit, line: impl fmt::Display) -> Self {
        message(exit, &line)
    }

    /// A fault and its subject: `SUBJECT: FAULT`.
    pub fn fault(subject: impl fmt::Display, fault: Fault) -> Self {
        message(fault.exit(), &format_args!("{subject}: {fault}"))
    }

    /// The same of what is wrong with an input: what is not ours to read is exit 3, like what is corrupt.
    pub(crate) fn input(subject: impl fmt::Display, fault: Fault) -> Self {
        let error = Self::fault(subject, fault);
        match fault.kind() {
            FaultKind::Unsupported => error.with_exit(Exit::Corrupt),
            _ => error,
        }
    }

    /// The same of an error of std, so that what is missing is the same everywhere.
    #[cold]
    #[inline(never)]
    pub fn std(subject: impl fmt::Display, what: &'static str, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => {
                let errno = rustix::io::Errno::from_raw_os_error(errno);
                Self::fault(subject, Fault::io(what, errno))
            }
            None => Self::failed(format_args!("{subject}: {what}: {error}")),
        }
    }

    /// Without a word.
    #[cold]
    pub fn silent(exit: Exit) -> Self {
        Self(Box::new(Ending::Silent(exit)))
    }

    /// A text that was asked for.
    #[cold]
    pub fn answer(text: String) -> Self {
        Self(Box::new(Ending::Answer(text)))
    }

    /// The death by a signal.
    #[cold]
    pub fn signal(number: i32) -> Self {
        Self(Box::new(Ending::Signal(number)))
    }

    /// How the run ends.
    pub fn ending(&self) -> &Ending {
        &self.0
    }

    /// The exit code, unless a signal is the reason or an answer was asked for.
    pub fn exit(&self) -> Option<Exit> {
        match *self.0 {
            Ending::Message { exit, .. } | Ending::Silent(exit) => Some(exit),
            Ending::Answer(_) | Ending::Signal(_) => None,
        }
    }

    /// Whether a signal is the reason.
    pub fn is_signal(&self) -> bool {
        matches!(*self.0, Ending::Signal(_))
    }

    /// The same line with another exit code.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn with_exit(mut self, exit: Exit) -> Self {
        if let Ending::Message { exit: old, .. } | Ending::Silent(old) = &mut *self.0 {
            *old = exit;
        }
        self
    }

    /// Says what state the user is left in. Who knew it first, where it happened, knew it best: a later word changes nothing.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn leaving(mut self, what: &str) -> Self {
        if let Ending::Message { state, .. } = &mut *self.0
            && state.is_empty()
        {
            what.clone_into(state);
        }
        self
    }

    /// At the end of a verb that writes: a refusal that says no state left nothing behind, since after the first write it would
    /// be a failure ([`Error::begun`]). `nothing`: which. A board's line has said it.
    #[must_use]
    pub fn refused_at_first(self, nothing: &str) -> Self {
        match &*self.0 {
            Ending::Message {
                exit: Exit::Refused,
                line,
                ..
            } if !line.contains(NOTHING_WRITTEN) => self.leaving(nothing),
            _ => self,
        }
    }

    /// After the first write: a refusal is a failure then, and the state that is left is this one, whatever was said before;
    /// empty: it has been said.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn begun(mut self, what: &str) -> Self {
        if let Ending::Message { exit, state, .. } = &mut *self.0 {
            if *exit == Exit::Refused {
                *exit = Exit::Failed;
            }
            if !what.is_empty() || state == NOTHING_WRITTEN {
                what.clone_into(state);
            }
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Ending::Message { line, state, .. } if state.is_empty() => f.write_str(line),
            Ending::Message { line, state, .. } => write!(f, "{line}; {state}"),
            Ending::Answer(line) => f.write_str(line),
            Ending::Silent(exit) => write!(f, "exit {}", exit.code()),
            Ending::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_place_numbers_and_cause() {
        let fault = Fault::io("read", rustix::io::Errno::IO).at(0x1f40_0000, 65536);
        // The words after the last colon are the C library's own (musl: "I/O error").
        let text = fault.to_string();
        assert!(
            text.starts_with("read of 65536 bytes at 0x1f400000: I"),
            "{text}"
        );
        assert!(!text.contains("os error"), "{text}");
        let fault = Fault::corrupt("bitmap checksum").in_unit("group", 17);
        assert_eq!(fault.to_string(), "bitmap checksum in group 17");
        assert_eq!(fault.exit(), Exit::Corrupt);
    }

    #[test]
    fn a_fault_outlives_its_details_with_the_right_exit_code_and_never_with_another_s_words() {
        static LOCAL: Mutex<FaultTable> = Mutex::new(FaultTable::EMPTY);
        let mut table = LOCAL.lock().unwrap();
        let details = |what| Details {
            what: Some(what),
            ..Details::NONE
        };
        let first = table.keep(FaultKind::Corrupt, details("first"));
        let mut last = first;
        let mut old = first;
        for number in 0..3 * ENTRIES {
            last = table.keep(FaultKind::Io, details("another"));
            if number == ENTRIES {
                old = table.keep(FaultKind::Refused, details("one of many"));
            }
        }
        assert_eq!((old.exit(), last.exit()), (Exit::Refused, Exit::Failed));
        assert_eq!(table.find(first).what, Some("first"));
        assert_eq!(table.find(last).what, Some("another"));
        assert_eq!(table.find(old), Details::NONE);
    }

    #[test]
    fn the_first_state_counts_until_something_was_written() {
        let error = Error::refused("a: is mounted").leaving(NOTHING_WRITTEN);
        let error = error.leaving("something else");
        assert_eq!(error.to_string(), "a: is mounted; nothing was written");
        let error = error.begun("a has no image");
        assert_eq!(error.to_string(), "a: is mounted; a has no image");
        let of_the_second = Error::refused("b: is mounted").leaving(NOTHING_WRITTEN);
        assert_eq!(of_the_second.begun("").to_string(), "b: is mounted");
        assert!(matches!(
            error.ending(),
            Ending::Message {
                exit: Exit::Failed,
                ..
            }
        ));
    }
}
