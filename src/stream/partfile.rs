//! A file that appears only when it is complete: written as `FILE.part`, flushed, renamed.
//!
//! The folder may be anybody's. Once it is open everything happens by its descriptor, so that nobody moves it from under us; a
//! part file is made by us alone (O_EXCL, O_NOFOLLOW), or it is what an interrupted run of ours left: a regular file of our user
//! with one name that nobody else can have open. Whatever else stands under its name is left as it is, and another name taken.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::mounts::System;
pub use crate::place::Place;
use crate::place::{A_FOLDER, PRIVATE, is};
use crate::threads::patiently;
use crate::units::to_u64;

/// How often a part file that changes hands is tried again.
const TRIES: u32 = 20;
/// Names that are tried for a part file.
const NAMES: u32 = 8;
/// What fails where a folder takes no file.
pub const NO_FILE: &str = "make a file in it";

/// A file without a name in the folder of `near`, which is gone with whoever holds it.
pub fn unnamed(near: &Path) -> Result<File> {
    let place = Place::find(near)?;
    let file = place.unnamed().map_or_else(|| place.unlinked(), Ok);
    let shown = near.parent().filter(|folder| *folder != Path::new(""));
    let shown = shown.unwrap_or(Path::new(".")).display();
    let file = file.map_err(|errno| Error::fault(shown, Fault::io(NO_FILE, errno)))?;
    Ok(file.into())
}

