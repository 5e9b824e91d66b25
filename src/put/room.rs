//! Whether what comes has room on the filesystem of a file: what is known of it before the first write.

use std::os::fd::AsFd;
use std::path::Path;

use crate::device::DeviceKind;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::put::target::Chosen;
use crate::report::Bytes;

/// Filesystems on which a file takes what is in it, neither packed nor shared (include/uapi/linux/magic.h): ext, XFS, FAT, exFAT, tmpfs.
const PLAIN: [i128; 5] = [0xef53, 0x5846_5342, 0x4d44, 0x2011_bab0, 0x0102_1994];

/// What is counted may lie in fewer pieces than it is counted in.
const SLACK_BYTES: u64 = 1 << 20;

/// How much will be written, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// So much at least.
    pub least_bytes: u64,
    /// So much at most.
    pub most_bytes: u64,
}

impl Need {
    /// Of an image of which so many bytes are no zeros.
    pub(crate) fn counted(data_bytes: u64) -> Self {
        Self {
            least_bytes: data_bytes.saturating_sub(SLACK_BYTES),
            most_bytes: data_bytes.saturating_add(SLACK_BYTES),
        }
    }

    /// Of an image that is so long, and has so many bytes where it is packed: deflate makes nothing longer by more than some
    /// bytes in 65536 (RFC 1951, 3.2.4).
    pub(crate) fn packed(packed_bytes: u64, most_bytes: u64) -> Self {
        let added = packed_bytes / 512;
        Self {
            least_bytes: packed_bytes.saturating_sub(added.saturating_add(SLACK_BYTES)),
            most_bytes,
        }
    }
}

/// What is free for us on the filesystem of an open file or folder; `None` where it cannot be told.
fn free_bytes(fd: impl AsFd) -> Option<u64> {
    let found = rustix::fs::fstatvfs(fd).ok()?;
    let blocks = match rustix::process::geteuid().is_root() {
        true => found.f_bfree,
        false => found.f_bavail,
    };
    Some(blocks.saturating_mul(found.f_frsize))
}

/// Refuses a file for which there is surely no room; gives a line where there may be none.
pub(crate) fn check(chosen: &Chosen, need: Need) -> Result<Option<String>> {
    let (fd, own_bytes) = match chosen {
        Chosen::New(place) => (place.folder.as_fd(), 0),
        Chosen::Existing(_, device) if device.kind() == DeviceKind::Block => return Ok(None),
        Chosen::Existing(_, device) => {
            // They are freed first, or written over.
            let own = rustix::fs::fstat(device.as_fd());
            // Its type has a sign on some architectures.
            let blocks = own.map_or(0, |stat| i128::from(stat.st_blocks));
            let blocks = u64::try_from(blocks).unwrap_or(0);
            (device.as_fd(), blocks.saturating_mul(512))
        }
    };
    check_at(chosen.named().0, fd, own_bytes, need)
}

/// The same for the file `path` to come, or one of `own_bytes` that is there, on the filesystem of `fd`.
pub(crate) fn check_at(
    path: &Path,
    fd: impl AsFd,
    own_bytes: u64,
    need: Need,
) -> Result<Option<String>> {
    let is_plain =
        rustix::fs::fstatfs(&fd).is_ok_and(|found| PLAIN.contains(&i128::from(found.f_type)));
    let Some(free) = free_bytes(fd).map(|free| free.saturating_add(own_bytes)) else {
        return Ok(None);
    };
    let (path, free_shown) = (path.display(), Bytes(free));
    if is_plain && need.least_bytes > free {
        return Err(Error::refused(format_args!(
            "{path}: its filesystem has {free_shown} free, and {} at least will be written: make room there, or name another place",
            Bytes(need.least_bytes)
        ))
        .leaving(NOTHING_WRITTEN));
    }
    Ok((need.most_bytes > free).then(|| {
        format!(
            "{path}: its filesystem has {free_shown} free, and up to {} may be written: it may not fit",
            Bytes(need.most_bytes)
        )
    }))
}
