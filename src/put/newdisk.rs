//! A disk that is laid out anew: what would bring old content back goes first, what nothing fills becomes zeros, and the sector that
//! makes the new table valid is written last of all.

use rustix::fs::fsync;

use crate::device::{Device, ReadAt, WriteAt};
use crate::error::Fault;
use crate::ptable;
use crate::put::target::old_tail;
use crate::stream::target::Target;
use crate::units::Extent;

type Result<T> = std::result::Result<T, Fault>;

/// Zeroed at the beginning at least, in bytes: tables and superblocks that lie behind the new table.
const HEAD_BYTES: u64 = 1 << 20;

/// What is left where a table was begun and could not be taken back.
pub(crate) const LOST_TABLE: &str = "the partition table may look valid and is not: its last write failed, and could not be taken back; the disk is not usable";

/// The disk, held for us alone.
pub(crate) struct NewDisk {
    target: Target,
    /// The beginning, to the first new partition, and an old table at the end.
    old: [Option<Extent>; 2],
    /// The last write failed, and so did taking it back.
    is_lost: bool,
}

impl NewDisk {
    /// `first` is where the first new partition begins, in bytes. Writes nothing.
    pub(crate) fn new(device: Device, first: Option<u64>) -> Result<Self> {
        let head = Extent::at(
            0,
            first.unwrap_or(0).max(HEAD_BYTES).min(device.size_bytes()),
        );
        Ok(Self {
            old: [Some(head), old_tail(&device)],
            is_lost: false,
            target: Target::new(device)?,
        })
    }

    pub(crate) fn device(&self) -> &Device {
        self.target.device()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.target.size_bytes()
    }

    /// For what is copied onto it as it is.
    pub(crate) fn target(&mut self) -> &mut Target {
        &mut self.target
    }

    /// The disk opened once more, for what goes into a partition.
    pub(crate) fn again(&self) -> Result<Device> {
        let device = self.device();
        Device::from_fd(device.duplicate()?.into(), device.is_direct())
    }

    /// Zeroes what would bring old content back. Without the heap: it may run while something is frozen.
    pub(crate) fn wipe(&mut self) -> Result<()> {
        for extent in self.old.into_iter().flatten() {
            self.zero(extent)?;
        }
        self.target.sync()
    }

    /// Zeroes everything that is not `filled`.
    pub(crate) fn clear(&mut self, filled: Vec<Extent>) -> Result<()> {
        for extent in ptable::gaps(filled, self.size_bytes()) {
            self.zero(extent)?;
        }
        self.target.sync()
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        let mut rest = extent;
        while !rest.is_empty() {
            rest = self.target.zero_step(rest)?;
        }
        Ok(())
    }

    /// Writes a table, given in order: all the rest is on the disk before what goes to its very beginning. Where that fails the disk
    /// shows no table again: it may keep what it says it did not write.
    pub(crate) fn write_table<'b>(
        &mut self,
        patches: impl Iterator<Item = (u64, &'b [u8])>,
    ) -> Result<()> {
        let done = self.put(patches);
        if done.is_err() {
            self.is_lost = self.wipe().is_err();
        }
        done
    }

    /// Whether it may show a table that is not to be believed.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn put<'b>(&self, patches: impl Iterator<Item = (u64, &'b [u8])>) -> Result<()> {
        let device = self.device();
        let sync = || fsync(device.as_fd()).map_err(|errno| Fault::io("fsync", errno));
        sync()?;
        for (offset, bytes) in patches {
            if offset == 0 {
                sync()?;
            }
            device.write_at(offset, bytes)?;
        }
        sync()?;
        self.target.drop_cache()
    }
}
