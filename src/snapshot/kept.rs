//! A snapshot that lies in a file: what it says of itself, and whether it is whole.
//!
//! Reads metadata and checksum lists, never the images: that their bytes are right is what `floe verify` finds out.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::config;
use crate::error::{Error, Exit, Result};
use crate::features;
use crate::mounts::is_tag;
use crate::report::{Bytes, JsonObject, clean, exact};
use crate::snapshot::archive::{self, Catalog};
use crate::snapshot::machine;
use crate::snapshot::store::{self, KeptName, Stored, is_written, open_kept};
use crate::snapshot::{Checksum, Checksums, ImageEntry, Snapshot, image_path};
use crate::stream::partfile;
use crate::stream::unzip;
use crate::take::options::used_words;
use crate::units;
use crate::utc::Utc;

/// How far a snapshot in a file is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// All of it is there, as far as its ends say.
    Complete,
    /// Somebody writes it now.
    BeingMade,
    /// It was cut short.
    Incomplete,
    /// A newer floe made it, and this one does not know its format.
    Newer,
    /// Its parts do not fit each other, or it is none.
    Damaged,
    /// The machine does not give its bytes, so that nobody knows what it is.
    Unreadable,
    /// A link, a folder, a pipe: no file, whatever it is called.
    Foreign,
}

impl Condition {
    /// As `list` says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::BeingMade => "being made",
            Self::Incomplete => "incomplete",
            Self::Newer => "newer format",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Foreign => "no snapshot",
        }
    }
}

/// The path that `name` means: one that is there, or else a snapshot of the store by its name or as `latest`.
pub(crate) fn path_of(name: &OsStr) -> Result<OsString> {
    let first = partfile::piece(Path::new(name), 1);
    if name != "-" && first.is_file() && !Path::new(name).exists() {
        return Err(Error::refused(format_args!(
            "{}: is in pieces: name the first one, {}",
            name.display(),
            first.display()
        )));
    }
    if !features::SNAPSHOTS
        || name == "-"
        || name.as_bytes().contains(&b'/')
        || Path::new(name).exists()
    {
        return Ok(name.to_owned());
    }
    // A store that cannot be read is not what is wrong with a name that was mistyped.
    let folder = match config::store() {
        Err(error) if name != "latest" && error.exit() == Some(Exit::Refused) => None,
        folder => folder?,
    };
    let folder = match folder {
        None if name == "latest" => self::folder()?,
        None => return Ok(name.to_owned()),
        Some(folder) => folder,
    };
    match find(&folder, name) {
        Ok(Some(path)) => Ok(path.into()),
        Err(error) if name == "latest" => Err(error),
        Ok(None) if name == "latest" => Err(none(&folder, name)),
        Ok(None) if !is_tag(name) => Err(foreign(&folder, name).unwrap_or_else(|| {
            Error::refused(format_args!(
                "{}: is no file here, and no snapshot of {}; floe list shows what there is",
                name.display(),
                folder.display()
            ))
        })),
        _ => Ok(name.to_owned()),
    }
}

/// The snapshot of the store that `name` means: a file's name, with or without its ending, or `latest`, the newest that is complete.
pub(crate) fn find(folder: &Path, name: &OsStr) -> Result<Option<PathBuf>> {
    if name == "latest" {
        let all = store::snapshots(folder)?;
        let newest = all.into_iter().rev().map(|(_, path)| path);
        return first_complete(newest, |path| Catalog::open_kept(path).map(|_| ()));
    }
    Ok(called(store::kept(folder)?, name))
}

