//! floe: *freeze, and let it flow.* A consistent image of a running Linux device, streamed through a pipe; and back.
//!
//! **The problem.** A board is in use, its root filesystem is mounted, and somebody wants its image, now, over ssh, with no room
//! on the board to put it. Copying the device while it changes gives an image that is silently wrong; freezing it by hand and
//! losing the connection gives a board that hangs; reading every block gives deleted secrets and takes ten times as long.
//!
//! ```text
//!            mounts ─► source: what is it, what holds it still, what must be frozen
//!                          │
//!   guardian (a process) ◄─┤ start, before any buffer             ┌► survey: walk ─► used map ─┐
//!     freezes, watches,    │                                      │                           ▼
//!     thaws whatever ◄──── capture (supervisor: signals, events) ─┴── plan ─► readers ─► workers ─► emitter ─► sink
//!     happens         trace, read early ─► freeze ─► survey ─► read what changed ─► look again ─► thaw ─► end of stream
//! ```
//!
//! # The map of the code
//! A room may use those above it in this list and never those below it; `tests/it/house/style.rs` holds that.
//!
//! | room | what it is |
//! | --- | --- |
//! | [`error`] | `Fault` (four bytes, no heap) and `Error` (a line, an exit code, the state that is left) |
//! | [`features`], [`units`], [`layout`], [`crc`], [`utc`] | what this executable was built with; offsets and extents; on-disk structures as tables; checksums; dates |
//! | [`json`] | a small strict JSON reader |
//! | [`map`] | one bit a block: the used map |
//! | [`sys`] | the only place that may say `unsafe`: one file for each kernel or libc concept |
//! | [`threads`] | threads, queues and patience that are compiled once; a lock that is never poisoned |
//! | [`device`] | `ReadAt`, `WriteAt`; `Device`, a block device with O_DIRECT or a file; `Range`, a part of one |
//! | [`place`] | where a name for a file to come leads |
//! | [`signals`], [`options`], [`help`], [`cli`], [`report`] | signals that wait; the one table of options, its help, its parsing; lines and reports |
//! | [`overlay`] | what an image says instead of its source |
//! | [`fs`], [`ptable`] | formats as bytes: probe, walk (used map), witness, growth, uuids; partition tables |
//! | [`content`] | what stands in an image, and the one rule for what is one |
//! | [`golden`] | what makes one machine out of many, and how a filesystem shows it |
//! | [`mounts`] | who mounts a device, who holds it, what lies on what |
//! | [`trace`] | which parts of a disk were written: a private tracefs instance, and marks |
//! | [`stream`] | chunks, deflate, spool, gzip, zip, frames, targets; images opened and checked; knows no filesystem's inside |
//! | [`freeze`] | hold still, let go: the guardian process and its protocol (`freeze::guard`), the `Frozen` token |
//! | [`take`] | from a name to bytes that held still: source, survey, capture |
//! | [`put`] | onto a target that is whole or visibly empty: checks, writer, head, growth, uuids |
//! | [`config`] | /etc/floe.conf: the store, and pairs |
//! | [`snapshot`] | what is kept, and what it says of itself: metadata, archive, store, and back onto targets |
//! | [`mender`] | Mender's artifact format |
//! | [`medium`] | a disk laid anew, with roles |
//! | [`board`] | another machine over ssh |
//! | [`command`] | parse, order of steps, figures: one verb a file or folder, and no verb uses another |
//!
//! Where to look: a used map becomes chunks in `stream/plan.rs` (`Cursor`); the superblock is held back, and written last, in
//! `put/head.rs` (`Last`); a zip entry is named in `snapshot/metadata.rs` (`image_path`); a run that freezes is `take/capture/mod.rs`,
//! and the guardian is started in `freeze/launch.rs`. What a board says is bounded in `board/ssh/mod.rs` (its constants) and `board/heard.rs`.
//! What is read before the freeze, and whether it is believed, is `stream/pipeline/precopy.rs`; what travels between two floes,
//! `stream/frames/mod.rs`; whether an image that was read is whole, `stream/image/whole.rs`.
//! A new verb is a file in `command/`, its lines in `command/mod.rs` (and in the test there), its options in `options.rs` and its text in
//! `help.rs`; from these two come parsing, help, man page and completions.
//!
//! What is `pub` here is what the tests and the fuzzers look into; there is no other use of the library.
//!
//! # Invariants
//! 1. The guardian exists before the first FIFREEZE, and every thaw has one owner (`freeze/guard`'s page is the protocol).
//! 2. A stream gets its end (gzip trailer, file name) only after a thaw that proves that nobody else thawed, and after a second
//!    look at superblock, journal and maps; where writes are traced, only if none was seen meanwhile. There is no warning that
//!    means failure.
//! 3. Doubt about a block means used. Only what a reader proves free is left out, and the verdict says how far the proof went.
//! 4. A number from a disk or an archive is checked before it is used; every loop over such numbers has a bound.
//! 5. Every check on every target passes before the first write to any; the first superblock is written last.
//! 6. Device numbers are compared, not names.
//! 7. The source's block device is never written. There is no code that could: `Device` opens sources read-only.
//!
//! # While something is frozen
//! Between the first FIFREEZE and the last FITHAW no file is opened, no process started, nothing allocated from the heap, nothing
//! written but the data stream (and progress to a terminal that takes it at once). So everything that is needed is made before:
//! threads, buffers, maps, the spool's address space, the strings of a remount. Lines for people wait for the thaw.
#![deny(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub(crate) mod board;
pub mod cli;
pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod content;
pub mod crc;
pub mod device;
pub mod error;
pub(crate) mod features;
pub mod freeze;
pub mod fs;
pub mod golden;
pub mod help;
pub mod json;
pub(crate) mod layout;
pub(crate) mod map;
pub(crate) mod medium;
pub(crate) mod mender;
pub mod mounts;
pub mod options;
pub mod overlay;
pub mod place;
pub mod ptable;
pub(crate) mod put;
pub mod report;
pub mod signals;
pub mod snapshot;
pub mod stream;
#[allow(unsafe_code)]
pub mod sys;
pub(crate) mod take;
pub(crate) mod threads;
pub mod trace;
pub mod units;
pub(crate) mod utc;

/// Runs the program with its name and its arguments and gives the exit code; dies by a signal where the run did.
pub fn main(arguments: Vec<std::ffi::OsString>) -> u8 {
    freeze::serve_if_guardian(&arguments);
    sys::stderr::prepare();
    sys::process::ignore_file_size_signal();
    match command::run(arguments) {
        Ok(()) => 0,
        Err(error) => report::end(error),
    }
}
