//! From what an event says (a device and sectors) to chunks of the watched ranges: marks, and what is still under way.
//!
//! A write counts from its queueing to its completion. Both mark; between the two it is *under way*: the sectors queued and
//! those completed are summed for each chunk, and where the sum is not zero the next drain marks the chunk again. So a chunk
//! that was read between a write's queueing and its completion is found even where the completion is never told whole
//! (device mapper tells of the last piece only when it had to split a write).

use crate::trace::marks::Marks;
use crate::trace::page::{Action, Event};
use crate::units::{Extent, to_usize};

/// Bytes of a sector, as the block layer counts.
const SECTOR_BYTES: u64 = 512;

/// The sum of a chunk that can no longer be trusted: it counts as being written for ever.
const STUCK: i16 = i16::MIN;

/// One way in which the kernel names one of the watched ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedRange {
    /// The device in events: major << 20 | minor.
    pub dev: u32,
    /// Where the range begins there, in bytes.
    pub begin_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
    /// Which range.
    pub range: usize,
}

/// Which end of a write an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was queued.
    Queued,
    /// It, or a part of it, was completed.
    Completed,
}

/// Everything that turns events into marks.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<NamedRange>,
    /// For each range and chunk: sectors queued less sectors completed.
    under_way: Vec<Vec<i16>>,
    /// How many of those are not zero.
    open: usize,
}

impl Places {
    /// With nothing under way; `None` when it does not fit memory.
    pub(super) fn new(places: Vec<NamedRange>, marks: &Marks, ranges: usize) -> Option<Self> {
        let sums = |range| Some(vec![0; usize::try_from(marks.chunks(range)).ok()?]);
        Some(Self {
            places,
            under_way: (0..ranges).map(sums).collect::<Option<_>>()?,
            open: 0,
        })
    }

    /// Takes one event into the marks.
    pub(super) fn take(&mut self, event: &Event, end: End, marks: &Marks, mark: bool) {
        if matches!(event.action, Action::Read | Action::Nothing) {
            return;
        }
        let Self {
            places,
            under_way,
            open,
        } = self;
        for place in places.iter().filter(|place| place.dev == event.dev) {
            let Some(extent) = place.touched(event) else {
                continue;
            };
            if mark {
                marks.set_extent(place.range, extent);
            }
            let sums = under_way.get_mut(place.range);
            if let (Some(sums), Some((first, last))) = (sums, marks.touched(place.range, extent))
                && event.sectors > 0
            {
                for chunk in first..last {
                    let sectors = marks.share(chunk, extent).div_ceil(SECTOR_BYTES);
                    if let Some(sum) = sums.get_mut(to_usize(chunk)) {
                        let was = *sum;
                        *sum = summed(was, sectors, end);
                        *open =
                            (*open + usize::from(*sum != 0)).saturating_sub(usize::from(was != 0));
                    }
                }
            }
        }
    }

    /// Nothing is under way, as is known from elsewhere: what the sums say otherwise comes from writes that began before the trace,
    /// or whose ends were read in another order.
    pub(super) fn all_ended(&mut self) {
        self.under_way.iter_mut().for_each(|sums| sums.fill(0));
        self.open = 0;
    }

    /// Marks what is under way. A sum below zero means completions whose beginning was never seen: such a chunk is given up,
    /// so that they cannot make up for others later.
    pub(super) fn settle(&mut self, marks: &Marks) {
        if self.open == 0 {
            return;
        }
        for (range, sums) in self.under_way.iter_mut().enumerate() {
            for (chunk, sum) in (0..).zip(sums).filter(|(_, sum)| **sum != 0) {
                if *sum < 0 {
                    *sum = STUCK;
                }
                marks.set(range, chunk);
            }
        }
    }
}

impl NamedRange {
    /// The part of the range, in its own bytes, that an event may have changed.
    fn touched(&self, event: &Event) -> Option<Extent> {
        let begin = event.sector.saturating_mul(SECTOR_BYTES);
        if event.sectors == 0 {
            // It says nothing of its length, so it may be anything on the device.
            return Extent::new(0, self.length_bytes);
        }
        let end = begin.saturating_add(event.sectors.saturating_mul(SECTOR_BYTES));
        let first = begin.max(self.begin_bytes);
        let end = end.min(self.begin_bytes.saturating_add(self.length_bytes));
        Extent::new(first - self.begin_bytes, end.checked_sub(first)?)
            .filter(|extent| !extent.is_empty())
    }
}