/// The same beside nothing that is to come: in $TMPDIR, else where there is room for what is large.
pub fn unnamed_anywhere() -> Result<File> {
    let told = std::env::var_os("TMPDIR").filter(|told| !told.is_empty());
    let told = told.map(PathBuf::from);
    let known = ["/var/tmp", "/tmp"].map(PathBuf::from);
    let mut result = Err(Error::refused("TMPDIR: no folder for what has to be held"));
    for folder in told.into_iter().chain(known) {
        result = unnamed(&folder.join("floe"));
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Whether it would be a file among the device nodes.
fn is_for_devices(place: &Place) -> bool {
    let folder = place.path.parent().unwrap_or(Path::new(""));
    let folder = std::fs::canonicalize(folder).unwrap_or_default();
    folder.starts_with("/dev") && !folder.starts_with("/dev/shm")
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The part file of a FILE to come. Dropping it unfinished removes it.
#[derive(Debug)]
pub struct PartFile {
    place: Place,
    part: OsString,
    file: Option<File>,
    /// Holds the lock until the file has its name, whoever closes the other descriptor.
    lock: File,
    done: bool,
}

impl PartFile {
    /// Creates `TARGET.part`, readable for its owner only. The target may be absent or a regular file, or a link to either; a
    /// device, directory or anything else is refused.
    pub fn create(target: &Path) -> Result<Self> {
        Self::create_at(Self::place(target)?)
    }

    /// The same for a piece of a set.
    fn create_piece(target: &Path) -> Result<Self> {
        Self::create_at(Self::place_of_piece(target)?)
    }

    /// Refuses a piece that is there and must neither be replaced nor go, as one that is attached to a loop device.
    pub fn check_piece(target: &Path) -> Result<()> {
        Self::place_of_piece(target).map(drop)
    }

    /// A link that has the name of a piece is not followed, but replaced.
    fn place_of_piece(target: &Path) -> Result<Place> {
        let is_link = std::fs::symlink_metadata(target).is_ok_and(|meta| meta.is_symlink());
        match is_link {
            true => Place::itself(target),
            false => Self::place(target),
        }
    }

    fn create_at(place: Place) -> Result<Self> {
        let name = place.path.display();
        let owned = rules(&place);
        for number in 0..NAMES {
            let mut part = place.name.clone();
            if number > 0 {
                part.push(format!(".{number}"));
            }
            part.push(".part");
            let Some(file) = open(&place, &part, owned)? else {
                continue;
            };
            let shown = place.path.with_file_name(&part);
            let fail = |what, e| Error::std(shown.display(), what, &e);
            // From here on it is removed when something fails.
            let mut made = Self {
                place,
                part,
                file: None,
                lock: file,
                done: false,
            };
            made.lock.set_len(0).map_err(|e| fail("truncate", e))?;
            made.file = Some(made.lock.try_clone().map_err(|e| fail("dup", e))?);
            return Ok(made);
        }
        Err(Error::refused(format_args!(
            "{name}.part: this name and {} like it are taken by what is not ours; remove that",
            NAMES - 1
        )))
    }

    /// Where it would be, and whether it could be there as far as can be told without making anything.
    fn place(target: &Path) -> Result<Place> {
        // What a link of /proc leads to has no name of its own.
        if std::fs::metadata(target).is_ok_and(|meta| meta.file_type().is_fifo()) {
            let name = target.display();
            return Err(Error::refused(format_args!(
                "{name}: is a pipe, not a regular file; -o - writes to standard output"
            )));
        }
        let place = Place::find(target)?;
        let name = place.path.display();
        match place.stat() {
            Some(stat) if is(&stat, FileType::BlockDevice) => {
                return Err(Error::refused(format_args!(
                    "{name}: is a device; -o writes files, 'floe restore' writes devices"
                )));
            }
            Some(stat) if is(&stat, FileType::Directory) => {
                return Err(Error::refused(format_args!("{name}: {A_FOLDER}")));
            }
            Some(stat) if !is(&stat, FileType::RegularFile) => {
                return Err(Error::refused(format_args!(
                    "{name}: is not a regular file"
                )));
            }
            // Whoever has the old one attached would keep what no name leads to any more.
            Some(stat) => {
                let system = System::look()?;
                if let Some(used) = system.uses_of_file(&place.path, &stat).first() {
                    return Err(Error::refused(used).leaving(NOTHING_WRITTEN));
                }
            }
            None if is_for_devices(&place) => {
                return Err(Error::refused(format_args!(
                    "{name}: there is no such device, and a file in /dev lies in memory; -o writes files, 'floe restore' writes devices"
                )).leaving(NOTHING_WRITTEN));
            }
            None => {}
        }
        Ok(place)
    }

    /// What [`Self::create`] would say, without making anything.
    pub fn check(target: &Path) -> Result<()> {
        let place = Self::place(target)?;
        let may = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&place.folder, ".", may, AtFlags::empty()).map_err(|errno| {
            let mut part = place.name.clone();
            part.push(".part");
            let shown = place.path.with_file_name(part);
            Error::fault(shown.display(), Fault::io("create", errno))
        })
    }

    /// Creates it, and gives the file that is written.
    pub(crate) fn begin(target: &Path) -> Result<(Self, OwnedFd)> {
        let mut part = Self::create(target)?;
        let closed = || Error::failed(format_args!("{}: not open", target.display()));
        let fd = part.take_fd().ok_or_else(closed)?;
        Ok((part, fd))
    }

    /// The file that is being written, once.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.file.take().map(OwnedFd::from)
    }

    /// The name it will have.
    pub fn target(&self) -> &Path {
        &self.place.path
    }

    /// Whether the name is still that of our file.
    fn is_there(&self) -> bool {
        is_named(&self.place, &self.part, &self.lock)
    }

    /// Gives the (already flushed) file its name, and flushes the directory.
    pub fn finish(mut self) -> Result<()> {
        let Place { folder, path, name } = &self.place;
        let shown = path.display();
        if !self.is_there() {
            return Err(Error::failed(format_args!(
                "{shown}: somebody moved or replaced its part file, {}",
                self.part.display()
            )));
        }
        rustix::fs::renameat(folder, &self.part, folder, name)
            .map_err(|errno| Error::fault(&shown, Fault::io("rename", errno)))?;
        self.done = true;
        let flushed = rustix::fs::fsync(folder);
        flushed.map_err(|errno| {
            Error::fault(shown, Fault::io("fsync of its folder", errno))
                .leaving("it is whole, but a power cut may take its name")
        })
    }
}

/// Pieces of `--split` at most: each is open, and held, from before the freeze.
const PIECES: u64 = 200;
/// Numbers of pieces that have three digits.
pub const MOST_PIECES: u64 = 999;

/// FILE.001, FILE.002 …: the name of a piece.
pub fn piece(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    name.into()
}

/// Whether this is the first of several pieces that are there.
pub fn is_first(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("001")) && piece(&path.with_extension(""), 2).exists()
}

/// The first of the pieces of which this is a later one, by its name.
pub fn first_of(path: &Path) -> Option<PathBuf> {
    let digits = path.extension()?.to_str().filter(|text| text.len() == 3)?;
    let number: u64 = digits.parse().ok()?;
    let whole = path.with_extension("");
    let first = piece(&whole, 1);
    // Versions end with numbers, too.
    let kind = whole.extension().and_then(OsStr::to_str);
    let is_named = matches!(kind, Some("gz" | "img" | "zip"));
    (number > 1 && (is_named || first.exists())).then_some(first)
}

