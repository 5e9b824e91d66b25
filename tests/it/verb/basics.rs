//! What every invocation of the executable promises, whatever the verb: that it starts, says which board it is for,
//! and answers a bad command line with exit code 2 and one line.

use crate::common::{self, Limit};

#[test]
fn version_names_the_program_its_version_and_its_target() {
    let run = common::run(require_floe!().arg("--version"), Limit::secs(20));
    assert_eq!(run.code, Some(0), "{run}");
    let text = run.stdout_text();
    assert!(
        text.starts_with(&format!("floe {}", env!("CARGO_PKG_VERSION"))),
        "{run}"
    );
    let arch = common::floe_arch().expect("an executable has a machine type");
    assert!(text.contains(arch), "no {arch} in {text:?}");
}

#[test]
fn a_bad_option_is_one_line_on_stderr_and_exit_2() {
    let run = common::run(require_floe!().arg("--no-such-option"), Limit::secs(20));
    assert_eq!(run.code, Some(2), "{run}");
    assert!(run.stdout.is_empty(), "{run}");
    let text = run.stderr_text();
    assert_eq!(text.lines().count(), 1, "{run}");
    assert!(text.starts_with("floe: "), "{run}");
    assert!(text.contains("no-such-option"), "{run}");
}

#[test]
fn the_executable_is_static_and_stripped() {
    let path = require_some!(common::floe_path(), "FLOE_BIN");
    let headers = common::output("readelf", &["-lSW", &path.to_string_lossy()]);
    assert!(!headers.contains("INTERP"), "{headers}");
    assert!(!headers.contains(".symtab"), "{headers}");
    // Tables that begin as zeros take no room in it.
    let mut data = headers.lines().filter(|line| line.contains(" .data "));
    let data = data.next().and_then(|line| {
        let size = line.split_whitespace().rev().nth(5)?;
        u64::from_str_radix(size, 16).ok()
    });
    assert!(data.is_none_or(|size| size < 16 << 10), "{headers}");
}
