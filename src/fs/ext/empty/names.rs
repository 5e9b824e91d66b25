//! The filesystem's own tree: from a pattern to the files that it names.
//!
//! Folders are read as what they are on disk, rows of entries in blocks (the inner nodes of an index look like empty entries) or in
//! the inode. Symbolic links are followed inside the filesystem only. Bounded: depth, links in a row, and the inodes that are
//! looked at in all. Source: the kernel's Documentation/filesystems/ext4 (directory.rst, symlink in dynamic.rst).

use super::attributes;
use crate::error::Fault;
use crate::fs::ext::inode::Inode;
use crate::fs::ext::superblock::Geometry;
use crate::fs::ext::tree::{Usage, Visit, visit};
use crate::fs::ext::window::Buffers;
use crate::fs::files::{Path, fits};
use crate::layout::le;
use crate::units::{to_u64, to_usize};

/// Inode of the root folder.
const ROOT: u32 = 2;
/// Longest chain of symbolic links, as in the kernel (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;
/// Longest target of a symbolic link, in bytes.
const MAX_TARGET: usize = 4095;
/// Folders inside each other below `DIR/`.
const MAX_DEPTH: u32 = 64;
/// Blocks of a folder whose places are looked up at once.
const BATCH: usize = 64;
/// Bytes of an entry before its name.
const ENTRY_BYTES: usize = 8;
/// Bytes of `i_block` before the entries of an inline folder: the inode of `..`.
const PARENT_BYTES: usize = 4;