/// The part files of pieces of `piece_bytes` that hold `most_bytes`; those that stay empty go at the end.
pub fn create_pieces(path: &Path, piece_bytes: u64, most_bytes: u64) -> Result<Vec<PartFile>> {
    let count = most_bytes.div_ceil(piece_bytes.max(1)).max(1);
    if count > PIECES {
        return Err(Error::refused(format_args!(
            "{}: --split: {count} pieces of {piece_bytes} bytes could be needed, and {PIECES} is the most; make them larger",
            path.display()
        ))
        .leaving("nothing was frozen"));
    }
    (1..=count)
        .map(|number| PartFile::create_piece(&piece(path, number)))
        .collect()
}

/// Gives pieces their names, the first one last: where FILE.001 is, all are. What was `there` before goes.
pub fn finish_pieces(path: &Path, files: Vec<PartFile>, there: &[PathBuf]) -> Result<()> {
    let gone = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::std(path.display(), "remove", &error))
        }
        _ => Ok(()),
    };
    let is_used = |file: &PartFile| file.lock.metadata().is_ok_and(|meta| meta.len() > 0);
    let mut used: Vec<PartFile> = files.into_iter().filter(is_used).collect();
    let count = to_u64(used.len());
    // The first one at first, and of the others what is not replaced below.
    let stays = |old: &PathBuf| (2..=count).any(|number| piece(path, number) == *old);
    for old in there.iter().filter(|old| !stays(old)) {
        gone(old)?;
    }
    while let Some(file) = used.pop() {
        file.finish()?;
    }
    Ok(())
}

/// Whether files here have an owner and a mode: on FAT every file has those that it was mounted with.
fn rules(place: &Place) -> bool {
    // include/uapi/linux/magic.h: MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC.
    const WITHOUT: [i128; 2] = [0x4d44, 0x2011_bab0];
    rustix::fs::fstatfs(&place.folder)
        .map_or(true, |found| !WITHOUT.contains(&i128::from(found.f_type)))
}

/// Whether a file may be taken over as what an interrupted run left.
fn is_ours(stat: &Stat, owned: bool) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    is(stat, FileType::RegularFile)
        && stat.st_nlink == 1
        && (!owned
            || stat.st_uid == rustix::process::geteuid().as_raw()
                && mode == Mode::from_raw_mode(PRIVATE))
}

