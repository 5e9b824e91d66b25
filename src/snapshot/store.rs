//! A folder in which snapshots are kept: their names, the lock that admits one writer at a time, and which of them retire.
//!
//! Boards have no clock, so age is the sequence number in the name, never a time. What is a snapshot here is said once ([`Stored`]): a
//! regular file with the ending of one. Links, folders and FIFOs are none, whatever they are called: they are neither read nor
//! removed, and count for nothing, but that the number in a name is taken. By itself it removes only what has the name of a snapshot
//! of this host, or of what an interrupted run left of one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, OFlags, Stat};
use rustix::io::Errno;

use crate::cli;
use crate::device::limited;
use crate::error::{Error, Exit, Fault, Result};
use crate::place::{is, open_itself};
use crate::stream::partfile;
use crate::units;
use crate::utc::Utc;

/// The lock's name in the folder.
const LOCK: &str = ".floe.lock";
/// Holds the number of the newest snapshot, where that was deleted.
const LAST: &str = ".floe.last";
/// How the name of what is being made ends, or of what was not finished.
const PART: &str = ".part";
/// Most files of a folder that are looked at.
const MAX_FILES: usize = 65_536;

/// The parts of a kept snapshot's name: `HOST-YYYYMMDDThhmmssZ-SEQ.zip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptName {
    /// The host's name, as far as it may stand in a file name.
    pub host: String,
    /// `YYYYMMDDThhmmssZ`.
    pub time: String,
    /// Counts up in a folder.
    pub sequence: u64,
}

impl KeptName {
    /// From a file's name; `None` for anything else.
    pub(crate) fn parse(file: &str) -> Option<Self> {
        let (rest, sequence) = file.strip_suffix(".zip")?.rsplit_once('-')?;
        let (host, time) = rest.rsplit_once('-')?;
        let digit = |index: usize, byte: u8| match index {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        };
        let is_time = time.len() == 16
            && time
                .bytes()
                .enumerate()
                .all(|(index, byte)| digit(index, byte));
        (is_time && !host.is_empty() && !sequence.is_empty()).then_some(())?;
        Some(Self {
            host: host.into(),
            time: time.into(),
            sequence: followed(sequence)?,
        })
    }

    /// From the name of a snapshot, or of one that is not finished.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = path.file_name()?.to_str()?;
        Self::parse(unfinished(file).unwrap_or(file))
    }

    /// What the oldest comes first by.
    pub(crate) fn age(&self) -> (u64, &str, &str) {
        (self.sequence, &self.time, &self.host)
    }

    fn file(&self) -> String {
        format!("{}-{}-{:04}.zip", self.host, self.time, self.sequence)
    }
}

/// The number of a snapshot. One that no other can follow is none of ours: whoever has it would keep every later one from its own.
fn followed(text: &str) -> Option<u64> {
    cli::number(text).filter(|number| *number < u64::MAX)
}

/// The host's name with everything replaced that does not belong into a file name.
pub(crate) fn host_in_name(host: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    let mut name: String = host
        .chars()
        .take(64)
        .map(|letter| if plain(letter) { letter } else { '_' })
        .collect();
    if name.is_empty() || name.starts_with('.') {
        name.insert_str(0, "host");
    }
    name
}

