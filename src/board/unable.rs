//! Why a board's floe does not send or take what differs, as a value: then it is asked for less.
//!
//! It reads words, because there is nothing else: of a floe that fails on a board the host gets the exit code, and one line for people. 1
//! and 4 do not tell a full disk or an unknown option from a refusal, and what is older, or was built small, says nothing more. The
//! words are looked at here and nowhere else; those that this floe says come from where it says them, or a test holds them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Exit};
use crate::stream::frames::known::CHANGED;
use crate::stream::partfile::NO_FILE;

/// Has a floe send frames, or take them.
pub(crate) const FRAMES: &str = "--frames";
/// The same, of what the other side does not hold: which that is, goes ahead of them.
pub(crate) const KNOWN: &str = "--frames-known";

/// How a floe that has no room to hold frames says so; what comes behind it was other words in older ones.
const HELD: &str = "write of what waits for the end of the stream";

/// Has the board say how far it is.
pub(crate) const PROGRESS: &str = "--progress=json";

/// Tells the board how long an image is whose end it has not seen.
pub(crate) const LENGTH: &str = "--length=";

/// The words for a board, without asking for what begins so.
pub(crate) fn words_without(option: &str, words: &[OsString]) -> Vec<OsString> {
    let is_it = |word: &OsString| word.as_bytes().starts_with(option.as_bytes());
    let words = words.iter().filter(|word| !is_it(word));
    words.cloned().collect()
}

/// What a board says that cannot do what it was asked for: nobody needs to hear it where it is asked for less then.
pub(crate) fn is_too_old(said: &str) -> bool {
    let words = [
        "unknown option --frames",
        "--frames-known",
        "--progress takes no value",
        "unknown option --length",
        "built without frames",
    ];
    words.iter().any(|words| said.contains(words))
}

/// What `restore` on a board says of a stream that it cannot read twice.
pub(crate) fn is_unproven(said: &str) -> bool {
    said.contains("that all of it is right is known only at its end")
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unable {
    /// An older floe does not know the option, a small one was built without it. It has done nothing.
    Older,
    /// An older floe does not take `--progress=json`. The same.
    Mute,
    /// An older floe does not take `--length`. The same.
    Lengthless,
    /// What was there is not what was said of it.
    Changed,
    /// There is no room for what has to wait.
    NoRoom,
}

impl Unable {
    /// What this failure is, if it is one of them.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        let text = error.to_string();
        let is_older = matches!(error.exit(), Some(Exit::Usage | Exit::Refused));
        if is_older && text.contains(FRAMES) {
            Some(Self::Older)
        } else if is_older && text.contains("--progress") {
            Some(Self::Mute)
        } else if is_older && text.contains("unknown option --length") {
            Some(Self::Lengthless)
        } else if text.contains(CHANGED) {
            Some(Self::Changed)
        } else if text.contains(HELD) || text.contains(NO_FILE) {
            Some(Self::NoRoom)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;
    use crate::stream::frames::receive::NO_ROOM;
    use rustix::io::Errno;

    #[test]
    fn an_older_board_a_full_one_and_a_changed_one_are_told_from_a_refusal() {
        let of = |fault| Unable::of(&Error::fault("board", fault));
        assert!(NO_ROOM.starts_with(HELD));
        let full = Fault::short(NO_ROOM).with_errno(Some(Errno::NOSPC.raw_os_error()));
        assert_eq!(of(full), Some(Unable::NoRoom));
        assert_eq!(of(Fault::io(NO_FILE, Errno::ROFS)), Some(Unable::NoRoom));
        assert_eq!(of(Fault::corrupt(CHANGED)), Some(Unable::Changed));
        let unknown = Error::usage("restore: unknown option --frames-known");
        assert_eq!(Unable::of(&unknown), Some(Unable::Older));
        let mute = Error::usage("dump: --progress takes no value");
        assert_eq!(Unable::of(&mute), Some(Unable::Mute));
        let lengthless = Error::usage("restore: unknown option --length");
        assert_eq!(Unable::of(&lengthless), Some(Unable::Lengthless));
        assert_eq!(Unable::of(&Error::refused("target: is mounted")), None);
        assert_eq!(Unable::of(&Error::failed("ssh --frames: lost")), None);
    }
}
