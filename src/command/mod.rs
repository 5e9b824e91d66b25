//! The verbs, one file each; only here layers are joined.

use std::ffi::OsString;

use crate::error::{Error, Result};
use crate::help;

/// Runs the command line: the verb and its arguments, without the program's name.
pub fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    let verb = arguments
        .next()
        .ok_or_else(|| Error::usage("no verb given; see floe --help"))?;
    let parser = || lexopt::Parser::from_args(arguments);
    match verb.to_str() {
        Some("-h" | "--help" | "help") => Err(Error::Answer(help::overview())),
        Some("-V" | "--version" | "version") => Err(Error::Answer(help::version())),
        _ => {
            let _ = parser;
            Err(Error::usage(format_args!(
                "unknown verb '{}'; see floe --help",
                verb.display()
            )))
        }
    }
}