/// Called for each regular file with the buffers, a block's worth of memory, and what was found.
pub(super) type Each<'e> =
    dyn FnMut(&mut Buffers<'_>, &mut [u8], &[u8], &Inode) -> Result<(), Fault> + 'e;

/// What a name must be.
#[derive(Clone, Copy)]
enum NameRule<'n> {
    /// This one, or one that fits.
    Name(&'n [u8]),
    /// Any but `.` and `..`.
    Any,
}

/// A place in a folder: its piece (a block, or one of the two halves of an inline folder) and the byte in it.
#[derive(Clone, Copy, Default)]
struct Position {
    piece: u64,
    byte: usize,
}

/// Finds files by their names.
pub(super) struct Finder<'f, 'w> {
    geometry: &'f Geometry,
    buffers: &'f mut Buffers<'w>,
    /// A piece of a folder, and which one.
    block: &'f mut [u8],
    loaded: Option<(u32, u64, usize)>,
    /// Where the blocks of a folder are: the folder, the first block, the places (0: a hole).
    places: (u32, u64, [u64; BATCH]),
    /// Inodes that may still be looked at.
    budget: u64,
    /// The path that is being looked at.
    pub path: Path,
    each: &'f mut Each<'f>,
}

impl<'f, 'w> Finder<'f, 'w> {
    /// `block` holds at least a block.
    pub(super) fn new(
        geometry: &'f Geometry,
        buffers: &'f mut Buffers<'w>,
        block: &'f mut [u8],
        each: &'f mut Each<'f>,
    ) -> Self {
        let inodes = u64::from(geometry.inodes_per_group) * u64::from(geometry.groups);
        Self {
            geometry,
            buffers,
            block,
            loaded: None,
            places: (0, 0, [0; BATCH]),
            // A tree without cycles has each of them once; some names may lead to the same.
            budget: inodes.saturating_mul(4),
            path: Path::new(),
            each,
        }
    }

    /// Finds every regular file that `pattern` names, and says how many. `links` is memory for the targets of links.
    pub(super) fn run(&mut self, pattern: &[u8], links: &mut [u8]) -> Result<u64, Fault> {
        self.path.clear();
        let root = self.inode(ROOT)?;
        self.names(&root, pattern, links)
    }

    fn inode(&mut self, number: u32) -> Result<Inode, Fault> {
        let left = self.budget.checked_sub(1);
        self.budget = left.ok_or_else(|| Fault::corrupt("folders that go round in circles"))?;
        Inode::read(self.geometry, self.buffers, number)
    }

    /// What `rest` of a pattern names in `folder`.
    fn names(&mut self, folder: &Inode, rest: &[u8], links: &mut [u8]) -> Result<u64, Fault> {
        let start = rest.iter().position(|byte| *byte != b'/');
        let Some(rest) = start.and_then(|start| rest.get(start..)) else {
            return self.below(folder, MAX_DEPTH);
        };
        let end = rest.iter().position(|byte| *byte == b'/');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let (length, mut found, mut position) = (self.path.len(), 0, Some(Position::default()));
        while let Some(from) = position {
            let Some((number, next)) = self.next(folder, from, NameRule::Name(name))? else {
                break;
            };
            let inode = self.inode(number)?;
            if let Some(inode) = self.follow(folder, inode, links)? {
                found += if !rest.is_empty() && inode.is_directory() {
                    self.names(&inode, rest, links)?
                } else if rest.is_empty() && inode.is_regular() {
                    self.file(&inode)?
                } else {
                    0
                };
            }
            self.path.truncate(length);
            // There is only one of a name.
            position = name.contains(&b'*').then_some(next);
        }
        Ok(found)
    }

    /// Every regular file below `folder`; links are not followed.
    fn below(&mut self, folder: &Inode, depth: u32) -> Result<u64, Fault> {
        let deeper = depth.checked_sub(1);
        let deeper = deeper.ok_or_else(|| Fault::unsupported("folders nested too deeply"))?;
        let (length, mut found, mut position) = (self.path.len(), 0, Position::default());
        while let Some((number, next)) = self.next(folder, position, NameRule::Any)? {
            let inode = self.inode(number)?;
            if inode.is_regular() {
                found += self.file(&inode)?;
            } else if inode.is_directory() {
                found += self.below(&inode, deeper)?;
            }
            self.path.truncate(length);
            position = next;
        }
        Ok(found)
    }

    fn file(&mut self, inode: &Inode) -> Result<u64, Fault> {
        self.loaded = None;
        (self.each)(self.buffers, self.block, &self.path, inode)?;
        Ok(1)
    }

    /// What `inode`, found in `folder`, leads to; `None` when that is nothing.
    fn follow(
        &mut self,
        folder: &Inode,
        inode: Inode,
        links: &mut [u8],
    ) -> Result<Option<Inode>, Fault> {
        if !inode.is_symlink() {
            return Ok(Some(inode));
        }
        let mut left = MAX_LINKS;
        self.target(folder, &inode, links, &mut left)
    }

    fn target(
        &mut self,
        folder: &Inode,
        link: &Inode,
        links: &mut [u8],
        left: &mut u32,
    ) -> Result<Option<Inode>, Fault> {
        // As the kernel has it: too many of them lead nowhere.
        let Some(fewer) = left.checked_sub(1) else {
            return Ok(None);
        };
        *left = fewer;
        if link.is_encrypted() {
            return Err(self.refused("an encrypted symbolic link", link));
        }
        let length = to_usize(link.size_bytes);
        if length > MAX_TARGET {
            return Err(Fault::corrupt("symbolic link").in_unit("inode", link.number.into()));
        }
        let split = links.split_at_mut_checked(length);
        let (text, links) = split.ok_or_else(|| self.refused("symbolic links that nest", link))?;
        read(self.geometry, self.buffers, link, text)?;
        let mut at = match text.first() {
            Some(b'/') => self.inode(ROOT)?,
            Some(_) => *folder,
            None => return Ok(None),
        };
        for name in text.split(|byte| *byte == b'/') {
            if name.is_empty() {
                continue;
            }
            let kept = self.path.len();
            let entry = match at.is_directory() {
                true => self.next(&at, Position::default(), NameRule::Name(name)),
                false => Ok(None),
            };
            self.path.truncate(kept);
            let Some((number, _)) = entry? else {
                return Ok(None);
            };
            let inode = self.inode(number)?;
            at = match inode.is_symlink() {
                false => inode,
                true => match self.target(&at, &inode, links, left)? {
                    Some(inode) => inode,
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(at))
    }

    fn refused(&self, what: &'static str, inode: &Inode) -> Fault {
        Fault::refused(what).in_unit("inode", inode.number.into())
    }

    /// The next entry of `folder` at or after `position` that is wanted: its inode, and the position behind it. Its name is
    /// appended to the path.
    fn next(
        &mut self,
        folder: &Inode,
        mut position: Position,
        wanted: NameRule<'_>,
    ) -> Result<Option<(u32, Position)>, Fault> {
        if folder.is_encrypted() {
            return Err(self.refused("an encrypted folder, whose names cannot be read", folder));
        }
        if let NameRule::Name(name) = wanted {
            // A folder in an inode keeps neither of them as entries.
            let number = match name {
                b"." => Some(folder.number),
                b".." if folder.is_inline() => le::<u32>(&folder.map, 0),
                _ => None,
            };
            if let Some(number) = number {
                return Ok(Some((number, position)));
            }
            if folder.folds_case() && !name.is_ascii() {
                return Err(self.refused(
                    "a name that is not ASCII in a folder without regard to case",
                    folder,
                ));
            }
        }
        let bad = || Fault::corrupt("folder").in_unit("inode", folder.number.into());
        while let Some(length) = self.load(folder, position.piece)? {
            let block = self.block.get(..length).ok_or_else(bad)?;
            while position.byte + ENTRY_BYTES <= length {
                let rest = block.get(position.byte..).ok_or_else(bad)?;
                let number = le::<u32>(rest, 0).ok_or_else(bad)?;
                let step = entry_bytes(le::<u16>(rest, 4).ok_or_else(bad)?, length);
                let name_end = ENTRY_BYTES + usize::from(*rest.get(6).ok_or_else(bad)?);
                if step < ENTRY_BYTES || step > rest.len() || !step.is_multiple_of(4) {
                    return Err(bad());
                }
                position.byte += step;
                if number == 0 {
                    continue;
                }
                let name = rest.get(ENTRY_BYTES..name_end).filter(|_| name_end <= step);
                let name = name.ok_or_else(bad)?;
                if wanted.is(name, folder.folds_case()) {
                    let long = || Fault::unsupported("path too long");
                    self.path.push(b'/').map_err(|_| long())?;
                    self.path.extend_from_slice(name).map_err(|_| long())?;
                    return Ok(Some((number, position)));
                }
            }
            position = Position {
                piece: position.piece + 1,
                byte: 0,
            };
        }
        Ok(None)
    }

    /// Brings a piece of a folder into memory: its length (0 for a hole), or `None` behind the last.
    fn load(&mut self, folder: &Inode, piece: u64) -> Result<Option<usize>, Fault> {
        if let Some((number, loaded, length)) = self.loaded
            && (number, loaded) == (folder.number, piece)
        {
            return Ok(Some(length));
        }
        self.loaded = None;
        let length = if folder.is_inline() {
            self.load_inline(folder, piece)?
        } else {
            self.load_block(folder, piece)?
        };
        self.loaded = length.map(|length| (folder.number, piece, length));
        Ok(length)
    }

    fn load_inline(&mut self, folder: &Inode, piece: u64) -> Result<Option<usize>, Fault> {
        let bad = || Fault::corrupt("folder in an inode").in_unit("inode", folder.number.into());
        let (inode, bytes) = Inode::read_whole(self.geometry, self.buffers, folder.number)?;
        let from = match piece {
            0 => inode.map.get(PARENT_BYTES..).unwrap_or_default(),
            1 => {
                let data = attributes::find(bytes).ok_or_else(bad)?;
                bytes.get(data.value).ok_or_else(bad)?
            }
            _ => return Ok(None),
        };
        let to = self.block.get_mut(..from.len()).ok_or_else(bad)?;
        to.copy_from_slice(from);
        Ok(Some(from.len()))
    }

    fn load_block(&mut self, folder: &Inode, piece: u64) -> Result<Option<usize>, Fault> {
        let length = self.geometry.block_len();
        if piece >= folder.size_bytes / to_u64(length) {
            return Ok(None);
        }
        let (number, first, _) = self.places;
        let is_known = number == folder.number && (first..first + to_u64(BATCH)).contains(&piece);
        if !is_known {
            self.places.0 = 0;
            places(
                self.geometry,
                self.buffers,
                folder,
                piece,
                &mut self.places.2,
            )?;
            (self.places.0, self.places.1) = (folder.number, piece);
        }
        let index = to_usize(piece - self.places.1);
        let place = self.places.2.get(index).copied().unwrap_or(0);
        if place == 0 {
            return Ok(Some(0));
        }
        let bad = || Fault::corrupt("block of a folder").in_unit("inode", folder.number.into());
        let extent = self.geometry.extent(place, 1).ok_or_else(bad)?;
        let block = self.block.get_mut(..length).ok_or_else(bad)?;
        self.buffers.device.read_at(extent.offset, block)?;
        Ok(Some(length))
    }
}

impl NameRule<'_> {
    fn is(self, name: &[u8], folds_case: bool) -> bool {
        match self {
            Self::Any => !matches!(name, b"." | b".."),
            Self::Name(wanted) if wanted.contains(&b'*') => {
                if matches!(name, b"." | b"..") {
                    return false;
                }
                if !folds_case {
                    return fits(wanted, name);
                }
                let (mut a, mut b) = (Path::new(), Path::new());
                let _ = a.extend_from_slice(wanted);
                let _ = b.extend_from_slice(name);
                a.make_ascii_lowercase();
                b.make_ascii_lowercase();
                fits(&a, &b)
            }
            Self::Name(wanted) if folds_case => wanted.eq_ignore_ascii_case(name),
            Self::Name(wanted) => wanted == name,
        }
    }
}

/// `rec_len`: in blocks of 64 KiB its two low bits stand for 64 KiB and up (fs/ext4/ext4.h, ext4_rec_len_from_disk).
fn entry_bytes(stored: u16, block: usize) -> usize {
    match stored {
        0 | u16::MAX if block >= 1 << 16 => block,
        _ if block >= 1 << 16 => usize::from(stored & !3) | usize::from(stored & 3) << 16,
        _ => usize::from(stored),
    }
}

/// The blocks of `inode` from the logical block `first` on; 0 where there is none.
pub(super) fn places(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    inode: &Inode,
    first: u64,
    out: &mut [u64],
) -> Result<(), Fault> {
    out.fill(0);
    let mut budget = geometry.blocks;
    let mut each = |run: super::OwnedBlocks| {
        if run.usage != Usage::Data {
            return;
        }
        let (start, end) = (run.logical, run.logical + run.blocks.count);
        for (logical, place) in (first..).zip(out.iter_mut()) {
            if (start..end).contains(&logical) {
                *place = run.blocks.start + (logical - start);
            }
        }
    };
    let context = Visit {
        geometry,
        device: buffers.device,
        budget: &mut budget,
        each: &mut each,
    };
    visit(inode, context, buffers.tree)
}

/// Reads the beginning of a file or link into `out`; gives its length there.
pub(super) fn read(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    inode: &Inode,
    out: &mut [u8],
) -> Result<usize, Fault> {
    let length = to_usize(inode.size_bytes).min(out.len());
    let out = out.get_mut(..length).unwrap_or_default();
    out.fill(0);
    if !inode.has_map() {
        let (short, rest) = out.split_at_mut(length.min(inode.map.len()));
        short.copy_from_slice(inode.map.get(..short.len()).unwrap_or_default());
        if !rest.is_empty() {
            let bad = || Fault::corrupt("data in an inode").in_unit("inode", inode.number.into());
            let (_, bytes) = Inode::read_whole(geometry, buffers, inode.number)?;
            let data = attributes::find(bytes).ok_or_else(bad)?;
            let value = bytes.get(data.value).ok_or_else(bad)?;
            rest.iter_mut()
                .zip(value)
                .for_each(|(to, from)| *to = *from);
        }
        return Ok(length);
    }
    let block = geometry.block.bytes64();
    let device = buffers.device;
    let mut budget = geometry.blocks;
    let mut result = Ok(());
    let mut each = |run: super::OwnedBlocks| {
        let start = run.logical.saturating_mul(block).min(to_u64(length));
        let end = run
            .logical
            .saturating_add(run.blocks.count)
            .saturating_mul(block);
        let piece = out.get_mut(to_usize(start)..to_usize(end.min(to_u64(length))));
        let (Some(piece), Usage::Data, true) = (piece, run.usage, result.is_ok()) else {
            return;
        };
        if !piece.is_empty() {
            result = device.read_at(run.blocks.start * block, piece);
        }
    };
    let context = Visit {
        geometry,
        device,
        budget: &mut budget,
        each: &mut each,
    };
    visit(inode, context, buffers.tree)?;
    result.map(|()| length)
}
