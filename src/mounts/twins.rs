//! Devices that show the same bytes: two loop devices over one file, a loop device over a disk and a partition of that disk. The kernel
//! opens, mounts and writes each as if there were no other.

use crate::device::Access;
use crate::fs;
use crate::mounts::sysfs::closure;
use crate::mounts::uses::Why;
use crate::mounts::{DevId, Mount, System, Use};

/// Loop devices on loop devices that are followed.
const DEPTH: u32 = 16;

/// What bytes lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    /// A file, by the device and inode number of stat.
    File(u64, u64),
    /// A device that lies on no other, or whose bytes an array or a volume manager puts elsewhere.
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

/// Where bytes lie, from the lowest ground up. What array or volume manager puts where is not asked: each is a ground of its own, on all of
/// its member.
type Place = Vec<Span>;

/// Whether two share bytes: as far down as both are known to lie on the same. Of two volumes of one group neither has the other's.
fn share(one: &Place, other: &Place) -> bool {
    one.iter().zip(other).all(|(a, b)| a.overlaps(b))
}

/// The part of a device that begins at `start` and has `length`, by the places of all of it.
fn part(mut places: Vec<Place>, start: u64, length: u64) -> Vec<Place> {
    for span in places.iter_mut().filter_map(|place| place.last_mut()) {
        span.from = span.from.saturating_add(start).min(span.end);
        span.end = span.from.saturating_add(length).min(span.end);
    }
    places
}

/// A device that an array or a volume manager makes of these.
fn made(dev: DevId, mut members: Vec<Place>) -> Vec<Place> {
    let own = Span::whole(Ground::Device(dev));
    members.iter_mut().for_each(|place| place.push(own));
    members
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
        let (mounted, own) = (self.places(mounted, DEPTH), self.places(dev, DEPTH));
        match (found, mounted.as_slice(), own.as_slice()) {
            (Some(found), [mounted], [own]) if mounted.len() == own.len() => {
                let (mounted, own) = (mounted.last(), own.last());
                let end = mounted.map(|span| span.from.saturating_add(found.size_bytes));
                end <= own.map(|span| span.from)
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
        let own = self.places(dev, DEPTH);
        let shares = |place: &Place| own.iter().any(|own| share(own, place));
        let is_twin =
            |at: &DevId| !family.contains(at) && self.places(*at, DEPTH).iter().any(shares);
        candidates.retain(is_twin);
        candidates
    }

    /// Where the bytes of a device lie; of an array in several places.
    fn places(&self, dev: DevId, depth: u32) -> Vec<Place> {
        let own = || vec![vec![Span::whole(Ground::Device(dev))]];
        let Some(depth) = depth.checked_sub(1) else {
            return own();
        };
        let roots = &self.roots;
        let length = roots.size_bytes(dev).unwrap_or(u64::MAX);
        if let Some(disk) = roots.disk_of(dev) {
            let mut parts = roots.partitions_of(disk).into_iter();
            let start = parts.find(|part| part.dev == dev);
            let start = start.map_or(0, |part| part.start_bytes);
            return part(self.places(disk, depth), start, length);
        }
        if let Some(info) = self.is_loop(dev).then(|| self.loop_info(dev)).flatten() {
            let below = match info.file_rdev {
                0 => vec![vec![Span::whole(Ground::File(
                    info.file_dev,
                    info.file_inode,
                ))]],
                below => self.places(DevId::from_raw(below), depth),
            };
            return part(below, info.offset, length);
        }
        match roots.slaves(dev).as_slice() {
            [] => own(),
            members => {
                let members = members.iter();
                made(
                    dev,
                    members.flat_map(|at| self.places(*at, depth)).collect(),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> Vec<Place> {
        vec![vec![Span::whole(Ground::File(1, inode))]]
    }

    fn shared(one: &[Place], other: &[Place]) -> bool {
        one.iter().any(|a| other.iter().any(|b| share(a, b)))
    }

    #[test]
    fn a_part_lies_within_its_whole_and_touches_no_neighbour() {
        let whole = part(file(5), 0, 1000);
        let [first, second] = [0, 400].map(|start| part(whole.clone(), start, 400));
        assert!(shared(&first, &whole) && shared(&whole, &second));
        assert!(!shared(&first, &second));
        // A loop device at an offset in the second one, and one that ends where it begins.
        let inner = part(second, 100, 5000);
        assert_eq!((inner[0][0].from, inner[0][0].end), (500, 800));
        assert!(!shared(&part(file(5), 0, 500), &inner));
        assert!(shared(&part(file(5), 0, 501), &inner));
        assert!(!shared(&part(file(6), 0, 1000), &inner));
    }

    #[test]
    fn volumes_lie_anywhere_on_their_members_and_not_on_each_other() {
        let members = [part(file(5), 100, 10), file(6)].concat();
        let [one, other] = [1, 2].map(|minor| made(DevId::new(254, minor), members.clone()));
        for member in [file(5), file(6), part(file(5), 109, 1)] {
            assert!(shared(&one, &member) && shared(&member, &part(other.clone(), 7, 1)));
        }
        assert!(!shared(&one, &part(file(5), 110, 10)));
        assert!(!shared(&one, &other));
        // Two parts of one, and a volume on one of them.
        let [begin, end] = [0, 50].map(|start| part(one.clone(), start, 50));
        assert!(shared(&one, &begin) && !shared(&begin, &end));
        let inner = made(DevId::new(254, 3), end);
        assert!(shared(&inner, &one) && !shared(&inner, &begin) && !shared(&inner, &other));
    }
}
