//! Help text and version: written for somebody who has never seen the program, perhaps on a serial console of 80 columns.
//!
//! Here is the prose of each verb; the options come from the one table.

pub mod golden;

use crate::features;
use crate::options::{self, Owner, Row};

/// One verb: name, arguments, what it does, and its help around the options.
pub struct Verb {
    /// The word on the command line.
    pub name: &'static str,
    /// What follows it.
    pub arguments: &'static str,
    /// What it does, in a few words.
    pub line: &'static str,
    /// What `floe VERB --help` prints before the options, and after a line `---` what it prints after them; empty for a verb that
    /// was left out.
    pub text: &'static str,
}

/// Every verb, in the order in which `floe --help` shows them.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "dump",
        arguments: "[SOURCE]",
        line: "frozen image of a filesystem or disk, to stdout or -o FILE",
        text: DUMP,
    },
    Verb {
        name: "restore",
        arguments: "IMAGE TARGET | NAME=TARGET…",
        line: "write an image, or entries of a snapshot, to devices or files",
        text: RESTORE,
    },
    Verb {
        name: "clone",
        arguments: "SOURCE=TARGET…",
        line: "live copy of active filesystems onto standby devices",
        text: if features::CLONE { CLONE } else { "" },
    },
    Verb {
        name: "create",
        arguments: "NAME=SOURCE…",
        line: "several filesystems, frozen together, as one .zip with metadata",
        text: if features::SNAPSHOTS { CREATE } else { "" },
    },
    Verb {
        name: "show",
        arguments: "[PATH]",
        line: "what could be imaged here; or what this device, mount or image is",
        text: SHOW,
    },
    Verb {
        name: "verify",
        arguments: "FILE|-",
        line: "check every checksum of an image or snapshot",
        text: VERIFY,
    },
    Verb {
        name: "list",
        arguments: "[DIR | HOST]",
        line: "the snapshots kept in a folder, or on a board",
        text: if features::SNAPSHOTS { LIST } else { "" },
    },
    Verb {
        name: "delete",
        arguments: "NAME…",
        line: "snapshots of the store go",
        text: if features::SNAPSHOTS { DELETE } else { "" },
    },
    Verb {
        name: "artifact",
        arguments: "IMAGE",
        line: "wrap an image into a Mender artifact (.mender)",
        text: if features::HOST { ARTIFACT } else { "" },
    },
    Verb {
        name: "pull",
        arguments: "HOST…",
        line: "images and snapshots from boards over ssh, many at a time",
        text: if features::HOST { PULL } else { "" },
    },
    Verb {
        name: "push",
        arguments: "FILE HOST TARGET…",
        line: "restore an image or snapshot on a board over ssh, or keep it there",
        text: if features::HOST { PUSH } else { "" },
    },
    Verb {
        name: "thaw",
        arguments: "PATH | --all",
        line: "emergency: thaw what something left frozen",
        text: THAW,
    },
];

const DUMP: &str = "\
floe dump [SOURCE]: a consistent image of one filesystem or disk, while it is in use

SOURCE is a directory on a mounted filesystem, a block device, an image file, or LABEL=, UUID=,
PARTLABEL=, PARTUUID=. Without it, it is /: the running root is frozen at once. The filesystem is frozen, its used blocks are read past the page cache, compressed on every core, and it
is thawed as soon as the last block has been read, also if floe is killed. The image goes to stdout; a terminal is refused.

  floe dump /data | ssh me@host 'cat > data.img.gz'
  floe dump /data -o /mnt/usb/data.img.gz
---
Sizes take K M G T (1024-based), times ms s m.

Exit: 0 complete and consistent; 1 failed, what was written is not complete; 2 wrong command line; 4 refused, also where SOURCE is not there: nothing was
written. In a pipe, 'set -o pipefail' shows the exit code of floe.
";

const RESTORE: &str = "\
floe restore IMAGE TARGET | SNAPSHOT NAME=TARGET…: write an image to a device or into a file