/// A folder that is locked for one writer; unlocked when dropped.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl Store {
    /// Locks `folder`, and removes what an interrupted run left of its snapshot.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let lock = folder.join(LOCK);
        // A lock that was removed between open and flock is no lock: try the next one, a few times.
        for _ in 0..20 {
            let held = open_lock(&lock)?;
            if let Err(errno) = rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)
                && (errno == Errno::WOULDBLOCK || is_alive(&content(&held)))
            {
                return Err(refused(folder, &content(&held)));
            }
            let same = std::fs::symlink_metadata(&lock)
                .and_then(|there| held.metadata().map(|held| held.ino() == there.ino()));
            if same.unwrap_or(false) {
                return Self::take(folder, lock, held);
            }
        }
        Err(Error::refused(format_args!(
            "{}: the lock changes hands all the time",
            folder.display()
        )))
    }

    fn take(folder: &Path, lock: PathBuf, mut held: File) -> Result<Self> {
        let text = format!("{} {}\n", std::process::id(), boot_id());
        held.set_len(0)
            .and_then(|()| held.write_all(text.as_bytes()))
            .map_err(|e| Error::std(lock.display(), "write", &e))?;
        let store = Self {
            folder: folder.to_owned(),
            lock,
            _held: held,
        };
        for found in everything(folder)? {
            let of = unfinished(&found.file).and_then(KeptName::parse);
            // Whoever writes into the folder by a name of his own (-o FILE) has no lock of the folder, but one of the part file.
            if of.is_some() && found.is_file && !found.is_being_made() {
                let _ = std::fs::remove_file(found.path);
            }
        }
        Ok(store)
    }

    /// Called before snapshots are deleted, gives the number that no other may have afterwards.
    pub(crate) fn last(&self) -> Result<u64> {
        let path = self.folder.join(LAST);
        if let Ok(stat) = rustix::fs::lstat(&path) {
            is_last(&stat).map_err(|fault| {
                Error::fault(path.display(), fault).leaving("nothing was deleted")
            })?;
        }
        last(&self.folder)
    }

    /// Called after that with the number: keeps it where no name says it any more. Not before, because a full filesystem has room
    /// for it only then.
    pub(crate) fn keep_last(&self, number: u64) -> Result<()> {
        // A link may go any day, and then its name says nothing.
        let newest = snapshots(&self.folder)?.pop();
        let newest = newest.map_or(0, |(name, _)| name.sequence);
        if newest.max(deleted(&self.folder)) >= number {
            return Ok(());
        }
        let path = self.folder.join(LAST);
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let opened = open_itself(&path, flags, "write", is_last);
        let opened = opened.map_err(|fault| Error::fault(path.display(), fault));
        // In place, the text first: a number that grows is never shorter.
        let text = format!("{number}\n");
        let written = opened.and_then(|file| {
            let written = file.write_all_at(text.as_bytes(), 0);
            let written = written.and_then(|()| file.set_len(units::to_u64(text.len())));
            let written = written.and_then(|()| file.sync_all());
            written.map_err(|error| Error::std(path.display(), "write", &error))
        });
        written.map_err(|error| {
            error
                .with_exit(Exit::Failed)
                .leaving("the snapshots are deleted, and their numbers may come again")
        })
    }

    /// Removes what [`retiring`] names, and gives it.
    pub(crate) fn retire(
        &self,
        host: &str,
        keep: usize,
        class: impl FnMut(&Path) -> Class,
    ) -> Result<Vec<PathBuf>> {
        let gone = retiring(&self.folder, host, keep, class)?;
        for path in &gone {
            std::fs::remove_file(path).map_err(|e| Error::std(path.display(), "remove", &e))?;
        }
        Ok(gone)
    }
}

/// For a run that touches nothing: whether somebody makes a snapshot there now. Not by the lock, which others would miss meanwhile.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let said = own(&folder.join(LOCK), is_lock).unwrap_or_default();
    match is_alive(&said) {
        true => Err(refused(folder, &said)),
        false => Ok(()),
    }
}

/// The name of the next snapshot of `host` made at `unix_seconds`.
pub(crate) fn next(folder: &Path, host: &str, unix_seconds: u64) -> Result<PathBuf> {
    let mut name = KeptName {
        host: host_in_name(host),
        time: Utc::from_unix(unix_seconds).compact(),
        sequence: last(folder)?,
    };
    // What has the very name would be followed, or in the way: in a folder with more names than are looked at.
    for _ in 0..=MAX_FILES {
        let following = name.sequence.checked_add(1);
        let Some(following) = following.filter(|number| *number < u64::MAX) else {
            return Err(Error::refused(format_args!(
                "{}: no number is left for a snapshot: {} is the highest that there is, in the name of one or in {LAST}; move what has it",
                folder.display(),
                name.sequence
            )));
        };
        name.sequence = following;
        let path = folder.join(name.file());
        if rustix::fs::lstat(&path).is_err() {
            return Ok(path);
        }
    }
    Err(Error::refused(format_args!(
        "{}: no number is left for a snapshot: {} is taken, and so are those before it",
        folder.display(),
        name.file()
    )))
}

