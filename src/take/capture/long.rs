//! A freeze that will be long: how long, as far as can be told before it, and what would make it short.

use std::time::{Duration, Instant};

use super::Capture;
use crate::device::ReadAt;
use crate::report::{self, Bytes, Elapsed};
use crate::sys::memory::Pages;
use crate::units::{round_down, to_usize};

/// A freeze that is announced: systemd's services and people notice it.
const LONG: Duration = Duration::from_secs(5);

/// A disk that gives no more than this in a millisecond, in bytes, is broken.
const SLOWEST: u64 = 4 << 10;

/// What a slow reader of a pipe takes in a second, in bytes; nobody knows before the freeze what this one does.
const SLOW_READER: u64 = 10_000_000;

/// What is read of a disk to see how fast it is, in bytes, and how long that may take.
const SAMPLE_BYTES: u64 = 4 << 20;
const SAMPLE_LIMIT: Duration = Duration::from_millis(300);

/// What makes a freeze short.
const SHORTER: &str = "--spool-file FILE on another filesystem, a larger --spool, --frames into another floe, floe pull or floe clone make that short";

impl Capture {
    /// Reads a little of the largest device, for its pace: how long that took, and the bytes.
    pub(super) fn sample(&self) -> (Duration, u64) {
        const PIECE: u64 = 1 << 20;
        let began = Instant::now();
        let mut read = 0;
        let devices = self.pipeline.devices().iter();
        let device = devices.max_by_key(|device| device.size_bytes());
        if let (Some(device), Ok(mut piece)) = (device, Pages::new(to_usize(PIECE))) {
            let from = round_down(device.size_bytes() / 4, PIECE);
            while read < SAMPLE_BYTES
                && began.elapsed() < SAMPLE_LIMIT
                && device.read_aligned(from + read, &mut piece).is_ok()
            {
                read += PIECE;
            }
        }
        (began.elapsed(), read)
    }

    /// Before the freeze: that it will be long, because only `held` of what is used is held and not the other `rest` bytes, and what
    /// would make it short. `read` bytes took so long.
    pub(super) fn warn_of_a_long_freeze(
        &mut self,
        took: Duration,
        read: u64,
        held: u64,
        rest: u64,
    ) {
        let millis = took.as_millis() * u128::from(rest) / u128::from(read.max(1));
        // Of next to nothing no pace can be told; no disk of this kind is slower than this.
        let millis = millis.min(u128::from(rest / SLOWEST));
        let reading = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        // What is packed is about half.
        let sent = if self.packs { rest / 2 } else { rest };
        let sending = match self.is_pipe {
            true => Duration::from_secs(sent / SLOW_READER),
            false => Duration::ZERO,
        };
        if self.quiet || reading.max(sending) < LONG {
            return;
        }
        self.progress.clear();
        let slow = match sending > reading {
            true => format!("about {} where the reader takes 10 MB/s", Elapsed(sending)),
            false => "longer where the output is slow".into(),
        };
        if self.copies {
            // What --skip-free leaves alone must not have been written, and shared sums take nothing back (`takes_back`).
            return report::line(format_args!(
                "note: with --skip-free, or with --verify of a source of terabytes, nothing is copied before the freeze, and the filesystem stays frozen while {} are copied: {} at least, longer where the target is slow",
                Bytes(rest),
                Elapsed(reading)
            ));
        }
        report::line(format_args!(
            "note: the spool holds {} of what is used, and the filesystem stays frozen while the other {} are read: {} at least, {slow}; {SHORTER}",
            Bytes(held),
            Bytes(rest),
            Elapsed(reading)
        ));
    }
}
