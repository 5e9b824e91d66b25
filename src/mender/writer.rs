//! A Mender artifact that is being written, format version 3: front, image, end.
//!
//! ```text
//! tar ─ version ─ manifest ─ header.tar.gz ─ data/0000.tar.gz
//!                  SHA-256 of the three others, the payload unpacked
//!                                                 gzip ─ tar ─ the image
//! ```
//! Everything before the image (the *front*) needs what is known only at the image's end: its length and SHA-256, and the length of the
//! compressed member. So the front is made such that its own length depends on none of them (the headers are stored, not compressed;
//! numbers have fixed widths), written with zeros in their place, and written over at the end. An output that is interrupted has a manifest that no reader accepts, and a FILE given with `-o` has no name yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{SeekFrom, fsync};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::cli::{Args, Common};
use crate::crc;
use crate::error::{Error, Exit, Fault, Result};
use crate::mender::header::{Labels, Script};
use crate::report::hex;
use crate::stream::deflate::FINAL_BLOCK;
use crate::stream::gzip;
use crate::stream::output::{Output, leaves_holes};
use crate::stream::pack::{Chunk, Packer, UNWATCHED, stored};
use crate::stream::pipeline::Problem;
use crate::stream::tar::{self, Member};
use crate::sys::memory::ZEROS;
use crate::take::options;
use crate::threads::jobs;
use crate::units::{to_u64, to_usize};

/// The file `version`, all of it.
const VERSION: &[u8] = br#"{"format":"mender","version":3}"#;

/// What the artifact is to be: all that does not come from the image.
#[derive(Clone, Debug)]
pub(crate) struct What {
    /// Its header.
    pub labels: Labels,
    /// Deflate at this level; `None`: not compressed.
    pub level: Option<u8>,
    /// Workers.
    pub jobs: usize,
}

impl Default for What {
    fn default() -> Self {
        Self {
            labels: Labels::default(),
            level: Some(6),
            jobs: jobs(None),
        }
    }
}

impl What {
    /// As many workers as the common options say.
    pub(crate) fn set_jobs(&mut self, common: &Common) {
        self.jobs = jobs(common.jobs);
    }

    /// Takes `option` if it says what the artifact is to be.
    pub(crate) fn option(&mut self, option: &str, args: &mut Args) -> Result<bool> {
        match option {
            "--compression" | "--compress" => {
                let raw = args.parsed(options::compression, "gzip or none")?;
                self.level = (!raw).then_some(self.level.unwrap_or(6));
            }
            "--level" => self.level = Some(args.parsed(options::level, "a level from 1 to 9")?),
            _ => return self.labels.option(option, args),
        }
        Ok(true)
    }
}

/// What is known at the end of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArtifactFigures {
    /// Length of the image.
    pub size_bytes: u64,
    /// SHA-256 of the image.
    pub sha256: [u8; 32],
    /// Length of the data member.
    member_bytes: u64,
    /// Length of the artifact.
    pub written_bytes: u64,
}

/// How an artifact is put together: all that does not come from the image's bytes.
#[derive(Debug)]
pub(crate) struct Maker {
    /// What it is to be.
    pub what: What,
    /// Its state scripts.
    pub scripts: Arc<[Script]>,
    /// The payload's name in it.
    pub payload: String,
    /// The payload's time, seconds since 1970.
    pub modified: u64,
    /// What messages call the output.
    pub shown: String,
}

/// The front, and where the data member begins in it.
struct Front {
    bytes: Vec<u8>,
    member: usize,
}

/// An artifact that is being written; its image comes piece by piece.
pub(crate) struct ArtifactWriter {
    maker: Arc<Maker>,
    packer: Packer,
    /// The chunk that is being filled, and how far it is.
    chunk: Option<(Chunk, usize)>,
    hash: Sha256,
    size_bytes: u64,
    /// Where the data member begins.
    member: usize,
    /// The output, and where the front is to be written over.
    over: Option<(OwnedFd, u64)>,
}

