//! Another floe that reads a device: it lets nobody else have it, so that nobody mounts it meanwhile. Who only wants to read it, too,
//! has its turn then.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mounts::{DevId, System};
use crate::report;

/// How long its end is waited for: about what the largest card takes.
const PATIENCE: Duration = Duration::from_secs(3600);
const PAUSE: Duration = Duration::from_millis(100);
/// Most that wait for one device.
const MOST_WAITING: u32 = 64;

impl System {
    /// Tries again what another floe that reads the device keeps busy, once that is done.
    pub(crate) fn after_readers<T>(
        &self,
        dev: impl Fn() -> Option<DevId>,
        is_busy: impl Fn(&T) -> bool,
        mut attempt: impl FnMut() -> T,
    ) -> T {
        let (mut answer, mut waited) = (attempt(), true);
        for _ in 0..MOST_WAITING {
            let Some(dev) = Some(&answer)
                .filter(|it| waited && is_busy(it))
                .and_then(|_| dev())
            else {
                break;
            };
            // Who waited, too, may be faster. One that is seen no more may have held it a moment ago.
            waited = self.await_reader(dev);
            answer = attempt();
        }
        answer
    }

    /// Waits until no other floe reads the device, its disk or its partitions; false where none did, or where that takes too long.
    fn await_reader(&self, dev: DevId) -> bool {
        let roots = self.roots();
        let parts = roots.partitions_of(dev).into_iter().map(|part| part.dev);
        let mut devices: Vec<DevId> = parts.chain(roots.disk_of(dev)).collect();
        devices.push(dev);
        let (start, mut told) = (Instant::now(), false);
        let before = before(&roots.proc);
        while let Some(pid) = reader(&roots.proc, &devices, before) {
            if start.elapsed() > PATIENCE {
                return false;
            }
            if !told {
                report::note(format_args!(
                    "{}: another floe reads it (process {pid}); waiting until that is done",
                    roots.shown(dev).display()
                ));
            }
            told = true;
            std::thread::sleep(PAUSE);
        }
        told
    }
}

/// Who is waited for, by its number. Two that have a device each and want the other's would wait for each other; so who has one open
/// waits for lower numbers only, and no circle closes.
fn before(proc: &Path) -> u32 {
    let is_device = |file: &PathBuf| {
        let meta = std::fs::metadata(file);
        meta.is_ok_and(|meta| meta.file_type().is_block_device())
    };
    match entries(&proc.join("self/fd")).iter().any(is_device) {
        true => std::process::id(),
        false => u32::MAX,
    }
}

/// The process of another floe below this number that has one of these devices open, and only to read.
fn reader(proc: &Path, devices: &[DevId], before: u32) -> Option<u32> {
    let own = std::fs::metadata(proc.join("self/exe")).ok()?;
    let is_floe = |process: &Path| {
        let exe = std::fs::metadata(process.join("exe"));
        exe.is_ok_and(|exe| (exe.dev(), exe.ino()) == (own.dev(), own.ino()))
            || std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name == "floe\n")
    };
    let pids = entries(proc).into_iter().filter_map(|process| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        (pid != std::process::id() && pid < before && is_floe(&process)).then_some((pid, process))
    });
    pids.into_iter()
        .find(|(_, process)| only_reads(process, devices))
        .map(|(pid, _)| pid)
}

fn only_reads(process: &Path, devices: &[DevId]) -> bool {
    let mut reads = false;
    for file in entries(&process.join("fd")) {
        let is_it = |meta: std::fs::Metadata| devices.iter().any(|dev| dev.raw() == meta.rdev());
        if !std::fs::metadata(&file).is_ok_and(is_it) {
            continue;
        }
        let info = process
            .join("fdinfo")
            .join(file.file_name().unwrap_or_default());
        let info = std::fs::read_to_string(info).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        // The access mode is in the last two bits of the octal number (O_ACCMODE).
        if !flags.is_some_and(|flags| flags.trim().ends_with(['0', '4'])) {
            return false;
        }
        reads = true;
    }
    reads
}

/// What is in a folder of /proc; what ends meanwhile is not there any more.
fn entries(path: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(path).into_iter().flatten();
    read.flatten().map(|entry| entry.path()).collect()
}