/// The highest number that a snapshot in this folder has, or had when it was deleted: numbers say which is older, and so none comes
/// again. Whatever has the name of one has its number: a link may lead to where a snapshot of this folder was moved, and what is being
/// made, by whoever, is to get its name.
fn last(folder: &Path) -> Result<u64> {
    let all = named(folder)?;
    let is_left = |found: &Stored| unfinished(&found.file).is_some() && !found.is_being_made();
    let named = all.iter().filter(|found| !is_left(found));
    let names = named.filter_map(|found| KeptName::of(&found.path));
    let highest = names.map(|name| name.sequence).max();
    Ok(highest.unwrap_or(0).max(deleted(folder)))
}

/// What is noted of snapshots that were deleted.
fn deleted(folder: &Path) -> u64 {
    let text = own(&folder.join(LAST), is_last).unwrap_or_default();
    followed(text.trim()).unwrap_or(0)
}

/// The oldest snapshots of `host`, without which `keep` that are good remain; whatever is to stay is never among them and does
/// not count.
pub(crate) fn retiring(
    folder: &Path,
    host: &str,
    keep: usize,
    mut class: impl FnMut(&Path) -> Class,
) -> Result<Vec<PathBuf>> {
    let host = host_in_name(host);
    let mut left = keep;
    let mut gone = Vec::new();
    for (name, path) in snapshots(folder)?.into_iter().rev() {
        if name.host != host {
            continue;
        }
        match class(&path) {
            Class::Kept => {}
            Class::Good if left > 0 => left -= 1,
            Class::Broken if left > 0 => {}
            Class::Good | Class::Broken => gone.push(path),
        }
    }
    Ok(gone)
}

/// What a kept snapshot is to [`retiring`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Never removed.
    Kept,
    /// Counts.
    Good,
    /// Does not count; removed when it is older than those that stay.
    Broken,
}

impl Drop for Store {
    fn drop(&mut self) {
        // While it is still locked: whoever waits for it sees that the name is gone.
        let _ = std::fs::remove_file(&self.lock);
    }
}

/// The snapshots in a folder that have the name of one, by sequence number, the oldest first.
pub(crate) fn snapshots(folder: &Path) -> Result<Vec<(KeptName, PathBuf)>> {
    let mut found: Vec<(KeptName, PathBuf)> = kept(folder)?
        .into_iter()
        .filter_map(|found| Some((KeptName::parse(&found.file)?, found.path)))
        .collect();
    units::sort(&mut found, |(a, _), (b, _)| a.age() < b.age());
    Ok(found)
}

/// What lies in a folder.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Its name there.
    pub file: String,
    pub path: PathBuf,
    /// Whether it is a regular file itself, and no link to one.
    is_file: bool,
}

impl Stored {
    /// Whether it has the name of a snapshot, or of what a run left of one.
    fn is_named(&self) -> bool {
        let whole = unfinished(&self.file).unwrap_or(&self.file);
        whole.ends_with(".zip") || self.file.ends_with(partfile::LEFT)
    }

    fn is_being_made(&self) -> bool {
        self.is_file && is_written(&self.path, open_kept)
    }
}

/// The snapshots of a folder, whole or not, and what runs left of them, in no order: nothing else is read, counted or removed.
pub(crate) fn kept(folder: &Path) -> Result<Vec<Stored>> {
    let mut found = named(folder)?;
    found.retain(|found| found.is_file);
    Ok(found)
}