/// The first of these that is a snapshot. One that is to be kept may be it, too; one that was cut or is damaged, of a newer floe, or
/// gone, never is. Of one that cannot be read nobody knows: an older one in its place would be taken for it.
fn first_complete(
    paths: impl Iterator<Item = PathBuf>,
    read: impl Fn(&Path) -> Result<()>,
) -> Result<Option<PathBuf>> {
    for path in paths {
        match read(&path) {
            Ok(()) => return Ok(Some(path)),
            Err(error) if matches!(error.exit(), Some(Exit::Corrupt | Exit::Refused)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Which of these has the name. In a store may lie what has a name of its own. One that has the whole name comes before one that has it
/// with an ending.
fn called(all: Vec<Stored>, name: &OsStr) -> Option<PathBuf> {
    let is = |found: &&Stored| name == found.file.as_str();
    let is_stem = |found: &&Stored| {
        let stem = found.file.strip_suffix(".zip");
        stem.is_some_and(|stem| name == stem)
    };
    let found = all.iter().find(is).or_else(|| all.iter().find(is_stem))?;
    Some(found.path.clone())
}

/// The error where [`find`] found nothing.
pub(crate) fn none(folder: &Path, name: &OsStr) -> Error {
    foreign(folder, name).unwrap_or_else(|| {
        Error::refused(format_args!(
            "{}: has no snapshot '{}'; floe list shows what there is",
            folder.display(),
            name.display()
        ))
    })
}

/// What has the name of a snapshot there and is none, as `list` says it.
fn foreign(folder: &Path, name: &OsStr) -> Option<Error> {
    open_kept(&called(store::named(folder).ok()?, name)?).err()
}

/// The folder of kept snapshots, where nothing can be done without one.
pub(crate) fn folder() -> Result<PathBuf> {
    config::store()?.ok_or_else(|| {
        let is_there = Path::new(config::CONFIG).exists();
        Error::refused(format_args!(
            "{}: {} 'store = DIR', which names the folder of the snapshots that are kept here",
            config::CONFIG,
            if is_there {
                "has no line"
            } else {
                "is not there, and so has no line"
            }
        ))
    })
}

/// Whether an interrupted pull left it for the next one.
fn is_left(path: &Path) -> bool {
    let ending = partfile::LEFT.strip_prefix('.');
    path.extension().and_then(OsStr::to_str) == ending
}

/// Whether it is being made, or a run that died left it.
fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "part")
}

/// A snapshot in a file, whole or not.
pub(crate) struct Kept {
    path: PathBuf,
    size_bytes: u64,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) checksums: Option<Checksums>,
    pub(super) state: Condition,
    /// Why it is not complete.
    reason: Option<String>,
}

impl Kept {
    /// Looks at a file that the user named.
    pub(crate) fn look(path: PathBuf) -> Self {
        let found = Catalog::open(&path);
        let meta = std::fs::metadata(&path).ok();
        Self::judge(path, found, meta, archive::open_file)
    }

    /// Looks at what has the name of a snapshot in a store, where no link is followed. `None`: nothing has it any more, as what is being
    /// made is renamed once it is whole.
    pub(crate) fn look_in_store(path: PathBuf) -> Option<Self> {
        let found = Catalog::open_kept(&path);
        let meta = std::fs::symlink_metadata(&path).ok();
        let kept = Self::judge(path, found, meta, open_kept);
        // Asked last: whatever was found before may be of a name that went meanwhile.
        let is_gone = rustix::fs::lstat(&kept.path).err() == Some(Errno::NOENT);
        (!is_gone).then_some(kept)
    }

    fn judge(
        path: PathBuf,
        found: Result<Catalog>,
        meta: Option<Metadata>,
        open: fn(&Path) -> Result<File>,
    ) -> Self {
        let meta = meta.filter(Metadata::is_file);
        let size_bytes = meta.as_ref().map_or(0, Metadata::len);
        let left = is_left(&path);
        let part = left || is_part(&path);
        let state = match &found {
            _ if part && is_written(&path, open) => Condition::BeingMade,
            Ok(_) if !part => Condition::Complete,
            // A pipe, a folder, a link to nothing.
            Err(_) if meta.is_none() => Condition::Foreign,
            Err(error) if error.exit() == Some(Exit::Refused) => Condition::Newer,
            Err(error) if error.exit() == Some(Exit::Failed) => Condition::Unreadable,
            Err(_) if !part && open(&path).is_ok_and(|file| unzip::is_ended(&file)) => {
                Condition::Damaged
            }
            _ => Condition::Incomplete,
        };
        let (snapshot, checksums, reason) = match found {
            // It is no archive.
            _ if left && meta.is_some() => (
                None,
                None,
                Some("an interrupted pull left it, and the next one goes on from it".into()),
            ),
            _ if state == Condition::BeingMade => (
                archive::beginning(&path, open),
                None,
                Some("is being made".into()),
            ),
            Ok(catalog) => (
                Some(catalog.snapshot),
                Some(catalog.checksums),
                part.then(|| "was not finished".to_owned()),
            ),
            Err(error) => {
                let text = error.to_string();
                let subject = format!("{}: ", path.display());
                let reason = text.strip_prefix(&subject).unwrap_or(&text).to_owned();
                (archive::beginning(&path, open), None, Some(reason))
            }
        };
        Self {
            path,
            size_bytes,
            snapshot,
            checksums,
            state,
            reason,
        }
    }

    /// Whether somebody writes it now.
    pub(crate) fn is_being_made(&self) -> bool {
        self.state == Condition::BeingMade
    }

    /// Everything in the folder that is a snapshot or wants to be one, the oldest first: what has a number by it, as `latest` and
    /// `--keep` have it, and what has a name of its own between them by when it says it was made (last where it says nothing).
    pub(crate) fn all(folder: &Path) -> Result<Vec<Self>> {
        Ok(Self::each(store::named(folder)?))
    }

    fn each(named: Vec<Stored>) -> Vec<Self> {
        let (mut numbered, mut found) = (Vec::new(), Vec::new());
        let there = named
            .into_iter()
            .filter_map(|stored| Self::look_in_store(stored.path));
        for kept in there {
            match KeptName::of(&kept.path) {
                Some(name) => numbered.push((name, kept)),
                None => found.push((kept.time_s().unwrap_or(u64::MAX), None, kept)),
            }
        }
        units::sort(&mut numbered, |(a, a_kept), (b, b_kept)| {
            (a.age(), &a_kept.path) < (b.age(), &b_kept.path)
        });
        // Where a clock was set back, none is older than the one before it.
        let mut newest_s = 0;
        for (place, (_, kept)) in numbered.into_iter().enumerate() {
            newest_s = newest_s.max(kept.time_s().unwrap_or(0));
            found.push((newest_s, Some(place), kept));
        }
        units::sort(&mut found, |(a_s, a, a_kept), (b_s, b, b_kept)| {
            (a_s, a, &a_kept.path) < (b_s, b, &b_kept.path)
        });
        found.into_iter().map(|(_, _, kept)| kept).collect()
    }

    /// When it says it was made.
    fn time_s(&self) -> Option<u64> {
        self.snapshot.as_ref().map(|snapshot| snapshot.time_s)
    }

    /// What is wrong with it where not even its beginning is a snapshot's.
    pub(crate) fn unknown(&self) -> Option<Error> {
        let reason = self.reason.as_ref().filter(|_| self.snapshot.is_none())?;
        let path = self.path.display();
        Some(Error::with(self.exit(), format_args!("{path}: {reason}")))
    }

    /// What is wrong with what is no snapshot, or not all of one, and is not being made either.
    pub(crate) fn broken(&self) -> Option<Error> {
        let reason = self.reason.as_ref().filter(|_| !self.is_being_made())?;
        let (path, state) = (self.path.display(), self.state.name());
        Some(Error::with(
            self.exit(),
            format_args!("{path}: {state}: {reason}"),
        ))
    }

    fn exit(&self) -> Exit {
        match self.state {
            Condition::Newer => Exit::Refused,
            Condition::Unreadable => Exit::Failed,
            _ => Exit::Corrupt,
        }
    }

    /// Why it does not go without being told to.
    pub(crate) fn stays(&self) -> Option<&'static str> {
        match (&self.snapshot, self.state) {
            (Some(snapshot), _) if snapshot.marks().any() => {
                Some("is marked as factory or rescue snapshot")
            }
            (_, Condition::Newer) => {
                Some("is a snapshot of a newer floe, which may be one to be kept")
            }
            (None, Condition::Unreadable) => Some("cannot be read, and may be one to be kept"),
            (None, Condition::Damaged | Condition::Incomplete)
                if !is_left(&self.path)
                    && !is_part(&self.path)
                    && archive::begins_so(&self.path) =>
            {
                Some("is damaged where it says what it is, and may be one to be kept")
            }
            _ => None,
        }
    }

    fn age_s(&self, now_s: u64) -> Option<u64> {
        now_s.checked_sub(self.time_s()?)
    }

    /// Everything about it, as JSON.
    pub(crate) fn object(&self, now_s: u64) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("path", &self.path.display().to_string())
            .str("kind", "snapshot")
            .bool("complete", self.state == Condition::Complete)
            .str("state", self.state.name());
        match &self.reason {
            Some(reason) => object.str("reason", reason),
            None => object.null("reason"),
        };
        object.u64("size_bytes", self.size_bytes);
        // Under the name that it has of an image, too.
        object.u64("packed_bytes", self.size_bytes);
        match self.age_s(now_s) {
            Some(age) => object.u64("age_s", age),
            None => object.null("age_s"),
        };
        if let Some(snapshot) = &self.snapshot {
            object
                .u64("time_s", snapshot.time_s)
                .str("time", &Utc::from_unix(snapshot.time_s).to_string())
                .str("host", &snapshot.host)
                .str("architecture", &snapshot.architecture)
                .str("board", &snapshot.board)
                .str("kernel", &snapshot.kernel)
                .str("os", &snapshot.os)
                .str("floe", &snapshot.floe)
                .str("comment", &snapshot.comment)
                .bool("factory", snapshot.factory)
                .bool("rescue", snapshot.rescue)
                .raw("entries", &entries(snapshot, self.checksums.as_ref()));
            match &snapshot.disk {
                Some(disk) => object.str("disk", &disk.device),
                None => object.null("disk"),
            };
        }
        if let Some(checksums) = &self.checksums {
            object
                .u64("frozen_ms", checksums.frozen_ms)
                .str("consistent", &checksums.consistent);
        }
        object
    }

    /// What `show` says of an image.
    fn words(&self, image: &ImageEntry) -> String {
        let sums = sums(self.checksums.as_ref(), image);
        let used = match sums {
            Some(Checksum {
                used_bytes: Some(used_bytes),
                map,
                ..
            }) => used_words(map, *used_bytes),
            // What was known before it was read.
            _ => format!("about {} used", Bytes(image.used_bytes)),
        };
        let packed = sums.map(|sums| format!(", {} packed", Bytes(sums.stored_bytes)));
        let label = match image.label.as_str() {
            "" => String::new(),
            label => format!(", label {label}"),
        };
        format!(
            "{} on {}, {}, {used}{}{label}",
            image.filesystem,
            image.device,
            exact(image.size_bytes),
            packed.unwrap_or_default()
        )
    }

    /// Whether what it holds was not held still.
    fn is_live(&self) -> bool {
        let sums = self.checksums.as_ref();
        sums.is_some_and(|sums| sums.consistent == "live")
    }

    /// Its line of the table: name, size, age, state, and what is in it or what is wrong with it.
    pub(crate) fn row(&self, now_s: u64) -> [String; 5] {
        let name = self.path.file_name().unwrap_or_default();
        let mut what = String::new();
        if let Some(snapshot) = &self.snapshot {
            let names: Vec<&str> = snapshot.images.iter().map(|i| i.name.as_str()).collect();
            what.push_str(&names.join(" "));
            let marks = [
                (snapshot.factory, "factory"),
                (snapshot.rescue, "rescue"),
                (snapshot.golden, "golden"),
                (self.is_live(), "live"),
            ];
            for (is, word) in marks {
                if is {
                    what.push_str(&format!(" ({word})"));
                }
            }
            if !snapshot.comment.is_empty() {
                what.push_str(&format!(": {}", clean(&snapshot.comment)));
            }
        }
        if let Some(reason) = self.reason.as_ref().filter(|_| !self.is_being_made()) {
            what.push_str(if what.is_empty() { "" } else { "; " });
            what.push_str(&clean(reason));
        }
        [
            clean(&name.to_string_lossy()),
            Bytes(self.size_bytes).to_string(),
            self.age_s(now_s).map_or_else(|| "-".into(), age),
            self.state.name().into(),
            what,
        ]
    }

    /// What `show` prints.
    pub(crate) fn show(&self, json: bool) -> String {
        let now_s = machine::now_s();
        if json {
            return format!("{}\n", self.object(now_s).finish());
        }
        let mut out = String::new();
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                out.push_str(&format!("{name:<14}{}\n", clean(value)));
            }
        };
        row("path", &self.path.display().to_string());
        row("kind", "snapshot");
        if let Some(snapshot) = &self.snapshot {
            let images = snapshot.images.iter();
            let sum = images.fold(0u64, |sum, image| sum.saturating_add(image.size_bytes));
            row("size", &exact(sum));
        }
        row("packed", &exact(self.size_bytes));
        match &self.reason {
            Some(reason) => row("state", &format!("{}: {reason}", self.state.name())),
            None => row("state", "complete (floe verify checks every byte)"),
        }
        if let Some(snapshot) = &self.snapshot {
            let age = self.age_s(now_s).map(|s| format!(" ({} ago)", age(s)));
            let time = Utc::from_unix(snapshot.time_s).to_string();
            row("time", &format!("{time}{}", age.unwrap_or_default()));
            row("host", &snapshot.host);
            row("architecture", &snapshot.architecture);
            row("board", &snapshot.board);
            row("kernel", &snapshot.kernel);
            row("os", &snapshot.os);
            row("comment", &snapshot.comment);
            row("factory", if snapshot.factory { "yes" } else { "" });
            row("rescue", if snapshot.rescue { "yes" } else { "" });
            if let Some(disk) = &snapshot.disk {
                row(
                    "disk",
                    &format!(
                        "{}, {}, {}",
                        disk.device,
                        disk.table,
                        exact(disk.size_bytes)
                    ),
                );
            }
            for image in &snapshot.images {
                row(&image.name, &self.words(image));
            }
        }
        if let Some(checksums) = &self.checksums {
            let frozen = format!(
                "{}, frozen {} ms",
                checksums.consistent, checksums.frozen_ms
            );
            row("consistent", &frozen);
        }
        out
    }

    /// What `show --report` writes.
    pub(crate) fn report(&self) -> JsonObject {
        self.object(machine::now_s())
    }
}

