//! What a snapshot says about the machine it was made on, and `/etc/floe.conf`.
//!
//! Reads only. Texts of the system are taken as they are, made valid UTF-8 and bounded; nothing is believed about them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// The configuration file.
pub const CONFIG: &str = "/etc/floe.conf";
/// Most bytes read of any of these files.
const LIMIT_BYTES: u64 = 64 * 1024;

/// What is known about the machine; empty where nothing is.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// As `uname -m` says.
    pub architecture: String,
    /// The device tree's model.
    pub board: String,
    /// As `uname -r` says.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
}

impl Host {
    /// The machine floe runs on.
    pub fn look() -> Self {
        let uname = rustix::system::uname();
        let text = |text: &core::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            // "(none)" is the kernel's word for a name that nobody has set.
            name: Some(text(uname.nodename()))
                .filter(|name| name != "(none)")
                .unwrap_or_default(),
            architecture: text(uname.machine()),
            board: board(),
            kernel: text(uname.release()),
            os: ["/etc/os-release", "/usr/lib/os-release"]
                .iter()
                .find_map(|path| pretty_name(&read(Path::new(path))?))
                .unwrap_or_default(),
        }
    }
}

fn board() -> String {
    let model = [
        "/proc/device-tree/model",
        "/sys/firmware/devicetree/base/model",
    ]
    .iter()
    .find_map(|path| read(Path::new(path)));
    model.unwrap_or_default().trim_end_matches('\0').to_owned()
}

/// Up to the limit, as text; `None` where it cannot be read.
fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(LIMIT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Seconds since the epoch; boards may have no clock.
pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `store = DIR` of /etc/floe.conf: where snapshots are kept.
pub fn store() -> Result<Option<PathBuf>> {
    match std::fs::read_to_string(CONFIG) {
        Ok(text) => store_in(&text).map_err(|line| {
            Error::usage(format_args!(
                "{CONFIG}: line {line}: store must name a folder from /"
            ))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::failed(format_args!("{CONFIG}: read: {error}"))),
    }
}

/// The last `store` line counts; other lines are not ours. `Err` is the number of a line that is wrong.
fn store_in(text: &str) -> std::result::Result<Option<PathBuf>, usize> {
    let mut store = None;
    for (number, line) in (1usize..).zip(text.lines()) {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if key.trim() == "store" {
            let folder = PathBuf::from(value.trim());
            store = Some(folder).filter(|folder| folder.is_absolute());
            if store.is_none() {
                return Err(number);
            }
        }
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_found_among_other_lines() {
        let text = "# kept\n/=/dev/mmcblk0p3\n store = /data/snapshots \n";
        assert_eq!(store_in(text), Ok(Some("/data/snapshots".into())));
        assert_eq!(store_in("/config=PARTLABEL=b\n#store = /x\n"), Ok(None));
        assert_eq!(store_in("\nstore = relative\n"), Err(2));
        assert_eq!(store_in("store=\n"), Err(1));
    }

    #[test]
    fn an_os_name_loses_its_quotes_only() {
        let text = "NAME=x\nPRETTY_NAME=\"Some OS 1 (\\x)\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Some OS 1 (\\x)"));
        assert_eq!(pretty_name("ID=x"), None);
    }
}
