//! Help text and version: written for somebody who has never seen the program.

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
    VERBS
        .iter()
        .find(|verb| verb.name == name)
        .map_or_else(overview, |verb| format!("{}{COMMON}", verb.text))
}