/// The images of a snapshot, as reports and `show` have them; what was written of each, where that is known.
pub(crate) fn entries(snapshot: &Snapshot, checksums: Option<&Checksums>) -> String {
    let mut list = String::from("[");
    for (index, image) in snapshot.images.iter().enumerate() {
        let mut object = JsonObject::new();
        for (key, text) in image.texts() {
            object.str(key, text);
        }
        let sums = sums(checksums, image);
        let used_bytes = sums.and_then(|sums| sums.used_bytes);
        object
            .u64("partition_number", image.partition_number)
            .u64("size_bytes", image.size_bytes)
            .u64("used_bytes", used_bytes.unwrap_or(image.used_bytes));
        if let Some(sums) = sums {
            object
                .u64("stored_bytes", sums.stored_bytes)
                .str("crc32", &format!("{:08x}", sums.crc32))
                .str("map", &sums.map);
        }
        list.push_str(if index > 0 { "," } else { "" });
        list.push_str(&object.finish());
    }
    list.push(']');
    list
}

/// What was written of an image.
fn sums<'a>(checksums: Option<&'a Checksums>, image: &ImageEntry) -> Option<&'a Checksum> {
    checksums?.find(&image_path(&image.name))
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;
    use crate::snapshot::{Marks, testing};

    /// A folder for a test, and the names of snapshots in it.
    fn store(name: &str) -> (PathBuf, impl Fn(u64) -> PathBuf) {
        let folder = std::env::temp_dir().join(format!("floe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let there = folder.clone();
        let path = move |number: u64| there.join(format!("h-19700101T000000Z-{number:04}.zip"));
        (folder, path)
    }

    #[test]
    fn latest_is_the_newest_that_is_complete_marked_or_not() {
        let (folder, path) = store("latest");
        let latest = || find(&folder, OsStr::new("latest")).unwrap();
        let marked = testing::marked(Marks {
            factory: true,
            rescue: false,
        });
        std::fs::write(path(1), testing::marked(Marks::default())).unwrap();
        assert_eq!(latest(), Some(path(1)));
        std::fs::write(path(2), &marked).unwrap();
        assert_eq!(latest(), Some(path(2)));
        // One that was cut still says that it is to be kept.
        std::fs::write(path(3), &marked[..marked.len() - 30]).unwrap();
        std::fs::write(path(4), testing::newer()).unwrap();
        std::os::unix::fs::symlink(path(1), path(5)).unwrap();
        let stays = |number| Kept::look_in_store(path(number)).unwrap().stays();
        assert!(stays(1).is_none());
        assert!(stays(3).unwrap().contains("factory"));
        assert!(stays(4).unwrap().contains("newer floe"));
        assert_eq!(
            Kept::look_in_store(path(4)).unwrap().state,
            Condition::Newer
        );
        assert_eq!(latest(), Some(path(2)));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn latest_passes_over_what_is_no_snapshot_and_not_over_what_cannot_be_read() {
        let (folder, path) = store("unread");
        let whole = testing::marked(Marks::default());
        std::fs::write(path(1), &whole).unwrap();
        // Wherever it was cut, that is no fault of the machine.
        for length in 0..whole.len() {
            std::fs::write(path(2), &whole[..length]).unwrap();
            let latest = find(&folder, OsStr::new("latest")).unwrap();
            assert_eq!(latest, Some(path(1)), "{length}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        let latest = |fault: fn() -> Fault| {
            first_complete([path(2), path(1)].into_iter(), |tried| {
                match *tried == path(2) {
                    true => Err(Error::fault(tried.display(), fault())),
                    false => Ok(()),
                }
            })
        };
        for fault in [
            || Fault::corrupt("x"),
            || Fault::refused("is a link"),
            || Fault::io("open", Errno::NOENT),
        ] {
            assert_eq!(latest(fault).unwrap(), Some(path(1)));
        }
        for fault in [
            || Fault::io("read", Errno::IO),
            || Fault::io("open", Errno::ACCESS),
        ] {
            let error = latest(fault).unwrap_err();
            assert_eq!(error.exit(), Some(Exit::Failed));
            assert!(error.to_string().contains("-0002.zip"), "{error}");
        }
    }

    #[test]
    fn what_was_renamed_since_its_name_was_read_is_left_out() {
        let (folder, path) = store("renamed");
        std::fs::write(path(1), testing::marked(Marks::default())).unwrap();
        let part = folder.join("h-19700101T000000Z-0002.zip.part");
        std::fs::write(&part, testing::marked(Marks::default())).unwrap();
        let named = || store::named(&folder).unwrap();
        assert_eq!(Kept::each(named()).len(), 2);
        let before = named();
        std::fs::rename(&part, path(2)).unwrap();
        let paths: Vec<PathBuf> = Kept::each(before).into_iter().map(|k| k.path).collect();
        assert_eq!(paths, [path(1)]);
        // A link to nothing is there.
        std::os::unix::fs::symlink("nowhere", path(3)).unwrap();
        assert_eq!(Kept::each(named()).len(), 3);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_has_the_name_of_a_snapshot_and_is_no_file_is_called_what_it_is() {
        let (folder, path) = store("foreign");
        std::fs::create_dir(folder.join("folder.zip")).unwrap();
        std::fs::write(path(1), testing::marked(Marks::default())).unwrap();
        std::os::unix::fs::symlink(path(1), path(5)).unwrap();
        for (name, what) in [
            ("h-19700101T000000Z-0005", "is a link, and no snapshot"),
            ("folder", "is a folder, and no snapshot"),
            ("folder.zip", "is a folder, and no snapshot"),
            ("x", "has no snapshot 'x'"),
        ] {
            assert_eq!(find(&folder, OsStr::new(name)).unwrap(), None);
            let said = none(&folder, OsStr::new(name)).to_string();
            assert!(said.contains(what), "{said}");
        }
        for (name, what) in [
            (path(5), "is a link"),
            (folder.join("folder.zip"), "is a folder"),
        ] {
            let kept = Kept::look_in_store(name).unwrap();
            assert_eq!(kept.state, Condition::Foreign);
            assert!(kept.reason.unwrap().starts_with(what));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
