//! The one table of options. Parsing, help, what `pull` and `push` hand on to the board, man pages and completions come from it:
//! an option that is not here does not exist, and a new one is a line here and an arm where its verb is parsed.
//!
//! It is text and not a list of structures: a third of the size, and no relocations. A row is
//!
//! ```text
//! VERB …|-s, --long VALUE|help text
//! ```
//!
//! - `VERB` takes the option itself; `>pull` hands it on, with its value, to the verb that runs on the board; `*` is every verb.
//! - `VALUE`: the word for the value that follows; `[=VALUE]` may be left out and stands only after a `=`; `VALUE…` are arguments
//!   that follow and are not the option's own. None: it takes no value.
//! - Several long names in a row are several options. A short one stands for the long one after it.
//! - Without a help text the row is not shown. A row `#TEXT` is the heading of those that follow.
//!
//! Order is the order of the help. The same name may stand in several rows, with another text for another verb.

/// See the top of this file.
const TABLE: &str = "\
#What:
pull|--dump SOURCE|an image (default: of /): DIR/HOST[_PORT].img.gz
pull|--create NAME=SOURCE…|a snapshot of all of them, frozen together: DIR/HOST[_PORT].zip
pull|--clone PAIR…|floe clone on the board, which sends nothing but its lines
pull|--kept NAME|a snapshot that is kept in the board's store, or 'latest': DIR/HOST[_PORT].zip
pull|--artifact|with --dump: straight into a Mender artifact, DIR/HOST[_PORT].mender
#Where to:
dump|-o, --output FILE|write FILE.part, and rename it to FILE when it is complete ('-' or none: stdout)
dump|--split SIZE|with -o FILE: pieces FILE.001, FILE.002 … (200 at most) of that size, as for FAT32 (4000M); restore and verify take FILE.001, and cat FILE.[0-9][0-9][0-9] puts them together
dump|--bmap FILE|with -o: a .bmap (2.0, SHA-256) for it too, read back from it; bmaptool copy takes both
create|-o, --output WHERE|a folder: HOST-YYYYMMDDThhmmssZ-SEQ.zip in it (SEQ counts: boards have no clock), one floe at a time; a FILE; or - for stdout. Default: the folder of 'store = DIR' in /etc/floe.conf, otherwise stdout. Written as .part and renamed when it is complete
artifact|-o, --output FILE|write FILE.part, and rename it to FILE when it is complete ('-' or none: stdout)
dump artifact|--overwrite|FILE may be there and be anything; an older one of its kind, whatever it was made of, is replaced without this
create|--overwrite|with -o FILE: it may be there and be anything; an older snapshot, whatever it is of, is replaced without this
pull|--overwrite|a file of that name may be there and be anything; an older one of its kind, whatever it was made of, is replaced without this; with --clone, as clone's
pull|-o, --output DIR|a folder (default: this one); with one board a FILE, or - for stdout
pull|--since FILE|take from this earlier image or snapshot what has not changed, instead of from the one that is replaced (one board)
pull|--fresh|send everything: look neither at an earlier file nor at what an interrupted pull left (FILE.resume)
pull push|-P, --parallel N|so many boards at a time (default 4)
push|--store|keep the snapshot FILE in the board's store ('store = DIR' in its /etc/floe.conf) instead
#The artifact:
artifact pull|-n, --artifact-name N|name of the artifact, without spaces
artifact pull|-t, --device-type T|a type of device it is for; may be given several times
artifact pull|-g, --artifact-group G|the group it belongs to
artifact pull|--software-name N|record the version as rootfs-image.N.version
artifact pull|--software-version V|the version recorded on the device (default: the artifact's name)
artifact pull|--software-filesystem F|record it as F.version, instead of rootfs-image.version
artifact pull|--provides KEY:VALUE|further facts recorded on the device; this and the next may be given several times
artifact pull|--depends KEY:VALUE|facts a device must have recorded
artifact pull|--clears-provides PATTERN|recorded facts that go (those of the replaced image go by default)
artifact pull|--script FILE|a state script, such as ArtifactInstall_Enter_05_wifi
artifact pull|-z, --compression, --compress HOW|gzip (default) or none
artifact|--level N|1 (fastest) to 9 (smallest), default 6
#The stream:
dump|-z, --compress HOW|gzip (default) or none
dump create >pull|--level N|1 (fastest, default) to 9 (smallest)
dump create|--frames|for a pipe into floe restore -, verify - or artifact -: the other end holds what is read before the freeze, so that however slow the pipe is, the freeze lasts only as long as what was written meanwhile takes to read (pull does it by itself)
dump create|--frames-known|
dump|--sha256|with -z none: the SHA-256 in the report too (gzip's always has it)
#The snapshot:
create|--keep N|in a folder: afterwards remove the oldest of this host that have the same entries and sources, so that N of them remain, this one included (an older one goes only when the new one is complete: there has to be room for one more); those that are live, golden or with --disk are counted apart; factory and rescue snapshots and files with a name of their own (-o X.zip) stay and do not count
create >pull|--factory|mark it as the factory snapshot; --keep never removes it, and -o FILE replaces it only by another such
create >pull|--rescue|mark it as the rescue snapshot; --keep never removes it, and -o FILE replaces it only by another such
create >pull|--comment TEXT|kept in the metadata
create >pull|--disk DEV|keep the partition table and the boot area of this disk too (not with logical partitions)
#The target:
restore >push|--disk DEV|of a snapshot made with --disk: the recorded partition table and boot area go to the empty disk DEV, and every entry that is not named goes into its partition
restore >push|--any-content|take bytes that show no image, or one that is not whole, as they are
restore|--bmap FILE|first check the image against its .bmap
restore >push|--no-check|write an image in a file without reading it to its end first
restore >push|--force|a snapshot of another architecture or board model
clone >pull|--pairs FILE|read the pairs from this file; a target named in a file is standby (a copy to boot next) by declaration: what it holds may go
restore >push|--overwrite|the target may hold a filesystem, a partition table or (a file) anything
clone|--overwrite|a target of the command line may hold a filesystem or a partition table
restore clone >push >pull|--verify|read everything back from the medium and compare it, before the superblock is written
restore clone >push >pull|--only-changes|read the target first, and leave alone what it holds already, zeros included: spares flash where little has changed
restore|--frames-known|
restore|--length X|
restore clone >push >pull|--grow|afterwards grow the filesystem (ext2/3/4, XFS, btrfs) to the end of its partition
restore clone >push >pull|--skip-free|do not zero ranges that nothing owns: fast on slow cards, but what was there before (deleted files, old secrets) stays on the medium, and --verify does not look at it
clone >pull|--new-uuid|afterwards give the copies uuids of their own, where that is a matter of the superblock: ext4 without metadata_csum or with metadata_csum_seed, XFS, FAT, swap; others are refused
#Another medium:
clone >pull|--media WHICH|usb, sd, mmc, nvme or disk: the one that this system does not run from; or /dev/X. The TARGET of a pair is a role, boot, root, config or data: the partition of that name
clone >pull|--partition|lay the medium out anew (what it holds needs --overwrite), print the table, and write it last of all
clone >pull|--table HOW|gpt (default) or mbr
clone >pull|--boot-size, --root-size, --config-size, --data-size, --swap-size SIZE|a bare number is megabytes. Defaults: boot as its source, config a tenth of the medium, data none, swap a third of the memory (none below 128 MB), root the rest. Data gets a filesystem by the system's mkfs
clone >pull|--as-primary|the medium boots in place of this one: boot code, the area in front of the first partition, the identifiers of disk and partitions come along
clone >pull|--factory|instead of the running system the factory snapshot that is kept (create --factory), and what the rescue snapshot holds, except / (it wins over the factory snapshot, whichever is newer): pairs find their entry by the SOURCE it was made from. Not with --new-uuid
#What is read:
artifact|--entry NAME|which entry of a snapshot
artifact verify|--any-content|take bytes that show no image, or one that is not whole, as they are
dump|--fs-path PATH|the filesystem that this file or folder lies on, as SOURCE
dump >pull|--whole|every block, free ones too; also a disk whose table or filesystem is damaged, and a file that is neither an image nor packed
create clone|--whole|every block, free ones too
dump create clone >pull|--require-map|refuse instead of reading everything when the used blocks cannot be told for certain
dump create clone >pull|--live|do not freeze: what is read may not be consistent, and is called live
dump create clone >pull|--golden|what makes one machine out of many comes out empty: machine-id, ssh and dropbear host keys, random seeds, DHCP leases, NetworkManager's and Mender's keys, cloud-init's instance, shell histories (ext2/3/4; floe show --identity lists them)
dump create clone >pull|--empty PATH|this file, too; may be given several times, a name may hold *, and DIR/ is every file below
artifact|--golden|
artifact|--empty PATH|
#How long it may stay frozen:
dump create clone >pull|--stall TIME|thaw and fail when no byte is read or taken for this long (default 30s)
dump create clone >pull|--max-freeze TIME|thaw and fail after this long in all (default 2m)
dump create >pull|--wait-sink TIME|before the freeze: wait this long for the reader to take the first bytes (default 60s)
dump create clone >pull|--spool SIZE|memory for data that waits for a slow reader or target, so that the thaw does not: auto (default, at most half of the free memory), off, or a size
dump create >pull|--spool-file FILE|more room for it, in a file without a name in that FILE's folder (not on what is frozen)
dump create clone >pull|--precopy HOW|auto (default): most of it is read before the freeze, and only what was written meanwhile while frozen; off
#How floe is reached there:
pull push list|--ssh-option ARG|one argument for ssh, as in --ssh-option -i --ssh-option KEY; it counts before floe's own
pull push list|--sudo|run floe there by 'sudo -n': without a password
pull push list|--floe PATH|where it is there (default: floe)
pull push list|--send|it is not there: bring it along, run it, leave nothing behind
push|--stall TIME|give up when no byte that was asked for has come or gone for this long (default 5m, and 1h while the board works and has nothing to say)
pull push list|--binaries DIR|where floe-x86_64, floe-aarch64 and floe-armv7 are (default: beside this floe)
#Options:
thaw|--all|everything that is mounted from a block device, in every mount namespace, and what was unmounted while frozen
show|--json|one JSON object with stable keys
show|--identity|instead: the files that make it one machine and not another, with fingerprints, of a mount, or of an ext filesystem on a device or in an image that is not packed; what --golden empties
list|--json|one JSON array with stable keys
delete|--force|factory and rescue snapshots, too, and what may be one: that of a newer floe, or one that cannot be read or is damaged where it says what it is
restore clone create delete >push|--dry-run|check everything, say what would be done, and touch nothing
mender|--source, --fs-path PATH|what to dump: file, directory or device (default: /)
mender|-C, --compression HOW|none (default) or gzip
mender|-d, --data DIR|where Mender's own data is: it must not lie on what is dumped (default: /var/lib/mender, if it is there)
mender|-l, --log-level, -L, --log-file, -c, --config, -b, --fallback-config, -E, --trusted-certs X|
mender|--no-syslog, --skipverify|
mender|-v, --version|
kept|--host, --time, --length, --sha256 X|
#Common options:
*|-q, --quiet|print nothing but errors
*|-p, --progress[=json]|show progress (default when stderr is a terminal); json: an object a line on stderr
*|--report FILE|write one JSON object with the figures of the run ('-': stderr)
*|-j, --jobs N|worker threads (default: the CPUs this process may use)
*|-h, --help|this text
*|-V, --version|version and target
";

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub(crate) verbs: &'static str,
    names: &'static str,
    /// The word for its value, as it is shown after the last name, with what separates them.
    pub value: &'static str,
    /// Its text; empty where it is not for people.
    pub help: &'static str,
}

/// Whose an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The verb's own.
    Here,
    /// That of the verb that runs on the board.
    HandedOn,
    /// Every verb's.
    Common,
}

