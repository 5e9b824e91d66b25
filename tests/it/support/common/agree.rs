//! What `dump` accepts, `verify` and `restore` accept: tried with every file that any test leaves in its folder, whatever it is, in
//! `tests/run --full` (which sets FLOE_AGREE).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Limit, floe, run};

/// Files with more data than this, in bytes, are left out.
const MOST_BYTES: u64 = 256 << 20;
/// And of so many, holes with them: reading holes takes its time, too.
const MOST_LENGTH_BYTES: u64 = 64 << 30;

/// Tries the files of a folder; gives what did not agree.
pub fn disagreements(folder: &Path) -> Vec<String> {
    if std::env::var_os("FLOE_AGREE").is_none() || super::runner().is_some() {
        return Vec::new();
    }
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    let is_tried = |path: &&PathBuf| {
        let meta = fs::symlink_metadata(path);
        meta.is_ok_and(|meta| {
            meta.is_file()
                && meta.blocks() * 512 <= MOST_BYTES
                && (1..=MOST_LENGTH_BYTES).contains(&meta.len())
        })
    };
    files
        .iter()
        .filter(is_tried)
        .filter_map(|path| disagreement(path))
        .collect()
}

fn disagreement(file: &Path) -> Option<String> {
    let folder = file.parent()?.join("agree");
    fs::create_dir_all(&folder).ok()?;
    let (image, target) = (folder.join("image.gz"), folder.join("target"));
    let words = |words: &[&OsStr]| -> Option<(Option<i32>, String)> {
        let mut floe: Command = floe()?;
        floe.args(words).arg("-q").stdin(Stdio::null());
        let run = run(&mut floe, Limit::secs(300));
        Some((run.code, run.stderr_text()))
    };
    let (image, target) = (image.as_os_str(), target.as_os_str());
    let word = OsStr::new;
    let dumped = words(&[word("dump"), file.as_os_str(), word("-o"), image])?;
    let found = match dumped.0 {
        Some(0) => {
            let verified = words(&[word("verify"), image])?;
            let restored = words(&[word("restore"), image, target])?;
            match (verified.0, restored.0) {
                (Some(0), Some(0)) => None,
                _ => Some(format!(
                    "{}: dump is content, verify: {verified:?}, restore: {restored:?}",
                    file.display()
                )),
            }
        }
        // Refused or failed, and told of.
        Some(1..=4) => None,
        _ => Some(format!("{}: dump: {dumped:?}", file.display())),
    };
    let _ = fs::remove_dir_all(&folder);
    found
}
