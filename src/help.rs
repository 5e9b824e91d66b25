//! Help text and version: written for somebody who has never seen the program.

pub mod golden;

/// One verb: name, one line for the overview, its whole help.
pub struct Verb {
    /// The word on the command line.
    pub name: &'static str,
    /// Synopsis and purpose, one line.
    pub line: &'static str,
    /// Everything `floe VERB --help` prints.
    pub text: &'static str,
}

/// Every verb, in the order of the contract.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "dump",
        line: "dump     [SOURCE]                    frozen image of a filesystem or disk, to stdout or -o FILE",
        text: DUMP,
    },
    Verb {
        name: "restore",
        line: "restore  IMAGE TARGET | NAME=TARGET… write an image, or entries of a snapshot, to devices or files",
        text: RESTORE,
    },
    Verb {
        name: "clone",
        line: "clone    SOURCE=TARGET…              live copy of active filesystems onto standby devices",
        text: CLONE,
    },
    Verb {
        name: "create",
        line: "create   NAME=SOURCE…                several filesystems, frozen together, as one .zip with metadata",
        text: CREATE,
    },
    Verb {
        name: "show",
        line: "show     PATH                        what this device, mount, image or snapshot is",
        text: SHOW,
    },
    Verb {
        name: "verify",
        line: "verify   FILE|-                      check every checksum of an image or snapshot",
        text: VERIFY,
    },
    Verb {
        name: "list",
        line: "list     [DIR]                       the snapshots kept in a folder",
        text: LIST,
    },
    Verb {
        name: "artifact",
        line: "artifact IMAGE                       wrap an image into a Mender artifact (.mender)",
        text: ARTIFACT,
    },
    Verb {
        name: "pull",
        line: "pull     HOST…                       images and snapshots from boards over ssh, many at a time",
        text: PULL,
    },
    Verb {
        name: "push",
        line: "push     FILE HOST TARGET…           restore an image or snapshot on a board over ssh, or keep it there",
        text: PUSH,
    },
    Verb {
        name: "thaw",
        line: "thaw     PATH | --all               emergency: thaw what something left frozen",
        text: THAW,
    },
];

const DUMP: &str = "\
floe dump [SOURCE]: a consistent image of one filesystem or disk, while it is in use

SOURCE is a directory or file on a mounted filesystem (default: /), a block device, an image file, or LABEL=, UUID=,
PARTLABEL=, PARTUUID=. The filesystem is frozen, its used blocks are read past the page cache, compressed on every core, and it
is thawed as soon as the last block has been read, also if floe is killed. The image goes to stdout; a terminal is refused.

  floe dump /data | ssh me@host 'cat > data.img.gz'
  floe dump /data -o /mnt/usb/data.img.gz

Output:
  -o, --output FILE     write FILE.part, and rename it to FILE when it is complete
  -z, --compress HOW    gzip (default) or none
      --level N         1 (fastest, default) to 9 (smallest)
      --sha256          with -z none: the SHA-256 of the stream too (gzip always has it)
What is read:
      --whole           every block, free ones too
      --require-map     refuse instead of reading everything when the used blocks cannot be told for certain
      --live            do not freeze: the image may not be consistent, and is called live
      --golden          what makes one machine out of many comes out empty: machine-id, ssh and dropbear host keys, random seeds,
                        DHCP leases, NetworkManager's and Mender's keys, cloud-init's instance, shell histories (ext2/3/4;
                        floe show --identity lists them)
      --empty PATH      this file, too; may be given several times, a name may hold *, and DIR/ is every file below
How long it may stay frozen:
      --stall TIME      thaw and fail when no byte is read or taken for this long (default 30s)
      --max-freeze TIME thaw and fail after this long in all (default 2m)
      --wait-sink TIME  before the freeze: wait this long for the reader to take the first bytes (default 60s)
      --spool SIZE      memory for compressed data that waits for a slow reader, so that the thaw does not: auto (default, at
                        most half of the free memory), off, or a size
Sizes take K M G T (1024-based), times ms s m.

