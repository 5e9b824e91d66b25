//! `floe thaw`: the way out of a filesystem that something left frozen, whoever it was.
//!
//! It only ever calls FITHAW. A filesystem that was unmounted while frozen has no descriptor left to call it on; its device
//! is mounted once more, in a place nobody sees, which gives the same superblock. Each call runs in a thread of its own,
//! because a thaw may wait for another one (a loop filesystem for the one its file lies on) or for a dead device.
//!
//! Never freezes, and in `--all` never touches ReiserFS, whose thaw may deadlock when something has synced meanwhile.

use crate::threads::{RecvTimeoutError, channel};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::cli::{Args, Common, Item};
use crate::device::{Access, Device};
use crate::error::{Error, Fault, Result};
use crate::fs::Kind;
use crate::mounts::{DevId, Mount, Roots, System, hold_named, mount_once_more};
use crate::report::{self, JsonObject};
use crate::sys::ioctl::fithaw;
use crate::units::to_u64;

/// How long the thaws may take together.
const LIMIT: Duration = Duration::from_secs(20);

/// Where a FITHAW goes.
struct Held {
    name: String,
    fd: OwnedFd,
}

/// What was asked for.
pub(super) struct Options {
    /// `--all`: no PATH then.
    path: Option<OsString>,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let (mut all, mut path) = (false, None);
    while let Some(item) = args.next_item()? {
        match item {
            Item::Option("--all") => all = true,
            Item::Option(name) => return Err(args.unknown(name)),
            Item::Value(value) if path.is_none() => path = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
        }
    }
    match (all, &path) {
        (true, Some(value)) => Err(args.surplus(value)),
        (false, None) => Err(args.missing("PATH or --all")),
        _ => Ok(Options {
            path,
            common: args.common,
        }),
    }
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let quiet = options.common.quiet;
    let typed = super::typed(options.path.iter().map(OsString::as_os_str));
    super::begin(&options.common, ("path", &typed), &[])?;
    // A path is enough of itself: the way out must not need /proc.
    let places = match &options.path {
        None => everything(&System::look()?, quiet),
        Some(path) => one(path)?.into_iter().collect(),
    };
    let thawed = thaw(places, options.path.is_none())?;
    if thawed == 0 && !quiet {
        report::line("thaw: nothing was frozen");
    }
    let mut object = JsonObject::new();
    if options.path.is_some() {
        object.str("path", &typed);
    }
    object.u64("thawed", to_u64(thawed));
    report::write(&object)
}

/// Thaws all at once; the number of those that were frozen.
fn thaw(places: Vec<Held>, all: bool) -> Result<usize> {
    let (sender, answers) = channel();
    let mut waiting: Vec<String> = places.iter().map(|place| place.name.clone()).collect();
    for place in places {
        let sender = sender.clone();
        let _ = crate::threads::start(
            c"thaw",
            128 * 1024,
            Box::new(move || {
                let answer = fithaw(&place.fd);
                let _ = sender.send((place.name, answer));
            }),
        );
    }
    drop(sender);
    let (mut thawed, mut failure) = (0, None);
    let end = Instant::now() + LIMIT;
    loop {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((name, answer)) => {
                waiting.retain(|other| *other != name);
                match answer {
                    Ok(()) => {
                        thawed += 1;
                        report::print(&format!("thawed {}\n", report::clean(&name)))?;
                    }
                    // Not frozen; or, when looking everywhere, a filesystem that knows no freezing.
                    Err(Errno::INVAL) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOTTY) if all => {}
                    Err(errno) => {
                        failure = Some(Error::failed(format_args!(
                            "{name}: {}",
                            Fault::io("thaw", errno)
                        )));
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::failed(format_args!(
                    "{}: thaw: no answer within {} s; it waits for its device, or for another frozen filesystem",
                    waiting.join(" "),
                    LIMIT.as_secs()
                )));
            }
        }
    }
    failure.map_or(Ok(thawed), Err)
}

