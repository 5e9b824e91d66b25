//! From prepared sources to the parts of a plan, the errands of a survey, and the devices that both read.

use crate::error::{Error, Result};
use crate::fs::UsedMap;
use crate::fs::earlier::Earlier;
use crate::overlay::PIECE_BYTES;
use crate::stream::plan::{Part, PartContent};
use crate::take::source::{Prepared, Reading, Wishes};
use crate::take::walks::WalkErrand;
use crate::take::watched::WatchedFile;
use crate::units::{BlockSize, to_u64, to_usize};

/// The images' parts and what is to be walked, before the pipeline takes the devices.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) images: Vec<Vec<Part>>,
    /// The same once more, for a look before the freeze.
    pub(super) early: Vec<Vec<Part>>,
    pub(super) ranges: Vec<std::ops::Range<usize>>,
    /// Images with a partition that is read whole, because nobody knows what is in it.
    pub(super) unknown: Vec<usize>,
    pub(super) errands: Vec<WalkErrand>,
    pub(super) devices: Vec<crate::device::Device>,
    pub(super) shown: Vec<String>,
    pub(super) parts: usize,
    pub(super) watched: Vec<WatchedFile>,
}

impl Draft {
    /// One image for each of `sources`; `early`: with what a look before the freeze needs.
    pub(super) fn of(sources: Vec<Prepared>, wishes: Wishes, early: bool) -> Result<Self> {
        let mut draft = Self::default();
        for prepared in sources {
            draft.add(prepared, wishes, early)?;
        }
        Ok(draft)
    }

    fn add(&mut self, prepared: Prepared, wishes: Wishes, early: bool) -> Result<()> {
        let first_device = self.devices.len();
        let first_part = self.parts;
        let image = self.images.len();
        let (mut parts, mut early_parts) = (Vec::new(), Vec::new());
        for segment in prepared.segments {
            let new_map = || match &segment.reading {
                Reading::Map(identity) => BlockSize::from_bytes(u64::from(identity.block_bytes))
                    .and_then(|block| UsedMap::new(segment.length_bytes, block)),
                Reading::Whole(_) | Reading::Gap => None,
            };
            let map = new_map();
            let early_map = if early { new_map() } else { None };
            let owned_map = if wishes.owned { new_map() } else { None };
            let is_gap = matches!(segment.reading, Reading::Gap);
            if wishes.require_map && map.is_none() && !is_gap {
                let (name, shown) = (&prepared.name, &prepared.shown);
                let place = match name == shown {
                    true => String::new(),
                    false => format!("{shown}: "),
                };
                return Err(Error::refused(format_args!(
                    "{name}: {place}no used-block map for what is on it"
                )));
            }
            if matches!(segment.reading, Reading::Whole(None)) {
                self.unknown.push(image);
            }
            if let Reading::Map(identity) | Reading::Whole(Some(identity)) = segment.reading {
                let mut errand =
                    WalkErrand::new(self.parts, image, *identity, segment.still, segment.swap);
                errand.behind = segment.behind;
                errand.below_md = segment.below_md;
                errand.owned = owned_map;
                if early_map.is_some() {
                    errand.earlier = Earlier::new(segment.length_bytes);
                }
                self.errands.push(errand);
            }
            let part = |map: Option<UsedMap>| Part {
                device: first_device + segment.device,
                device_offset: segment.offset,
                length_bytes: segment.length_bytes,
                content: map.map_or(PartContent::Whole, PartContent::Used),
            };
            parts.push(part(map));
            early_parts.push(part(early_map));
            self.parts += 1;
        }
        self.images.push(parts);
        self.early.push(early_parts);
        self.ranges.push(first_part..self.parts);
        for opened in prepared.devices {
            self.devices.push(opened.device);
            self.shown.push(opened.shown);
        }
        self.watched.extend(prepared.watched);
        // Held until the process ends.
        std::mem::forget(prepared.held);
        Ok(())
    }
}

/// Pieces of an overlay in which files are emptied: some thousand inodes, and bitmaps up to a bit for each block, within bounds.
pub(super) fn pieces(images: &[Vec<Part>]) -> usize {
    const LEAST: u64 = 2048;
    const MOST: u64 = 16 * 1024;
    let maps = images.iter().flatten().map(|part| match &part.content {
        PartContent::Used(map) => map.size_bytes() / u64::from(map.granule().bytes()) / 8,
        PartContent::Whole => 0,
    });
    let bytes = maps.fold(0, u64::saturating_add);
    to_usize((LEAST + bytes / to_u64(PIECE_BYTES)).min(MOST))
}