impl ArtifactWriter {
    /// Into an output that can be written over and ends where we begin.
    pub(crate) fn over(maker: Arc<Maker>, sink: OwnedFd) -> Result<Self> {
        let fail = |what, errno| maker.output_error(Fault::io(what, errno));
        let begin =
            rustix::fs::seek(&sink, SeekFrom::Current(0)).map_err(|errno| fail("seek", errno))?;
        let file = rustix::io::fcntl_dupfd_cloexec(&sink, 3).map_err(|errno| fail("dup", errno))?;
        let mut writer = Self::begin(maker, sink, &ArtifactFigures::default())?;
        writer.over = Some((file, begin));
        Ok(writer)
    }

    /// Into anything; the front says what `figures` says.
    pub(crate) fn begin(
        maker: Arc<Maker>,
        sink: OwnedFd,
        figures: &ArtifactFigures,
    ) -> Result<Self> {
        let holes = leaves_holes(&sink);
        let output = Output::new(sink, UNWATCHED, false);
        let (level, jobs) = (maker.what.level, maker.what.jobs);
        let mut packer =
            Packer::new(output, level, jobs, holes).map_err(|fault| maker.output_error(fault))?;
        let front = maker.front(figures)?;
        let written = packer.output().write_all(&front.bytes);
        written.map_err(|problem| maker.problem(problem))?;
        Ok(Self {
            maker,
            packer,
            chunk: None,
            hash: Sha256::new(),
            size_bytes: 0,
            member: front.member,
            over: None,
        })
    }

    fn fail(&self, problem: Problem) -> Error {
        self.maker.problem(problem)
    }

    /// The next bytes of the image.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.size_bytes = self.size_bytes.saturating_add(to_u64(bytes.len()));
        let mut left = bytes;
        while !left.is_empty() {
            let (mut chunk, mut filled) = match self.chunk.take() {
                Some(begun) => begun,
                None => (self.packer.chunk().map_err(|p| self.maker.problem(p))?, 0),
            };
            let count = chunk.raw.len().saturating_sub(filled).min(left.len());
            let (now, later) = left.split_at_checked(count).unwrap_or((left, &[]));
            if let Some(room) = chunk.raw.get_mut(filled..filled + count) {
                room.copy_from_slice(now);
            }
            (filled, left) = (filled + count, later);
            if filled < chunk.raw.len() {
                self.chunk = Some((chunk, filled));
            } else {
                let sent = self.packer.data(chunk, filled);
                sent.map_err(|problem| self.fail(problem))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match self.chunk.take() {
            None => Ok(()),
            Some((chunk, filled)) => {
                let sent = self.packer.data(chunk, filled);
                sent.map_err(|problem| self.fail(problem))
            }
        }
    }

    /// So many zero bytes of the image.
    pub(crate) fn zeros(&mut self, count: u64) -> Result<()> {
        self.flush()?;
        self.size_bytes = self.size_bytes.saturating_add(count);
        let mut left = count;
        while left > 0 {
            let piece = ZEROS.get(..to_usize(left)).unwrap_or(&ZEROS);
            self.hash.update(piece);
            left -= to_u64(piece.len());
        }
        let sent = self.packer.zeros(count);
        sent.map_err(|problem| self.fail(problem))
    }

    /// The image is complete: ends the archives, writes the front over, flushes.
    pub(crate) fn end(mut self) -> Result<ArtifactFigures> {
        self.flush()?;
        let maker = Arc::clone(&self.maker);
        let fail = |problem| maker.problem(problem);
        let size_bytes = self.size_bytes;
        let end = tar::padding(size_bytes).saturating_add(tar::END_BYTES);
        self.packer.zeros(end).map_err(fail)?;
        let inner = maker
            .inner_header(size_bytes)
            .map_err(|fault| maker.output_error(fault))?;
        let before = (crc::crc32(0, &inner), to_u64(inner.len()));
        self.packer.finish(before).map_err(fail)?;
        let written_bytes = self.packer.written_bytes();
        let member_bytes = written_bytes.saturating_sub(to_u64(self.member));
        let end = tar::padding(member_bytes).saturating_add(tar::END_BYTES);
        self.packer.output().write_zeros(end).map_err(fail)?;
        let figures = ArtifactFigures {
            size_bytes,
            sha256: self.hash.finalize().into(),
            member_bytes,
            written_bytes: written_bytes.saturating_add(end),
        };
        let Some((file, begin)) = self.over else {
            return Ok(figures);
        };
        let fail = |what, errno| maker.output_error(Fault::io(what, errno));
        let front = maker.front(&figures)?;
        write_at(file.as_fd(), begin, &front.bytes).map_err(|errno| fail("write", errno))?;
        match fsync(&file) {
            Ok(()) | Err(Errno::INVAL) => Ok(figures),
            Err(errno) => Err(fail("fsync", errno)),
        }
    }
}

impl Maker {
    /// Everything before the image's first byte.
    fn front(&self, figures: &ArtifactFigures) -> Result<Front> {
        self.try_front(figures)
            .map_err(|fault| self.output_error(fault))
    }

