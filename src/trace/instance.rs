//! A tracefs instance of our own: its making and its end, its controls, the open files that are read while everything is frozen.
//!
//! tracefs is mounted anew in a place nobody sees, whether it is mounted or not: it is one filesystem wherever it is mounted.
//! An instance has its own buffers and switches, so tools that use the main ones do not meet ours; who reaches into ours all the
//! same (`trace-cmd reset` does) is seen by an inotify watch on its folders.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, inotify};
use rustix::io::Errno;

use crate::mounts::mount_kernel;
use crate::trace::page::{EventFormat, PageHeader};
use crate::trace::{Leftover, Lost, Untraced};

/// The events that tell of a write's beginning and end; the second and third as the device has requests or not.
pub(super) const EVENTS: [&str; 3] = ["block_bio_queue", "block_rq_complete", "block_bio_complete"];
/// Every instance of a floe begins so.
const PREFIX: &str = "floe-";
/// Longest text of a control that is read.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Longest content of a control that is read again later (filters are short: see [`Instance::filter`]).
const SHORT_BYTES: usize = 1024;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// One ring buffer: that of a CPU, present or not (one that comes later uses the buffer whose files are open already).
#[derive(Debug)]
pub(super) struct Ring {
    /// Its records, page by page; does not block.
    pub pages: OwnedFd,
    stats: OwnedFd,
    /// Records that we took from it.
    pub taken: u64,
    /// How many a drain waits for.
    pub wanted: u64,
}

/// What the kernel counts for a ring buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Records that wait to be read.
    pub entries: u64,
    /// Records that are lost, for any reason.
    pub lost: u64,
    /// Records that were read, by whomever; `None` where the kernel does not say.
    pub read: Option<u64>,
}

/// A control whose content must stay what it is.
#[derive(Debug)]
struct HeldControl {
    file: OwnedFd,
    content: Vec<u8>,
}

/// An instance; dropping it removes it.
#[derive(Debug)]
pub(super) struct Instance {
    instances: OwnedFd,
    name: CString,
    /// Empty once it is to be removed: open files keep an instance from that.
    open: Option<OpenInstance>,
}

/// What is open of it.
#[derive(Debug)]
pub(super) struct OpenInstance {
    root: OwnedFd,
    /// How its pages begin.
    pub header: PageHeader,
    /// The formats of [`EVENTS`].
    pub formats: [EventFormat; 3],
    /// One for each CPU there may be.
    pub rings: Vec<Ring>,
    held: Vec<HeldControl>,
    changes: Option<OwnedFd>,
}

/// The name of an instance that does not exist yet: so the guardian, which takes it away should floe die, is there before it.
#[derive(Debug)]
pub struct Reserved {
    instances: OwnedFd,
    name: CString,
}

impl Reserved {
    /// A name of ours alone. Takes away what floes that died left.
    pub fn new() -> Result<Self, Untraced> {
        let instances = instances()?;
        remove_stale(&instances);
        let own = std::process::id();
        let name = format!("{PREFIX}{own}-{}", started(own).unwrap_or_default());
        let name = CString::new(name).map_err(|_| Untraced::because("name of the instance"))?;
        Ok(Self { instances, name })
    }

    /// What the guardian takes away should floe die.
    pub fn leftover(&self) -> Result<Leftover, Untraced> {
        let directory = rustix::io::fcntl_dupfd_cloexec(&self.instances, 3)
            .map_err(|errno| Untraced::io("tracefs instances", errno))?;
        Ok(Leftover {
            directory,
            name: self.name.clone(),
        })
    }
}

impl Instance {
    /// Makes it, recording with buffers of `ring_kib` for each CPU; everything is seen, reads too, until a filter is set.
    pub(super) fn new(reserved: Reserved, ring_kib: u32) -> Result<Self, Untraced> {
        let Reserved { instances, name } = reserved;
        rustix::fs::mkdirat(&instances, &name, Mode::RWXU)
            .map_err(|errno| Untraced::io("no tracefs instance can be made", errno))?;
        // From here on it is removed whatever happens.
        let mut made = Self {
            instances,
            name,
            open: None,
        };
        made.open = Some(OpenInstance::new(&made.instances, &made.name, ring_kib)?);
        Ok(made)
    }

    /// The same, for who can only say that it is lost.
    pub(super) fn opened(&mut self) -> Result<&mut OpenInstance, Lost> {
        self.open.as_mut().ok_or(Lost("it has ended"))
    }

