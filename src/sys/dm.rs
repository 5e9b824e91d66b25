//! One question to device mapper: which targets a device is made of, and what they report (DM_TABLE_STATUS).
//!
//! Asked read-only; nothing here loads, suspends or removes a table. Source: include/uapi/linux/dm-ioctl.h.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `DM_TABLE_STATUS`, `_IOWR(0xfd, 12, struct dm_ioctl)`, of 312 bytes.
pub(crate) const DM_TABLE_STATUS: Opcode = opcode::read_write::<[u64; 39]>(0xfd, 12);

/// Size of struct dm_ioctl in bytes; what follows it is the answer.
const HEAD_BYTES: usize = 312;
/// Room for the answer: a status line of a hundred targets.
const BUFFER_BYTES: usize = 16 * 1024;
/// Size of struct dm_target_spec in bytes.
const SPEC_BYTES: usize = 40;
/// Most targets that are looked at.
const TARGETS_MAX: u32 = 256;
/// `DM_BUFFER_FULL_FLAG`: the answer did not fit.
const BUFFER_FULL: u32 = 1 << 8;

/// One target of a device's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DmTarget {
    /// Its type: `linear`, `cache`, `raid` …
    pub kind: String,
    /// Its status line, of the type's own format (Documentation/admin-guide/device-mapper).
    pub status: String,
}

/// The targets of the device with this number. `control` is /dev/mapper/control.
pub(crate) fn dm_targets(control: impl AsFd, dev: u64) -> Result<Vec<DmTarget>> {
    let mut buffer = [0u8; BUFFER_BYTES];
    // version 4.0.0: every kernel since 2.6 takes it.
    put(&mut buffer, 0, 4);
    put(&mut buffer, 12, u32::try_from(BUFFER_BYTES).unwrap_or(0));
    put(&mut buffer, 16, u32::try_from(HEAD_BYTES).unwrap_or(0));
    if let Some(place) = buffer.get_mut(40..48) {
        place.copy_from_slice(&dev.to_ne_bytes());
    }
    // SAFETY: the kernel reads the head, and writes no more than data_size bytes, the size of the buffer (drivers/md/dm-ioctl.c).
    let request = unsafe { Updater::<DM_TABLE_STATUS, [u8; BUFFER_BYTES]>::new(&mut buffer) };
    // SAFETY: the updater borrows the buffer for the call.
    unsafe { ioctl(control, request) }?;
    parse(&buffer).ok_or(Errno::PROTO)
}

fn put(buffer: &mut [u8], at: usize, value: u32) {
    if let Some(place) = buffer.get_mut(at..at.saturating_add(4)) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

fn get(buffer: &[u8], at: usize) -> Option<u32> {
    let bytes = buffer.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn parse(buffer: &[u8]) -> Option<Vec<DmTarget>> {
    let count = get(buffer, 20)?;
    if get(buffer, 28)? & BUFFER_FULL != 0 || count > TARGETS_MAX {
        return None;
    }
    let data = buffer.get(usize::try_from(get(buffer, 16)?).ok()?..)?;
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
    };
    let mut targets = Vec::new();
    let mut at = 0usize;
    for _ in 0..count {
        // u64 sector_start, u64 length, s32 status, u32 next, char target_type[16]; then the line. `next` counts from `data`.
        let spec = data.get(at..)?;
        let kind = spec.get(24..SPEC_BYTES)?;
        targets.push(DmTarget {
            kind: text(kind).or_else(|| Some(String::from_utf8_lossy(kind).into_owned()))?,
            status: text(spec.get(SPEC_BYTES..)?)?,
        });
        at = usize::try_from(get(spec, 20)?).ok()?;
    }
    Some(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel answers for two targets.
    fn answer() -> Vec<u8> {
        let mut buffer = vec![0; 512];
        put(&mut buffer, 16, 312);
        put(&mut buffer, 20, 2);
        for (at, next, kind, status) in [
            (312, 64, "linear", ""),
            (376, 128, "cache", "8 1/2 writeback"),
        ] {
            put(&mut buffer, at + 20, next);
            buffer[at + 24..at + 24 + kind.len()].copy_from_slice(kind.as_bytes());
            buffer[at + 40..at + 40 + status.len()].copy_from_slice(status.as_bytes());
        }
        buffer
    }

    #[test]
    fn opcode_and_size_are_those_of_the_kernel_headers() {
        assert_eq!(DM_TABLE_STATUS, 0xc138_fd0c);
        assert_eq!(std::mem::size_of::<[u64; 39]>(), HEAD_BYTES);
    }

    #[test]
    fn targets_are_read_one_after_the_other() {
        let targets = parse(&answer()).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].kind, "linear");
        assert_eq!(
            (targets[1].kind.as_str(), targets[1].status.as_str()),
            ("cache", "8 1/2 writeback")
        );
    }

    #[test]
    fn an_answer_that_is_cut_or_full_is_no_answer() {
        let whole = answer();
        for end in 0..whole.len() - 1 {
            assert!(
                parse(&whole[..end]).is_none_or(|targets| targets.len() == 2),
                "{end}"
            );
        }
        let mut full = whole.clone();
        put(&mut full, 28, BUFFER_FULL);
        assert_eq!(parse(&full), None);
        for at in [16, 20, 332] {
            let mut wrong = whole.clone();
            put(&mut wrong, at, u32::MAX);
            assert_eq!(parse(&wrong), None, "{at}");
        }
    }
}
