//! `--grow`: a filesystem that was just written grows to the end of its partition, by its own ioctl, on a mount that nobody sees.
//!
//! Names prove nothing here: after the mount, the device number says whether what was mounted is the target (a btrfs, which has
//! none of its own, names its devices in sysfs). Never grows what is not on a block device, and never shrinks anything.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::device::Access;
use crate::error::{Error, Exit, Fault, Result};
use crate::features;
use crate::fs::growth::{self, Growth};
use crate::fs::{self, Identity, Kind};
use crate::mounts::{DevId, Roots};
use crate::report::Bytes;
use crate::sys::resize;

/// Whether a filesystem of this name and uuid can grow on this target; before the first write. Gives the device.
pub(crate) fn check(
    shown: &Path,
    device: Option<DevId>,
    filesystem: &str,
    uuid: &str,
) -> Result<DevId> {
    let name = shown.display();
    let why = match (device, filesystem) {
        (None, _) => "needs a block device as the target",
        (_, "ext2" | "ext3" | "ext4") if !may_resize_ext() => {
            "of ext4 needs the capability CAP_SYS_RESOURCE, which this process lacks"
        }
        (_, name) if features::without(name).is_some() => {
            features::without(name).unwrap_or_default()
        }
        (_, "ext2" | "ext3" | "ext4" | "xfs" | "btrfs") => "",
        (_, "gpt" | "mbr") => "grows one filesystem, and this image is a whole disk",
        _ => "grows ext2, ext3, ext4, XFS and btrfs only",
    };
    if !why.is_empty() {
        return Err(Error::refused(format_args!("{name}: --grow {why}")));
    }
    let dev = device.unwrap_or(DevId::new(0, 0));
    let roots = Roots::default();
    let others = match filesystem {
        "btrfs" => roots.btrfs_devices(uuid),
        _ => Vec::new(),
    };
    match others.iter().find(|at| **at != dev) {
        None => Ok(dev),
        // The kernel knows a btrfs by its uuid alone.
        Some(other) => Err(Error::refused(format_args!(
            "{name}: --grow: the btrfs with this uuid is mounted from {} and would be grown instead; umount that first, or leave out --grow",
            roots.shown(*other).display()
        ))),
    }
}

/// Whether this process has CAP_SYS_RESOURCE, which ext4 asks for (ext4_resize_begin) and containers drop. Unknown counts as yes.
fn may_resize_ext() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> CAP_SYS_RESOURCE & 1 == 1)
}

/// Grows what is on the device; gives a note.
pub(crate) fn grow(shown: &Path, dev: DevId) -> Result<String> {
    steps(shown, dev).map_err(|error| {
        error
            .with_exit(Exit::Failed)
            .leaving("the target is complete, but was not grown")
    })
}

fn steps(shown: &Path, dev: DevId) -> Result<String> {
    let name = shown.display();
    let fail = |fault| Error::fault(&name, fault);
    let roots = Roots::default();
    let look = || {
        let device = roots.open_device(dev, Access::Read)?;
        let identity =
            fs::probe(&device)?.ok_or_else(|| Fault::corrupt("no filesystem to grow"))?;
        Ok((device, identity))
    };
    let (device, before) = look().map_err(fail)?;
    let wanted = growth::of(&device, &before).map_err(fail)?;
    drop(device);
    let filesystem = match before.kind {
        Kind::Xfs => "xfs",
        Kind::Btrfs => "btrfs",
        _ => "ext4",
    };
    let nouuid = (before.kind == Kind::Xfs).then_some(c"nouuid");
    if let Some(wanted) = wanted {
        let mounted = roots.mount_hidden(dev, filesystem, nouuid).map_err(fail)?;
        is_target(&roots, shown, dev, &before, &mounted)?;
        let done = apply(wanted, &mounted);
        done.map_err(|errno| fail(Fault::io("grow", errno)))?;
        rustix::fs::syncfs(&mounted).map_err(|errno| fail(Fault::io("syncfs", errno)))?;
    }
    let (_, after) = look().map_err(fail)?;
    Ok(match after.size_bytes > before.size_bytes {
        true => format!(
            "the filesystem was grown from {} to {}",
            Bytes(before.size_bytes),
            Bytes(after.size_bytes)
        ),
        false => "the filesystem fills its device already".into(),
    })
}

/// Refuses to touch what was mounted unless it is the target and nothing else.
fn is_target(
    roots: &Roots,
    shown: &Path,
    dev: DevId,
    identity: &Identity,
    mounted: &OwnedFd,
) -> Result<()> {
    let stat = rustix::fs::fstat(mounted)
        .map_err(|errno| Error::fault(shown.display(), Fault::io("stat", errno)))?;
    let found = match identity.kind {
        Kind::Btrfs => crate::sys::identity::btrfs_info(mounted.as_fd())
            .map(|info| roots.btrfs_devices(&fs::uuid_text(&info.fsid)))
            .unwrap_or_default(),
        _ => vec![DevId::from_raw(stat.st_dev)],
    };
    if found == [dev] {
        return Ok(());
    }
    let names: Vec<String> = found
        .iter()
        .map(|dev| roots.shown(*dev).display().to_string())
        .collect();
    Err(Error::failed(format_args!(
        "{}: the kernel mounted another device with the same uuid instead ({})",
        shown.display(),
        names.join(", ")
    )))
}

/// Asks the kernel for it.
fn apply(growth: Growth, mounted: &OwnedFd) -> rustix::io::Result<()> {
    match growth {
        Growth::Ext(blocks) => resize::ext4(mounted, blocks),
        Growth::Xfs {
            blocks,
            inode_percent,
        } => resize::xfs(mounted, blocks, inode_percent),
        Growth::Btrfs(id) => resize::btrfs(mounted, id),
    }
}
