//! Rules about the code that a test can hold: layering, where `unsafe` stands, panics, house-keeping of help and README.

use std::path::{Path, PathBuf};

/// Which verb uses another, and why.
const VERBS: &[(&str, &str)] = &[
    // Mender's names for dump.
    ("mender", "dump"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust source under `folder`.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty());
    found
}

/// The code of a file: without comments, and without its test module (by our habit the last thing in a file).
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    name == "tests"
        || name.ends_with("_tests")
        || name == "fixture"
        || name == "testing"
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// `fs` for `src/fs/ext/mod.rs` and for `src/fs.rs`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The rooms in the order of `src/lib.rs`: one may use those before it, never those after it.
fn rooms() -> Vec<String> {
    let plan = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = plan.lines().filter(|line| line.starts_with("//! | [`"));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// What a file names of the crate: the room and, in `command`, the verb. `super::` is followed up the tree.
fn uses(path: &Path) -> Vec<(String, Option<String>)> {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let mut own: Vec<String> = inside
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    if own.last().is_some_and(|last| last == "mod") {
        own.pop();
    }
    let code = code(path);
    let mut found = Vec::new();
    for (at, _) in code
        .match_indices("crate::")
        .chain(code.match_indices("super::"))
    {
        // `super::super::` counts once, from its beginning.
        if code[..at].ends_with("super::") || code[..at].ends_with("::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut place = own.clone();
        if let Some(after) = rest.strip_prefix("crate::") {
            (place, rest) = (Vec::new(), after);
        }
        while let Some(after) = rest.strip_prefix("super::") {
            place.pop();
            rest = after;
        }
        let word = |text: &str| -> String {
            let name = |c: &char| c.is_alphanumeric() || *c == '_';
            text.chars().take_while(name).collect()
        };
        // `crate::{a, b}` and `super::{a, b}` name several.
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list[..list.find('}').unwrap_or(0)].split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim();
            let mut whole = place.clone();
            whole.push(word(name));
            if let Some(next) = name[word(name).len()..].strip_prefix("::") {
                whole.push(word(next));
            }
            found.push((whole[0].clone(), whole.get(1).cloned()));
        }
    }
    found
}

/// `dump` for `src/command/dump.rs` and for everything in `src/command/dump/`.
fn verb_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root().join("src/command")).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let verb = first.trim_end_matches(".rs");
    (verb != "mod").then(|| verb.to_owned())
}

/// Every verb that has a file.
fn verbs() -> Vec<String> {
    sources("src/command")
        .iter()
        .filter_map(|path| verb_of(path))
        .collect()
}

#[test]
fn modules_use_only_those_below_them() {
    let mut wrong = Vec::new();
    let (rooms, verbs) = (rooms(), verbs());
    let layer = |room: &str| rooms.iter().position(|known| known == room);
    for path in sources("src").iter().filter(|path| !is_test_file(path)) {
        let from = module(path);
        let Some(own) = layer(&from) else {
            assert!(
                matches!(from.as_str(), "lib" | "main"),
                "{from} has no place in the list"
            );
            continue;
        };
        for (to, verb) in uses(path) {
            if let Some(other) = layer(&to)
                && other > own
            {
                wrong.push(format!("{}: uses {to}", path.display()));
            }
            let own_verb = verb_of(path);
            if to == "command"
                && let (Some(own), Some(verb)) = (own_verb, verb)
                && own != verb
                && verbs.contains(&verb)
                && !VERBS.contains(&(own.as_str(), verb.as_str()))
            {
                wrong.push(format!("{}: the verb {verb}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_only_under_sys_and_says_why() {
    for path in sources("src") {
        let text = std::fs::read_to_string(&path).unwrap();
        let inside_sys = module(&path) == "sys";
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let line = line.split("//").next().unwrap();
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe impl");
            if !is_unsafe {
                continue;
            }
            assert!(
                inside_sys,
                "{}:{}: unsafe outside src/sys",
                path.display(),
                index + 1
            );
            let reason = lines[index.saturating_sub(12)..index]
                .iter()
                .any(|line| line.contains("SAFETY:"));
            assert!(
                reason,
                "{}:{}: unsafe without SAFETY:",
                path.display(),
                index + 1
            );
        }
    }
}

#[test]
fn our_other_crates_forbid_unsafe_altogether() {
    for krate in std::fs::read_dir(root().join("crates")).unwrap() {
        let page = krate.unwrap().path().join("src/lib.rs");
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(
            text.contains("\n#![forbid(unsafe_code)]\n"),
            "{}",
            page.display()
        );
    }
}

#[test]
fn no_panic_is_written_outside_tests() {
    let mut found = Vec::new();
    let all = [sources("src"), sources("crates")].concat();
    for path in all.iter().filter(|path| !is_test_file(path)) {
        let code = code(path);
        for word in [
            ".unwrap()",
            ".expect(",
            "panic!(",
            "todo!(",
            "unimplemented!(",
            "unreachable!(",
        ] {
            if code.contains(word) {
                found.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "crates", "tests/it"] {
        for path in sources(folder) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.starts_with("//!"),
                "{}: no //! at the top",
                path.display()
            );
        }
    }
    let page = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(
        page.lines().count() <= 120,
        "the page in src/lib.rs has grown beyond 120 lines"
    );
}

#[test]
fn the_library_s_page_names_every_module() {
    let page = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for path in sources("src") {
        let name = module(&path);
        if !matches!(name.as_str(), "lib" | "main") {
            assert!(
                page.contains(&format!("[`{name}`]")),
                "{name} is not on the page"
            );
        }
    }
}

#[test]
fn readme_names_every_verb_and_exit_code_and_the_version() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for verb in floe::help::VERBS {
        assert!(
            readme.contains(&format!("floe {}", verb.name)),
            "README: no {}",
            verb.name
        );
        assert!(
            verb.text.starts_with(&format!("floe {}", verb.name)),
            "help of {}",
            verb.name
        );
    }
    assert!(
        readme.lines().count() < 250,
        "README: longer matters go to docs/"
    );
    // `floe [OPTION…] VERB …` up to a pipe, a comment or the end of the code: its options are the verb's.
    let pages = super::pages().concat();
    for (at, _) in pages.match_indices("floe ") {
        let rest = &pages[at + 5..];
        let rest = &rest[..rest
            .find(['|', '`', '#', '\n', '&', '<', '>', '\'', '"', ';', ')'])
            .unwrap_or(rest.len())];
        let word = rest.split_whitespace().next();
        let Some(verb) = floe::help::VERBS
            .iter()
            .find(|verb| word == Some(verb.name))
        else {
            continue;
        };
        for option in rest
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            let option = option.trim_end_matches([',', '.']);
            let known = option == "--" || floe::options::find(verb.name, option).is_some();
            assert!(known, "README, docs: floe {} has no {option}", verb.name);
        }
    }
    for code in 0..=4 {
        assert!(
            readme.contains(&format!("| {code} |")),
            "README: no exit code {code}"
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    let changes = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(
        changes.contains(&format!("## {version}\n")),
        "CHANGELOG: no changes of {version}"
    );
}
