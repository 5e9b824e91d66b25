//! Variations of slips and of what a machine lacks, each refused or told of with the line that helps: sectors, damaged beginnings and
//! tables, what lies in a snapshot or store, arguments the wrong way round, limits, and a signal that comes first of all.

use std::process::Command;

use crate::common::{self, Limit, Run, Scratch};

/// Shell lines in the scratch folder, with floe as `$FLOE`.
fn sh(scratch: &Scratch, script: &str) -> Run {
    let floe = common::floe_path().expect("FLOE_BIN");
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env("FLOE", floe)
        .current_dir(scratch.path());
    common::run(&mut command, Limit::secs(60))
}

/// Expects of each script this exit code, and in the one line that it says these words.
fn expect(scratch: &Scratch, all: &[(&str, i32, &str)]) {
    for (script, code, words) in all {
        let run = sh(scratch, script).expect_code(*code);
        let said = run.stderr_text();
        assert!(said.contains(words), "{script}: no {words:?} in {run}");
        assert!(*code == 0 || said.lines().count() == 1, "{script}: {run}");
    }
}

macro_rules! ready {
    ($($tool:literal),*) => {
        require!(common::is_root(), "root");
        require!(common::floe_path().is_some(), "FLOE_BIN");
        require!(common::runner().is_none(), "no runner: floe is started by others");
        $(require!(common::have($tool), $tool);)*
    };
}

const EXT4: &str = "truncate -s 8M e && mke2fs -q -F -t ext4 e && gzip -k e";

mod arguments;
mod codes;
mod entries;
mod images;
mod kept;
mod machine;
mod twins;
