//! Cgroups: the guardian leaves floe's, so that a kill or a freeze of floe's group does not take it along.
//!
//! With cgroup v2 it gets a group of its own below the root; with v1 it moves to the root of each hierarchy (systemd's
//! included). Where it may not move, it stays, and says so. A group of its own is removed by the guardian when it ends, or by
//! floe; when both were killed, by the next floe: whatever is empty and bears our name goes ([`Cgroups::sweep`]).

use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::Pid;

/// How the groups are called, before the number of the guardian's process.
const NAME: &str = "floe-guard.";
/// Names that are tried where one is taken, or a group is gone again before it was entered.
const NAMES: u32 = 16;
/// The most groups that are looked at in one sweep.
const SWEEP_MAX: usize = 4096;

/// The hierarchies whose root we see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    /// Mount points of v2 (at most one in practice).
    unified: Vec<PathBuf>,
    /// Mount points of v1.
    legacy: Vec<PathBuf>,
    /// Groups of our own, each with those that take us back: the root, and the one we came from.
    own: Vec<(PathBuf, [PathBuf; 2])>,
}

impl Cgroups {
    /// From this process's mountinfo; none where that cannot be read.
    pub(crate) fn find() -> Self {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::parse(&table)
    }

    /// Mounts of kind `cgroup` and `cgroup2` that show their hierarchy's root (proc_pid_mountinfo(5): field 4 is the root,
    /// 5 the mount point, and the kind follows the lone dash).
    fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut fields = left.split(' ').skip(3);
            let (Some("/"), Some(point)) = (fields.next(), fields.next()) else {
                continue;
            };
            match right.split(' ').next() {
                Some("cgroup2") => found.unified.push(point.into()),
                Some("cgroup") => found.legacy.push(point.into()),
                _ => {}
            }
        }
        found
    }

    /// Moves the calling process, a child of `parent`; whether it shares no group any more whose kill would take both.
    pub(crate) fn enter(&mut self, parent: Pid) -> bool {
        self.sweep();
        let pid = rustix::process::getpid();
        let home = groups("self");
        let home = home.lines().find_map(|line| line.strip_prefix("0::/"));
        for root in &self.unified {
            let homes = [root.clone(), root.join(home.unwrap_or_default())];
            for attempt in 0..NAMES {
                let mut name = format!("{NAME}{}", pid.as_raw_nonzero());
                if attempt > 0 {
                    name.push_str(&format!(".{attempt}"));
                }
                let group = root.join(name);
                // (std's own brings the making of whole paths with it, 2 KB.)
                match rustix::fs::mkdir(&group, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
                    Ok(()) if join(&group, pid) => {
                        self.own.push((group, homes));
                        break;
                    }
                    // Another floe's sweep may have taken it away; or we may not move.
                    Ok(()) => drop(std::fs::remove_dir(&group)),
                    // Somebody is in it, or it has groups below it.
                    Err(Errno::EXIST) => {}
                    Err(_) => break,
                }
            }
        }
        for root in &self.legacy {
            join(root, pid);
        }
        apart(
            &groups("self"),
            &groups(&parent.as_raw_nonzero().to_string()),
        )
    }

    /// Moves the calling process out of its own group, and removes that.
    pub(crate) fn leave(&self) {
        let pid = rustix::process::getpid();
        for (group, homes) in &self.own {
            // In a container what looks like the root may admit no process (cgroups(7), "no internal processes").
            let _ = homes.iter().any(|home| join(home, pid));
            let _ = std::fs::remove_dir(group);
        }
    }

    /// Removes every group of ours that nobody is in: the kernel refuses the others.
    pub(crate) fn sweep(&self) {
        for root in &self.unified {
            let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
            for entry in entries.take(SWEEP_MAX) {
                if entry.file_name().to_string_lossy().starts_with(NAME) {
                    let _ = std::fs::remove_dir(entry.path());
                }
            }
        }
    }
}

/// The groups of a process: lines of `ID:CONTROLLERS:PATH` (cgroups(7)).
fn groups(process: &str) -> String {
    std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default()
}

/// Whether two processes are together in none but root groups, which nobody kills as such.
fn apart(one: &str, other: &str) -> bool {
    let shared = |line: &&str| !line.ends_with(":/") && other.lines().any(|known| known == *line);
    !one.lines().any(|line| shared(&line))
}

fn join(group: &Path, pid: Pid) -> bool {
    let number = pid.as_raw_nonzero().to_string();
    std::fs::write(group.join("cgroup.procs"), number).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_that_show_the_root_of_their_hierarchy_are_used() {
        let found = Cgroups::parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             33 31 0:29 /a/b /mnt rw shared:1 - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n\
             1 1 8:1 / / rw - ext4 /dev/root rw\n",
        );
        assert_eq!(found.legacy, [PathBuf::from("/sys/fs/cgroup/cpu")]);
        assert_eq!(found.unified, [PathBuf::from("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_group_is_shared_unless_it_is_a_root() {
        let floe = "2:cpu:/\n0::/user.slice/session-3.scope\n";
        assert!(apart("2:cpu:/\n0::/floe-guard.7\n", floe));
        assert!(apart("2:cpu:/\n0::/\n", "2:cpu:/\n0::/\n"));
        assert!(!apart(floe, floe));
        assert!(!apart("2:cpu:/a\n0::/\n", "2:cpu:/a\n0::/b\n"));
        assert!(apart("", floe));
    }
}