Exit: 0 complete and consistent; 1 failed, what was written is not complete; 2 wrong command line; 4 refused, nothing was
written. In a pipe, 'set -o pipefail' shows the exit code of floe.
";

const RESTORE: &str = "\
floe restore IMAGE TARGET | SNAPSHOT NAME=TARGET…: write an image to a device or into a file

IMAGE is raw or gzip (recognised by its content), '-' is stdin. TARGET is a block device, LABEL=, UUID=, PARTLABEL=, PARTUUID=,
or a file; a file that does not exist yet is made, and is sparse.

  floe restore root.img.gz /dev/mmcblk0p3
  ssh me@board floe dump / | floe restore - disk.img

Before the first write everything is checked: the target is mounted nowhere, not swap, not held by md or dm, not read-only, large
enough, and holds nothing. Free ranges are zeroed, so that no old data stays under them. The beginning of the target, with its
superblock, is zeroed first and written last: an interrupted target looks empty, neither old nor new. What lies beyond the
image's end on a larger device is left alone; only a backup partition table (GPT) moves to the end of the disk. A file becomes
exactly the image.

Of a snapshot (floe create) the named entries are restored, after all targets and, in a file, all checksums were checked. From a
pipe an entry's CRC is checked before its superblock is written, the rest is known at the end: then it says so, and fails.

  floe restore board.zip root=/dev/mmcblk0p3 config=PARTLABEL=config_b
  floe restore board.zip --disk /dev/sdb

Options:
      --disk DEV        of a snapshot made with --disk: the recorded partition table and boot area go to the empty disk DEV, and
                        every entry that is not named goes into its partition
      --force           a snapshot of another architecture or board model
      --overwrite       the target may hold a filesystem, a partition table or (a file) anything
      --verify          read everything back from the medium and compare it, before the superblock is written
      --grow            afterwards grow the filesystem (ext2/3/4, XFS, btrfs) to the end of its partition
      --skip-free       on a device, do not zero ranges that nothing owns: fast on slow cards, but what was there before (deleted
                        files, old secrets) stays on the medium, and --verify does not look at it

Exit: 0 complete and flushed; 1 failed; 2 wrong command line; 3 the image is corrupt, cut off or not an image; 4 refused, nothing
was written. After 1 and 3 the message says in which state the target is.
";

const CLONE: &str = "\
floe clone SOURCE=TARGET… | --pairs FILE: the running system onto standby partitions or another medium, live

All sources are frozen together, and thawed as soon as the last used block has been read; blocks go straight to the targets. SOURCE
is what floe dump takes, TARGET a block device; both may be LABEL=, UUID=, PARTLABEL= or PARTUUID= (a pair is split at the first
'=' that is not theirs). Without pairs they are read from /etc/floe.conf, one a line, beside other settings.

  floe clone /=/dev/mmcblk0p3 /config=PARTLABEL=config_b
  floe clone --verify

Before the first write everything is checked, on every target: mounted nowhere, not swap, not held by md, dm or a loop device, no
mirror, not the running root, not read-only, large enough, not a source by another name, and empty. Of the targets what is free
becomes zeros. Their first superblocks are written last, when the thaw has proven that nothing changed: an interrupted target looks
empty, and the same command again repairs it.

Targets:
      --pairs FILE      read the pairs from this file; a target named in a file is standby by declaration: what it holds may go
      --overwrite       a target of the command line may hold a filesystem or a partition table
      --verify          read everything back from the medium and compare it with what was read, before the superblocks are written
      --skip-free       do not zero ranges that nothing owns: fast on slow cards, but what was there before stays on the medium
      --grow            afterwards grow the copies (ext2/3/4, XFS, btrfs) to the ends of their partitions
      --new-uuid        afterwards give the copies uuids of their own, where that is a matter of the superblock: ext4 without
                        metadata_csum or with metadata_csum_seed, XFS, FAT, swap; others are refused
