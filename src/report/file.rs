//! The file of `--report`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{JsonObject, give, stderr};
use crate::error::{Error, Fault, Result};
use crate::place::{A_FOLDER, Place, is};
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
            Some(create(path, &name)?)
        };
        Ok(Self { file, name })
    }

    /// As it was named.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is written.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.file {
            Some(file) => file.as_fd(),
            None => rustix::stdio::stderr(),
        }
    }

    /// Writes the object and a newline, and sees to it that they arrive: what could not be reported is a failed run.
    pub(super) fn write(&mut self, object: &JsonObject) -> Result<()> {
        let text = format!("{}\n", object.finish());
        let result = match &mut self.file {
            Some(file) => {
                let write = &mut |rest: &[u8]| rustix::io::write(&*file, rest);
                give(text.as_bytes(), file.as_fd(), write).and_then(|()| match file.sync_all() {
                    // What has nothing to flush (a pipe, a terminal) says EINVAL (fsync(2)).
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
                    done => done,
                })
            }
            None => stderr(text.as_bytes()),
        };
        result.map_err(|e| {
            Error::std(&self.name, "write of the report", &e)
                .leaving("what was to be reported is done")
        })
    }
}

/// How often, and after what time, a pipe is asked again whether somebody reads it.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What is there is opened without following a name any more, and looked at before it is emptied. A pipe that nobody reads would
/// be waited for without end.
fn create(path: &Path, name: &str) -> Result<File> {
    let place = Place::find_or_given(path)?;
    let refused =
        |what: &str| Error::refused(format_args!("{name}: {what}")).leaving("nothing was done");
    let fail = |errno| Error::fault(name, Fault::io("open", errno));
    let is_a = |kind| place.stat_given().is_some_and(|stat| is(&stat, kind));
    let flags = match place.stat_given() {
        None => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        Some(stat) if is(&stat, FileType::BlockDevice) => return Err(refused(NO_REPORT)),
        Some(stat) if is(&stat, FileType::Directory) => return Err(refused(A_FOLDER)),
        Some(stat) if is(&stat, FileType::RegularFile) => OFlags::RDWR,
        Some(_) => OFlags::WRONLY,
    };
    // Its reader may have been started together with us.
    let is_alone = |errno: &Errno| *errno == Errno::NXIO && is_a(FileType::Fifo);
    let to_wait = |opened: &rustix::io::Result<OwnedFd>| opened.as_ref().is_err_and(is_alone);
    let file = patiently(PATIENCE, PAUSE, to_wait, || place.open_given(flags));
    let file = File::from(file.map_err(|errno| match is_alone(&errno) {
        true => refused("is a pipe that nobody reads: start its reader first"),
        false => fail(errno),
    })?);
    let stat = rustix::fs::fstat(&file).map_err(fail)?;
    let is_new = flags.contains(OFlags::EXCL);
    if !is_new && !place.is_given() && !is(&stat, FileType::CharacterDevice) {
        if place.is_planted(&stat).map_err(fail)? {
            return Err(refused(&format!(
                "is of user {}, in a folder that everybody may write to; name another file",
                stat.st_uid
            )));
        }
        if stat.st_nlink > 1 {
            return Err(refused(
                "has another name, too (a hard link); name another file",
            ));
        }
    }
    if is(&stat, FileType::RegularFile) {
        if !is_new && !is_report(&file) {
            return Err(refused(NO_REPORT));
        }
        rustix::fs::ftruncate(&file, 0).map_err(fail)?;
    }
    Ok(file)
}

const NO_REPORT: &str = "is there and is no report; name another file";

/// A report over a file that is none was hardly meant. One of ours is one line, and its first key follows at once; what people and
/// other programs write mostly begins with a new line.
fn is_report(file: &File) -> bool {
    let mut first = [0; 2];
    match std::os::unix::fs::FileExt::read_at(file, &mut first, 0) {
        Ok(0) => true,
        Ok(2) => first == *b"{\"",
        _ => false,
    }
}
