//! What floe leaves to a guardian that is executed anew: one file in memory, inherited as standard input.
//!
//! Its first page is the board; behind it lie a mark and the charge as words, each ended by a NUL: numbers in decimal, names and
//! mount options as they are. Descriptors keep their numbers across the exec. The file is written before the guardian is started and
//! read once by it; only the board changes afterwards.

use std::ffi::{CString, OsString};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::Pid;

use super::copy::NAME;
use super::keeper::{Charge, serve};
use super::{Form, FreezeTarget, Leftover, Limits, Method, Remount, TARGETS_MAX, micros};
use crate::device::limited;
use crate::sys::process;
use crate::sys::shared::SharedPage;

/// The board's page; the words follow.
const WORDS_AT: u64 = 4096;
/// Where the guardian finds the file.
const STDIN: RawFd = 0;
/// The first word: who is started with a guardian's name and this on its standard input is one.
const MARK: &str = "a charge for the guardian, 1";
/// Names and options of 64 filesystems are less; nobody reads more.
const WORDS_MAX: u64 = 1 << 20;

/// What is handed over, but for the board.
pub(crate) struct Words<'a> {
    pub targets: &'a [FreezeTarget],
    pub limits: Limits,
    pub leftovers: &'a [Leftover],
    pub lock: Option<&'a OwnedFd>,
    pub orders: &'a OwnedFd,
    pub replies: &'a OwnedFd,
}

impl Words<'_> {
    /// The descriptors that the guardian inherits.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let targets = self.targets.iter().map(|target| &target.fd);
        let leftovers = self.leftovers.iter().map(|leftover| &leftover.directory);
        let all = [self.orders, self.replies].into_iter().chain(self.lock);
        all.chain(targets)
            .chain(leftovers)
            .map(AsRawFd::as_raw_fd)
            .collect()
    }

    /// Writes a new file with the board and the words.
    pub(crate) fn write(&self, form: Form) -> Result<OwnedFd, Errno> {
        let mut words = Vec::new();
        put(&mut words, MARK);
        put(&mut words, rustix::process::getpid().as_raw_nonzero());
        put(&mut words, micros(self.limits.stall));
        put(&mut words, micros(self.limits.max_freeze));
        put(&mut words, self.orders.as_raw_fd());
        put(&mut words, self.replies.as_raw_fd());
        put(&mut words, self.lock.map_or(-1, AsRawFd::as_raw_fd));
        put(&mut words, self.targets.len());
        for target in self.targets {
            put(&mut words, target.fd.as_raw_fd());
            put(&mut words, &target.name);
            match &target.method {
                Method::Freeze => put(&mut words, ""),
                Method::ReadOnly(remount) => {
                    put(&mut words, remount.mount.bits());
                    put(&mut words, remount.superblock.bits());
                    put_bytes(&mut words, remount.data.as_bytes());
                }
            }
        }
        put(&mut words, self.leftovers.len());
        for leftover in self.leftovers {
            put(&mut words, leftover.directory.as_raw_fd());
            put_bytes(&mut words, leftover.name.as_bytes());
        }
        let file = form.file()?;
        let mut rest = words.as_slice();
        let mut place = WORDS_AT;
        while !rest.is_empty() {
            let count = rustix::io::pwrite(&file, rest, place)?;
            rest = rest.get(count..).ok_or(Errno::IO)?;
            place = place.saturating_add(u64::try_from(count).map_err(|_| Errno::IO)?);
        }
        Ok(file)
    }
}

fn put(words: &mut Vec<u8>, word: impl ToString) {
    put_bytes(words, word.to_string().as_bytes());
}

fn put_bytes(words: &mut Vec<u8>, word: &[u8]) {
    words.extend_from_slice(word);
    words.push(0);
}

/// Becomes the guardian and never returns, if that is what this process was started for; else does nothing. To be called
/// before anything else: floe's name and a file with our mark on standard input are nothing that happens by accident.
pub fn serve_if_guardian(arguments: &[OsString]) {
    let name = arguments.first().and_then(|name| name.to_str());
    // An emulator that the kernel starts by itself (binfmt_misc) may put the path in the name's place.
    if !name.is_some_and(|name| name == NAME || name.starts_with("/proc/self/fd/")) {
        return;
    }
    let stdin = rustix::stdio::stdin();
    let mut mark = [0; MARK.len()];
    if rustix::io::pread(stdin, &mut mark, WORDS_AT) != Ok(MARK.len()) || mark != *MARK.as_bytes() {
        return;
    }
    match read() {
        Some(charge) => serve(charge),
        None => process::exit_now(1),
    }
}

fn read() -> Option<Charge> {
    let file = process::adopt(STDIN).ok()?;
    let board = SharedPage::map_file(&file).ok()?;
    let mut file = std::fs::File::from(file);
    file.seek(SeekFrom::Start(WORDS_AT)).ok()?;
    let mut bytes = Vec::new();
    limited(&mut file, WORDS_MAX).read_to_end(&mut bytes).ok()?;
    let mut words = WordReader(&bytes);
    words.word()?;
    let parent = Pid::from_raw(words.number()?)?;
    let limits = Limits {
        stall: Duration::from_micros(words.number()?),
        max_freeze: Duration::from_micros(words.number()?),
    };
    let orders = words.descriptor()?;
    let replies = words.descriptor()?;
    let lock = match words.number()? {
        -1 => None,
        number => Some(process::adopt(number).ok()?),
    };
    let count: usize = words.number()?;
    let mut targets = Vec::new();
    for _ in 0..count.min(TARGETS_MAX) {
        let fd = words.descriptor()?;
        let name = String::from_utf8(words.word()?.to_vec()).ok()?;
        let method = match words.word()? {
            b"" => Method::Freeze,
            bits => {
                let mount = MountFlags::from_bits_retain(parse(bits)?);
                let superblock = MountFlags::from_bits_retain(words.number()?);
                let data = CString::new(words.word()?).ok()?;
                Method::ReadOnly(Remount::handed_over(&fd, mount, superblock, data))
            }
        };
        targets.push(FreezeTarget { fd, name, method });
    }
    let count: usize = words.number()?;
    let mut leftovers = Vec::new();
    for _ in 0..count.min(TARGETS_MAX) {
        leftovers.push(Leftover {
            directory: words.descriptor()?,
            name: CString::new(words.word()?).ok()?,
        });
    }
    // Standard input stays taken, so that nothing else gets its number.
    std::mem::forget(file);
    Some(Charge {
        targets,
        limits,
        leftovers,
        lock,
        board,
        orders,
        replies,
        parent,
        form: Form::Memory,
    })
}

/// The words that have not been read yet.
struct WordReader<'a>(&'a [u8]);

impl<'a> WordReader<'a> {
    fn word(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let word = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..)?;
        Some(word)
    }

    fn number<T: FromStr>(&mut self) -> Option<T> {
        parse(self.word()?)
    }

    fn descriptor(&mut self) -> Option<OwnedFd> {
        process::adopt(self.number()?).ok()
    }
}

fn parse<T: FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}
