//! What a snapshot says about the machine it was made on, and `/etc/floe.conf`.
//!
//! Reads only. Texts of the system are taken as they are, made valid UTF-8 and bounded; nothing is believed about them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::device::limited;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most bytes read of any of these files.
const LIMIT_BYTES: u64 = 64 * 1024;

/// What is known about the machine; empty where nothing is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
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

impl Machine {
    /// The machine floe runs on.
    pub(crate) fn look() -> Self {
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
    let mut file = File::open(path).ok()?;
    limited(&mut file, LIMIT_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Seconds since the epoch; boards may have no clock.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_os_name_loses_its_quotes_only() {
        let text = "NAME=x\nPRETTY_NAME=\"Some OS 1 (\\x)\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Some OS 1 (\\x)"));
        assert_eq!(pretty_name("ID=x"), None);
    }
}
