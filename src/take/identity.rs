//! `floe show --identity`: which files of the golden list a mount, device or image holds, so that two of them can be compared.
//!
//! What is mounted is read by its files (any filesystem), from its own root, which other mounts do not cover; what is not mounted by its
//! bytes (ext). Only reads.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::device::{Range, ReadAt};
use crate::error::{Error, Fault, Result};
use crate::fs::files::{FoundFile, can_empty};
use crate::fs::{self, SCRATCH_BYTES, Walk};
use crate::golden::{LIST, ListedFile, Tree};
use crate::mounts::{Holding, Mounted, System};
use crate::ptable;
use crate::report::JsonObject;

/// What was found, in the order of the list.
pub(crate) struct Identities {
    path: String,
    rows: Vec<ListedFile>,
}

impl Identities {
    pub(crate) fn look(name: &OsStr) -> Result<Self> {
        let system = System::look()?;
        let source = system.resolve(name)?;
        let mut rows = Vec::new();
        let shown = source.shown.display();
        let fail = |fault| Error::fault(&shown, fault);
        match &source.holding {
            Holding::Mounted(mounted) => {
                let root = root(&system, mounted).map_err(fail)?;
                mounted_rows(root, &mut rows).map_err(fail)?;
            }
            Holding::Stacked(_) => {
                return Err(Error::refused(format_args!(
                    "{shown}: is in use by what lies on it; name the mount points"
                )));
            }
            Holding::Unmounted | Holding::ImageFile => {
                let table = ptable::read(&source.device, source.device.sector_bytes());
                let table = table.map_err(fail)?;
                let mut known = filesystem_rows(&source.device, &mut rows).map_err(fail)?;
                for partition in table.iter().flat_map(|table| &table.partitions) {
                    let range = Range {
                        device: &source.device,
                        extent: partition.extent,
                    };
                    known |= filesystem_rows(&range, &mut rows).map_err(fail)?;
                }
                if !known {
                    return Err(Error::refused(format_args!(
                        "{shown}: holds no ext2, ext3 or ext4; mount what it holds read-only and name the mount point"
                    )));
                }
            }
        }
        Ok(Self {
            path: Path::new(name).display().to_string(),
            rows,
        })
    }

    /// For scripts.
    pub(crate) fn object(&self) -> JsonObject {
        let row = |row: &ListedFile| {
            let mut object = JsonObject::new();
            object
                .str("path", &row.path)
                .u64("size_bytes", row.size_bytes)
                .str("fingerprint", &row.fingerprint);
            object.finish()
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        let mut object = JsonObject::new();
        object
            .str("path", &self.path)
            .raw("identity", &format!("[{}]", rows.join(",")));
        object
    }

    /// A line for each file.
    pub(crate) fn text(&self) -> String {
        // A name may hold anything: no control character reaches a terminal.
        let clean = |text: &str| text.replace(char::is_control, "?");
        let width = self.rows.iter().map(|row| row.path.chars().count()).max();
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&format!(
                "{:<width$}  {:>7}  {}\n",
                clean(&row.path),
                row.size_bytes,
                clean(&row.fingerprint),
                width = width.unwrap_or(0)
            ));
        }
        if out.is_empty() {
            out = "nothing of the golden list is here\n".into();
        }
        out
    }
}

/// The filesystem's own root: mounted once more where nothing covers it, or as it is.
fn root(system: &System, mounted: &Mounted) -> std::result::Result<OwnedFd, Fault> {
    let mount = &mounted.mount;
    if let (Some(dev), false) = (mounted.devices.first(), mount.dev.is_anonymous())
        && let Ok(root) = system
            .roots()
            .enter(*dev, &mount.filesystem, mounted.super_read_only())
    {
        return Ok(root);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(mounted.point(), flags, Mode::empty()).map_err(|e| Fault::io("open", e))
}

fn mounted_rows(root: OwnedFd, rows: &mut Vec<ListedFile>) -> std::result::Result<(), Fault> {
    let mut each = |seen: FoundFile<'_>| add(rows, seen);
    let mut tree = Tree::new(root, &mut each)?;
    for item in LIST {
        tree.look(item.path.as_bytes());
    }
    Ok(())
}

/// The rows of an ext filesystem; false for anything else.
fn filesystem_rows(
    device: &dyn ReadAt,
    rows: &mut Vec<ListedFile>,
) -> std::result::Result<bool, Fault> {
    let Some(identity) = fs::probe(device)?.filter(|found| can_empty(found.kind)) else {
        return Ok(false);
    };
    let mut scratch = vec![0; SCRATCH_BYTES];
    for item in LIST {
        let mut walk = Walk::new(device, &mut scratch);
        let mut each = |seen: FoundFile<'_>| add(rows, seen);
        fs::files::look(&identity, &mut walk, item.path.as_bytes(), &mut each)?;
    }
    Ok(true)
}

/// One row for a path, however many patterns lead to it.
fn add(rows: &mut Vec<ListedFile>, seen: FoundFile<'_>) {
    let row = ListedFile::new(seen);
    if !rows.iter().any(|known| known.path == row.path) {
        rows.push(row);
    }
}