    pub(super) fn open(&mut self) -> Option<&mut OpenInstance> {
        self.open.as_mut()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.open = None;
        // A program that is just being started has our files open until it runs.
        for _ in 0..100 {
            let removed = rustix::fs::unlinkat(&self.instances, &self.name, AtFlags::REMOVEDIR);
            if removed != Err(Errno::BUSY) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

impl OpenInstance {
    fn new(instances: &OwnedFd, name: &CString, ring_kib: u32) -> Result<Self, Untraced> {
        let root = rustix::fs::openat(instances, name, DIRECTORY, Mode::empty())
            .map_err(|errno| Untraced::io("tracefs instance", errno))?;
        write(&root, "tracing_on", "0")?;
        write(&root, "buffer_size_kb", &ring_kib.to_string())?;
        let (header, formats) = formats(root.as_fd())?;
        let made = Self {
            rings: rings(&root)?,
            root,
            header,
            formats,
            held: Vec::new(),
            changes: None,
        };
        for event in EVENTS {
            write(&made.root, &format!("events/block/{event}/enable"), "1")?;
        }
        write(&made.root, "tracing_on", "1")?;
        Ok(made)
    }

    /// Has only those events recorded that match; where the kernel does not take the filter, all are.
    pub(super) fn filter(&mut self, text: &str) {
        for event in EVENTS {
            let path = format!("events/block/{event}/filter");
            if text.len() >= SHORT_BYTES || write(&self.root, &path, text).is_err() {
                let _ = write(&self.root, &path, "0");
            }
        }
    }

    /// From now on nobody is to change anything: remembers the controls, and watches them.
    pub(super) fn hold(&mut self) -> Result<(), Untraced> {
        let mut paths = vec!["tracing_on".to_owned(), "buffer_size_kb".to_owned()];
        for event in EVENTS {
            paths.push(format!("events/block/{event}/enable"));
            paths.push(format!("events/block/{event}/filter"));
        }
        for path in &paths {
            let file = open(&self.root, path, OFlags::RDONLY)?;
            let mut content = [0; SHORT_BYTES];
            let length = rustix::io::pread(&file, &mut content, 0)
                .map_err(|errno| Untraced::io(path, errno))?;
            let content = content.get(..length).unwrap_or_default().to_vec();
            self.held.push(HeldControl { file, content });
        }
        let on = |path: &str| {
            let held = paths
                .iter()
                .zip(&self.held)
                .find(|(other, _)| *other == path);
            held.is_some_and(|(_, held)| held.content.first() == Some(&b'1'))
        };
        if !on("tracing_on")
            || !EVENTS
                .iter()
                .all(|event| on(&format!("events/block/{event}/enable")))
        {
            return Err(Untraced::because("the kernel does not switch the trace on"));
        }
        self.changes = self.watch().ok();
        Ok(())
    }

    /// Watches every folder with controls. Without (all of the user's inotify instances are taken) the contents still tell.
    fn watch(&self) -> Result<OwnedFd, Errno> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let changes = inotify::init(flags)?;
        let mut folders = vec![
            ".".to_owned(),
            "events".to_owned(),
            "events/block".to_owned(),
            "options".to_owned(),
        ];
        folders.extend(EVENTS.map(|event| format!("events/block/{event}")));
        for folder in folders {
            let fd = rustix::fs::openat(&self.root, folder.as_str(), DIRECTORY, Mode::empty())?;
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
        }
        Ok(changes)
    }

    /// Whether everything is still as it was, and nothing was lost. No heap, no open.
    pub(super) fn check(&self) -> Result<(), Lost> {
        let mut content = [0; SHORT_BYTES];
        for held in &self.held {
            let length = rustix::io::pread(&held.file, &mut content, 0).unwrap_or(0);
            if content.get(..length) != Some(&held.content) {
                return Err(Lost("somebody changed its settings"));
            }
        }
        if let Some(changes) = &self.changes {
            match rustix::io::read(changes, &mut content) {
                Err(Errno::AGAIN) => {}
                _ => return Err(Lost("somebody reached into it")),
            }
        }
        for ring in &self.rings {
            let stats = ring.stats()?;
            if stats.lost > 0 {
                return Err(Lost("writes came faster than its buffer could be read"));
            }
            // Somebody else read from it, or emptied it.
            if stats.read.is_some_and(|read| read != ring.taken) {
                return Err(Lost("somebody took records from it"));
            }
        }
        Ok(())
    }
}

impl Ring {
    /// What the kernel counts for it. No heap.
    pub(super) fn stats(&self) -> Result<Stats, Lost> {
        let mut text = [0; 512];
        let length = rustix::io::pread(&self.stats, &mut text, 0)
            .map_err(|_| Lost("its counters cannot be read"))?;
        Stats::parse(text.get(..length).unwrap_or_default()).ok_or(Lost("its counters are unknown"))
    }
}

impl Stats {
    /// From the text of `per_cpu/cpuN/stats`.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let value = |key: &str| {
            let line = |line: &str| line.strip_prefix(key)?.strip_prefix(": ")?.parse().ok();
            text.lines().find_map(line)
        };
        let sum = |keys: [&str; 3]| {
            let values = keys.iter().map(|key| value(key));
            values.sum::<Option<u64>>()
        };
        Some(Self {
            entries: value("entries")?,
            lost: sum(["overrun", "commit overrun", "dropped events"])?,
            read: value("read events"),
        })
    }
}