Another medium:
      --media WHICH     usb, sd, mmc, nvme or disk: the one that this system does not run from; or /dev/X. The TARGET of a pair is a
                        role, boot, root, config or data: the partition of that name
      --partition       lay the medium out anew (what it holds needs --overwrite), print the table, and write it last of all
      --table HOW       gpt (default) or mbr
      --boot-size SIZE --root-size SIZE --config-size SIZE --data-size SIZE --swap-size SIZE
                        a bare number is megabytes. Defaults: boot as its source, config a tenth of the medium, data none, swap a
                        third of the memory (none below 128 MB), root the rest. Data gets a filesystem by the system's mkfs
      --as-primary      the medium boots in place of this one: boot code, the area in front of the first partition, the identifiers
                        of disk and partitions come along

      --factory         instead of the running system the factory snapshot that is kept (create --factory), and what the rescue
                        snapshot holds, except /: pairs find their entry by the SOURCE it was made from. Not with --new-uuid

  floe clone /=root /config=config /boot=boot --media usb --partition --as-primary

What is read:
      --whole           every block, free ones too
      --require-map     refuse instead of reading everything when the used blocks cannot be told for certain
      --live            do not freeze: the copies may not be consistent, and are called live
      --golden          what makes one machine out of many comes out empty: machine-id, ssh and dropbear host keys, random seeds,
                        DHCP leases, NetworkManager's and Mender's keys, cloud-init's instance, shell histories (ext2/3/4;
                        floe show --identity lists them)
      --empty PATH      this file, too; may be given several times, a name may hold *, and DIR/ is every file below
How long it may stay frozen:
      --stall TIME      thaw and fail when no byte is read or written for this long (default 30s)
      --max-freeze TIME thaw and fail after this long in all (default 2m)
      --spool SIZE      memory for blocks that wait for a slow target, so that the thaw does not: auto (default), off, or a size
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

Output:
  -o, --output WHERE    a folder: HOST-YYYYMMDDThhmmssZ-SEQ.zip in it (SEQ counts: boards have no clock), one floe at a time; a FILE;
                        or - for stdout. Default: the folder of 'store = DIR' in /etc/floe.conf, otherwise stdout.
                        Written as .part and renamed when it is complete
      --keep N          in a folder: afterwards remove the oldest of this host, so that N remain
      --factory         mark it as the factory snapshot; --keep never removes it
      --rescue          mark it as the rescue snapshot; --keep never removes it
      --comment TEXT    kept in the metadata
      --disk DEV        keep the partition table and the boot area of this disk too (not with logical partitions)
      --level N         1 (fastest, default) to 9 (smallest)
What is read:
      --whole           every block, free ones too
      --require-map     refuse instead of reading everything when the used blocks cannot be told for certain
      --live            do not freeze: the images may not be consistent, and are called live
      --golden          what makes one machine out of many comes out empty: machine-id, ssh and dropbear host keys, random seeds,
                        DHCP leases, NetworkManager's and Mender's keys, cloud-init's instance, shell histories (ext2/3/4;
                        floe show --identity lists them)
      --empty PATH      this file, too; may be given several times, a name may hold *, and DIR/ is every file below
How long it may stay frozen:
      --stall TIME      thaw and fail when no byte is read or taken for this long (default 30s)
      --max-freeze TIME thaw and fail after this long in all (default 2m)
      --wait-sink TIME  before the freeze: wait this long for the reader to take the first bytes (default 60s)
      --spool SIZE      memory for compressed data that waits for a slow reader: auto (default), off, or a size

Exit: 0 complete and consistent; 1 failed, and a file or folder is as it was before; 2 wrong command line; 4 refused, nothing was
written.
";

const LIST: &str = "\
floe list [DIR]: the snapshots in a folder, the oldest first

Prints name, age, size, host, whether it is complete, its entries and its comment. What is broken is listed with the reason.
Images are not read: floe verify checks their bytes. Without DIR it is 'store = DIR' of /etc/floe.conf.

Options:
      --json            one JSON array with stable keys
";

const SHOW: &str = "\
floe show PATH: what a device, a mounted filesystem, an image or a snapshot is, and what a dump of it would read

