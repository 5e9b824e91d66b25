//! Which parts of an image have an owner, for a `.bmap` beside it: all that was read, and what is zeros in the image because its
//! content means nothing, but would mean something if stale bytes stood there (an empty journal, unused inode tables).

use crate::map::UsedMap;
use crate::stream::pipeline::Pipeline;
use crate::stream::plan::Plan;
use crate::take::survey::Surveyor;
use crate::units::Extent;

/// Of a run that is over, with one image.
pub(crate) struct MappedRun {
    plan: &'static Plan,
    owned: Vec<(usize, UsedMap)>,
}

impl MappedRun {
    /// What these two found; `None` before they have.
    pub(crate) fn of(pipeline: &'static Pipeline, surveyor: &Surveyor) -> Option<Self> {
        Some(Self {
            plan: pipeline.plan()?,
            owned: surveyor.owned(),
        })
    }

    /// The next extent with an owner at or after an offset.
    pub(crate) fn next(&self, from: u64) -> Option<Extent> {
        let mut base = 0u64;
        for (index, part) in self.plan.parts().iter().enumerate() {
            let (start, length) = (from.saturating_sub(base), part.length_bytes);
            let owned = self.owned.iter().find(|(part, _)| *part == index);
            let found = match owned {
                _ if start >= length => None,
                Some((_, map)) => map.next_used(start, length),
                None => part.next_used(start, length),
            };
            if let Some(found) = found {
                return Extent::new(base.checked_add(found.offset)?, found.length_bytes);
            }
            base = base.saturating_add(length);
        }
        None
    }
}
