//! What a dump would read, without a freeze: the map is walked as it lies on the device just now. Of what is mounted that is an
//! estimate.

use rustix::fs::OFlags;

use crate::device::{Device, Range, ReadAt};
use crate::error::{Fault, FaultKind};
use crate::fs::{self, Coverage, Identity, Kind, Still, UsedMap, Walk};
use crate::mounts::Mounted;
use crate::take::source::{Prepared, Reading};
use crate::units::{BlockSize, Extent};

/// What a dump would read.
pub(crate) struct Glimpse {
    /// So many bytes.
    pub bytes: u64,
    /// How much of the map was proven, or `estimate`.
    pub map: &'static str,
    /// In words at once: of a fault they may be gone when many others have come since.
    pub doubt: Option<String>,
    /// Whether the doubt is one that a freeze will not end.
    pub lasts: bool,
    /// What follows the filesystem and is read too.
    pub behind: Option<&'static str>,
    /// Not all that follows it was looked at.
    pub at_least: bool,
}

/// What follows a filesystem on its device.
#[derive(Clone, Copy)]
pub(crate) enum Behind<'a> {
    /// This of it is not zeros.
    Found(&'a [Extent]),
    /// It was not looked at.
    Unknown,
}

/// Of a source, in bytes.
pub(crate) fn of_source(source: &Prepared) -> Result<u64, Fault> {
    let mut sum = 0u64;
    for segment in &source.segments {
        let length_bytes = segment.length_bytes;
        let device = source.devices.get(segment.device);
        let glimpse = match (&segment.reading, device) {
            (Reading::Map(identity), Some(opened)) => {
                let is_all = source.segments.len() == 1;
                let mut mounted = source.mounted.iter();
                let mounted = mounted
                    .find(|one| is_all || one.mount.dev.raw() == opened.device.rdev())
                    .filter(|_| segment.still != Still::Unmounted);
                let extent = Extent::at(segment.offset, length_bytes);
                let behind = Behind::Found(&segment.behind);
                look(
                    &opened.device,
                    extent,
                    identity,
                    segment.still,
                    mounted,
                    behind,
                )?
            }
            _ => None,
        };
        sum = sum.saturating_add(glimpse.map_or(length_bytes, |glimpse| glimpse.bytes));
    }
    Ok(sum)
}

/// Of the filesystem in a range of a device, which is `mounted` there; else `still` says what it is.
pub(crate) fn look(
    device: &Device,
    extent: Extent,
    identity: &Identity,
    still: Still,
    mounted: Option<&Mounted>,
    behind: Behind,
) -> Result<Option<Glimpse>, Fault> {
    let Some(mounted) = mounted else {
        return walk(&Range { device, extent }, identity, still, behind);
    };
    let is_ext = matches!(identity.kind, Kind::Ext2 | Kind::Ext3 | Kind::Ext4);
    let cached = is_ext.then(|| through_cache(device)).transpose()?;
    let device = cached.as_ref().unwrap_or(device);
    let mut glimpse = walk(&Range { device, extent }, identity, Still::Glimpse, behind)?;
    if let Some(glimpse) = &mut glimpse
        && !glimpse.lasts
        && let Ok(stat) = rustix::fs::fstatvfs(&mounted.fd)
    {
        // What was written just now is not all on the device yet, so that its map may not fit; the kernel has the sum of it.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let behind = match behind {
            Behind::Found(behind) => behind.iter().map(|extent| extent.length_bytes).sum(),
            Behind::Unknown => 0,
        };
        let used = used.saturating_mul(stat.f_frsize).saturating_add(behind);
        if glimpse.map == Coverage::Whole.name() || used > glimpse.bytes {
            glimpse.bytes = used;
            (glimpse.map, glimpse.doubt) = ("estimate", None);
        }
    }
    Ok(glimpse)
}

/// The device once more, through the page cache: there ext2/3/4 keep their metadata (buffer heads, fs/ext4/super.c), so that a walk sees
/// what is not written back yet.
fn through_cache(device: &Device) -> Result<Device, Fault> {
    let fail = |errno| Fault::io("open without O_DIRECT", errno);
    let fd = rustix::io::fcntl_dupfd_cloexec(device.as_fd(), 3).map_err(fail)?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(fail)?;
    rustix::fs::fcntl_setfl(&fd, flags.difference(OFlags::DIRECT)).map_err(fail)?;
    Device::from_fd(fd, false)
}

/// By the map alone; `None` where that could not even be laid out.
pub(crate) fn walk(
    device: &dyn ReadAt,
    identity: &Identity,
    still: Still,
    behind: Behind,
) -> Result<Option<Glimpse>, Fault> {
    let (size, end) = (device.size_bytes(), identity.size_bytes);
    let block = BlockSize::from_bytes(u64::from(identity.block_bytes));
    let Some(mut map) = block.and_then(|block| UsedMap::new(size, block)) else {
        return Ok(None);
    };
    let mut scratch = vec![0; fs::SCRATCH_BYTES];
    let mut walk = Walk::new(device, &mut scratch);
    let (mut verdict, can_be_dumped) = match fs::walk(identity, still, &mut walk, &mut map) {
        Ok(verdict) => (verdict, true),
        // What cannot be dumped alone (an external journal, several devices) can still be shown.
        Err(fault) if fault.kind() != FaultKind::Io => (fs::Verdict::whole(fault), false),
        Err(fault) => return Err(fault),
    };
    let kind = verdict.doubt.map(|doubt| doubt.kind());
    let (mut follows, mut at_least) = (None, false);
    if verdict.coverage == Coverage::Whole {
        map.set_all_used();
    } else if let Some(length_bytes) = size.checked_sub(end).filter(|_| end > 0) {
        // As a dump does it: what lies behind the filesystem is free only where it is zeros.
        map.set_free(Extent::at(end, length_bytes));
        match behind {
            Behind::Unknown => at_least = length_bytes > 0,
            Behind::Found([]) => {}
            Behind::Found(found) => {
                found.iter().for_each(|extent| map.set_used(*extent));
                follows = Some(fs::behind(device, end)?.unwrap_or("data follows the filesystem"));
                if verdict.coverage == Coverage::Used {
                    verdict.coverage = Coverage::Partial;
                }
            }
        }
    }
    Ok(Some(Glimpse {
        bytes: map.used_bytes(),
        map: match (still, verdict.coverage) {
            (Still::Glimpse, Coverage::Used | Coverage::Partial) => "estimate",
            (_, coverage) => coverage.name(),
        },
        doubt: verdict.doubt.map(|doubt| doubt.to_string()),
        lasts: kind == Some(FaultKind::Unsupported)
            || can_be_dumped && kind == Some(FaultKind::Refused),
        behind: follows,
        at_least,
    }))
}