/// What a PATH means; `None` for a device that nothing uses, on which nothing can be frozen.
fn one(name: &OsStr) -> Result<Option<Held>> {
    let path = Path::new(name);
    let fault = |what| move |errno| Error::fault(path.display(), Fault::io(what, errno));
    let tag = [&b"LABEL="[..], b"UUID=", b"PARTLABEL=", b"PARTUUID="];
    if tag
        .iter()
        .any(|tag| name.as_encoded_bytes().starts_with(tag))
    {
        let system = System::look()?;
        let named = system.target(name)?;
        return named
            .dev
            .map_or(Ok(None), |dev| device(&system, dev, &named.shown));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let stat = rustix::fs::open(path, flags, Mode::empty())
        .and_then(rustix::fs::fstat)
        .map_err(fault("open"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => {
            let dev = DevId::from_raw(stat.st_rdev);
            match System::look() {
                Ok(system) => device(&system, dev, path),
                // Nothing shows the mounts then, and the superblock is found by mounting it once more.
                Err(error) => unseen(dev, path, error),
            }
        }
        FileType::Directory | FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fault("open"))?;
            let name = path.display().to_string();
            Ok(Some(Held { name, fd }))
        }
        _ => Err(Error::refused(format_args!(
            "{}: is neither a file or directory nor a block device; name the mount point",
            path.display()
        ))),
    }
}

/// The filesystem on a block device: mounted here, elsewhere, or no more.
fn device(system: &System, dev: DevId, shown: &Path) -> Result<Option<Held>> {
    let mounted = match system.mounted_here(dev)? {
        None => system.mounted_elsewhere(dev)?,
        found => found,
    };
    if let Some(mounted) = mounted {
        let name = format!("{} ({})", mounted.mount.point.display(), shown.display());
        return Ok(Some(Held {
            name,
            fd: mounted.fd,
        }));
    }
    unmounted(system.roots(), dev, shown)
}

/// A device without a mount that is busy nevertheless holds a superblock that was unmounted while frozen, or something else.
fn unmounted(roots: &Roots, dev: DevId, shown: &Path) -> Result<Option<Held>> {
    let ways = Ways {
        hold: &|| roots.hold(dev, Access::ReadHeld),
        look: &|| roots.open_device(dev, Access::Read),
        enter: &|kind, read_only| roots.enter(dev, kind, read_only),
    };
    match entered(&ways, shown)? {
        Entered::Idle => Ok(None),
        Entered::Superblock(fd) => {
            let name = format!("{} (not mounted)", shown.display());
            Ok(Some(Held { name, fd }))
        }
        Entered::Nothing => Err(Error::refused(format_args!(
            "{}: is in use, but not by a filesystem",
            shown.display()
        ))
        .leaving("nothing was thawed")),
    }
}

/// A device where the machine cannot be looked at, as /proc or /sys is missing: mounted or not, nobody knows.
fn unseen(dev: DevId, node: &Path, why: Error) -> Result<Option<Held>> {
    let ways = Ways {
        hold: &|| hold_named(node),
        look: &|| Device::open(node, Access::Read),
        enter: &|kind, read_only| mount_once_more(node, kind, read_only),
    };
    let found = match entered(&ways, node)? {
        // The name may have come to mean another device meanwhile.
        Entered::Superblock(_) if !is_still(node, dev) => Entered::Nothing,
        found => found,
    };
    match found {
        Entered::Idle => Ok(None),
        Entered::Superblock(fd) => {
            let name = node.display().to_string();
            Ok(Some(Held { name, fd }))
        }
        Entered::Nothing => {
            let missing = match (
                Path::new("/proc/self/mountinfo").exists(),
                Path::new("/sys/dev/block").exists(),
            ) {
                (false, false) => "without /proc and /sys, which are not mounted here,",
                (false, true) => "without /proc, which is not mounted here,",
                (true, false) => "without /sys, which is not mounted here,",
                (true, true) => return Err(why),
            };
            Err(Error::failed(format_args!(
                "{}: {missing} no filesystem is found on it; if one was frozen, it still is; name its mount point, or a file on it, as in: floe thaw /MOUNT/POINT",
                node.display()
            )))
        }
    }
}