/// An option that was looked up.
#[derive(Clone, Copy, Debug)]
pub struct Matched {
    /// Its long name, with the dashes.
    pub name: &'static str,
    /// Whose it is.
    pub owner: Owner,
    /// Its row.
    pub row: Row,
}

/// Whether a value belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// One, after a space or a `=`.
    Value,
    /// Perhaps one, after a `=`.
    Perhaps,
}

/// Every row, and the headings (which have no names).
pub fn rows() -> impl Iterator<Item = Row> {
    TABLE.lines().map(|line| {
        let mut parts = line.splitn(3, '|');
        let mut part = || parts.next().unwrap_or_default();
        let (verbs, names, help) = (part(), part(), part());
        // The value comes after the last name.
        let last = names.rfind(", ").map_or(0, |at| at + 2);
        let value = names.get(last..).and_then(|word| word.find([' ', '[']));
        let (names, value) = names.split_at(value.map_or(names.len(), |at| last + at));
        Row {
            verbs,
            names,
            value,
            help,
        }
    })
}

impl Row {
    /// The text, where this is a heading.
    pub fn heading(&self) -> Option<&'static str> {
        self.verbs.strip_prefix('#')
    }

    /// Short and long names, with their dashes.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.names.split(", ").filter(|name| !name.is_empty())
    }

    /// Whether `verb` takes it.
    pub fn owner_for(&self, verb: &str) -> Option<Owner> {
        self.verbs.split(' ').find_map(|word| match word {
            "*" => Some(Owner::Common),
            word if word == verb => Some(Owner::Here),
            word if word.strip_prefix('>') == Some(verb) => Some(Owner::HandedOn),
            _ => None,
        })
    }

    /// Whether a value follows.
    pub fn takes(&self) -> Takes {
        match self.value {
            "" => Takes::Nothing,
            value if value.starts_with('[') => Takes::Perhaps,
            value if value.ends_with('…') => Takes::Nothing,
            _ => Takes::Value,
        }
    }

    /// Its name where it has the name that was typed: the long one for a short one.
    fn named(&self, typed: &str) -> Option<&'static str> {
        let mut names = self.names();
        let name = names.find(|name| *name == typed)?;
        match name.starts_with("--") {
            true => Some(name),
            false => names.find(|name| name.starts_with("--")),
        }
    }
}

