//! Files to fill a filesystem with, and whether two trees hold the same.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::output;

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The names in a folder, in order.
#[track_caller]
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut found: Vec<String> = entries.map(|entry| name(entry.expect("entry"))).collect();
    found.sort();
    found
}

/// Makes a file of holes, or cuts one down to them.
#[track_caller]
pub fn sparse(path: impl AsRef<Path>, bytes: u64) {
    fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .expect("a file of holes");
}

/// Writes over a part of a file.
#[track_caller]
pub fn write_at(path: &Path, bytes: &[u8], at: u64) {
    let file = fs::File::options().write(true).open(path).expect("open");
    file.write_all_at(bytes, at).expect("write");
}

/// A small generator with a seed, so that every run writes the same bytes (xorshift64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 8);
        while out.len() < count {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(count);
        out
    }
}

/// A mixture of real-looking files; every third is deleted again, so that free space holds old bytes.
pub fn fill(dir: &Path, files: u32) {
    let mut random = Random(0x5eed_f10e);
    for number in 0..files {
        let folder = dir.join(format!("folder{}", number % 13));
        fs::create_dir_all(&folder).expect("folder");
        let path = folder.join(format!("file{number}"));
        let size = match number % 5 {
            0 => random.below(60),
            1..=3 => random.below(20_000),
            _ => random.below(200_000),
        };
        let size = usize::try_from(size).expect("small");
        let bytes = if number % 2 == 0 {
            random.bytes(size)
        } else {
            format!("line of text number {number}\n")
                .repeat(size / 24 + 1)
                .into_bytes()
        };
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if number % 11 == 0 {
            let _ = std::os::unix::fs::symlink(&path, folder.join(format!("link{number}")));
        }
        if number % 17 == 0 {
            fs::File::create(folder.join(format!("sparse{number}")))
                .and_then(|file| file.set_len(1 << 20))
                .expect("sparse file");
        }
    }
    for number in (0..files).step_by(3) {
        let _ = fs::remove_file(dir.join(format!("folder{}/file{number}", number % 13)));
    }
    output("sync", &["-f", &dir.to_string_lossy()]);
}

/// Everything below a folder: path → kind, mode, owner, size and a hash of the content. Two trees are equal exactly
/// when these maps are. `lost+found` and the folder's own times are left out.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(folder) = waiting.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("entry").path();
            let name = path.strip_prefix(dir).expect("below").to_owned();
            if name == Path::new("lost+found") {
                continue;
            }
            let meta =
                fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let content = if meta.is_dir() {
                waiting.push(path);
                0
            } else if meta.is_symlink() {
                hash(
                    fs::read_link(&path)
                        .expect("link")
                        .to_string_lossy()
                        .as_bytes(),
                )
            } else if meta.is_file() {
                hash_file(&path)
            } else {
                meta.rdev()
            };
            let size = if meta.is_dir() { 0 } else { meta.len() };
            let line = format!(
                "{:o} {}:{} {size} {content:016x}",
                meta.mode(),
                meta.uid(),
                meta.gid()
            );
            found.insert(name, line);
        }
    }
    found
}

/// Panics with the first differences unless two trees are equal.
#[track_caller]
pub fn assert_same_tree(expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) {
    let mut wrong = Vec::new();
    for (path, line) in expected {
        match found.get(path) {
            None => wrong.push(format!("{} is missing", path.display())),
            Some(other) if other != line => {
                wrong.push(format!("{}: {line} became {other}", path.display()));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        wrong.push(format!("{} is new", path.display()));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} entries differ: {:#?}",
        wrong.len(),
        expected.len(),
        &wrong[..wrong.len().min(10)]
    );
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A hash of a file's or device's content, read in pieces.
pub fn hash_file(path: &Path) -> u64 {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if count == 0 {
            return hasher.finish();
        }
        hasher.write(&buffer[..count]);
    }
}