    fn try_front(&self, figures: &ArtifactFigures) -> std::result::Result<Front, Fault> {
        let suffix = if self.what.level.is_some() { ".gz" } else { "" };
        let mut header = self.what.labels.header(&self.scripts, &figures.sha256)?;
        if self.what.level.is_some() {
            header = gzip_stored(&header);
        }
        let sum = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        let manifest = format!(
            "{}  data/0000/{}\n{}  header.tar{suffix}\n{}  version\n",
            hex(&figures.sha256),
            self.payload,
            sum(&header),
            sum(VERSION),
        );
        let member = |name, size_bytes| Member {
            name,
            mode: 0o600,
            modified: 0,
            size_bytes,
        };
        let mut bytes = Vec::new();
        tar::append(&mut bytes, member("version", 0), VERSION)?;
        tar::append(&mut bytes, member("manifest", 0), manifest.as_bytes())?;
        let name = format!("header.tar{suffix}");
        tar::append(&mut bytes, member(&name, 0), &header)?;
        let name = format!("data/0000.tar{suffix}");
        bytes.extend_from_slice(&member(&name, figures.member_bytes).header()?);
        let start = bytes.len();
        let inner = self.inner_header(figures.size_bytes)?;
        if self.what.level.is_some() {
            bytes.extend_from_slice(&gzip::HEADER);
            stored(&mut bytes, &inner);
        } else {
            bytes.extend_from_slice(&inner);
        }
        Ok(Front {
            bytes,
            member: start,
        })
    }

    /// The header of the only file in `data/0000.tar`: the image.
    fn inner_header(&self, size_bytes: u64) -> std::result::Result<[u8; tar::BLOCK_BYTES], Fault> {
        Member {
            name: &self.payload,
            mode: 0o644,
            modified: self.modified,
            size_bytes,
        }
        .header()
    }

    fn output_error(&self, fault: Fault) -> Error {
        Error::fault(&self.shown, fault)
            .with_exit(Exit::Failed)
            .leaving("what was written is not complete")
    }

    fn problem(&self, problem: Problem) -> Error {
        match problem {
            Problem::ClosedPipe => {
                Error::failed(format_args!("{}: the reader closed the pipe", self.shown))
                    .leaving("the artifact is incomplete")
            }
            Problem::Read(_, fault) | Problem::Write(fault) | Problem::Internal(fault) => {
                self.output_error(fault)
            }
        }
    }
}

/// One gzip member of stored blocks: as long whatever the bytes are.
fn gzip_stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = gzip::HEADER.to_vec();
    stored(&mut out, bytes);
    out.extend_from_slice(&FINAL_BLOCK);
    out.extend_from_slice(&gzip::trailer(crc::crc32(0, bytes), to_u64(bytes.len())));
    out
}

fn write_at(file: BorrowedFd<'_>, begin: u64, bytes: &[u8]) -> std::result::Result<(), Errno> {
    let mut done = 0usize;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, begin.saturating_add(to_u64(done))) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_as_long_whatever_the_figures_are() {
        for level in [None, Some(6)] {
            let maker = Maker {
                what: What {
                    level,
                    ..What::default()
                },
                scripts: Arc::default(),
                payload: "rootfs.img".into(),
                modified: 1,
                shown: "x".into(),
            };
            let zero = maker.front(&ArtifactFigures::default()).unwrap();
            let large = maker
                .front(&ArtifactFigures {
                    size_bytes: u64::MAX,
                    sha256: [0xff; 32],
                    member_bytes: u64::MAX,
                    ..ArtifactFigures::default()
                })
                .unwrap();
            assert_eq!(zero.bytes.len(), large.bytes.len());
            assert_eq!(zero.member, large.member);
            assert_ne!(zero.bytes, large.bytes);
        }
    }
}
