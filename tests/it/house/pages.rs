//! Man pages and completions: made from the one table, complete, and understood by what reads them.

use std::fs;
use std::process::Command;

use crate::common::{self, Limit, Scratch};

#[test]
fn the_picture_of_the_figures_is_drawn_from_their_page() {
    require!(common::have("python3"), "python3");
    let scratch = Scratch::new();
    let root = env!("CARGO_MANIFEST_DIR");
    let drawn = scratch.join("figures.svg");
    let script = format!(
        "{root}/tests/bench/picture {root}/docs/figures.md {}",
        drawn.display()
    );
    common::shell(&script, Limit::secs(30)).expect_code(0);
    let read = |path: &std::path::Path| fs::read_to_string(path).expect("picture");
    let kept = read(&std::path::Path::new(root).join("docs/figures.svg"));
    assert!(read(&drawn) == kept, "draw it again: tests/bench/picture");
    assert!(kept.contains("prefers-color-scheme: dark"));
}

#[test]
fn man_pages_and_completions_have_every_verb_and_option_and_are_well_formed() {
    let pages = require_some!(common::example("pages"), "the example pages");
    let scratch = Scratch::new();
    common::run(Command::new(pages).arg(scratch.path()), Limit::secs(30)).expect_code(0);
    let read =
        |name: &str| fs::read_to_string(scratch.join(name)).unwrap_or_else(|_| panic!("{name}"));
    let overview = read("man/floe.1");
    let (bash, zsh, fish) = (
        read("completions/floe.bash"),
        read("completions/_floe"),
        read("completions/floe.fish"),
    );
    for verb in floe::help::VERBS {
        let page = read(&format!("man/floe-{}.1", verb.name));
        assert!(
            overview.contains(&format!("floe\\-{}", verb.name)),
            "{}",
            verb.name
        );
        assert!(bash.contains(&format!("\n        {}) all=", verb.name)));
        assert!(zsh.contains(&format!("'{}:", verb.name)));
        for row in floe::options::rows() {
            if row.owner_for(verb.name).is_none() || row.help.is_empty() {
                continue;
            }
            for name in row.names() {
                assert!(
                    page.contains(&name.replace('-', "\\-")),
                    "{}: {name}",
                    verb.name
                );
                assert!(bash.contains(name) && zsh.contains(name), "{name}");
                let long = name.strip_prefix("--");
                assert!(
                    long.is_none_or(|long| fish.contains(&format!(" -l {long} "))),
                    "{name}"
                );
            }
        }
    }
    if common::have("groff") {
        let script = format!(
            "groff -man -Tutf8 -ww -z {}/man/*.1 2>&1",
            scratch.path().display()
        );
        let run = common::shell(&script, Limit::secs(60)).expect_code(0);
        assert!(run.stdout.is_empty(), "{run}");
    }
    require!(common::have("bash"), "bash");
    let complete = |words: &str| {
        let script = format!(
            ". {}/completions/floe.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _floe; echo \"${{COMPREPLY[*]}}\"",
            scratch.path().display()
        );
        let run = common::run(Command::new("bash").args(["-c", &script]), Limit::secs(20));
        run.expect_code(0).stdout_text().trim().to_owned()
    };
    assert_eq!(complete("floe ver"), "verify");
    assert_eq!(complete("floe -q dum"), "dump");
    assert_eq!(complete("floe restore --over"), "--overwrite");
    assert_eq!(complete("floe thaw --a"), "--all");
    assert_eq!(complete("floe thaw --over"), "");
    assert_eq!(
        complete("floe dump -o /etc/host"),
        complete("floe verify /etc/host")
    );
}
