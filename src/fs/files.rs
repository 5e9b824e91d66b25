//! Files of a filesystem by their names, in its own tree and without mounting it: read them, or have an image in which they are empty.
//!
//! Bytes in, changes out: nothing here follows a mount of the running system, and nothing allocates once [`Emptying`] is there.
//! Only ext has it; every other kind is refused, never passed over.

use heapless::Vec as Fixed;

use super::{Identity, Kind, Still, UsedMap, Walk, ext};
use crate::error::Fault;
use crate::features;
use crate::overlay::OverlaidPart;

/// Longest path, in bytes.
pub const MAX_PATH: usize = 1024;
/// Most names in a pattern.
const MAX_NAMES: usize = 64;
/// Memory for the paths of what was emptied.
const NAMES_BYTES: usize = 64 * 1024;

/// A path from the root of the filesystem, as it is built up.
pub type Path = Fixed<u8, MAX_PATH>;

/// A path from the root of a filesystem: each name may hold `*` (which takes no leading dot); with `/` at its end it means every
/// regular file below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// Checks it; the text says what is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let names = || {
            text.split(|byte| *byte == b'/')
                .filter(|name| !name.is_empty())
        };
        if text.first() != Some(&b'/') {
            return Err("is no path from the root of the filesystem, as /etc/machine-id is");
        }
        if text.len() >= MAX_PATH || names().count() > MAX_NAMES || text.contains(&0) {
            return Err("is longer than a path may be");
        }
        if names().next().is_none() {
            return Err("would be everything");
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was given.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What is left of it on a filesystem that is mounted at `point`; `None` where it does not lie there.
    pub fn below(&self, point: &[u8]) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(point)?;
        let inside = point.len() > 1 && rest.len() > 1 && rest.first() == Some(&b'/');
        inside.then_some(rest)
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any bytes, but not for a leading dot (as in a shell).
pub fn fits(pattern: &[u8], name: &[u8]) -> bool {
    if pattern.first() == Some(&b'*') && name.first() == Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last star has to take one byte more.
    let mut again = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            again = Some((p, n));
        } else if pattern.get(p) == name.get(n) {
            p += 1;
            n += 1;
        } else if let Some((star, from)) = again {
            (p, n) = (star, from + 1);
            again = Some((star, from + 1));
        } else {
            return false;
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

/// What is to be emptied in an image, and what was.
#[derive(Debug, Default)]
pub struct Emptying {
    /// Each with the part of the image it is for; for all of them where there is none.
    pub(super) patterns: Vec<(Pattern, Option<usize>)>,
    /// So many of them, from the first, are missed when they name nothing.
    told: usize,
    insists: bool,
    /// What deleted files left in their inodes is to be zeros, too.
    pub clears_deleted: bool,
    /// What came of it.
    pub log: EmptiedLog,
}

/// What was emptied.
#[derive(Debug, Default)]
pub struct EmptiedLog {
    /// For each pattern the files it named.
    found: Vec<u64>,
    /// Paths of what was emptied, each with a line feed; as far as there is room.
    names: Vec<u8>,
    /// Files that were emptied.
    pub files: u64,
    /// Bytes of the filesystems that were freed.
    pub freed_bytes: u64,
    /// The path that was being looked at: what a refusal is about.
    pub at: Path,
    /// Why a part was left as it is, where nobody insisted.
    pub gave_up: Option<Fault>,
}

impl Emptying {
    /// For these patterns; the first `told` of them are missed when they name nothing.
    pub fn new(patterns: Vec<Pattern>, told: usize) -> Self {
        let mut emptying = Self::default();
        for pattern in patterns {
            emptying.push(pattern, None);
        }
        emptying.told = told;
        emptying.insists = !emptying.is_empty();
        emptying
    }

    /// Another pattern, for one part only; where it cannot be done, the part stays as it is.
    pub fn add(&mut self, part: usize, pattern: Pattern) {
        self.push(pattern, Some(part));
    }

    fn push(&mut self, pattern: Pattern, part: Option<usize>) {
        self.patterns.push((pattern, part));
        self.log.found.push(0);
        self.log.names.reserve(NAMES_BYTES);
    }

    /// Whether somebody asked for it, so that an image in which it cannot be done is none.
    pub fn insists(&self) -> bool {
        self.insists
    }

    /// Whether there is anything to do in this part.
    pub fn concerns(&self, part: usize) -> bool {
        let mut patterns = self.patterns.iter();
        patterns.any(|(_, only)| only.is_none_or(|only| only == part))
    }

    /// Nothing is to be emptied.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Patterns that named no file, although they should.
    pub fn without_match(&self) -> impl Iterator<Item = &Pattern> {
        let pairs = self.patterns.iter().zip(&self.log.found).take(self.told);
        pairs
            .filter(|(_, found)| **found == 0)
            .map(|((pattern, _), _)| pattern)
    }
}

impl EmptiedLog {
    /// The paths that were emptied, as far as they are kept (`files` counts all of them).
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.names.split(|byte| *byte == b'\n');
        names.filter(|name| !name.is_empty())
    }

    /// Where it stands, for [`Self::undo`].
    pub fn mark(&self) -> (u64, u64, usize) {
        (self.files, self.freed_bytes, self.names.len())
    }

    /// What came since `mark` was not done after all, because of `fault`.
    pub fn undo(&mut self, mark: (u64, u64, usize), fault: Fault) {
        self.files = mark.0;
        self.freed_bytes = mark.1;
        self.names.truncate(mark.2);
        self.gave_up = Some(fault);
    }

    /// As if nothing had been looked for yet.
    pub fn clear(&mut self) {
        self.undo((0, 0, 0), Fault::refused(""));
        self.gave_up = None;
        self.found.fill(0);
        self.at.clear();
    }

    /// `count` files were found for a pattern.
    pub(super) fn count(&mut self, pattern: usize, count: u64) {
        if let Some(found) = self.found.get_mut(pattern) {
            *found = found.saturating_add(count);
        }
    }

    /// A file was emptied.
    pub(super) fn note(&mut self, path: &[u8]) {
        self.files = self.files.saturating_add(1);
        if self.names.len() + path.len() < self.names.capacity() {
            // A line feed in a name would look like two names.
            let line = path.iter().map(|byte| match byte {
                b'\n' => b'?',
                byte => *byte,
            });
            self.names.extend(line);
            self.names.push(b'\n');
        }
    }
}

/// Whether files can be emptied in images of this kind.
pub fn can_empty(kind: Kind) -> bool {
    matches!(kind, Kind::Ext2 | Kind::Ext3 | Kind::Ext4)
}

/// Empties what `emptying` names in the image of the filesystem that was just walked into `map`: what changes goes into `layer`, what
/// is freed becomes free in `map`. The same rules as for a walk: after the freeze, no heap; a doubt is an error here, and
/// `emptying.log.at` says at which path.
pub fn empty(
    identity: &Identity,
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
    layer: &mut OverlaidPart<'_>,
    emptying: &mut Emptying,
) -> Result<(), Fault> {
    if still == Still::Moving {
        return Err(Fault::refused(
            "files can be emptied only where the source is held still",
        ));
    }
    if !features::GOLDEN || !can_empty(identity.kind) {
        return Err(Fault::unsupported(
            "files cannot be emptied in an image of this filesystem",
        ));
    }
    ext::empty(still, walk, map, layer, emptying)
}

/// A file as [`look`] found it.
#[derive(Clone, Copy, Debug)]
pub struct FoundFile<'s> {
    /// Its path as the pattern led to it.
    pub path: &'s [u8],
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The content, or as much of its beginning as fits; `None` where it is encrypted.
    pub content: Option<&'s [u8]>,
}