Prints filesystem, size, used space, uuid, label, and whether it can be frozen. Only reads, and never freezes: for a mounted
filesystem the figures are estimates. Of a gzip image only the beginning is unpacked.

Options:
      --json            one JSON object with stable keys
      --identity        instead: the files that make it one machine and not another, with fingerprints, of a mount, or of an
                        ext filesystem on a device or in an image that is not packed; what --golden empties
";

const VERIFY: &str = "\
floe verify FILE|-: check every checksum of an image or a snapshot

Reads all of it and makes the checks that restore makes: a snapshot must be complete, each entry what its checksums say; a gzip image must be complete and its checksums right, and every image
must reach the end that its superblock or partition table states. Prints one line.

Exit: 0 good; 1 it could not be read; 2 wrong command line; 3 corrupt, cut off or not an image.
";

const ARTIFACT: &str = "\
floe artifact IMAGE -n NAME -t DEVICE_TYPE… -o X.mender: wrap an image into a Mender artifact (format 3, rootfs-image)

IMAGE is raw or gzip, '-' is stdin, or a snapshot with one entry (or --entry NAME). What the artifact holds is the raw image, bit for
bit. It is read once and kept nowhere in between; only where the output is a pipe it is read twice, and must then be a file.

  floe artifact rootfs.img.gz -n release-7 -t beaglebone -o release-7.mender
  ssh root@board floe dump / | floe artifact - -n golden -t beaglebone -o golden.mender

