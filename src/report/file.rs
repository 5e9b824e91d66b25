//! The file of `--report`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::{JsonObject, stderr};
use crate::error::{Error, Result};
use crate::threads::patiently;

/// Where `--report` goes: opened before anything freezes, written after the thaw.
#[derive(Debug)]
pub(super) struct ReportFile {
    file: Option<File>,
    name: String,
}

impl ReportFile {
    /// Opens `path` for writing; `-` is stderr.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = if name == "-" {
            if !crate::sys::start::has_stderr() {
                return Err(
                    Error::failed("stderr: is closed, and the report goes there")
                        .leaving("nothing was done"),
                );
            }
            None
        } else {
            refuse_slip(path, &name)?;
            Some(create(path, &name)?)
        };
        Ok(Self { file, name })
    }

    /// Writes the object and a newline, and sees to it that they arrive: what could not be reported is a failed run.
    pub(super) fn write(&mut self, object: &JsonObject) -> Result<()> {
        let text = format!("{}\n", object.finish());
        let result = match &mut self.file {
            Some(file) => file
                .write_all(text.as_bytes())
                .and_then(|()| match file.sync_all() {
                    // What has nothing to flush (a pipe, a terminal) says EINVAL (fsync(2)).
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
                    done => done,
                }),
            None => stderr(text.as_bytes()),
        };
        result.map_err(|e| {
            Error::failed(format_args!("{}: write of the report: {e}", self.name))
                .leaving("what was to be reported is done")
        })
    }
}

/// How often, and after what time, a pipe is asked again whether somebody reads it.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A pipe that nobody reads would be waited for without end.
fn create(path: &Path, name: &str) -> Result<File> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    options.custom_flags(flags);
    let is_alone = |error: &std::io::Error| {
        error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
            && std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
    };
    // Its reader may have been started together with us.
    let to_wait = |opened: &std::io::Result<File>| opened.as_ref().is_err_and(is_alone);
    let file = patiently(PATIENCE, PAUSE, to_wait, || options.open(path));
    let file = file.map_err(|error| match is_alone(&error) {
        true => Error::refused(format_args!(
            "{name}: is a pipe that nobody reads: start its reader first"
        ))
        .leaving("nothing was done"),
        false => Error::std(name, "open", &error),
    })?;
    let fail = |errno: rustix::io::Errno| Error::std(name, "open", &errno.into());
    let flags = rustix::fs::fcntl_getfl(&file).map_err(fail)?;
    let flags = flags.difference(rustix::fs::OFlags::NONBLOCK);
    rustix::fs::fcntl_setfl(&file, flags).map_err(fail)?;
    Ok(file)
}

/// A report over a device, or over a file that is none, was hardly meant.
fn refuse_slip(path: &Path, name: &str) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(meta) = std::fs::metadata(path) else {
        return Ok(());
    };
    let mut first = [b'{'];
    if meta.is_file()
        && let Ok(mut file) = File::open(path)
    {
        let _ = std::io::Read::read(&mut file, &mut first);
    }
    if first == [b'{'] && !meta.file_type().is_block_device() {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{name}: is there and is no report; name another file"
    ))
    .leaving("nothing was done"))
}
