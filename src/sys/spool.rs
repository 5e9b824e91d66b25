//! The spool's memory: a mapping cut into cells of 4 KiB, handed out as chains that own their cells.
//!
//! A [`Chain`] is the only way to a cell's bytes, it cannot be copied, and a cell is in one chain at a time; so worker threads
//! fill their chains while the emitter reads others, without a lock around the bytes. Nothing here allocates after
//! [`Cells::new`]: the free list is threaded through an array of links, and pages are touched only when used.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Result;

use super::memory::Pages;

/// Bytes of one cell: a page on most machines, and the unit of a pipe's buffer.
pub(crate) const CELL_BYTES: usize = 4096;

/// "No cell".
const NONE: u32 = u32::MAX;

/// The pool of cells.
#[derive(Debug)]
pub(crate) struct Cells {
    pages: Pages,
    /// Link `i` is the cell after `i` in its chain or in the free list; written only by the owner of cell `i`. A mapping, so
    /// that the links of cells never used cost nothing.
    links: Pages,
    cells: usize,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// Head of the list of cells that were used before (their pages are touched already: reuse them first).
    head: u32,
    /// Cells from here on were never used.
    fresh: u32,
    count: u32,
}

/// Cells owned together, in order. Goes back to the pool through [`Cells::release`]; dropping it leaks its cells.
#[derive(Debug)]
pub(crate) struct Chain {
    first: u32,
    cells: u32,
    length: usize,
}

impl Chain {
    /// Bytes that were written to it.
    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

/// Cells needed for `length` bytes (at least one).
pub(crate) const fn cells_for(length: usize) -> u32 {
    let cells = length.div_ceil(CELL_BYTES);
    #[allow(clippy::cast_possible_truncation)] // lengths of chunks: far below 2^32 cells
    if cells == 0 { 1 } else { cells as u32 }
}

impl Cells {
    /// Reserves `count` cells; memory is touched when used.
    pub(crate) fn new(count: u32) -> Result<Self> {
        Self::over(count, Pages::new)
    }

    /// The same in a file that has no name and has been allocated: see [`Pages::of_file`].
    pub(crate) fn in_file(count: u32, file: impl std::os::fd::AsFd) -> Result<Self> {
        Self::over(count, |length| Pages::of_file(file, length))
    }

    fn over(count: u32, map: impl FnOnce(usize) -> Result<Pages>) -> Result<Self> {
        let count = count.clamp(1, NONE - 1);
        let cells = usize::try_from(count).map_err(|_| rustix::io::Errno::NOMEM)?;
        let length = cells
            .checked_mul(CELL_BYTES)
            .ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self {
            pages: map(length)?,
            links: Pages::new(cells * size_of::<AtomicU32>())?,
            cells,
            free: Mutex::new(Free {
                head: NONE,
                fresh: 0,
                count,
            }),
        })
    }

    /// Cells that are free now.
    pub(crate) fn free(&self) -> u32 {
        self.free.lock().map_or(0, |free| free.count)
    }

    /// Takes `cells` cells; `None` when there are not that many.
    pub(crate) fn reserve(&self, cells: u32) -> Option<Chain> {
        let mut free = self.free.lock().ok()?;
        if cells == 0 || free.count < cells {
            return None;
        }
        let mut first = NONE;
        for _ in 0..cells {
            let index = if free.head == NONE {
                let index = free.fresh;
                free.fresh += 1;
                index
            } else {
                let index = free.head;
                free.head = self.link(index);
                index
            };
            self.set_link(index, first);
            first = index;
        }
        free.count -= cells;
        Some(Chain {
            first,
            cells,
            length: 0,
        })
    }

    /// Writes `bytes` as the whole content of `chain`, and gives back the cells it does not need. `None` when they do not fit.
    pub(crate) fn fill(&self, chain: &mut Chain, bytes: &[u8]) -> Option<()> {
        let wanted = cells_for(bytes.len());
        if wanted > chain.cells {
            return None;
        }
        let mut index = chain.first;
        let mut last = index;
        for part in bytes.chunks(CELL_BYTES) {
            self.cell_mut(chain, index)
                .get_mut(..part.len())?
                .copy_from_slice(part);
            last = index;
            index = self.link(index);
        }
        if bytes.is_empty() {
            index = self.link(index);
        }
        chain.length = bytes.len();
        if wanted < chain.cells {
            self.set_link(last, NONE);
            self.release(Chain {
                first: index,
                cells: chain.cells - wanted,
                length: 0,
            });
            chain.cells = wanted;
        }
        Some(())
    }