/// A sum after an event; stuck once it leaves what it can hold.
fn summed(sum: i16, sectors: u64, end: End) -> i16 {
    let changed = match i16::try_from(sectors) {
        _ if sum == STUCK => None,
        Ok(sectors) if end == End::Queued => sum.checked_add(sectors),
        Ok(sectors) => sum.checked_sub(sectors),
        Err(_) => None,
    };
    changed.unwrap_or(STUCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    const DEV: u32 = 7 << 20 | 3;

    fn places() -> (Places, Marks) {
        let chunk = BlockSize::from_bytes(128 << 10).unwrap();
        let marks = Marks::new([16 << 20, 1 << 20].into_iter(), chunk).unwrap();
        let place = |range, begin_bytes, length_bytes| NamedRange {
            dev: DEV,
            begin_bytes,
            length_bytes,
            range,
        };
        let list = vec![place(0, 1 << 20, 16 << 20), place(1, 17 << 20, 1 << 20)];
        (Places::new(list, &marks, 2).unwrap(), marks)
    }

    fn event(sector: u64, sectors: u64, action: Action) -> Event {
        Event {
            dev: DEV,
            sector,
            sectors,
            action,
        }
    }

    fn set(marks: &Marks, range: usize) -> Vec<u64> {
        (0..marks.chunks(range))
            .filter(|chunk| marks.is_set(range, *chunk))
            .collect()
    }

    #[test]
    fn a_write_marks_every_chunk_of_every_range_it_touches() {
        let (mut places, marks) = places();
        // The last sector before the first range to its first; across the border of both ranges.
        places.take(&event(2047, 2, Action::Write), End::Queued, &marks, true);
        places.take(
            &event(17 * 2048 - 1, 300, Action::Write),
            End::Queued,
            &marks,
            true,
        );
        assert_eq!(set(&marks, 0), [0, 127]);
        assert_eq!(set(&marks, 1), [0, 1]);
    }

    #[test]
    fn reads_flushes_and_other_devices_mark_nothing() {
        let (mut places, marks) = places();
        places.take(&event(4096, 8, Action::Read), End::Queued, &marks, true);
        places.take(
            &event(4096, 0, Action::Nothing),
            End::Completed,
            &marks,
            true,
        );
        places.take(
            &event(u64::MAX, 8, Action::Write),
            End::Completed,
            &marks,
            true,
        );
        let other = Event {
            dev: DEV + 1,
            ..event(4096, 8, Action::Write)
        };
        places.take(&other, End::Queued, &marks, true);
        assert_eq!(marks.count(0) + marks.count(1), 0);
    }

    #[test]
    fn what_has_no_length_is_taken_for_all_it_may_be() {
        let (mut places, marks) = places();
        places.take(&event(4096, 0, Action::Other), End::Completed, &marks, true);
        assert_eq!((marks.count(0), marks.count(1)), (128, 8));
        assert_eq!(places.open, 0);
    }

    #[test]
    fn what_was_queued_and_not_completed_is_marked_at_each_drain() {
        let (mut places, marks) = places();
        let take = |places: &mut Places, sector, sectors, end| {
            places.take(&event(sector, sectors, Action::Write), end, &marks, true);
        };
        take(&mut places, 2048, 512, End::Queued);
        take(&mut places, 2048 + 256, 256, End::Completed); // the last piece only
        for _ in 0..2 {
            marks.take(0, 0);
            marks.take(0, 1);
            places.settle(&marks);
            assert_eq!(set(&marks, 0), [0]);
        }
        take(&mut places, 2048, 256, End::Completed);
        marks.take(0, 0);
        places.settle(&marks);
        assert_eq!((set(&marks, 0).len(), places.open), (0, 0));
    }

    #[test]
    fn what_a_freeze_has_ended_is_not_under_way_for_ever() {
        let (mut places, marks) = places();
        let write = event(2048, 8, Action::Write);
        places.take(&write, End::Completed, &marks, true); // begun before the trace
        places.settle(&marks);
        places.all_ended();
        marks.take(0, 0);
        places.settle(&marks);
        assert_eq!((marks.count(0), places.open), (0, 0));
        // A write after that counts as ever.
        places.take(&write, End::Queued, &marks, true);
        marks.take(0, 0);
        places.settle(&marks);
        assert_eq!(set(&marks, 0), [0]);
    }

    #[test]
    fn a_completion_without_a_beginning_makes_up_for_no_other() {
        let (mut places, marks) = places();
        let take = |places: &mut Places, end| {
            places.take(&event(2048, 8, Action::Write), end, &marks, true);
        };
        take(&mut places, End::Completed);
        places.settle(&marks);
        take(&mut places, End::Queued); // and is never completed
        marks.take(0, 0);
        places.settle(&marks);
        assert_eq!(set(&marks, 0), [0]);
        // Out of order, as two CPUs may tell it, without a drain in between: nothing is left.
        let (mut places, marks) = self::places();
        for end in [End::Completed, End::Queued] {
            places.take(&event(2048, 8, Action::Write), end, &marks, true);
        }
        assert_eq!(places.open, 0);
    }
}
