//! `--new-uuid`: a copy that was just written gets a uuid of its own, where that is a matter of the superblock.
//!
//! Whether it is, is asked of the source before the first write to any target. An XFS, and an ext4 whose journal is not empty, is
//! mounted once before, where nobody sees it: what is replayed later would bring the old uuid back. Never touches a device that anybody else holds.

use std::path::Path;

use crate::device::{Access, Device, ReadAt, WriteAt};
use crate::error::{Error, Exit, Fault, Result};
use crate::fs::{self, Kind};
use crate::mounts::{DevId, Roots};
use crate::ptable::Guid;
use crate::units::{round_down, round_up, to_u64, to_usize};

/// Refuses a source whose copy could not get a uuid of its own.
pub(crate) fn check(name: &str, source: &dyn ReadAt, kind: Option<Kind>) -> Result<()> {
    let kind = kind.ok_or_else(|| {
        Error::refused(format_args!(
            "{name}: --new-uuid: no known filesystem is there"
        ))
    })?;
    fs::identity::can_change(source, kind).map_err(|fault| {
        Error::refused(format_args!(
            "{name}: --new-uuid: {} cannot get another uuid: {fault}",
            kind.name()
        ))
    })
}

/// Changes the uuid of what is on the device; gives a note with the new one.
pub(crate) fn renew(shown: &Path, dev: DevId) -> Result<String> {
    let mut begun = false;
    steps(dev, &mut begun).map_err(|fault| {
        Error::fault(shown.display(), fault)
            .with_exit(Exit::Failed)
            .leaving(match begun {
                true => "its uuid is half changed: the target is not usable",
                false => "the target is complete, but bears the uuid of its source",
            })
    })
}

fn steps(dev: DevId, begun: &mut bool) -> std::result::Result<String, Fault> {
    let roots = Roots::default();
    let look = |access| {
        let device = roots.hold(dev, access)?;
        let identity =
            fs::probe(&device)?.ok_or_else(|| Fault::corrupt("no filesystem is there"))?;
        Ok((device, identity))
    };
    let (device, before) = look(Access::Read)?;
    let replay = fs::identity::needs_replay(&device, before.kind)?;
    drop(device);
    if replay {
        let beside_original = (before.kind == Kind::Xfs).then_some(c"nouuid");
        drop(roots.mount_hidden(dev, before.kind.name(), beside_original)?);
    }
    let (device, identity) = look(Access::WriteHeld)?;
    let uuid = random()?;
    fs::identity::change(&device, identity.kind, &uuid, &mut |offset, bytes| {
        *begun = true;
        write(&device, offset, bytes)
    })?;
    rustix::fs::fsync(device.as_fd()).map_err(|errno| Fault::io("fsync", errno))?;
    drop(device);
    let (_, after) = look(Access::Read)?;
    if after.uuid == before.uuid {
        return Err(Fault::short("the medium does not keep what is written"));
    }
    Ok(format!("its uuid is {} now", after.uuid))
}

/// Writes bytes that need not be whole sectors.
fn write(device: &Device, offset: u64, bytes: &[u8]) -> std::result::Result<(), Fault> {
    let sector = u64::from(device.sector_bytes());
    let start = round_down(offset, sector);
    let inside = to_usize(offset - start);
    let end = inside.saturating_add(bytes.len());
    let length =
        round_up(to_u64(end), sector).ok_or_else(|| Fault::refused("length of a write"))?;
    let mut whole = vec![0; to_usize(length)];
    device.read_at(start, &mut whole)?;
    crate::layout::put(&mut whole, inside, bytes);
    device.write_at(start, &whole)
}

/// Sixteen random bytes, marked as a random uuid; from the kernel's own source of them.
pub(crate) fn random() -> std::result::Result<[u8; 16], Fault> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits = text.trim().replace('-', "");
    let number = u128::from_str_radix(&digits, 16).unwrap_or(0);
    match number {
        0 => Err(Fault::short("random numbers from /proc")),
        _ => Ok(number.to_be_bytes()),
    }
}

/// A random GUID for a partition table.
pub(crate) fn random_guid() -> std::result::Result<Guid, Fault> {
    random().map(Guid::random)
}
