//! What a release is packed of, and that packing it twice gives the same bytes. Nothing is built: the executable under test is packed.

use std::fs;
use std::path::Path;

use crate::common::{self, Limit, Scratch};

#[test]
fn a_release_has_its_files_belongs_to_nobody_and_is_the_same_every_time() {
    let floe = require_some!(common::floe_path(), "FLOE_BIN, the executable under test");
    let pages = require_some!(common::example("pages"), "the example pages");
    let arch = require_some!(common::floe_arch(), "an architecture of its own");
    for tool in ["tar", "xz", "sha256sum"] {
        require!(common::have(tool), tool);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).display();
    let (scratch, version) = (Scratch::new(), env!("CARGO_PKG_VERSION"));
    let here = scratch.path().display();
    let (pages, floe) = (pages.display(), floe.display());
    let name = format!("floe-{version}-{arch}");
    // The second time from files with other times and modes, and with another umask.
    let script = format!(
        "cd {here}; mkdir dist; cp {floe} dist/floe-{arch}; {pages} pages
        export SOURCE_DATE_EPOCH=1700000000
        release() {{ {root}/tools/release --dist {here}/dist --pages {here}/pages --out {here}/$1 {arch}; }}
        release one
        touch -d @1600000000 pages/man/* dist/*; chmod 0700 dist/*; umask 077
        release two
        cmp one/{name}.tar.xz two/{name}.tar.xz; cmp one/SHA256SUMS two/SHA256SUMS
        cd one; sha256sum --quiet -c SHA256SUMS
        tar --numeric-owner --full-time --utc -tvf {name}.tar.xz > list
        tar -xf {name}.tar.xz; cmp {name}/floe {floe}"
    );
    common::shell(&script, Limit::secs(120)).expect_code(0);
    let list = fs::read_to_string(scratch.join("one/list")).expect("the list");
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let has = |path: &str| names.contains(&format!("{name}/{path}").as_str());
    for path in [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "docs/guarantees.md",
        "floe",
        "man/floe.1",
        "completions/floe.bash",
        "completions/_floe",
        "completions/floe.fish",
    ] {
        assert!(has(path), "{path}: {list}");
    }
    for verb in floe::help::VERBS {
        assert!(has(&format!("man/floe-{}.1", verb.name)), "{}", verb.name);
    }
    assert!(names.is_sorted(), "{list}");
    for line in list.lines() {
        assert!(line.contains(" 0/0 "), "an owner: {line}");
        assert!(line.contains(" 2023-11-14 22:13:20 "), "a time: {line}");
        let mode = &line[..10];
        let is_program = line.ends_with("/floe");
        let expected = match (mode.starts_with('d'), is_program) {
            (true, _) => "drwxr-xr-x",
            (_, true) => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!(mode, expected, "{line}");
    }

    // What is not of the architecture it is called is not packed.
    let wrong = if arch == "x86_64" {
        "aarch64"
    } else {
        "x86_64"
    };
    let script = format!(
        "cd {here}; mv dist/floe-{arch} dist/floe-{wrong}
        ! {root}/tools/release --dist {here}/dist --pages {here}/pages --out {here}/three {wrong} 2> three.err
        grep -q 'for another machine' three.err; [ ! -e three/SHA256SUMS ]"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
}

#[test]
fn recipes_are_of_this_version_and_every_script_is_a_script() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let version = env!("CARGO_PKG_VERSION");
    let says = |file: &str, text: &str| {
        let page = fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("{file}"));
        assert!(page.contains(text), "{file}: no {text}");
    };
    let recipe = format!("yocto/recipes-core/floe/floe_{version}.bb");
    says(
        "buildroot/floe/floe.mk",
        &format!("FLOE_VERSION = {version}\n"),
    );
    says(
        "buildroot/floe/floe.hash",
        &format!(" floe-{version}.tar.xz\n"),
    );
    says(
        "openwrt/floe/Makefile",
        &format!("PKG_VERSION:={version}\n"),
    );
    says("debian/changelog", &format!("floe ({version}) "));
    says(&recipe, "inherit cargo\n");
    let scratch = Scratch::new();
    let (root, out) = (root.display(), scratch.path().display());
    let script = format!(
        "sh -n {root}/initramfs-tools/floe; bash -n {root}/dracut/90floe/module-setup.sh; cd {out}
        for one in '' -x86_64 -aarch64 -armv7; do echo 0123abcd$one  floe-{version}$one.tar.xz; done > sums
        {root}/pin sums pinned; cd pinned
        grep -qx 'sha256  0123abcd  floe-{version}.tar.xz' buildroot/floe/floe.hash
        grep -qx 'SRC_URI.sha256sum. = \"0123abcd\"' {recipe}
        grep -qx 'FLOE_HASH_armv7:=0123abcd-armv7' openwrt/floe/Makefile
        [ $(grep -c crate:// yocto/recipes-core/floe/floe-crates.inc) = $(grep -c ^checksum {root}/../Cargo.lock) ]
        [ $(grep -c sha256sum yocto/recipes-core/floe/floe-crates.inc) = $(grep -c ^checksum {root}/../Cargo.lock) ]"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
}
