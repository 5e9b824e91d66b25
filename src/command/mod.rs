//! The verbs, one file each; only here layers are joined.

pub mod capture;
pub mod dump;
mod image;
mod memory;
pub mod prepare;
mod restore;
mod show;
mod skip;
pub mod survey;
mod target;
mod thaw;
mod verify;

use std::ffi::OsString;

use crate::cli::Args;

use crate::error::{Error, Result};
use crate::help;

/// Runs the command line: the verb and its arguments, without the program's name.
pub fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    let verb = arguments
        .next()
        .ok_or_else(|| Error::usage("no verb given; see floe --help"))?;
    let args = |verb| Args::new(verb, lexopt::Parser::from_args(arguments));
    match verb.to_str() {
        Some("-h" | "--help" | "help") => Err(Error::Answer(help::overview())),
        Some("-V" | "--version" | "version") => Err(Error::Answer(help::version())),
        Some("dump") => dump::run(dump::parse(args("dump"))?),
        Some("restore") => restore::run(restore::parse(args("restore"))?),
        Some("show") => show::run(show::parse(args("show"))?),
        Some("verify") => verify::run(verify::parse(args("verify"))?),
        Some("thaw") => thaw::run(args("thaw")),
        _ => Err(Error::usage(format_args!(
            "unknown verb '{}'; see floe --help",
            verb.display()
        ))),
    }
}
