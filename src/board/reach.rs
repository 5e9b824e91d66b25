//! How floe is reached on a board: the options that `pull` and `push` share.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::board::fleet::Board;
use crate::board::send;
use crate::board::ssh::{Host, Pipes, Session, Ssh};
use crate::cli::Args;
use crate::error::Result;

/// What was typed about it.
#[derive(Clone, Debug)]
pub struct Reach {
    ssh_options: Vec<OsString>,
    sudo: bool,
    floe: OsString,
    send: bool,
    binaries: Option<PathBuf>,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            ssh_options: Vec::new(),
            sudo: false,
            floe: "floe".into(),
            send: false,
            binaries: None,
        }
    }
}

impl Reach {
    /// Takes the option if it is one of these.
    pub fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
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

    /// Starts floe with `words` on the board; with `--send` it is brought there first.
    pub fn start(
        &self,
        host: &Host,
        words: &[OsString],
        pipes: Pipes,
        board: &Board,
    ) -> Result<Session> {
        let ssh = Ssh {
            options: self.ssh_options.clone(),
        };
        if self.send {
            let mut line = send::words(self.sudo);
            line.extend_from_slice(words);
            let input = true;
            let both = Pipes { input, ..pipes };
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
