//! That an image holds still while it is read: nobody else writes to what it lies on.
//!
//! A device that is in use is refused, since what is read of it would be of many moments; one that is not is held O_EXCL. Of a file it
//! is asked whether a loop device that is in use writes to it. Everything by number, never by name.

use std::ffi::OsStr;
use std::fs::File;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::device::{Access, Device};
use crate::error::{Error, Fault, Result};
use crate::mounts::{DevId, System, Use, Why};
use crate::threads::Lock;

/// The devices that images lie on. They are held until the end: what lies on one may be opened again.
static HELD: Lock<Vec<Device>> = Lock::new(Vec::new());

/// The same of a device that is not open yet: who has one open waits only for some of the others that read it
/// ([`System::after_readers`]).
pub(super) fn hold_named(path: &OsStr) -> Result<()> {
    match rustix::fs::stat(path) {
        Ok(stat) if path != "-" && FileType::from_raw_mode(stat.st_mode).is_block_device() => {
            hold(&path.display().to_string(), DevId::from_raw(stat.st_rdev))
        }
        _ => Ok(()),
    }
}

/// Refuses what others may write to while it is read, and holds a device.
pub(super) fn hold_still(subject: &str, file: &File) -> Result<()> {
    let fail = |errno| Error::fault(subject, Fault::io("stat", errno));
    let stat = rustix::fs::fstat(file).map_err(fail)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => hold(subject, DevId::from_raw(stat.st_rdev)),
        // Without /proc and /sys nobody can be asked.
        FileType::RegularFile => match System::look() {
            Ok(system) => check_file(&system, subject, &stat),
            Err(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

fn hold(subject: &str, dev: DevId) -> Result<()> {
    let mut held = HELD.lock();
    if held.iter().any(|held| DevId::from_raw(held.rdev()) == dev) {
        return Ok(());
    }
    let (system, found) = System::look()?.after_readers(
        || Some(dev),
        |looked: &Result<(System, Option<Use>)>| {
            let found = looked.as_ref().ok().and_then(|(_, found)| found.as_ref());
            found.is_some_and(|found| matches!(found.why, Why::Busy))
        },
        || {
            let system = System::look()?;
            let found = used(&system, dev);
            Ok((system, found))
        },
    )?;
    if let Some(found) = found {
        return Err(refused(subject, &found, &system, dev));
    }
    let shown = system.roots().shown(dev);
    match system.roots().hold(dev, Access::ReadHeld) {
        Ok(device) => held.push(device),
        // A mount holds it, or one of its partitions or of its disk, and writes nothing.
        Err(fault) if fault.is_errno(Errno::BUSY) && is_mounted_around(&system, dev) => {}
        Err(fault) if fault.is_errno(Errno::BUSY) => {
            let device = shown.clone();
            let busy = Use {
                device,
                why: Why::Busy,
            };
            return Err(refused(subject, &busy, &system, dev));
        }
        Err(fault) => return Err(Error::fault(subject, fault)),
    }
    Ok(())
}

/// Whether something is mounted of the device, its partitions or its disk.
fn is_mounted_around(system: &System, dev: DevId) -> bool {
    let roots = system.roots();
    let parts = roots.partitions_of(dev).into_iter().map(|part| part.dev);
    let mut around = parts.chain(roots.disk_of(dev)).chain([dev]);
    around.any(|dev| !system.mounts_on(dev).is_empty())
}

/// What a device is in use for by somebody who may write to it.
fn used(system: &System, dev: DevId) -> Option<Use> {
    let mut uses = system.writers(dev).into_iter();
    uses.find(|found| !matches!(found.why, Why::ReadOnly | Why::RunningRoot))
}

/// A file that a loop device shows.
fn check_file(system: &System, subject: &str, stat: &Stat) -> Result<()> {
    for by in system.loops_over(stat) {
        if system.roots().device_read_only(by) {
            continue;
        }
        if let Some(found) = used(system, by) {
            return Err(refused(subject, &found, system, by));
        }
    }
    Ok(())
}

fn refused(subject: &str, found: &Use, system: &System, dev: DevId) -> Error {
    let used = match &found.why {
        Why::Beside(other) => other.device.clone(),
        _ => system.roots().shown(dev),
    };
    Error::refused(format_args!(
        "{subject}: may change while it is read ({found}); make an image of what is in use first, as in: floe dump {} -o FILE",
        used.display()
    ))
}