IMAGE is raw, gzip, a Mender artifact or frames, what dump --frames sends (recognised by its content), '-' is stdin. Bytes that show no filesystem and no
partition table are not an image. A file is read to its end, and so checked, before the first write; a pipe cannot be, but for frames,
which are held until all have come. TARGET is a block device, LABEL=, UUID=, PARTLABEL=, PARTUUID=, or a file; a file that does not
exist yet is made, and is sparse.

  floe restore root.img.gz /dev/mmcblk0p3
  ssh me@board floe dump / | floe restore - disk.img

Before the first write everything is checked: the target is mounted nowhere, not swap, not held by md or dm, not read-only, large
enough, and holds nothing that floe knows. Free ranges are zeroed, so that no old data stays under them. The beginning of the target, with its
superblock, is zeroed first and written last: an interrupted target looks empty, neither old nor new. What lies beyond the
image's end on a larger device is left alone; only a backup partition table (GPT) moves to the end of the disk. A file becomes
exactly the image.

Of a snapshot (floe create) the named entries are restored, after all targets and, in a file, all checksums were checked. From a
pipe an entry's CRC is checked before its superblock is written, the rest is known at the end: then it says so, and fails.

  floe restore board.zip root=/dev/mmcblk0p3 config=PARTLABEL=config_b
  floe restore board.zip --disk /dev/sdb
---
Exit: 0 complete and flushed; 1 failed; 2 wrong command line; 3 the image is corrupt, cut off or not an image; 4 refused, nothing
was written. After 1 and 3 the message says in which state the target is.
";

const CLONE: &str = "\
floe clone SOURCE=TARGET… | --pairs FILE: the running system onto standby partitions or another medium, live

Standby partitions are those that the board does not run from, but may boot next; active are those it runs from.
All sources are frozen together, and thawed as soon as the last used block has been read; blocks go straight to the targets. SOURCE
is what floe dump takes, TARGET a block device; both may be LABEL=, UUID=, PARTLABEL= or PARTUUID= (a pair is split at the first
'=' that is not theirs). Without pairs they are read from /etc/floe.conf, one a line, beside other settings.

  floe clone /=/dev/mmcblk0p3 /config=PARTLABEL=config_b
  floe clone --verify

Before the first write everything is checked, on every target: mounted nowhere, not swap, not held by md, dm or a loop device, no
mirror, not the running root, not read-only, large enough, not a source by another name, and empty. What is free on a
target becomes zeros, and so does all that lies beyond the source's end. Their first superblocks are written last, when the thaw has proven that nothing changed: an interrupted target looks
empty, and the same command again repairs it.

  floe clone /=root /config=config /boot=boot --media usb --partition \\
      --as-primary
---
-j N is the number of writes in flight (default 4).

Afterwards active and standby are identical, labels and uuids too; what boots next is the bootloader's to choose. Booted from the
standby, the same command with the pair swapped clones back.

Exit: 0 complete, consistent and flushed; 1 failed, and the message says in which state the targets are; 2 wrong command line; 4
refused, nothing was written.
";

const CREATE: &str = "\
floe create NAME=SOURCE… [-o DIR | FILE | -]: several filesystems, frozen together, as one .zip with metadata

All filesystems are frozen at the same time, so that they fit each other. NAME is [a-z0-9._-]+ and becomes images/NAME.img; SOURCE
is what floe dump takes. The archive holds the metadata first, then the images, then all checksums; unzip, 7z, bsdtar and Python
open it. It carries whatever the filesystems hold, passwords and keys too: files are made for their owner only (0600).

  floe create root=/ config=/config boot=/dev/mmcblk0p1 -o /mnt/usb/
  floe create root=/ config=/config -o - | ssh me@host 'cat > board.zip'
---
Exit: 0 complete and consistent; 1 failed, and a file or folder is as it was before; 2 wrong command line; 4 refused, nothing was
written.
";

const LIST: &str = "\
floe list [DIR | HOST]: the snapshots in a folder, or in the store of a board over ssh, the oldest first

Prints name, size, age, state and entries. The state is complete, being made, incomplete (it was cut short), newer format, damaged,
unreadable or no snapshot (a link, a folder, a pipe), with the reason. Images are not read: floe verify checks their bytes. Of kept snapshots the
number at the end of the name says which is newer, as for 'latest' (the newest that is complete) and --keep; of others it is the time
in them. Without DIR it is 'store = DIR' of /etc/floe.conf. What is no path that is there, and has no slash, is a HOST as floe pull
takes it.
---
";

