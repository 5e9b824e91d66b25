//! Devices that show the same bytes: two loop devices over one file, a loop device over a disk and a partition of that disk. The kernel
//! opens, mounts and writes each as if there were no other.

use crate::device::Access;
use crate::fs;
use crate::mounts::sysfs::closure;
use crate::mounts::uses::Why;
use crate::mounts::{DevId, Mount, System, Use};

/// Loop devices on loop devices that are followed.
const DEPTH: u32 = 16;

/// What bytes lie on in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    /// A file, by the device and inode number of stat.
    File(u64, u64),
    /// A device that lies on no other.
    Device(DevId),
}

/// Bytes of a ground, from one offset to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    ground: Ground,
    from: u64,
    end: u64,
}

impl Span {
    const fn whole(ground: Ground) -> Self {
        Self {
            ground,
            from: 0,
            end: u64::MAX,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.ground == other.ground && self.from < other.end && other.from < self.end
    }
}

/// The part of a device that begins at `start` and has `length`, by the spans of all of it. Where those are several, nobody knows which
/// byte lies where.
fn part(mut spans: Vec<Span>, start: u64, length: u64) -> Vec<Span> {
    if let [span] = spans.as_mut_slice() {
        span.from = span.from.saturating_add(start).min(span.end);
        span.end = span.from.saturating_add(length).min(span.end);
    }
    spans
}

impl System {
    /// What others do with bytes that this device shows, through another device: with `writers_only` what may change them.
    pub(crate) fn uses_beside(&self, dev: DevId, writers_only: bool) -> Vec<Use> {
        let roots = &self.roots;
        let mut uses = Vec::new();
        for twin in self.twins(dev) {
            if writers_only && roots.device_read_only(twin) {
                continue;
            }
            let mounts = self.mounts_on(twin);
            let is_mounted = !mounts.is_empty();
            if is_mounted && self.ends_before(twin, dev) {
                continue;
            }
            let is_idle = |mount: &Mount| writers_only && mount.is_never_written();
            let mounts = mounts.into_iter().filter(|(mount, _)| !is_idle(mount));
            let is_swap = self.swap_devices().contains(&twin);
            let mut reasons = self.reasons(twin, mounts.collect(), is_swap);
            // What lies on a loop device over it is a twin itself.
            reasons.retain(|why| !matches!(why, Why::Loop { .. }));
            if !writers_only && self.root_devices().contains(&twin) {
                reasons.insert(0, Why::RunningRoot);
            }
            // A disk is busy where a partition is, which is asked by itself.
            let is_disk = !roots.partitions_of(twin).is_empty();
            let may_ask = !self.is_gentle && !is_mounted && !is_disk;
            if reasons.is_empty() && may_ask && self.is_held(twin) {
                reasons.push(Why::Busy);
            }
            uses.extend(reasons.into_iter().map(|why| Use {
                device: roots.shown(dev),
                why: Why::Beside(Box::new(Use {
                    device: roots.shown(twin),
                    why,
                })),
            }));
        }
        uses
    }

    /// Whether the filesystem on one device ends in front of the bytes of the other, as OpenWrt's squashfs does in front of the overlay's
    /// loop device.
    fn ends_before(&self, mounted: DevId, dev: DevId) -> bool {
        let device = self.roots.open_device(mounted, Access::Read).ok();
        let found = device.and_then(|device| fs::probe(&device).ok()?);
        let (mounted, own) = (self.spans(mounted, DEPTH), self.spans(dev, DEPTH));
        match (found, mounted.as_slice(), own.as_slice()) {
            (Some(found), [mounted], [own]) => {
                mounted.from.saturating_add(found.size_bytes) <= own.from
            }
            _ => false,
        }
    }

    /// The other devices that show bytes of this one: not its disk, its partitions, what it is built of, nor what is built on it.
    fn twins(&self, dev: DevId) -> Vec<DevId> {
        let roots = &self.roots;
        let parts = |at: DevId| roots.partitions_of(at).into_iter().map(|part| part.dev);
        let mut candidates = Vec::new();
        for at in self.loops() {
            let below = self.loop_below(at);
            let around = below.into_iter().flat_map(|below| {
                let disk = roots.disk_of(below);
                parts(below).chain(disk).chain([below])
            });
            candidates.extend(around.chain(parts(at)).chain([at]));
        }
        crate::units::sort(&mut candidates, |a, b| a < b);
        candidates.dedup();
        if candidates.is_empty() {
            return candidates;
        }
        let down = |at| {
            let mut below = roots.slaves(at);
            below.extend(roots.disk_of(at));
            below
        };
        let mut family = closure(dev, down);
        family.extend(self.risen(dev));
        family.push(dev);
        let own = self.spans(dev, DEPTH);
        let is_twin = |at: &DevId| {
            let spans = self.spans(*at, DEPTH);
            let shared = spans
                .iter()
                .any(|span| own.iter().any(|o| o.overlaps(span)));
            shared && !family.contains(at)
        };
        candidates.retain(is_twin);
        candidates
    }

    /// Where the bytes of a device lie. What array or volume manager puts where is not asked: all of a member may be its.
    fn spans(&self, dev: DevId, depth: u32) -> Vec<Span> {
        let own = || vec![Span::whole(Ground::Device(dev))];
        let Some(depth) = depth.checked_sub(1) else {
            return own();
        };
        let roots = &self.roots;
        let length = roots.size_bytes(dev).unwrap_or(u64::MAX);
        if let Some(disk) = roots.disk_of(dev) {
            let mut parts = roots.partitions_of(disk).into_iter();
            let start = parts.find(|part| part.dev == dev);
            let start = start.map_or(0, |part| part.start_bytes);
            return part(self.spans(disk, depth), start, length);
        }
        if let Some(info) = self.is_loop(dev).then(|| self.loop_info(dev)).flatten() {
            let below = match info.file_rdev {
                0 => vec![Span::whole(Ground::File(info.file_dev, info.file_inode))],
                below => self.spans(DevId::from_raw(below), depth),
            };
            return part(below, info.offset, length);
        }
        match roots.slaves(dev).as_slice() {
            [] => own(),
            members => {
                let members = members.iter();
                members.flat_map(|at| self.spans(*at, depth)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_within_its_whole_and_touches_no_neighbour() {
        let file = |inode| vec![Span::whole(Ground::File(1, inode))];
        let whole = part(file(5), 0, 1000);
        let [first, second] = [0, 400].map(|start| part(whole.clone(), start, 400)[0]);
        assert!(first.overlaps(&whole[0]) && whole[0].overlaps(&second));
        assert!(!first.overlaps(&second));
        // A loop device at an offset in the second one, and one that ends where it begins.
        let inner = part(vec![second], 100, 5000)[0];
        assert_eq!((inner.from, inner.end), (500, 800));
        assert!(!part(file(5), 0, 500)[0].overlaps(&inner));
        assert!(part(file(5), 0, 501)[0].overlaps(&inner));
        assert!(!part(file(6), 0, 1000)[0].overlaps(&inner));
        // Of an array any part may be anywhere on its members.
        let array = [file(5), file(6)].concat();
        assert_eq!(part(array.clone(), 100, 10), array);
    }
}
