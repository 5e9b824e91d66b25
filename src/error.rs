//! What can go wrong, and the exit code it becomes.
//!
//! Two types. [`Fault`] is small, `Copy` and made without the heap, so that code running while a filesystem is frozen can
//! return it: it says what, where and with which numbers. [`Error`] is the line a person reads; the verbs make it from a
//! fault once they know the subject. Neither ever stands for a mere warning: an `Error` always ends in a non-zero exit.

use std::fmt;

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

/// A failure with its place and numbers; `Copy`, and made without the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The class, which decides the exit code.
    pub kind: FaultKind,
    /// What was being done or what is wrong, e.g. `read` or `group descriptor checksum`.
    pub what: &'static str,
    /// Byte offset on the device or in the stream, where one is known.
    pub offset: Option<u64>,
    /// Length in bytes of the access, where one is known.
    pub length_bytes: Option<u64>,
    /// A numbered thing, e.g. `("group", 17)` or `("inode", 12)`.
    pub unit: Option<(&'static str, u64)>,
    /// The raw errno of the failed system call.
    pub errno: Option<i32>,
}

impl Fault {
    const fn new(kind: FaultKind, what: &'static str) -> Self {
        Self {
            kind,
            what,
            offset: None,
            length_bytes: None,
            unit: None,
            errno: None,
        }
    }

    /// A failed system call.
    pub const fn io(what: &'static str, errno: rustix::io::Errno) -> Self {
        let mut fault = Self::new(FaultKind::Io, what);
        fault.errno = Some(errno.raw_os_error());
        fault
    }

    /// A source or stream that ended before it should.
    pub const fn short(what: &'static str) -> Self {
        Self::new(FaultKind::Io, what)
    }

    /// Bytes that break their specification.
    pub const fn corrupt(what: &'static str) -> Self {
        Self::new(FaultKind::Corrupt, what)
    }

    /// A valid thing that is not ours to handle.
    pub const fn unsupported(what: &'static str) -> Self {
        Self::new(FaultKind::Unsupported, what)
    }

    /// A refusal by policy.
    pub const fn refused(what: &'static str) -> Self {
        Self::new(FaultKind::Refused, what)
    }

    /// Adds the place: offset and length in bytes.
    pub const fn at(mut self, offset: u64, length_bytes: u64) -> Self {
        self.offset = Some(offset);
        self.length_bytes = Some(length_bytes);
        self
    }

    /// Adds the numbered thing it happened in.
    pub const fn in_unit(mut self, name: &'static str, number: u64) -> Self {
        self.unit = Some((name, number));
        self
    }

    /// The exit code this fault leads to when nothing was written yet.
    pub const fn exit(&self) -> Exit {
        match self.kind {
            FaultKind::Io => Exit::Failed,
            FaultKind::Corrupt => Exit::Corrupt,
            FaultKind::Unsupported | FaultKind::Refused => Exit::Refused,
        }
    }

    /// True for a failed system call with this errno.
    pub fn is_errno(&self, errno: rustix::io::Errno) -> bool {
        self.errno == Some(errno.raw_os_error())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some((name, number)) = self.unit {
            write!(f, " in {name} {number}")?;
        }
        if let Some(length) = self.length_bytes {
            write!(f, " of {length} bytes")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        if let Some(errno) = self.errno {
            write!(f, ": {}", ErrnoText(errno))?;
        }
        Ok(())
    }
}

/// So that a reader of std can carry one.
impl std::error::Error for Fault {}

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
pub enum Error {
    /// One line for a person and an exit code. The line is `SUBJECT: WHAT: WHY` without the leading `floe: `.
    Message(Exit, String),
    /// Exit with this code and without a word (a closed pipe; `verify` that has printed its finding itself).
    Silent(Exit),
    /// `--help` or `--version`: this text goes to stdout, and the exit code is 0.
    Answer(String),
    /// Die by this signal (after the thaw): the signal's number.
    Signal(i32),
}

/// The result of everything a verb does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The environment failed (exit 1).
    pub fn failed(line: impl fmt::Display) -> Self {
        Self::Message(Exit::Failed, line.to_string())
    }

    /// A bad command line (exit 2).
    pub fn usage(line: impl fmt::Display) -> Self {
        Self::Message(Exit::Usage, line.to_string())
    }

    /// Corrupt, truncated or foreign input (exit 3).
    pub fn corrupt(line: impl fmt::Display) -> Self {
        Self::Message(Exit::Corrupt, line.to_string())
    }

    /// Understood and refused (exit 4).
    pub fn refused(line: impl fmt::Display) -> Self {
        Self::Message(Exit::Refused, line.to_string())
    }

    /// A fault and its subject: `SUBJECT: FAULT`.
    pub fn fault(subject: impl fmt::Display, fault: Fault) -> Self {
        Self::Message(fault.exit(), format!("{subject}: {fault}"))
    }

    /// The same line with another exit code: after the first write a refusal is 1, never 4.
    #[must_use]
    pub fn with_exit(self, exit: Exit) -> Self {
        match self {
            Self::Message(_, line) => Self::Message(exit, line),
            Self::Silent(_) => Self::Silent(exit),
            other => other,
        }
    }

    /// The same error with `; STATE` appended: what state the user is left in.
    #[must_use]
    pub fn leaving(self, state: &str) -> Self {
        match self {
            Self::Message(exit, line) => Self::Message(exit, format!("{line}; {state}")),
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(_, line) | Self::Answer(line) => f.write_str(line),
            Self::Silent(exit) => write!(f, "exit {}", exit.code()),
            Self::Signal(number) => write!(f, "signal {number}"),
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
}