const DELETE: &str = "\
floe delete NAME…: snapshots of the store (the folder that keeps them) go

NAME is what floe list shows, with or without .zip, or 'latest', in 'store = DIR' of /etc/floe.conf. All names are checked before the
first is deleted; what is being made never is. The same names are understood by floe show, verify, restore and push.

  floe delete board-20260301T120000Z-0007
---
Exit: 0 deleted; 1 failed; 2 wrong command line; 4 refused, nothing was deleted.
";

const SHOW: &str = "\
floe show [PATH]: what a device, a mounted filesystem, an image or a snapshot is, and what a dump of it would read

Without PATH a table of every filesystem and disk here that could be imaged. Of a disk, or the image of one, its partitions. USED is
what a dump would read. Only reads, and never freezes: of what is mounted that is an estimate. Of a packed image only the beginning is
unpacked, and used is what its superblock says. 'frozen now' is found out by a child that asks for something that every kernel refuses
once writing is allowed; where it is frozen, that child stays until the thaw.
---
";

const VERIFY: &str = "\
floe verify FILE|-: check every checksum of an image or a snapshot

Reads all of it and makes the checks that restore makes: a snapshot must be complete, each entry what its checksums say; a gzip image must be complete and its checksums right, and every image
must reach the end that its superblock or partition table states. Prints one line.
---
Exit: 0 good; 1 it could not be read; 2 wrong command line; 3 corrupt, cut off or not an image; 4 refused: FILE is not there, is no
file, or is of a newer format.
";

const ARTIFACT: &str = "\
floe artifact IMAGE -n NAME -t DEVICE_TYPE… -o X.mender: wrap an image into a Mender artifact (format 3, rootfs-image)

IMAGE is raw or gzip, '-' is stdin, or a snapshot with one entry (or --entry NAME). What the artifact holds is the raw image, bit for
bit. It is read once and kept nowhere in between; only where the output is a pipe it is read twice, and must then be a file.

  floe artifact rootfs.img.gz -n release-7 -t beaglebone -o release-7.mender
  ssh root@board floe dump / | floe artifact - -n golden -t beaglebone -o \\
      golden.mender
---
Exit: 0 complete; 1 failed; 2 wrong command line; 3 the image is corrupt, cut off or not an image; 4 refused. FILE is there only
after 0. Signing is left to 'mender-artifact sign'.
";

/// For the names of Mender's tools.
const MENDER: &str = "\
mender snapshot dump, mender-snapshot dump: floe, standing in for Mender's client

An image of the running root filesystem to stdout, as 'mender-artifact write rootfs-image -f ssh://USER@BOARD …' asks for it.
---
Exit: 0 complete and consistent; 1 anything else.
";

const PULL: &str = "\
floe pull HOST…: images or snapshots from boards over ssh, many at a time

HOST is host, user@host, host:port, ssh://user@host:port, an IPv6 address in brackets, or @FILE: one HOST a line. Runs floe on each
board through this system's ssh; keys, passwords and its configuration are ssh's business. A file appears, or replaces an older
one, only when it is complete and checked: exit status, length, SHA-256, and everything inside.

  floe pull root@board1 board2:2222 -o images/
  floe pull @boards.txt -P 8 --create root=/ config=/config -o snapshots/ \\
      --report all.json
  floe pull me@board --sudo --send --dump /data -o data.img.gz
---
Of a file that is replaced the board sends only what has changed, and where a pull broke off the same command goes on, with what it left in
FILE.resume. What is taken from there is proven by hashes; the new file is that of a fresh pull.

ssh is told to notice a dead connection within 30 s; the board thaws by itself.
--stall holds here, too: a board from which no byte that was asked for comes for so long (default 5m, and 1h while it works and has
nothing to say) is given up.

Exit: 0 all complete and checked; 1 at least one board failed or refused, the files of the others are complete; 2 wrong command line; 4
refused, no board was asked.
";

const PUSH: &str = "\
floe push FILE HOST TARGET | NAME=TARGET…: restore an image or snapshot on a board

floe push FILE HOST… @FILE -- TARGET…: the same on many, each checked on its own

