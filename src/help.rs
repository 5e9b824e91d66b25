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
pub const VERBS: &[Verb] = &[];

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