/// Reads the files that `pattern` (see [`Pattern`]) names on a filesystem that is not mounted. A fault says why some could not be
/// found; those before it were given.
pub fn look(
    identity: &Identity,
    walk: &mut Walk<'_>,
    pattern: &[u8],
    each: &mut dyn FnMut(FoundFile<'_>),
) -> Result<(), Fault> {
    if !features::GOLDEN || !can_empty(identity.kind) {
        return Err(Fault::unsupported(
            "files of this filesystem can be read only where it is mounted",
        ));
    }
    ext::look(walk, pattern, each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_takes_any_bytes_of_one_name_but_no_leading_dot() {
        for (pattern, name, wanted) in [
            ("ssh_host_*", "ssh_host_rsa_key", true),
            ("ssh_host_*_key", "ssh_host_rsa_key.pub", false),
            ("ssh_host_*_key", "ssh_host__key", true),
            ("*", "x", true),
            ("*", ".x", false),
            (".*_history", ".bash_history", true),
            (".*_history", ".history", false),
            ("a*b*c", "abbbc", true),
            ("a*b*c", "abbb", false),
            ("a**", "a", true),
            ("", "", true),
            ("", "a", false),
            ("a", "ab", false),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                wanted,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_pattern_is_an_absolute_path_and_knows_its_place_below_a_mount() {
        for bad in [
            "",
            "etc/machine-id",
            "/",
            "//",
            &format!("/{}", "x".repeat(2000)),
        ] {
            assert!(Pattern::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let pattern = Pattern::parse(b"/data/mender/x").unwrap();
        assert_eq!(pattern.below(b"/data"), Some(&b"/mender/x"[..]));
        assert_eq!(pattern.below(b"/"), None);
        assert_eq!(pattern.below(b"/dat"), None);
        assert_eq!(pattern.below(b""), None);
    }
}