FILE is verified here first; then it is floe restore on the board, with the same refusals and the same exit code. HOST and the
options that reach it are those of floe pull.

  floe push root.img.gz root@board /dev/mmcblk0p3 --overwrite --verify
  floe push board.zip root@board root=/dev/mmcblk0p3 config=PARTLABEL=config_b
  floe push root.img.gz @boards -P 8 --overwrite -- PARTLABEL=root_b
  floe push board.zip root@board --store
---
With --only-changes, what the targets hold already is not sent either: the board says the hashes of what is there, and proves what it
keeps. What is new is held there until all of it came; without room for that, or with --disk, everything is sent.

Exit: as floe restore on the board; 1 also when ssh failed.
";

const THAW: &str = "\
floe thaw PATH | --all: thaw a filesystem that something left frozen

PATH is a mount point, anything below it, or a block device, mounted or not: what was unmounted while frozen is thawed too.
Prints one line for each filesystem that was frozen, and exits 0 also when none was. A floe dump that is reading it fails.
---
When not even this can be started, SysRq-j thaws everything: echo j > /proc/sysrq-trigger
";

/// `floe --version`.
pub fn version() -> String {
    let mut out = ["floe ", env!("CARGO_PKG_VERSION"), " ", env!("FLOE_TARGET")].concat();
    out.push_str("\nwith: ext");
    for name in features::names() {
        out.push(' ');
        out.push_str(name);
    }
    out.push('\n');
    out
}

/// `floe --help`.
pub fn overview() -> String {
    let mut out = String::from(
        "floe: consistent images of a running Linux device, through a pipe\n\nUsage: floe VERB …   (floe help VERB tells more)\n\n",
    );
    for verb in VERBS.iter().filter(|verb| !verb.text.is_empty()) {
        let names = ["  ", verb.name, " ", verb.arguments].concat();
        entry(&mut out, &names, verb.line);
    }
    options(&mut out, "", Owner::Common);
    out
}

/// Whether there is such a verb.
pub fn is_verb(name: &str) -> bool {
    VERBS
        .iter()
        .any(|verb| verb.name == name && !verb.text.is_empty())
}

/// `floe VERB --help`; the overview for an unknown name.
pub fn verb(name: &str) -> String {
    let text = match VERBS.iter().find(|verb| verb.name == name) {
        Some(verb) => verb.text,
        None if name == "mender" => MENDER,
        None => return overview(),
    };
    let (before, after) = text.split_once("---\n").unwrap_or((text, ""));
    let mut out = String::new();
    fill(&mut out, before);
    options(&mut out, name, Owner::Here);
    handed_on(&mut out, name);
    if features::GOLDEN && matches!(name, "dump" | "create" | "clone") {
        out.push_str("\nWhat --golden empties:\n");
        for item in golden::LIST {
            fill(&mut out, &["  ", item.path].concat());
            out.push_str("      ");
            words(&mut out, &mut 6, 6, item.what);
            out.push('\n');
        }
    }
    if !after.is_empty() {
        out.push('\n');
        fill(&mut out, after);
    }
    options(&mut out, name, Owner::Common);
    out
}

/// The last column that is used.
const COLUMNS: usize = 79;
/// Where the text of an option begins.
const INDENT: usize = 24;

/// The rows of a verb, each section under its heading.
fn options(out: &mut String, verb: &str, owner: Owner) {
    let mut heading = None;
    for row in options::rows() {
        if row.heading().is_some() {
            heading = row.heading();
        } else if row.owner_for(verb) == Some(owner)
            && !row.help.is_empty()
            && row.names().all(|name| features::without(name).is_none())
        {
            if let Some(text) = heading.take() {
                out.push('\n');
                out.push_str(text);
                out.push('\n');
            }
            let short = row
                .names()
                .next()
                .is_some_and(|name| !name.starts_with("--"));
            let start = if short { "  " } else { "      " };
            entry(out, &[start, &typed(row)].concat(), row.help);
        }
    }
}

/// Names and value, as they are typed.
fn typed(row: Row) -> String {
    let names: Vec<&str> = row.names().collect();
    [&names.join(", "), row.value].concat()
}

