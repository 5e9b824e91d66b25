//! The verbs, one file each; only here layers are joined.

mod artifact;
mod clone;
mod create;
pub mod dump;
mod kept;
mod list;
mod mender;
pub mod pull;
mod push;
mod restore;
mod show;
mod thaw;
mod verify;

use std::ffi::OsString;

use crate::cli::Args;

use crate::error::{Error, Result};
use crate::help;

/// Runs the command line: the program's name (which may be one that Mender's tools look for), the verb and its arguments.
pub fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    if let Some(words) = arguments.next().and_then(|name| mender::words(&name)) {
        return mender::run(words, arguments.collect());
    }
    let verb = arguments
        .next()
        .ok_or_else(|| Error::usage("no verb given; see floe --help"))?;
    let args = |verb| Args::new(verb, lexopt::Parser::from_args(arguments));
    let done = match verb.to_str() {
        Some("-h" | "--help" | "help") => Err(Error::answer(help::overview())),
        Some("-V" | "--version" | "version") => Err(Error::answer(help::version())),
        Some("dump") => dump::run(dump::parse(args("dump"))?),
        Some("restore") => restore::run(restore::parse(args("restore"))?),
        Some("clone") => clone::run(clone::parse(args("clone"))?),
        Some("create") => create::run(create::parse(args("create"))?),
        Some("show") => show::run(show::parse(args("show"))?),
        Some("verify") => verify::run(verify::parse(args("verify"))?),
        Some("list") => list::run(list::parse(args("list"))?),
        Some("artifact") => artifact::run(artifact::parse(args("artifact"))?),
        Some("pull") => pull::run(pull::parse(args("pull"))?),
        Some("push") => push::run(push::parse(args("push"))?),
        Some("kept") => kept::run(kept::parse(args("kept"))?),
        Some("thaw") => thaw::run(args("thaw")),
        _ => Err(Error::usage(format_args!(
            "unknown verb '{}'; see floe --help",
            verb.display()
        ))),
    };
    // A refusal comes before the first write; what only looks has nothing to write.
    match verb.to_str() {
        Some("show" | "verify" | "list") => done,
        _ => done.map_err(Error::refused_at_first),
    }
}
