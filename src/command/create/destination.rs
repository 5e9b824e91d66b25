//! Where a snapshot goes, and its output while it is open; what would stand there, for `--dry-run`.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::command::create::Options;
use crate::config;
use crate::error::{Error, Fault, Result};
use crate::put::room::{self, Need};
use crate::report::{self, Bytes};
use crate::snapshot::Snapshot;
use crate::snapshot::retire::{self, Like};
use crate::snapshot::store::{self, Store};
use crate::stream::partfile::{PartFile, Place};
use crate::take::source::Prepared;
use crate::take::{glimpse, options};

/// Where the snapshot goes.
pub(super) enum Destination {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

/// The destination that was asked for, if it can be one.
pub(super) fn of(options: &Options) -> Result<Destination> {
    let place = match &options.output {
        Some(path) if path == Path::new("-") => Destination::Stdout,
        Some(path) if path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir() => {
            Destination::Folder(path.clone())
        }
        Some(path) => Destination::File(path.clone()),
        None if options.streaming.frames => Destination::Stdout,
        None => match config::store()? {
            Some(folder) => Destination::Folder(folder),
            None => Destination::Stdout,
        },
    };
    if matches!(place, Destination::Stdout) {
        report::check_data("-o DIR or -o FILE", "nothing was frozen")?;
    }
    match &place {
        Destination::Folder(folder) if !folder.is_dir() => Err(Error::refused(format_args!(
            "{}: is not a folder",
            folder.display()
        ))),
        Destination::Stdout | Destination::File(_) if options.keep.is_some() => Err(Error::usage(
            "create: --keep needs a folder of snapshots (-o DIR, or store = DIR in /etc/floe.conf)",
        )),
        _ => Ok(place),
    }
}

pub(super) struct OpenOutput {
    pub store: Option<Store>,
    pub part: Option<PartFile>,
    pub fd: OwnedFd,
    pub shown: String,
}

impl OpenOutput {
    pub(super) fn open(place: &Destination, host: &str, time_s: u64) -> Result<Self> {
        let (store, path) = match place {
            Destination::Stdout => {
                let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
                    .map_err(|errno| Error::fault("stdout", Fault::io("dup", errno)))?;
                return Ok(Self {
                    store: None,
                    part: None,
                    fd,
                    shown: "stdout".into(),
                });
            }
            Destination::File(path) => (None, path.clone()),
            Destination::Folder(folder) => {
                let store = Store::open(folder)?;
                let path = store::next(folder, host, time_s)?;
                (Some(store), path)
            }
        };
        let (part, fd) = PartFile::begin(&path)?;
        Ok(Self {
            store,
            part: Some(part),
            fd,
            shown: path.display().to_string(),
        })
    }
}

/// `--dry-run`: whether there could be a file, what it would be called, what would be in it, and what would go for it.
pub(super) fn would(
    options: &Options,
    place: &Destination,
    snapshot: &Snapshot,
    sources: &[Prepared],
) -> Result<Error> {
    let mut retiring = Vec::new();
    let shown = match place {
        Destination::Stdout => "stdout".to_owned(),
        Destination::File(path) => {
            PartFile::check(path)?;
            path.display().to_string()
        }
        Destination::Folder(folder) => {
            store::check(folder)?;
            let path = store::next(folder, &snapshot.host, snapshot.time_s)?;
            PartFile::check(&path)?;
            if let Some(keep) = options.keep {
                // The new one is one of those that stay, unless it is kept apart.
                let like = Like {
                    snapshot,
                    consistent: options::weakest(sources),
                };
                let class = |path: &Path| retire::class(path, &like);
                let others = keep - usize::from(!(options.factory || options.rescue));
                retiring = store::retiring(folder, &snapshot.host, others, class)?;
            }
            path.display().to_string()
        }
    };
    let (mut lines, mut all) = (Vec::new(), 0u64);
    for (image, source) in snapshot.images.iter().zip(sources) {
        let used = glimpse::of_source(source);
        let used = used.map_err(|fault| Error::fault(&source.shown, fault))?;
        all = all.saturating_add(used);
        lines.push(format!(
            "{shown}: would hold {} ({} of {}, {}, about {} used)",
            image.name,
            image.filesystem,
            image.source,
            Bytes(image.size_bytes),
            Bytes(used)
        ));
    }
    if !matches!(place, Destination::Stdout) {
        let near = Place::find(Path::new(&shown))?;
        // How well it packs is not known; that it takes something is.
        let need = Need {
            least_bytes: 1,
            most_bytes: all,
        };
        let doubt = room::check_at(near.path(), &near.folder, 0, need)?;
        let after = match retiring.is_empty() {
            true => "",
            false => "; what --keep removes goes only when the new one is complete",
        };
        lines.extend(doubt.map(|line| line + after));
    }
    for path in retiring {
        lines.push(format!(
            "{}: would be removed, because --keep keeps {} of the same entries, sources and kind, and newer ones are that many",
            path.display(),
            options.keep.unwrap_or_default()
        ));
    }
    Ok(report::dry(&options.common, lines))
}
