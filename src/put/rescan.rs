//! Has the kernel show the partitions of a table that was just written.
//!
//! BLKRRPART first; what the kernel did not find then (it may have no parser for the table, or none for this disk) is added one
//! by one, and what is left of an older table is taken away. Never writes to the disk, and never takes away what is in use.
//!
//! Nothing is added to a loop device that was attached without partitions (no `losetup -P`): the kernel takes away at its end only
//! what such a device is said to have, so that they would stay, and be the next file's.

use rustix::io::Errno;

use crate::device::Device;
use crate::mounts::{DevId, KernelPartition, Roots};
use crate::ptable::{self, PartitionTable};
use crate::sys::{blkpg, ioctl};

/// Makes the kernel's partitions those of the table on `device`, a disk; a note for the user where that did not work.
pub(crate) fn refresh(device: &Device) -> Option<String> {
    let table = ptable::read(device, device.sector_bytes()).ok()??;
    let roots = Roots::default();
    let disk = DevId::from_raw(device.rdev());
    let mut trouble = None;
    if let Err(errno) = ioctl::blkrrpart(device.as_fd()) {
        // The kernel does not look for partitions on this disk, or one of them is in use: nothing has changed yet.
        for known in roots.partitions_of(disk) {
            if !is_listed(&table, &known)
                && let Err(errno) = blkpg::delete(device.as_fd(), known.number)
            {
                trouble = Some((known.number, errno));
            }
        }
        if errno == Errno::BUSY && trouble.is_none() {
            let _ = ioctl::blkrrpart(device.as_fd());
        }
    }
    let adds = has_partitions(&roots, disk);
    let known = roots.partitions_of(disk);
    for wanted in table.partitions.iter().filter(|_| adds) {
        let is_there = |part: &KernelPartition| {
            part.start_bytes == wanted.extent.offset && part.number == wanted.number
        };
        if !known.iter().any(is_there)
            && let Err(errno) = blkpg::add(device.as_fd(), wanted.number, wanted.extent)
        {
            trouble = Some((wanted.number, errno));
        }
    }
    let (number, errno) = trouble?;
    Some(format!(
        "the kernel did not take partition {number} of the new table ({errno}): 'partx -u' or a reboot makes its partitions appear"
    ))
}

/// Whether the disk may have partitions: all but loop devices that were attached without.
pub(crate) fn has_partitions(roots: &Roots, disk: DevId) -> bool {
    roots.attribute(disk, "loop/partscan").as_deref() != Some("0")
}

fn is_listed(table: &PartitionTable, known: &KernelPartition) -> bool {
    table.partitions.iter().any(|entry| {
        entry.number == known.number
            && entry.extent.offset == known.start_bytes
            && entry.extent.length_bytes == known.size_bytes
    })
}
