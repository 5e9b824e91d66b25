//! Cgroups: the guardian leaves floe's, so that a kill or a freeze of floe's group does not take it along.
//!
//! With cgroup v2 it gets a group of its own below the root; with v1 it moves to the root of each hierarchy (systemd's
//! included). Where it may not move, it stays: that is no failure. Paths are found before the fork.

use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// The hierarchies whose root we see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    /// Mount points of v2 (at most one in practice).
    unified: Vec<PathBuf>,
    /// Mount points of v1.
    legacy: Vec<PathBuf>,
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

    /// Moves the calling process.
    pub(crate) fn enter(&self) {
        let pid = rustix::process::getpid();
        for root in &self.unified {
            let own = own_group(root, pid);
            if std::fs::create_dir(&own).is_ok() && !join(&own, pid) {
                let _ = std::fs::remove_dir(&own);
            }
        }
        for root in &self.legacy {
            join(root, pid);
        }
    }

    /// Moves the calling process to the roots, and removes its own group.
    pub(crate) fn leave(&self, pid: Pid) {
        for root in &self.unified {
            if own_group(root, pid).exists() {
                join(root, pid);
            }
        }
        self.remove(pid);
    }

    /// Removes what a guardian that was killed left behind.
    pub(crate) fn remove(&self, pid: Pid) {
        for root in &self.unified {
            let _ = std::fs::remove_dir(own_group(root, pid));
        }
    }
}

fn own_group(root: &Path, pid: Pid) -> PathBuf {
    root.join(format!("floe-guard.{}", pid.as_raw_nonzero()))
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
}