Options:
  -o, --output FILE     write FILE.part, and rename it to FILE when it is complete ('-' or none: stdout)
  -n, --artifact-name N name of the artifact, without spaces
  -t, --device-type T   a type of device it is for; may be given several times
  -g, --artifact-group G        the group it belongs to
      --software-name N         record the version as rootfs-image.N.version
      --software-version V      the version recorded on the device (default: the artifact's name)
      --software-filesystem F   record it as F.version, instead of rootfs-image.version
      --provides KEY:VALUE      further facts recorded on the device, and
      --depends KEY:VALUE       facts a device must have recorded
      --clears-provides PATTERN recorded facts that go (those of the replaced image go by default)
      --script FILE     a state script, such as ArtifactInstall_Enter_05_wifi; these options may be given several times
  -z, --compression HOW gzip (default) or none
      --level N         1 (fastest) to 9 (smallest), default 6
      --entry NAME      which entry of a snapshot

Exit: 0 complete; 1 failed; 2 wrong command line; 3 the image is corrupt, cut off or not an image; 4 refused. FILE is there only
after 0. Signing is left to 'mender-artifact sign'.
";

/// For the names of Mender's tools.
const MENDER: &str = "\
mender snapshot dump, mender-snapshot dump: floe, standing in for Mender's client

An image of the running root filesystem to stdout, as 'mender-artifact write rootfs-image -f ssh://USER@BOARD …' asks for it.

      --source PATH     what to dump: file, directory or device (default: /)
  -C, --compression HOW none (default) or gzip
  -d, --data DIR        where Mender's own data is: it must not lie on what is dumped (default: /var/lib/mender, if it is there)
  -q, --quiet           print nothing but errors

Exit: 0 complete and consistent; 1 anything else.
";

const PULL: &str = "\
floe pull HOST…: images or snapshots from boards over ssh, many at a time

HOST is host, user@host, host:port, ssh://user@host:port, an IPv6 address in brackets, or @FILE: one HOST a line. Runs floe on each
board through this system's ssh; keys, passwords and its configuration are ssh's business. A file appears, or replaces an older
one, only when it is complete and checked: exit status, length, SHA-256, and everything inside.

  floe pull root@board1 board2:2222 -o images/
  floe pull @boards.txt -P 8 --create root=/ config=/config -o snapshots/ --report all.json
  floe pull me@board --sudo --send --dump /data -o data.img.gz

What:
      --dump SOURCE     an image (default: of /): DIR/HOST[_PORT].img.gz
      --create NAME=SOURCE…
                        a snapshot of all of them, frozen together: DIR/HOST[_PORT].zip
      --kept NAME       a snapshot that is kept in the board's store, or 'latest': DIR/HOST[_PORT].zip
      --clone PAIR…     floe clone on the board, which sends nothing but its lines
                        Options of those verbs are handed on: --golden --empty --level --whole --require-map --live --stall --max-freeze --wait-sink
                        --spool --comment --factory --rescue --disk, and those of clone
      --artifact -n NAME -t DEVICE_TYPE…
                        with --dump: straight into a Mender artifact, DIR/HOST[_PORT].mender; with the options of floe artifact,
                        but --level is the one on the board
Where to:
  -o, --output DIR      a folder (default: this one); with one board a FILE, or - for stdout
  -P, --parallel N      so many boards at a time (default 4)
How floe is reached there (floe push too):
      --ssh-option ARG  one argument for ssh, as in --ssh-option -i --ssh-option KEY; it counts before floe's own
      --sudo            run floe there by 'sudo -n': without a password
      --floe PATH       where it is there (default: floe)
      --send            it is not there: bring it along, run it, leave nothing behind
      --binaries DIR    where floe-x86_64, floe-aarch64 and floe-armv7 are (default: beside this floe)

ssh is told to notice a dead connection within 30 s; the board thaws by itself.

Exit: 0 all complete and checked; 1 at least one board failed, the files of the others are complete; 2 wrong command line; 4
refused, no board was asked.
";

const PUSH: &str = "\
floe push FILE HOST TARGET | NAME=TARGET…: restore an image or snapshot on a board over ssh

FILE is verified here first; then it is floe restore on the board, with the same refusals and the same exit code. HOST and the
options that reach it are those of floe pull.

  floe push root.img.gz root@board /dev/mmcblk0p3 --overwrite --verify
  floe push board.zip root@board root=/dev/mmcblk0p3 config=PARTLABEL=config_b
  floe push board.zip root@board --store

Options:
      --store           keep the snapshot FILE in the board's store ('store = DIR' in its /etc/floe.conf) instead
      --overwrite --verify --skip-free --grow --force --disk DEV
                        as in floe restore
      --ssh-option ARG, --sudo, --floe PATH, --send, --binaries DIR
                        as in floe pull

Exit: as floe restore on the board; 1 also when ssh failed.
";

const THAW: &str = "\
floe thaw PATH | --all: thaw a filesystem that something left frozen

PATH is a mount point, anything below it, or a block device, mounted or not: what was unmounted while frozen is thawed too.
Prints one line for each filesystem that was frozen, and exits 0 also when none was. A floe dump that is reading it fails.

      --all             everything that is mounted from a block device, in every mount namespace, and what was unmounted while
                        frozen

When not even this can be started, SysRq-j thaws everything: echo j > /proc/sysrq-trigger
";

const COMMON: &str = "
Common options:
  -q, --quiet        print nothing but errors
  -p, --progress     show progress (default when stderr is a terminal)
      --report FILE  write one JSON object with the figures of the run ('-': stderr)
  -j, --jobs N       worker threads (default: the CPUs this process may use)
      --help         this text
      --version      version and target
";

/// `floe --version`.
pub fn version() -> String {
    format!(
        "floe {} {}\n",
        env!("CARGO_PKG_VERSION"),
        env!("FLOE_TARGET")
    )
}

/// `floe --help`.
pub fn overview() -> String {
    let mut out = String::from(
        "floe: consistent images of a running Linux device, through a pipe\n\nUsage: floe VERB …   (floe VERB --help tells more)\n\n",
    );
    for verb in VERBS {
        out.push_str(&format!("  {}\n", verb.line));
    }
    out.push_str(COMMON);
    out
}

/// `floe VERB --help`; the overview for an unknown name.
pub fn verb(name: &str) -> String {
    if name == "mender" {
        return MENDER.into();
    }
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        return overview();
    };
    let mut out = format!("{}{COMMON}", verb.text);
    if matches!(name, "dump" | "create" | "clone") {
        out.push_str("\nWhat --golden empties:\n");
        for item in golden::LIST {
            out.push_str(&format!("  {}\n      {}\n", item.path, item.what));
        }
    }
    out
}