/// The same with what has only the name of one: `list` says of each what it is.
pub(crate) fn named(folder: &Path) -> Result<Vec<Stored>> {
    let mut found = everything(folder)?;
    found.retain(Stored::is_named);
    Ok(found)
}

/// Everything in a folder whose name is text, in no order.
fn everything(folder: &Path) -> Result<Vec<Stored>> {
    let fail = |e: std::io::Error| Error::std(folder.display(), "open", &e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)?.take(MAX_FILES) {
        let entry = entry.map_err(fail)?;
        if let Ok(file) = entry.file_name().into_string() {
            found.push(Stored {
                file,
                path: entry.path(),
                // Of a link it is the link's.
                is_file: entry.file_type().is_ok_and(|kind| kind.is_file()),
            });
        }
    }
    Ok(found)
}

/// The name that what has this one was to get: it is `NAME.part` or `NAME.N.part` (see `stream::partfile`).
fn unfinished(file: &str) -> Option<&str> {
    let file = file.strip_suffix(PART)?;
    let numbered = file.strip_suffix(|letter: char| letter.is_ascii_digit());
    let plain = numbered.and_then(|file| file.strip_suffix('.'));
    Some(plain.unwrap_or(file))
}

/// Opens a file of a store: only a regular one, never what a link in its place leads to, and without waiting for anybody.
pub(crate) fn open_kept(path: &Path) -> Result<File> {
    let check = |stat: &Stat| {
        Err(Fault::refused(
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => return Ok(()),
                FileType::Symlink => "is a link, and no snapshot: it is left alone",
                FileType::Directory => "is a folder, and no snapshot: it is left alone",
                _ => "is no regular file, and no snapshot: it is left alone",
            },
        ))
    };
    let opened = open_itself(path, OFlags::RDONLY, "open", check);
    opened.map_err(|fault| Error::fault(path.display(), fault))
}