    /// The content of `chain`, cell by cell.
    pub(crate) fn parts<'a>(&'a self, chain: &'a Chain) -> impl Iterator<Item = &'a [u8]> {
        let mut index = chain.first;
        let mut left = chain.length;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let count = left.min(CELL_BYTES);
            let part = self.cell(chain, index).get(..count)?;
            left -= count;
            index = self.link(index);
            Some(part)
        })
    }

    /// Gives the cells of `chain` back.
    pub(crate) fn release(&self, chain: Chain) {
        let Ok(mut free) = self.free.lock() else {
            return;
        };
        let mut index = chain.first;
        for _ in 0..chain.cells {
            let next = self.link(index);
            self.set_link(index, free.head);
            free.head = index;
            index = next;
        }
        free.count += chain.cells;
    }

    fn links(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is aligned to a page, holds `cells` u32 initialised to zero, and is accessed through these
        // atomics only.
        unsafe { std::slice::from_raw_parts(self.links.base().cast::<AtomicU32>(), self.cells) }
    }

    fn link(&self, index: u32) -> u32 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.links().get(index))
            .map_or(NONE, |link| link.load(Ordering::Relaxed))
    }

    fn set_link(&self, index: u32, next: u32) {
        if let Some(link) = usize::try_from(index)
            .ok()
            .and_then(|index| self.links().get(index))
        {
            link.store(next, Ordering::Relaxed);
        }
    }

    fn offset_of(&self, index: u32) -> usize {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        assert!(index < self.cells, "a chain names a cell of its pool");
        index * CELL_BYTES
    }

    fn cell<'a>(&'a self, _owner: &'a Chain, index: u32) -> &'a [u8] {
        let offset = self.offset_of(index);
        // SAFETY: `offset_of` keeps the cell inside the mapping, which is initialised (zeroed by the kernel). The cell belongs
        // to `_owner` alone (`reserve` gives a cell to one chain, `release` takes the chain away), and a shared borrow of the
        // chain excludes `cell_mut` through it.
        unsafe { std::slice::from_raw_parts(self.pages.base().add(offset), CELL_BYTES) }
    }

    #[allow(clippy::mut_from_ref)] // the unique borrow is that of the chain
    fn cell_mut<'a>(&'a self, _owner: &'a mut Chain, index: u32) -> &'a mut [u8] {
        let offset = self.offset_of(index);
        // SAFETY: as in `cell`; the unique borrow of the owning chain excludes every other access to its cells.
        unsafe { std::slice::from_raw_parts_mut(self.pages.base().add(offset), CELL_BYTES) }
    }
}

/// What a [`Shelf`] holds at a place.
#[derive(Debug)]
pub(crate) enum Shelved {
    Nothing,
    /// Something is on its way there.
    Coming,
    /// A filled chain, and a checksum that goes with it.
    Chain(Chain, u32),
    /// What needs no chain: it was zeros, or lies where it belongs; with the checksum that was noted.
    Mark(u32),
}

const NOTHING: u32 = 0;
const COMING: u32 = 1;
const CHAIN: u32 = 2;
const MARK: u32 = 3;

/// Filled chains by number, in 16 bytes each, of which those never used cost no memory: it owns them as a [`Chain`] owns its cells.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// State, first cell, length and checksum.
    places: Vec<[u32; 4]>,
}

impl Shelf {
    /// For so many places; `None` where there is no room for them.
    pub(crate) fn new(places: usize) -> Option<Self> {
        // Zeros are NOTHING.
        let places = super::memory::zeroed(places)?;
        Some(Self { places })
    }

