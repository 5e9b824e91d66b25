//! How a command on a board ended: whether it did what it was asked for, and what is said where it did not.

use std::path::Path;

use super::By;
use crate::board::heard::Heard;
use crate::board::host::Host;
use crate::error::{Error, Exit, Result};
use crate::json;

/// ssh's own exit code when the connection failed.
const SSH_FAILED: i32 = 255;

impl By {
    /// What helps where the board's shell could not run what it was told to.
    fn helps(self) -> &'static str {
        match (self.sudo, self.sent) {
            (true, _) => {
                "with --sudo it is sudo that is run: where there is none, log in as root (root@HOST), without --sudo"
            }
            (false, true) => {
                "where nothing that is brought along runs, install floe there, and name it with --floe PATH"
            }
            (false, false) => "--send brings it along, --floe PATH names where it is",
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct CommandEnd {
    /// The exit code; `None` when a signal ended ssh.
    pub code: Option<i32>,
    /// How floe was run.
    pub by: By,
    /// What stderr told meanwhile.
    pub told: Heard,
}

impl CommandEnd {
    /// Whether the line broke, and not the command.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.code, None | Some(SSH_FAILED))
    }

    /// Whether floe there reported that it did what it was asked for.
    fn is_done(&self) -> bool {
        let [report] = self.told.reports.as_slice() else {
            return false;
        };
        json::parse(report.as_bytes()).is_ok_and(|report| report.get("error").is_none())
    }

    /// Of a floe that was done: ssh ended otherwise, and so it is not believed.
    fn unconfirmed(&self, host: &Host) -> Error {
        let how = match self.code {
            Some(code) => format!("ended with exit {code}"),
            None => "was killed".into(),
        };
        let behind = match self.told.behind.as_str() {
            "" => String::new(),
            said => format!(": {said}"),
        };
        Error::failed(format_args!(
            "{}: floe there said that it was done, but ssh, or what it ran, {how}{behind}",
            host.shown
        ))
    }

    /// The same as [`Self::check`]. `done`: what is left where only the exit code says that something went wrong.
    pub(crate) fn check_leaving(&self, host: &Host, done: &str) -> Result<()> {
        match self.code != Some(0) && self.is_done() {
            true => Err(self.unconfirmed(host).leaving(done)),
            false => self.check(host),
        }
    }

    /// An error unless the exit code was 0, with the board's own last words and what helps.
    pub(crate) fn check(&self, host: &Host) -> Result<()> {
        let exit = match self.code {
            Some(0) => return Ok(()),
            Some(2) => Exit::Usage,
            Some(3) => Exit::Corrupt,
            Some(4) => Exit::Refused,
            _ => Exit::Failed,
        };
        let said = &self.told.last;
        let host = &host.shown;
        let line = match self.code {
            Some(1) if self.by.sudo && said.starts_with("sudo: ") => format!(
                "{host}: {said}; floe gives sudo no password: allow it there with NOPASSWD in sudoers, or log in as root; and sudo looks for floe where its secure_path says: --floe PATH names where it is, --send brings it along"
            ),
            Some(code @ (127 | 126)) => format!(
                "{host}: cannot run floe there (exit {code}): {said}; {}",
                self.by.helps()
            ),
            Some(SSH_FAILED) if said.is_empty() => {
                format!("{host}: ssh: the connection failed, or was lost")
            }
            Some(SSH_FAILED) if said.starts_with("ssh: ") && Path::new(host).is_file() => {
                format!("{host}: {said}; it is a file here: @{host} takes the boards that it names")
            }
            Some(SSH_FAILED) if said.starts_with("ssh: ") => format!("{host}: {said}"),
            Some(SSH_FAILED) => format!("{host}: ssh: {said}"),
            Some(code) if said.is_empty() => format!("{host}: exit {code}"),
            Some(code) => format!("{host}: {said} (exit {code})"),
            None => format!("{host}: ssh was killed"),
        };
        Err(Error::with(exit, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_run_floe_there_hears_what_helps() {
        let host = Host::parse("board").unwrap();
        let line = |code, last: &str, sudo, sent| {
            let told = Heard {
                last: last.into(),
                ..Heard::default()
            };
            let (code, by) = (Some(code), By { sudo, sent });
            let error = CommandEnd { code, by, told }.check(&host).unwrap_err();
            error.to_string()
        };
        let none = "bash: line 1: sudo: command not found";
        for sent in [false, true] {
            let line = line(127, none, true, sent);
            assert!(
                line.contains(none) && line.contains("without --sudo"),
                "{line}"
            );
            assert!(!line.contains("--send"), "{line}");
        }
        let plain = line(127, "sh: floe: not found", false, false);
        assert!(plain.contains("--send brings it along"), "{plain}");
        let brought = line(126, "sh: x", false, true);
        assert!(!brought.contains("--send"), "{brought}");
        let hidden = line(1, "sudo: floe: command not found", true, false);
        assert!(hidden.contains("--floe PATH"), "{hidden}");
    }

    #[test]
    fn a_list_of_boards_that_is_taken_for_one_is_said_to_be_a_file() {
        let line = |host| {
            let told = Heard {
                last: format!("ssh: Could not resolve hostname {host}"),
                ..Heard::default()
            };
            let by = By {
                sudo: false,
                sent: false,
            };
            let code = Some(SSH_FAILED);
            let ended = CommandEnd { code, by, told };
            let error = ended.check(&Host::parse(host).unwrap()).unwrap_err();
            error.to_string()
        };
        assert!(line("Cargo.toml").contains("@Cargo.toml takes the boards"));
        assert!(!line("board").contains('@'));
    }
}