/// Whether the node is that of the device.
fn is_still(node: &Path, dev: DevId) -> bool {
    rustix::fs::stat(node).is_ok_and(|stat| DevId::from_raw(stat.st_rdev) == dev)
}

/// How a device is reached.
struct Ways<'a> {
    hold: &'a dyn Fn() -> std::result::Result<Device, Fault>,
    look: &'a dyn Fn() -> std::result::Result<Device, Fault>,
    enter: &'a dyn Fn(&str, bool) -> std::result::Result<OwnedFd, Fault>,
}

/// What was found on it.
enum Entered {
    /// Nobody uses it, so nothing on it can be frozen.
    Idle,
    /// A filesystem.
    Superblock(OwnedFd),
    /// It is in use for something else.
    Nothing,
}

/// Takes the superblock that the kernel has of a busy device.
fn entered(ways: &Ways<'_>, shown: &Path) -> Result<Entered> {
    match (ways.hold)() {
        Ok(_) => return Ok(Entered::Idle),
        Err(fault) if fault.is_errno(Errno::BUSY) => {}
        Err(fault) => return Err(Error::fault(shown.display(), fault)),
    }
    let mut kinds: Vec<String> = Vec::new();
    if let Ok(device) = (ways.look)()
        && let Ok(Some(identity)) = crate::fs::probe(&device)
    {
        kinds.push(identity.kind.name().into());
        // Mounted by the driver of ext4, as a rule, under its own name or theirs.
        if matches!(identity.kind, Kind::Ext2 | Kind::Ext3) {
            kinds.push(Kind::Ext4.name().into());
        }
    }
    // And anything may lie on the device.
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    kinds.extend(
        known
            .lines()
            .filter_map(|line| line.strip_prefix('\t'))
            .map(str::to_owned),
    );
    for kind in kinds {
        for read_only in [false, true] {
            // Taking the superblock that is there; another type, or another mode, is EBUSY.
            if let Ok(fd) = (ways.enter)(&kind, read_only) {
                return Ok(Entered::Superblock(fd));
            }
        }
    }
    Ok(Entered::Nothing)
}

/// One place for each filesystem on a block device that anybody has mounted, and for those left frozen without a mount.
fn everything(system: &System, quiet: bool) -> Vec<Held> {
    let mut seen: Vec<DevId> = Vec::new();
    let mut places = Vec::new();
    let others = system
        .namespaces()
        .iter()
        .flat_map(|other| &other.table.mounts);
    for mount in system.table().mounts.iter().chain(others) {
        // btrfs has a number of its own; it is found by its devices below.
        if mount.dev.is_anonymous() || seen.contains(&mount.dev) {
            continue;
        }
        seen.push(mount.dev);
        if mount.filesystem == "reiserfs" {
            if !quiet {
                report::line(format_args!(
                    "{}: left alone: ReiserFS may deadlock in a thaw",
                    mount.point.display()
                ));
            }
            continue;
        }
        places.extend(mounted(system, mount));
    }
    let (roots, swaps) = (system.roots(), system.swap_devices());
    for dev in roots.devices() {
        let idle = roots.size_bytes(dev).is_none_or(|bytes| bytes == 0);
        // Partitions, arrays and volumes above make a device busy without a filesystem; so does swap.
        if idle || seen.contains(&dev) || !roots.up(dev).is_empty() || swaps.contains(&dev) {
            continue;
        }
        if let Ok(Some(place)) = device(system, dev, &roots.shown(dev)) {
            places.push(place);
        }
    }
    places
}

fn mounted(system: &System, mount: &Mount) -> Option<Held> {
    let name = mount.point.display().to_string();
    let found = match system.mounted_here(mount.dev) {
        Ok(Some(found)) => Some(found),
        _ => system.mounted_elsewhere(mount.dev).ok().flatten(),
    };
    found.map(|found| Held { name, fd: found.fd })
}
