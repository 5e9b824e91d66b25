//! The verbs, one file each; only here layers are joined.

mod artifact;
mod clone;
mod create;
mod delete;
pub(crate) mod dump;
mod kept;
mod list;
mod mender;
pub(crate) mod pull;
mod push;
mod restore;
mod show;
mod thaw;
mod verify;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

use crate::cli::{self, Args, Common, Item};
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::place::Place;
use crate::{features, help, report};

/// Runs the command line: the program's name (which may be one that Mender's tools look for), the verb and its arguments.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments;
    let program = arguments.drain(..1.min(arguments.len())).next();
    if features::MENDER
        && let Some(words) = program.and_then(|name| mender::words(&name))
    {
        return mender::run(words, arguments);
    }
    let verb = cli::take_verb(&mut arguments);
    let args = |verb| Args::new(verb, lexopt::Parser::from_args(arguments));
    let Some(verb) = verb else {
        // The common options alone: --help and --version are answers, all others wait for a verb.
        let mut args = args("");
        while args.next_item()?.is_some() {}
        return Err(Error::usage("no verb given; see floe --help"));
    };
    let done = match verb.to_str() {
        Some("help") => Err(help(&mut args(""))),
        Some("version") => Err(Error::answer(help::version())),
        Some("dump") => dump::run(dump::parse(args("dump"))?),
        Some("restore") => restore::run(restore::parse(args("restore"))?),
        Some("clone") if features::CLONE => clone::run(clone::parse(args("clone"))?),
        Some("create") if features::SNAPSHOTS => create::run(create::parse(args("create"))?),
        Some("show") => show::run(show::parse(args("show"))?),
        Some("verify") => verify::run(verify::parse(args("verify"))?),
        Some("delete") if features::SNAPSHOTS => delete::run(delete::parse(args("delete"))?),
        Some("list") if features::SNAPSHOTS => list::run(list::parse(args("list"))?),
        Some("artifact") if features::HOST => artifact::run(artifact::parse(args("artifact"))?),
        Some("pull") if features::HOST => pull::run(pull::parse(args("pull"))?),
        Some("push") if features::HOST => push::run(push::parse(args("push"))?),
        Some("kept") if features::SNAPSHOTS => kept::run(kept::parse(args("kept"))?),
        Some("thaw") => thaw::run(thaw::parse(args("thaw"))?),
        _ => Err(unknown(&verb)),
    };
    // A refusal comes before the first write; what only looks has nothing to write.
    let nothing = match verb.to_str() {
        Some("show" | "verify" | "list") => "",
        Some("thaw") => "nothing was thawed",
        Some("delete") => "nothing was deleted",
        _ => NOTHING_WRITTEN,
    };
    let done = done.map_err(|error| error.refused_at_first(nothing));
    report::write_end(&done);
    done
}

/// At the beginning of every verb: opens the report that was asked for, unless it would be what the verb writes. `key` and `about`:
/// see [`report::begin`].
fn begin(
    common: &Common,
    (key, about): (&'static str, &dyn fmt::Display),
    outputs: &[&Path],
) -> Result<()> {
    let report = common.report.as_deref();
    if let Some(report) = report.filter(|path| *path != Path::new("-"))
        && outputs.iter().any(|output| is_one_file(report, output))
    {
        return Err(Error::refused(format_args!(
            "{}: is what is to be written, and the report would replace it; name another file with --report",
            report.display()
        ))
        .leaving(NOTHING_WRITTEN));
    }
    report::begin(common, key, &about.to_string())
}

/// Whether two names of files to come lead to one.
fn is_one_file(one: &Path, other: &Path) -> bool {
    let place = |path| Place::find(path).map(|place| place.identity());
    matches!((place(one), place(other)), (Ok(one), Ok(other)) if one == other)
}

/// Several arguments as they were typed.
fn typed<'a>(words: impl Iterator<Item = &'a OsStr>) -> String {
    let words: Vec<String> = words.map(|word| word.display().to_string()).collect();
    words.join(" ")
}

/// `floe help VERB`: always an answer, or what is wrong with the question.
fn help(args: &mut Args) -> Error {
    match args.next_item() {
        Ok(Some(Item::Value(verb))) => match verb.to_str().filter(|verb| help::is_verb(verb)) {
            Some(verb) => Error::answer(help::verb(verb)),
            None => unknown(&verb),
        },
        Ok(_) => Error::answer(help::overview()),
        Err(error) => error,
    }
}

fn unknown(verb: &OsStr) -> Error {
    let name = verb.to_str().unwrap_or_default();
    if let Some(why) = features::without(name) {
        return Error::refused(format_args!("{name}: {why}; floe --version says with what"));
    }
    let mut verbs = help::VERBS.iter().map(|verb| verb.name);
    let meant = cli::meant(verb.to_str().unwrap_or_default(), &mut verbs);
    cli::usage("", format_args!("unknown verb '{}'{meant}", verb.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Owner, Takes};

    /// What became of parsing `verb` with these words.
    fn parse(verb: &str, words: &[&str]) -> Result<()> {
        let parser = lexopt::Parser::from_args(words.iter().map(OsString::from));
        let known = help::VERBS.iter().map(|verb| verb.name).chain(["kept"]);
        let name = known.into_iter().find(|known| *known == verb).unwrap();
        let args = Args::new(name, parser);
        match name {
            "dump" => dump::parse(args).map(drop),
            "restore" => restore::parse(args).map(drop),
            "clone" => clone::parse(args).map(drop),
            "create" => create::parse(args).map(drop),
            "show" => show::parse(args).map(drop),
            "verify" => verify::parse(args).map(drop),
            "list" => list::parse(args).map(drop),
            "delete" => delete::parse(args).map(drop),
            "artifact" => artifact::parse(args).map(drop),
            "pull" => pull::parse(args).map(drop),
            "push" => push::parse(args).map(drop),
            "kept" => kept::parse(args).map(drop),
            "thaw" => thaw::parse(args).map(drop),
            other => panic!("{other}: has no parser here"),
        }
    }

    #[test]
    fn every_option_of_the_table_is_known_to_its_verb() {
        for verb in help::VERBS.iter().map(|verb| verb.name).chain(["kept"]) {
            for row in options::rows().filter(|row| row.owner_for(verb) == Some(Owner::Here)) {
                for name in row.names() {
                    let value = match row.takes() {
                        Takes::Value => &[name, "1"][..],
                        _ => &[name],
                    };
                    // What else is missing or wrong is another matter.
                    if let Err(error) = parse(verb, value) {
                        let error = error.to_string();
                        assert!(!error.contains("unknown option"), "{verb}: {error}");
                    }
                }
            }
        }
    }
}
