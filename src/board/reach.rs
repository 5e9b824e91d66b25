//! How floe is reached on a board: the options that `pull` and `push` share.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use crate::board::fleet::Board;
use crate::board::host::Host;
use crate::board::send;
use crate::board::ssh::{By, Patience, Session, SessionPipes, Ssh};
use crate::cli::{self, Args};
use crate::error::{Error, Result};

/// How much longer than `--stall` we wait than the board does.
const GRACE: Duration = Duration::from_secs(1);

/// What was typed about it.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    ssh_options: Vec<OsString>,
    sudo: bool,
    floe: OsString,
    send: bool,
    binaries: Option<PathBuf>,
    /// How long a board may be silent.
    pub patience: Patience,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            ssh_options: Vec::new(),
            sudo: false,
            floe: "floe".into(),
            send: false,
            binaries: None,
            patience: Patience::default(),
        }
    }
}

impl Reach {
    /// Takes the option if it is one of these.
    pub(crate) fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
        match name {
            "--ssh-option" => self.ssh_options.push(args.value()?),
            "--sudo" => self.sudo = true,
            "--floe" => self.floe = args.value()?,
            "--send" => self.send = true,
            "--binaries" => self.binaries = Some(args.path()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `--stall`: for how long no byte may come or go. `silent` comes on top while the board works.
    pub(crate) fn set_stall(&mut self, text: &OsStr, silent: Duration) -> Result<()> {
        let wrong = || Error::usage("--stall: not a time such as 500ms, 30s or 2m");
        let stall = text
            .to_str()
            .and_then(cli::time)
            .filter(|time| !time.is_zero());
        // A board that stalls itself is told the same, and is to speak first.
        let stall = stall.ok_or_else(wrong)?.saturating_add(GRACE);
        let finish = stall.saturating_add(silent);
        self.patience = Patience { stall, finish };
        Ok(())
    }

    /// Starts floe with `words` on the board; with `--send` it is brought there first.
    pub(crate) fn start(
        &self,
        host: &Host,
        words: &[OsString],
        pipes: SessionPipes,
        board: &Board,
    ) -> Result<Session> {
        let ssh = Ssh {
            options: self.ssh_options.clone(),
        };
        let patience = self.patience;
        let by = By {
            sudo: self.sudo,
            sent: self.send,
        };
        let pipes = SessionPipes {
            patience,
            by,
            ..pipes
        };
        if self.send {
            let mut line = send::words(self.sudo);
            line.extend_from_slice(words);
            let input = true;
            let both = SessionPipes { input, ..pipes };
            let session = ssh.start(host, &line, both, board.listener())?;
            let mut session = send::send(host, session, self.binaries.as_deref())?;
            if !pipes.input {
                session.close_stdin();
            }
            return Ok(session);
        }
        let mut line: Vec<OsString> = Vec::new();
        if self.sudo {
            line.extend(["sudo", "-n", "--"].map(OsString::from));
        }
        line.push(self.floe.clone());
        line.extend_from_slice(words);
        ssh.start(host, &line, pipes, board.listener())
    }
}