/// Whether somebody writes this part file: whoever makes one holds it locked.
pub(crate) fn is_written(path: &Path, open: fn(&Path) -> Result<File>) -> bool {
    open(path).is_ok_and(|file| {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}

/// Opens the lock, or makes it.
fn open_lock(lock: &Path) -> Result<File> {
    let opened = open_itself(lock, OFlags::RDWR | OFlags::CREATE, "create", is_lock);
    opened.map_err(|fault| Error::fault(lock.display(), fault).leaving("nothing was written"))
}

/// The lock is written to, so that it has to be a file with one name: no link, FIFO or second name of something else. One without a
/// name was removed by its owner a moment ago.
fn is_lock(stat: &Stat) -> std::result::Result<(), Fault> {
    match is(stat, FileType::RegularFile) && stat.st_nlink <= 1 {
        true => Ok(()),
        false => Err(Fault::refused(
            "is not the lock of floe, which is a file of its own; remove it",
        )),
    }
}

/// The same of the number.
fn is_last(stat: &Stat) -> std::result::Result<(), Fault> {
    is_lock(stat).map_err(|_| {
        Fault::refused("is not the file of its own in which floe keeps a number: remove it")
    })
}

/// What a file of floe's own says: `None` where something else has its name.
fn own(path: &Path, check: fn(&Stat) -> std::result::Result<(), Fault>) -> Option<String> {
    let held = open_itself(path, OFlags::RDONLY, "open", check).ok()?;
    Some(content(&held))
}

fn content(mut held: &File) -> String {
    let mut text = String::new();
    let _ = limited(&mut held, 256).read_to_string(&mut text);
    text
}

/// On a filesystem without flock: whether the process that wrote the lock still runs, in this boot.
fn is_alive(content: &str) -> bool {
    match content.trim().split_once(' ') {
        Some((pid, boot)) => {
            boot == boot_id()
                && cli::number(pid).is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
        }
        None => false,
    }
}

fn refused(folder: &Path, content: &str) -> Error {
    let who = match content
        .split_once(' ')
        .and_then(|(pid, _)| cli::number(pid))
    {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    };
    Error::refused(format_args!(
        "{}: {who} is making a snapshot there; wait until it is done",
        folder.display()
    ))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_foreign_ones_are_not_ours() {
        let name = KeptName {
            host: host_in_name("my board/1"),
            time: Utc::from_unix(0).compact(),
            sequence: 7,
        };
        assert_eq!(name.file(), "my_board_1-19700101T000000Z-0007.zip");
        assert_eq!(KeptName::parse(&name.file()), Some(name));
        for foreign in [
            "x.zip",
            "a-b-c.zip",
            "h-19700101T000000Z-.zip",
            "h-19700101T000000Z-1.zip.part",
            "-19700101T000000Z-1.zip",
            "h-19700101T00000Z-1.zip",
            "h-19700101T000000Z-18446744073709551615.zip",
        ] {
            assert_eq!(KeptName::parse(foreign), None, "{foreign}");
        }
        assert_eq!(host_in_name("../x"), "host.._x");
    }

    #[test]
    fn one_writer_at_a_time_and_the_oldest_retire() {
        let folder = std::env::temp_dir().join(format!("floe-store-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let stale = folder.join("h-19700101T000000Z-0009.zip.part");
        std::fs::write(&stale, b"x").unwrap();
        // A lock that a killed process left does not count.
        std::fs::write(folder.join(LOCK), b"1 other-boot\n").unwrap();
        let store = Store::open(&folder).unwrap();
        assert!(!stale.exists());
        // Who only asks hears the same.
        let third = check(&folder).unwrap_err().to_string();
        let second = Store::open(&folder).unwrap_err().to_string();
        assert!(
            second.contains(&format!("process {}", std::process::id())),
            "{second}"
        );
        assert_eq!(third, second);
        for number in 1..=5 {
            let path = next(&folder, "h", 0).unwrap();
            assert!(
                path.to_string_lossy()
                    .ends_with(&format!("Z-000{number}.zip"))
            );
            std::fs::write(path, b"x").unwrap();
        }
        std::fs::write(folder.join("other-19700101T000000Z-0001.zip"), b"x").unwrap();
        let class = |path: &Path| match path.to_string_lossy().split("Z-000").nth(1) {
            Some("1.zip") => Class::Kept,
            Some("5.zip") => Class::Broken,
            _ => Class::Good,
        };
        let gone = retiring(&folder, "h", 2, class).unwrap();
        assert!(gone.iter().all(|path| path.exists()));
        assert_eq!(store.retire("h", 2, class).unwrap(), gone);
        assert!(gone.iter().all(|path| !path.exists()));
        assert_eq!(gone, [folder.join("h-19700101T000000Z-0002.zip")]);
        // The newest of all is deleted, and its number does not come again.
        let last = store.last().unwrap();
        store.keep_last(last).unwrap();
        assert!(!folder.join(LAST).exists());
        std::fs::remove_file(folder.join("h-19700101T000000Z-0005.zip")).unwrap();
        store.keep_last(last).unwrap();
        let path = next(&folder, "h", 0).unwrap();
        assert_eq!(path, folder.join("h-19700101T000000Z-0006.zip"));
        // Of what is no number, or none that can be followed, nothing is believed.
        for text in ["x", "18446744073709551615"] {
            std::fs::write(folder.join(LAST), text).unwrap();
            let path = next(&folder, "h", 0).unwrap();
            assert_eq!(path, folder.join("h-19700101T000000Z-0005.zip"));
        }
        // The number of a link is taken, though it is no snapshot; also when it is gone, once something was deleted.
        let link = |number| folder.join(format!("h-19700101T000000Z-{number:04}.zip"));
        for number in [5, 6, 99] {
            std::os::unix::fs::symlink("victim", link(number)).unwrap();
        }
        assert_eq!(next(&folder, "h", 0).unwrap(), link(100));
        assert_eq!(snapshots(&folder).unwrap().len(), 4);
        let last = store.last().unwrap();
        store.keep_last(last).unwrap();
        std::fs::remove_file(link(99)).unwrap();
        assert_eq!(next(&folder, "h", 0).unwrap(), link(100));
        // What somebody else put there is not written through.
        std::fs::write(folder.join("victim"), b"precious").unwrap();
        std::fs::remove_file(folder.join(LAST)).unwrap();
        std::os::unix::fs::symlink("victim", folder.join(LAST)).unwrap();
        assert!(store.last().is_err());
        assert!(store.keep_last(9).is_err());
        assert_eq!(std::fs::read(folder.join("victim")).unwrap(), b"precious");
        drop(store);
        assert!(check(&folder).is_ok());
        assert!(!folder.join(LOCK).exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_number_that_none_can_follow_is_no_number_and_one_that_is_being_made_is() {
        let folder = std::env::temp_dir().join(format!("floe-numbers-{}", std::process::id()));
        let name = |number: u64| folder.join(format!("a-20260101T000000Z-{number:04}.zip"));
        let following = || {
            let path = next(&folder, "h", 0).unwrap();
            KeptName::of(&path).unwrap().sequence
        };
        std::fs::create_dir_all(name(u64::MAX)).unwrap();
        for number in 1..=3 {
            assert_eq!(following(), number);
            std::fs::write(next(&folder, "h", 0).unwrap(), b"x").unwrap();
        }
        // Somebody makes one by a name of his own, which it gets when it is whole.
        let part = partfile::PartFile::create(&name(7)).unwrap();
        assert!(!name(7).exists());
        assert_eq!(following(), 8);
        drop(part);
        assert_eq!(following(), 4);
        // Nobody makes what was left of one, or what is no file.
        std::fs::write(folder.join("a-20260101T000000Z-0008.zip.part"), b"x").unwrap();
        std::os::unix::fs::symlink("x", folder.join("a-20260101T000000Z-0009.zip.part")).unwrap();
        assert_eq!(following(), 4);
        // What cannot be followed is never given.
        std::fs::write(name(u64::MAX - 2), b"x").unwrap();
        assert_eq!(following(), u64::MAX - 1);
        std::fs::write(name(u64::MAX - 1), b"x").unwrap();
        let error = next(&folder, "h", 0).unwrap_err();
        assert_eq!(error.exit(), Some(Exit::Refused));
        let error = error.to_string();
        let wanted = "no number is left for a snapshot: 18446744073709551614 is the highest";
        assert!(error.contains(wanted), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn every_name_of_a_part_file_is_one_and_whoever_writes_it_keeps_it() {
        for (file, whole) in [
            ("x.zip.part", Some("x.zip")),
            ("x.zip.1.part", Some("x.zip")),
            ("x.zip.12.part", Some("x.zip.12")),
            ("x.zip", None),
            ("x.zip.1", None),
        ] {
            assert_eq!(unfinished(file), whole, "{file}");
        }
        let folder = std::env::temp_dir().join(format!("floe-parts-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let target = folder.join("h-19700101T000000Z-0003.zip");
        // The first name is taken by what is not ours: the second is written.
        std::os::unix::fs::symlink("nowhere", folder.join("h-19700101T000000Z-0003.zip.part"))
            .unwrap();
        let part = partfile::PartFile::create(&target).unwrap();
        let second = folder.join("h-19700101T000000Z-0003.zip.1.part");
        assert_eq!(KeptName::of(&second).unwrap().sequence, 3);
        let names = |found: Vec<Stored>| found.into_iter().map(|found| found.path);
        assert!(names(kept(&folder).unwrap()).eq([second.clone()]));
        drop(Store::open(&folder).unwrap());
        assert!(second.exists() && is_written(&second, open_kept));
        drop(part);
        std::fs::write(&second, b"x").unwrap();
        assert!(!is_written(&second, open_kept));
        drop(Store::open(&folder).unwrap());
        assert!(!second.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