    fn replace(&mut self, place: usize, with: [u32; 4]) -> Shelved {
        let Some(entry) = self.places.get_mut(place) else {
            return Shelved::Nothing;
        };
        let [state, first, length, sum] = std::mem::replace(entry, with);
        match state {
            CHAIN => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let cells = cells_for(length);
                let chain = Chain {
                    first,
                    cells,
                    length,
                };
                Shelved::Chain(chain, sum)
            }
            COMING => Shelved::Coming,
            MARK => Shelved::Mark(sum),
            _ => Shelved::Nothing,
        }
    }

    /// Puts a filled chain there. Gives back what cannot be kept: a place that is not there, a chain with cells to spare.
    pub(crate) fn put(
        &mut self,
        place: usize,
        chain: Chain,
        sum: u32,
    ) -> std::result::Result<(), Chain> {
        let length = u32::try_from(chain.length);
        let (Ok(length), true) = (length, chain.cells == cells_for(chain.length)) else {
            return Err(chain);
        };
        if place >= self.places.len() || self.is_chain(place) {
            return Err(chain);
        }
        self.replace(place, [CHAIN, chain.first, length, sum]);
        Ok(())
    }

    /// Notes that something is on its way; what was there comes back.
    pub(crate) fn announce(&mut self, place: usize) -> Shelved {
        self.replace(place, [COMING, 0, 0, 0])
    }

    /// Notes that nothing needs to be kept; what was there comes back.
    pub(crate) fn mark(&mut self, place: usize) -> Shelved {
        self.note(place, 0)
    }

    /// The same, with a checksum.
    pub(crate) fn note(&mut self, place: usize, sum: u32) -> Shelved {
        self.replace(place, [MARK, 0, 0, sum])
    }

    /// Takes out what is there.
    pub(crate) fn take(&mut self, place: usize) -> Shelved {
        self.replace(place, [NOTHING; 4])
    }

    /// Whether something is kept, or on its way.
    pub(crate) fn has(&self, place: usize) -> bool {
        self.state(place) != NOTHING
    }

    /// Whether it is on its way.
    pub(crate) fn is_coming(&self, place: usize) -> bool {
        self.state(place) == COMING
    }

    fn is_chain(&self, place: usize) -> bool {
        self.state(place) == CHAIN
    }

    fn state(&self, place: usize) -> u32 {
        self.places.get(place).map_or(NOTHING, |entry| entry[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(cells: &Cells, chain: &Chain) -> Vec<u8> {
        cells.parts(chain).flatten().copied().collect()
    }

    #[test]
    fn chains_hold_what_was_written_and_give_back_what_they_do_not_need() {
        let cells = Cells::new(40).unwrap();
        let mut a = cells.reserve(33).unwrap();
        assert!(cells.reserve(8).is_none());
        let data: Vec<u8> = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
        cells.fill(&mut a, &data).unwrap();
        assert_eq!(cells.free(), 37);
        let mut b = cells.reserve(37).unwrap();
        cells.fill(&mut b, &vec![9; 37 * CELL_BYTES]).unwrap();
        assert_eq!(content(&cells, &a), data);
        assert_eq!(content(&cells, &b), vec![9; 37 * CELL_BYTES]);
        cells.release(a);
        cells.release(b);
        assert_eq!(cells.free(), 40);
        let mut c = cells.reserve(40).unwrap();
        cells.fill(&mut c, b"").unwrap();
        assert_eq!(c.len(), 0);
        assert_eq!(cells.free(), 39);
        assert!(cells.fill(&mut c, &[0; CELL_BYTES + 1]).is_none());
    }

    #[test]
    fn a_shelf_gives_back_each_chain_once_and_as_it_was() {
        let cells = Cells::new(16).unwrap();
        let mut shelf = Shelf::new(3).unwrap();
        let mut chain = cells.reserve(4).unwrap();
        cells.fill(&mut chain, &[7; 5000]).unwrap();
        shelf.announce(1);
        assert!(shelf.is_coming(1) && shelf.has(1) && !shelf.has(0));
        shelf.put(1, chain, 99).unwrap();
        let Shelved::Chain(chain, 99) = shelf.take(1) else {
            panic!("the chain");
        };
        assert_eq!(content(&cells, &chain), vec![7; 5000]);
        assert!(matches!(shelf.take(1), Shelved::Nothing));
        // Not where there is no place, not with cells to spare, not over another one.
        let chain = shelf.put(3, chain, 0).unwrap_err();
        let spare = shelf.put(0, cells.reserve(2).unwrap(), 0).unwrap_err();
        shelf.put(2, chain, 1).unwrap();
        let mut second = cells.reserve(1).unwrap();
        cells.fill(&mut second, &[1]).unwrap();
        let second = shelf.put(2, second, 2).unwrap_err();
        for chain in [spare, second] {
            cells.release(chain);
        }
        if let Shelved::Chain(chain, 1) = shelf.mark(2) {
            cells.release(chain);
        }
        assert!(matches!(shelf.take(2), Shelved::Mark(0)));
        assert_eq!(cells.free(), 16);
    }

    #[test]
    fn threads_filling_and_releasing_never_see_each_others_bytes() {
        let cells = Cells::new(64).unwrap();
        std::thread::scope(|scope| {
            for id in 0..4u8 {
                let cells = &cells;
                scope.spawn(move || {
                    for round in 0..300usize {
                        let Some(mut chain) = cells.reserve(12) else {
                            continue;
                        };
                        let data = vec![id; (round * 137) % (12 * CELL_BYTES)];
                        cells.fill(&mut chain, &data).unwrap();
                        assert_eq!(content(cells, &chain), data);
                        cells.release(chain);
                    }
                });
            }
        });
        assert_eq!(cells.free(), 64);
    }
}
