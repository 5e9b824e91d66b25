//! What a person or a script reads: lines on stderr, the last line of a run, the JSON report.
//!
//! Never panics on a closed or full stderr, and never writes to it while a filesystem is frozen (callers hold lines back).

use std::fmt;
use std::io::Write;

use crate::error::{Error, Exit};

/// Writes one line `floe: LINE` to stderr with a single write; failures are ignored, because there is nowhere to report them.
pub fn line(line: impl fmt::Display) {
    let text = format!("floe: {line}\n");
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to stdout (help and listings): a closed pipe is silent, any other failure is exit 1.
pub fn print(text: &str) -> crate::error::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Error::Silent(Exit::Failed))
        }
        Err(error) => Err(Error::failed(format_args!("stdout: write: {error}"))),
    }
}

/// Says how a run ended and gives its exit code.
pub fn end(error: Error) -> u8 {
    match error {
        Error::Message(exit, text) => {
            line(text);
            exit.code()
        }
        Error::Silent(exit) => exit.code(),
        Error::Answer(text) => match print(&text) {
            Ok(()) => 0,
            Err(error) => end(error),
        },
        Error::Signal(number) => crate::sys::process::die_by(number),
    }
}
