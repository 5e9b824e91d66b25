//! Hardware watchdogs that would reset the board in the middle of a long freeze. Only reads /sys; touches no watchdog.

use std::time::Duration;

/// The hardware watchdog that resets the board before `limit` is over, if one is running: its name and timeout in seconds.
/// To be warned of before the freeze.
pub fn shorter_hardware_watchdog(limit: Duration) -> Option<(String, u64)> {
    shorter_watchdog_in("/sys/class/watchdog", limit)
}

fn shorter_watchdog_in(class: &str, limit: Duration) -> Option<(String, u64)> {
    let mut shortest: Option<(String, u64)> = None;
    for entry in std::fs::read_dir(class).ok()?.flatten().take(64) {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        // Without CONFIG_WATCHDOG_SYSFS there is no `state` to read; then we do not know, and say nothing.
        if read("state").is_none_or(|state| state.trim() != "active") {
            continue;
        }
        let Some(seconds) = read("timeout").and_then(|text| text.trim().parse::<u64>().ok()) else {
            continue;
        };
        if seconds < limit.as_secs() && shortest.as_ref().is_none_or(|(_, least)| seconds < *least)
        {
            shortest = Some((entry.file_name().to_string_lossy().into_owned(), seconds));
        }
    }
    shortest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_hardware_watchdog_below_the_limit_is_named() {
        let dir = std::env::temp_dir().join(format!("floe-watchdogs-{}", std::process::id()));
        for (name, state, timeout) in [
            ("watchdog0", "inactive", 5),
            ("watchdog1", "active", 60),
            ("watchdog2", "active", 300),
        ] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
            std::fs::write(dir.join(name).join("state"), state).unwrap();
            std::fs::write(dir.join(name).join("timeout"), format!("{timeout}\n")).unwrap();
        }
        let class = dir.to_str().unwrap();
        let found = shorter_watchdog_in(class, Duration::from_secs(120));
        assert_eq!(found, Some(("watchdog1".into(), 60)));
        assert_eq!(shorter_watchdog_in(class, Duration::from_secs(30)), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
