//! `--send`: floe for a board that has none, over the connection that it is used on.
//!
//! A script of the board's own shell looks for a place that can be written and run from, takes the executable, checks its SHA-256,
//! opens it, **removes it**, and runs it through /proc: while it works nothing of it has a name any more, so whatever ends the
//! connection or the board leaves nothing behind. Until then traps of the script remove it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::board::host::Host;
use crate::board::ssh::Session;
use crate::error::{Error, Result};
use crate::snapshot::sums::sums_of;

/// Largest executable that is sent, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Runs on the board; says lines that begin with `ssh::MARK`, and reads from the host: a line `LENGTH SHA256`, and after each `ready`
/// LENGTH bytes. `head` may read ahead, for the host sends nothing more before it is told to. One line for each step: login
/// shells other than sh get it quoted.
const SCRIPT: &str = "umask 077; d=; trap '[ -z \"$d\" ] || rm -rf \"$d\"' 0; trap 'exit 1' 1 2 13 15; \
say() { echo \"floe-send: $*\" >&2; }; \
say machine $(uname -m) $(grep -m 1 -i '^features' /proc/cpuinfo 2>/dev/null); \
read -r n sum || exit 1; \
why=; \
for p in /run /dev/shm /tmp /var/tmp \"$HOME\"; do \
d=$p/.floe-$$; \
mkdir \"$d\" 2>/dev/null || { d=; why=\"$why $p: cannot be written;\"; continue; }; \
f=$d/floe; \
{ printf '#!/bin/sh\\nexit 0\\n' > \"$f\" && chmod 700 \"$f\" && \"$f\"; } 2>/dev/null || { rm -rf \"$d\"; d=; why=\"$why $p: nothing may be run there;\"; continue; }; \
rm -f \"$f\"; say ready; \
head -c \"$n\" | { cat > \"$f\"; cat > /dev/null; } 2>/dev/null; \
chmod 700 \"$f\"; \
if command -v sha256sum > /dev/null 2>&1; then s=$(sha256sum < \"$f\"); else s=$(\"$f\" kept sum < \"$f\"); fi; \
[ \"${s%% *}\" = \"$sum\" ] || { rm -rf \"$d\"; d=; why=\"$why $p: full, or it did not arrive whole;\"; continue; }; \
\"$f\" --version > /dev/null 2>&1 || { rm -rf \"$d\"; d=; why=\"$why $p: it does not start;\"; continue; }; \
exec 9< \"$f\" || exit 1; rm -rf \"$d\"; d=; say go; \
SUDO/proc/$$/fd/9 \"$@\"; exit $?; \
done; say nowhere$why; exit 1";

/// The command line that does this and then runs floe with what follows it.
pub(crate) fn words(sudo: bool) -> Vec<OsString> {
    let prefix = if sudo { "sudo -n -- " } else { "" };
    let script = SCRIPT.replace("SUDO", prefix);
    ["sh", "-c", &script, "floe"].map(OsString::from).into()
}

/// The board's name for its machine, and what its processor says of itself, as the end of a file's name in `dist`.
fn architecture(machine: &str, features: &str) -> Option<&'static str> {
    // armv7 here means hard float with 16 registers (VFPv3-D16), which not every processor of that name has.
    let hard = features.is_empty() || features.contains("vfpv3") || features.contains("vfpv4");
    match machine {
        "x86_64" | "amd64" => Some("x86_64"),
        "i686" => Some("i686"),
        "aarch64" | "arm64" => Some("aarch64"),
        "armv7l" | "armv7" | "armv8l" if hard => Some("armv7"),
        // Without a floating point unit.
        "armv7l" | "armv7" | "armv8l" | "armv6l" => Some("armv6"),
        "riscv64" => Some("riscv64"),
        _ => None,
    }
}

/// `floe-ARCH` in the folder, or this program itself where it is of that architecture and static.
fn executable(architecture: &str, folder: Option<&Path>) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::std("/proc/self/exe", "open", &e))?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let path = folder
        .unwrap_or(beside)
        .join(format!("floe-{architecture}"));
    let target = env!("FLOE_TARGET");
    let fits = target.starts_with(architecture) && target.contains("musl");
    if !path.exists() && folder.is_none() && fits {
        return Ok(own);
    }
    Ok(path)
}

/// Brings floe to the board; afterwards the session is floe's.
pub(crate) fn send(host: &Host, mut session: Session, folder: Option<&Path>) -> Result<Session> {
    match steps(host, &mut session, folder) {
        Ok(()) => Ok(session),
        Err(Some(error)) => Err(error),
        // The script ended without a word for us: what ssh and the shell said is the reason.
        Err(None) => {
            session.end()?.check(host)?;
            Err(Error::failed(format_args!(
                "{}: --send: the board's shell ended",
                host.shown
            )))
        }
    }
}

fn steps(
    host: &Host,
    session: &mut Session,
    folder: Option<&Path>,
) -> std::result::Result<(), Option<Error>> {
    let host = &host.shown;
    let lost = |_: std::io::Error| None;
    let first = session.mark().map_err(lost)?;
    let mut parts = first.splitn(3, ' ');
    let (Some("machine"), Some(machine)) = (parts.next(), parts.next()) else {
        return Err(Some(Error::failed(format_args!(
            "{host}: --send: '{first}'?"
        ))));
    };
    let features = parts.next().unwrap_or_default();
    let Some(architecture) = architecture(machine, features) else {
        return Err(Some(
            Error::refused(format_args!(
                "{host}: there is no floe for its machine ({machine} {features})"
            ))
            .leaving("nothing was sent"),
        ));
    };
    let path = executable(architecture, folder).map_err(Some)?;
    let bytes = read(&path).map_err(Some)?;
    let (length, sha256) = sums_of(&path).map_err(Some)?;
    let line = format!("{length} {sha256}\n");
    session.write_all(line.as_bytes()).map_err(lost)?;
    // A turn for each place that the script tries.
    for _ in 0..8 {
        let mark = session.mark().map_err(lost)?;
        match mark.as_str() {
            "ready" => session.write_all(&bytes).map_err(lost)?,
            "go" => return Ok(()),
            other => {
                let why = other.strip_prefix("nowhere ").unwrap_or(other);
                return Err(Some(Error::failed(format_args!(
                    "{host}: --send: no place there to run floe from: {}; nothing is left there",
                    why.trim_end_matches(';')
                ))));
            }
        }
    }
    Err(None)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let fail = |e: std::io::Error| {
        Error::std(&shown, "open", &e).leaving(
            "--binaries DIR names the folder with floe-x86_64, floe-aarch64, floe-armv7 and others",
        )
    };
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > MAX_BYTES {
        return Err(Error::refused(format_args!(
            "{shown}: is too large to be floe"
        )));
    }
    std::fs::read(path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_chosen_by_machine_and_float_unit() {
        assert_eq!(architecture("x86_64", ""), Some("x86_64"));
        assert_eq!(
            architecture("aarch64", "Features : fp asimd"),
            Some("aarch64")
        );
        assert_eq!(
            architecture("armv7l", "Features : half thumb vfpv3d16"),
            Some("armv7")
        );
        let soft = "Features : half thumb";
        assert_eq!(architecture("armv7l", soft), Some("armv6"));
        assert_eq!(architecture("armv6l", "Features : vfp"), Some("armv6"));
        assert_eq!(architecture("riscv64", ""), Some("riscv64"));
        assert_eq!(architecture("armv5tejl", soft), None);
        assert_eq!(architecture("mips", ""), None);
    }
}