/// What the verb on the board is told, whose own help explains it.
fn handed_on(out: &mut String, verb: &str) {
    let mut column = 0;
    let mut seen: Vec<&str> = Vec::new();
    for row in options::rows().filter(|row| row.owner_for(verb) == Some(Owner::HandedOn)) {
        if row.names().any(|name| seen.contains(&name)) {
            continue;
        }
        if seen.is_empty() {
            out.push_str("\nHanded on to the verb there, whose help has more:\n      ");
            column = 6;
        }
        seen.extend(row.names());
        words(out, &mut column, 6, &typed(row));
    }
    if !seen.is_empty() {
        out.push('\n');
    }
}

/// A name, and its text beside it or, where the name is long, below it.
fn entry(out: &mut String, name: &str, text: &str) {
    out.push_str(name);
    let mut column = name.chars().count();
    // A long name leaves no room: its text begins in the next line.
    if column >= INDENT {
        column = COLUMNS;
    }
    while column < INDENT {
        out.push(' ');
        column += 1;
    }
    words(out, &mut column, INDENT, text);
    out.push('\n');
}

/// Paragraphs are filled; what begins with a space stands as it is.
fn fill(out: &mut String, text: &str) {
    let mut column = 0;
    for line in text.lines() {
        if !line.is_empty() && !line.starts_with(' ') {
            words(out, &mut column, 0, line);
            continue;
        }
        if column > 0 {
            out.push('\n');
        }
        column = 0;
        out.push_str(line);
        out.push('\n');
    }
    if column > 0 {
        out.push('\n');
    }
}

/// Words behind what stands in the line up to `column`, the following lines indented.
fn words(out: &mut String, column: &mut usize, indent: usize, text: &str) {
    for word in text.split(' ') {
        let width = word.chars().count();
        if *column > indent && *column + 1 + width > COLUMNS {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            *column = indent;
        } else if *column > indent {
            out.push(' ');
            *column += 1;
        }
        out.push_str(word);
        *column += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_help_fits_a_serial_console() {
        let names = VERBS.iter().map(|verb| verb.name).chain(["mender", ""]);
        for name in names {
            for line in verb(name).lines() {
                assert!(line.chars().count() <= 80, "{name}: {line}");
                assert!(
                    line.trim_end() == line,
                    "{name}: '{line}' ends with a space"
                );
            }
        }
    }

    #[test]
    fn every_option_stands_in_the_help_of_its_verb() {
        for name in VERBS.iter().map(|verb| verb.name).chain(["mender"]) {
            let text = verb(name);
            for row in options::rows().filter(|row| row.owner_for(name).is_some()) {
                for option in row.names().filter(|_| !row.help.is_empty()) {
                    assert!(text.contains(option), "{name}: no {option} in\n{text}");
                }
            }
        }
    }

    #[test]
    fn rows_are_well_formed_and_an_option_is_one_thing_for_a_verb() {
        let known = |word: &str| {
            let word = word.strip_prefix('>').unwrap_or(word);
            matches!(word, "*" | "mender" | "kept") || VERBS.iter().any(|verb| verb.name == word)
        };
        let mut seen: Vec<(String, &str)> = Vec::new();
        let mut values: Vec<(&str, options::Takes)> = Vec::new();
        for row in options::rows().filter(|row| row.heading().is_none()) {
            assert!(
                row.names().count() > 0 && row.verbs.split(' ').all(known),
                "{row:?}"
            );
            assert!(!row.help.contains('|'), "{row:?}");
            for name in row.names() {
                assert!(name.starts_with('-') && !name.contains(' '), "{row:?}");
                // What may stand before the verb must take a value whatever the verb; nobody types `kept`.
                match values.iter().find(|(known, _)| *known == name) {
                    Some((_, takes)) => {
                        assert!(row.verbs == "kept" || *takes == row.takes(), "{name}")
                    }
                    None => values.push((name, row.takes())),
                }
                for verb in row.verbs.split(' ') {
                    // What is handed on is the other verb's to explain, and Mender's -v is ours by another name.
                    let again = verb.starts_with('>') || verb == "mender";
                    let verb = verb.trim_start_matches('>').to_owned();
                    let known = seen.contains(&(verb.clone(), name));
                    assert!(again || !known, "{verb} {name}: twice");
                    seen.push((verb, name));
                }
            }
        }
    }
}
