//! What was asked of `restore`; kept snapshots and `clone --factory` are put back by the same.

use std::path::Path;

use crate::cli::Common;
use crate::device::{Device, DeviceKind, ReadAt};
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::put::free::LeftAlone;
use crate::put::target::Overwrite;
use crate::stream::image::whole::Any;

/// What was asked for.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) image: std::ffi::OsString,
    /// One TARGET, or NAME=TARGET of a snapshot; what it is, the image says.
    pub(crate) targets: Vec<std::ffi::OsString>,
    pub(crate) overwrite: Overwrite,
    pub(crate) verify: bool,
    pub(crate) skip_free: bool,
    pub(crate) only_changes: bool,
    /// `--frames-known`: what the target holds is said on stdout, and not sent.
    pub(crate) tells: bool,
    /// `--any-content`.
    pub(crate) any: Any,
    /// `--bmap`: what the image must be, by its `.bmap`.
    pub(crate) bmap: Option<std::path::PathBuf>,
    /// `--no-check`: an image in a file is not read to its end beforehand.
    pub(crate) unchecked: bool,
    /// `--length`: of an image whose end is not there yet, what `push` found it to be.
    pub(crate) length_bytes: Option<u64>,
    /// `--force`: a snapshot of another architecture or board.
    pub(crate) force: bool,
    /// `--dry-run`: nothing is written.
    pub(crate) dry_run: bool,
    /// `--grow`: to the end of the partition afterwards.
    pub(crate) grow: bool,
    /// `--disk`: where the recorded partition table goes.
    pub(crate) disk: Option<std::ffi::OsString>,
    pub(crate) common: Common,
}

/// The memory of `--skip-free`.
pub(crate) fn left_alone(
    options: &Options,
    path: &Path,
    device: &Device,
) -> Result<Option<LeftAlone>> {
    if !options.skip_free || device.kind() == DeviceKind::File {
        // In a file free ranges become holes, which is as fast.
        return Ok(None);
    }
    let left = LeftAlone::new(device.size_bytes());
    left.map(Some)
        .map_err(|fault| Error::fault(path.display(), fault).leaving(NOTHING_WRITTEN))
}