/// The folder `instances` of tracefs, mounted for us.
pub(super) fn instances() -> Result<OwnedFd, Untraced> {
    let root = mount_kernel("tracefs").map_err(|fault| {
        Untraced(match fault.errno().map(Errno::from_raw_os_error) {
            Some(Errno::NODEV) => "this kernel has no tracefs".to_owned(),
            _ => format!("tracefs: {fault}"),
        })
    })?;
    rustix::fs::openat(&root, "instances", DIRECTORY, Mode::empty())
        .map_err(|errno| Untraced::io("tracefs instances", errno))
}

/// The layout of pages and events, read from an instance or from tracefs itself.
pub(super) fn formats(root: BorrowedFd<'_>) -> Result<(PageHeader, [EventFormat; 3]), Untraced> {
    // Where an instance has no header_page of its own, all have the same.
    let text =
        read(root, "events/header_page").or_else(|_| read(root, "../../events/header_page"))?;
    let unknown = |what: &str| Untraced::because(&format!("the layout of {what} is unknown"));
    let header = PageHeader::parse(&text).ok_or_else(|| unknown("pages"))?;
    let mut found = [None; 3];
    for (format, event) in found.iter_mut().zip(EVENTS) {
        // Without CONFIG_BLK_DEV_IO_TRACE and the like there are none.
        let text = read(root, &format!("events/block/{event}/format"))?;
        *format = EventFormat::parse(&text);
    }
    let [Some(queued), Some(request), Some(bio)] = found else {
        return Err(unknown("events"));
    };
    Ok((header, [queued, request, bio]))
}

fn rings(root: &OwnedFd) -> Result<Vec<Ring>, Untraced> {
    let fail = |errno| Untraced::io("tracefs per_cpu", errno);
    let folder = rustix::fs::openat(root, "per_cpu", DIRECTORY, Mode::empty()).map_err(fail)?;
    let mut rings = Vec::new();
    for entry in rustix::fs::Dir::read_from(&folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy();
        if name.starts_with("cpu") {
            rings.push(Ring {
                pages: open(&folder, &format!("{name}/trace_pipe_raw"), OFlags::NONBLOCK)?,
                stats: open(&folder, &format!("{name}/stats"), OFlags::RDONLY)?,
                taken: 0,
                wanted: 0,
            });
        }
    }
    if rings.is_empty() {
        return Err(fail(Errno::NOENT));
    }
    Ok(rings)
}

/// Takes away what floes that died left. An instance of one that lives cannot be removed: its files are open. Only the moment
/// before it opens them needs the look at the process.
fn remove_stale(instances: &OwnedFd) {
    let Ok(names) = rustix::fs::Dir::read_from(instances) else {
        return;
    };
    for entry in names.flatten() {
        let name = entry.file_name();
        let lives = |name: &str| {
            let (pid, start) = name.split_once('-')?;
            Some(started(pid.parse().ok()?)? == start)
        };
        let text = name
            .to_str()
            .ok()
            .and_then(|name| name.strip_prefix(PREFIX));
        if text.is_some_and(|text| !lives(text).unwrap_or(false)) {
            let _ = rustix::fs::unlinkat(instances, name, AtFlags::REMOVEDIR);
        }
    }
}

/// When a process started, in ticks since boot (field 22 of /proc/PID/stat, proc(5)); `None` when there is none.
fn started(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state, field 3, follows it.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

fn open(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Untraced> {
    rustix::fs::openat(root, path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Untraced::io(&format!("tracefs {path}"), errno))
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, Untraced> {
    let file = open(root, path, OFlags::RDONLY)?;
    let mut bytes = vec![0; TEXT_BYTES_MAX];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(errno) => return Err(Untraced::io(&format!("tracefs {path}"), errno)),
        }
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| Untraced::because(&format!("tracefs {path} is no text")))
}

fn write(root: impl AsFd, path: &str, text: &str) -> Result<(), Untraced> {
    let file = open(root, path, OFlags::WRONLY)?;
    match rustix::io::write(&file, text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Untraced::io(&format!("tracefs {path}"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_lose_records_counts() {
        let text = b"entries: 52\noverrun: 1\ncommit overrun: 2\nbytes: 2976\noldest event ts:  1758.731597\n\
            now ts:  1758.751894\ndropped events: 4\nread events: 854\n";
        let expected = Stats {
            entries: 52,
            lost: 7,
            read: Some(854),
        };
        assert_eq!(Stats::parse(text), Some(expected));
        assert_eq!(Stats::parse(b"entries: 52\noverrun: 1\n"), None);
    }

    #[test]
    fn a_process_has_a_start_and_none_has_none() {
        assert!(started(std::process::id()).unwrap().parse::<u64>().is_ok());
        assert_eq!(started(u32::MAX), None);
    }
}