/// Opens and locks the part file; `None` when something that is not ours has its name. What an interrupted run left is taken
/// over; what a running one still writes is not.
fn open(place: &Place, part: &OsStr, owned: bool) -> Result<Option<File>> {
    let shown = place.path.with_file_name(part);
    let busy = || {
        Error::refused(format_args!(
            "{}: another process is writing it",
            shown.display()
        ))
    };
    let fail = |what, errno| Error::fault(shown.display(), Fault::io(what, errno));
    let mut last = Errno::EXIST;
    for _ in 0..TRIES {
        let new = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = match place.open(part, new) {
            Err(Errno::EXIST) => match place.stat_of(part) {
                Some(stat) if is_ours(&stat, owned) => place.open(part, OFlags::RDWR),
                Some(_) => return Ok(None),
                None => continue,
            },
            new => new,
        };
        let file = match fd {
            Ok(fd) => File::from(fd),
            // Gone, or something else by now.
            Err(errno @ (Errno::NOENT | Errno::LOOP | Errno::NXIO)) => {
                last = errno;
                continue;
            }
            Err(Errno::NAMETOOLONG) => {
                return Err(Error::refused(format_args!(
                    "{}: the name is too long for the .part behind it, under which the file is written; take a shorter one",
                    place.path.display()
                ))
                .leaving(NOTHING_WRITTEN));
            }
            Err(errno) => return Err(fail("create", errno).leaving(NOTHING_WRITTEN)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| fail("stat", errno))?;
        if !is_ours(&stat, owned) {
            return Ok(None);
        }
        if !is_locked(&file) {
            return Err(busy());
        }
        // Whoever had it may have given it its name, or removed it, between the open and the lock.
        if is_named(place, part, &file) {
            return Ok(Some(file));
        }
    }
    // A filesystem on which nothing can be made, as /proc.
    match place.stat_of(part) {
        None if last == Errno::NOENT => Err(fail("create", last).leaving(NOTHING_WRITTEN)),
        _ => Err(busy()),
    }
}

/// Locks it, where nobody else has. What this process let go of a moment ago another thread's fork may still hold, until that runs
/// its program.
fn is_locked(file: &File) -> bool {
    let is_held = |tried: &_| *tried == Err(Errno::WOULDBLOCK);
    let tried = patiently(30, Duration::from_millis(10), is_held, || {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
    });
    !is_held(&tried)
}

/// The file that will be replaced, for reading.
pub fn earlier(target: &Path) -> Option<File> {
    let place = Place::find(target).ok()?;
    place.open(&place.name, OFlags::RDONLY).ok().map(File::from)
}

/// How the name of what an interrupted pull left ends, behind the name of the file that it was to be.
pub const LEFT: &str = ".resume";

/// What an interrupted run left for the next one, and this one may leave: made and locked as a part file is. Dropped, it stays where
/// there is something in it.
#[derive(Debug)]
pub struct Left {
    place: Place,
    name: OsString,
    file: File,
}

impl Left {
    /// Beside the file to come; `None` where it cannot be had, or another run has it.
    pub fn beside(target: &Path) -> Option<Self> {
        let place = Place::find(target).ok()?;
        let mut name = place.name.clone();
        name.push(LEFT);
        let file = open(&place, &name, rules(&place)).ok().flatten()?;
        Some(Self { place, name, file })
    }

    /// The file.
    pub fn file(&self) -> Option<File> {
        self.file.try_clone().ok()
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.place.path.with_file_name(&self.name)
    }

    /// Whether there is something in it.
    pub fn holds(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() > 0)
    }

    /// What is in it is not wanted.
    pub fn clear(&self) {
        let _ = self.file.set_len(0);
    }

    /// It goes.
    pub fn remove(&self) {
        if is_named(&self.place, &self.name, &self.file) {
            let _ = rustix::fs::unlinkat(&self.place.folder, &self.name, AtFlags::empty());
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if !self.holds() {
            self.remove();
        }
    }
}

fn is_named(place: &Place, name: &OsStr, file: &File) -> bool {
    match (place.stat_of(name), rustix::fs::fstat(file)) {
        (Some(there), Ok(ours)) => is_same(&there, &ours),
        _ => false,
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.done || !self.is_there() {
            return;
        }
        let gone = rustix::fs::unlinkat(&self.place.folder, &self.part, AtFlags::empty());
        if let Err(errno) = gone {
            let part = self.place.path.with_file_name(&self.part);
            let fault = Fault::io("remove", errno);
            crate::report::line(Error::fault(part.display(), fault));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_name_appears_only_when_finished_and_an_abandoned_part_vanishes() {
        let directory = std::env::temp_dir().join(format!("floe-part-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let target = directory.join("x.img");
        drop(PartFile::create(&target).unwrap());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        let mut part = PartFile::create(&target).unwrap();
        assert!(PartFile::create(&target).is_err());
        File::from(part.take_fd().unwrap())
            .write_all(b"abc")
            .unwrap();
        assert!(!target.exists());
        part.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        assert!(matches!(
            PartFile::create(&directory),
            Err(error) if error.exit() == Some(crate::error::Exit::Refused)
        ));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn nobody_takes_the_part_over_before_it_has_its_name_and_the_name_is_never_truncated() {
        let directory = std::env::temp_dir().join(format!("floe-part-lock-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let target = directory.join("x.img");
        let mut part = PartFile::create(&target).unwrap();
        let mut file = File::from(part.take_fd().unwrap());
        file.write_all(b"abc").unwrap();
        drop(file);
        let other = PartFile::create(&target).map(drop);
        assert!(
            matches!(other, Err(ref error) if error.exit() == Some(crate::error::Exit::Refused)),
            "{other:?}"
        );
        part.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        // One after the other, two at a time: each file that has its name is whole.
        let writer = |letter: u8| {
            let target = target.clone();
            move || {
                for _ in 0..300 {
                    let Ok(mut part) = PartFile::create(&target) else {
                        continue;
                    };
                    let mut file = File::from(part.take_fd().unwrap());
                    for _ in 0..4 {
                        file.write_all(&[letter; 500]).unwrap();
                    }
                    drop(file);
                    part.finish().unwrap();
                    let found = std::fs::read(&target).unwrap();
                    assert_eq!(found.len(), 2000);
                    assert!(found.iter().all(|byte| Some(byte) == found.first()));
                }
            }
        };
        let threads = [b'a', b'b'].map(|letter| std::thread::spawn(writer(letter)));
        for thread in threads {
            thread.join().unwrap();
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