/// The option of `verb` that was typed as `typed`.
pub fn find(verb: &str, typed: &str) -> Option<Matched> {
    rows().find_map(|row| {
        let (owner, name) = (row.owner_for(verb)?, row.named(typed)?);
        Some(Matched { name, owner, row })
    })
}

/// Whether a value follows `argument`, an option that stands before its verb.
pub fn is_followed(argument: &str) -> bool {
    let mut rows = rows();
    let row = rows.find(|row| row.named(argument).is_some());
    row.is_some_and(|row| row.takes() == Takes::Value)
}

/// Which of `words` may have been meant by `typed`, if one is near enough.
pub fn nearest(typed: &str, words: &mut dyn Iterator<Item = &'static str>) -> Option<&'static str> {
    let limit = 1 + typed.len() / 5;
    let (distance, word) = words
        .map(|word| (distance(typed.as_bytes(), word.as_bytes()), word))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= limit).then_some(word)
}

/// How many letters must be put in, left out, or changed (Levenshtein); two that were swapped count as one.
fn distance(from: &[u8], to: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, other) in to.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut least = at(&row, j) + usize::from(letter != other);
            least = least.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped =
                i > 0 && j > 0 && from.get(i - 1) == Some(other) && to.get(j - 1) == Some(letter);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `pull` does not hand on, and why.
    const NOT_PULLED: &[(&str, &str)] = &[
        ("--output", "the host writes the file"),
        (
            "--compress",
            "over ssh the stream is compressed, so that its end is proven",
        ),
        ("--split", "the host writes the file"),
        ("--bmap", "the same"),
        ("--sha256", "gzip always has it, and the host compares"),
        ("--keep", "nothing is kept on the board"),
        ("--fs-path", "--dump names the source"),
        ("--frames", "pull asks for it by itself"),
        ("--frames-known", "the same"),
        (
            "--dry-run",
            "without a stream there is nothing to check; on the board itself there is",
        ),
        ("--overwrite", "pull's own, and handed on with --clone"),
    ];

    #[test]
    fn every_option_of_a_verb_that_pull_can_run_is_pullable_or_says_why_not() {
        for row in rows() {
            let ran = ["dump", "create", "clone"]
                .iter()
                .any(|verb| row.owner_for(verb) == Some(Owner::Here));
            for name in row.names().filter(|name| ran && name.starts_with("--")) {
                let pulled = find("pull", name).is_some_and(|found| found.owner == Owner::HandedOn);
                let excused = NOT_PULLED.iter().any(|(known, _)| *known == name);
                assert!(
                    pulled != excused,
                    "{name}: '>pull', or a line in NOT_PULLED (once)"
                );
            }
        }
        for row in rows() {
            for name in row.names().filter(|name| name.starts_with("--")) {
                let ours = row.owner_for("restore") == Some(Owner::Here);
                let pushed = find("push", name).is_some_and(|found| found.owner == Owner::HandedOn);
                assert!(
                    // The first two push asks for by itself; the third is a file beside the image, which push checks anyway.
                    !ours || pushed || ["--frames-known", "--length", "--bmap"].contains(&name),
                    "{name} of restore: push does not hand it on"
                );
            }
        }
    }

    #[test]
    fn names_values_and_owners_are_read_as_written() {
        let found = find("dump", "-o").unwrap();
        assert_eq!((found.name, found.row.takes()), ("--output", Takes::Value));
        assert_eq!(found.row.value, " FILE");
        let found = find("pull", "--swap-size").unwrap();
        assert_eq!((found.name, found.owner), ("--swap-size", Owner::HandedOn));
        assert_eq!(found.row.takes(), Takes::Value);
        assert_eq!(
            find("pull", "--create").unwrap().row.takes(),
            Takes::Nothing
        );
        assert_eq!(find("thaw", "-q").unwrap().owner, Owner::Common);
        assert!(find("thaw", "--level").is_none() && find("pull", "--keep").is_none());
        assert!(is_followed("--report") && is_followed("-o") && !is_followed("-q"));
    }

    #[test]
    fn what_was_meant_is_near() {
        let verbs = ["dump", "restore", "verify"];
        for (typed, meant) in [
            ("dmup", Some("dump")),
            ("restor", Some("restore")),
            ("veryfi", Some("verify")),
            ("zzz", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, &mut verbs.into_iter()), meant, "{typed}");
        }
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"--ovewrite", b"--overwrite"), 1);
        assert_eq!(distance(b"ab", b"ba"), 1);
    }
}
