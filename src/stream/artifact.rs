//! A Mender artifact read as a stream: what it says of itself, and the payload of its one image, checked against the manifest.
//!
//! ```text
//! version, manifest [, manifest.sig] [, manifest-augment], header.tar[.gz] [, header-augment.tar[.gz]], data/0000.tar[.gz]
//! ```
//! Source: mender-artifact, Documentation/artifact-format-v3.md. The manifest has one SHA-256 a line, of `version`, the header as it
//! stands and of each file of the payload unpacked. Everything in front of the payload is checked before the payload is given out; the
//! payload's sum is known at its end, which is an error then. Works from a pipe. A signature is not checked: `mender-artifact
//! validate` does that, with the key. Other compressions than gzip are refused by name.

use sha2::{Digest, Sha256};

use crate::error::{Cause, Fault};
use crate::json::{self, Value};
use crate::report::hex;
use crate::stream::gunzip::{self, Gunzip};
use crate::stream::input::{Input, Supply, at_most, is_zero};
use crate::stream::tar::{self, BLOCK_BYTES};
use crate::units::{to_u64, to_usize};

/// Most bytes of `version`, `manifest` and the header.
const SMALL_BYTES: u64 = 4 << 20;

/// Most members in front of the payload, and in the header.
const MAX_MEMBERS: u32 = 256;

/// What an artifact says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArtifactLabels {
    /// Its name.
    pub name: String,
    /// The types of device it is for.
    pub device_types: Vec<String>,
    /// The payload's file name.
    pub payload: String,
}

/// A member's name and length.
struct NextMember {
    name: String,
    size_bytes: u64,
}

fn corrupt(what: &'static str) -> Fault {
    Fault::corrupt(what)
}

fn ends_early(what: &'static str) -> Fault {
    corrupt(what).because(Cause::EndsEarly)
}

/// The next member that is a file; `None` at the end of the archive.
fn next_member(input: &mut Input<'_>) -> Result<Option<NextMember>, Fault> {
    for _ in 0..MAX_MEMBERS {
        let at = input.offset();
        let mut block = [0u8; BLOCK_BYTES];
        let count = input.read(&mut block)?;
        if count < BLOCK_BYTES {
            return Err(ends_early("the artifact ends early").at(at, to_u64(BLOCK_BYTES)));
        }
        if block == [0; BLOCK_BYTES] {
            return Ok(None);
        }
        let bad = || corrupt("header of a tar archive's member").at(at, to_u64(BLOCK_BYTES));
        let member = tar::parse(&block).ok_or_else(bad)?;
        let name = member.name.to_owned();
        if member.is_file {
            let size_bytes = member.size_bytes;
            return Ok(Some(NextMember { name, size_bytes }));
        }
        // Folders, and the records of pax, which change nothing that counts here.
        skip(
            input,
            member
                .size_bytes
                .saturating_add(tar::padding(member.size_bytes)),
        )?;
    }
    Err(corrupt("too many members in a tar archive"))
}

/// An archive ends with a second block of zeros, and more of them up to a whole record (POSIX): anything else was cut or appended.
fn only_zeros(input: &mut Input<'_>) -> Result<(), Fault> {
    let mut seen = 0;
    loop {
        let at = input.offset();
        let bytes = input.fill()?;
        let count = bytes.len();
        match count {
            0 if seen < BLOCK_BYTES => {
                return Err(ends_early("the artifact ends early").at(at, to_u64(BLOCK_BYTES)));
            }
            0 => return Ok(()),
            _ if !is_zero(bytes) => {
                return Err(corrupt("data after the end of the artifact").at(at, to_u64(count)));
            }
            _ => {}
        }
        seen = seen.saturating_add(count);
        input.consume(count);
    }
}

fn skip(input: &mut Input<'_>, count: u64) -> Result<(), Fault> {
    let mut left = count;
    while left > 0 {
        let held = input.fill()?.len();
        if held == 0 {
            return Err(ends_early("the artifact ends early").at(input.offset(), left));
        }
        let step = at_most(left, held);
        input.consume(step);
        left -= to_u64(step);
    }
    Ok(())
}

/// All of a small member.
fn small(input: &mut Input<'_>, member: &NextMember) -> Result<Vec<u8>, Fault> {
    if member.size_bytes > SMALL_BYTES {
        return Err(corrupt("a member of the artifact's front is too large"));
    }
    let mut bytes = vec![0; to_usize(member.size_bytes)];
    if input.read(&mut bytes)? < bytes.len() {
        return Err(ends_early("the artifact ends early").at(input.offset(), member.size_bytes));
    }
    skip(input, tar::padding(member.size_bytes))?;
    Ok(bytes)
}

/// The manifest's lines: checksum in hexadecimal digits, and name.
struct Manifest(Vec<(String, String)>);

impl Manifest {
    fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("manifest of the artifact"))?;
        let line = |line: &str| {
            let (sum, name) = line.split_once("  ")?;
            Some((sum.to_ascii_lowercase(), name.to_owned()))
        };
        let lines: Option<Vec<_>> = text.lines().map(line).collect();
        lines
            .map(Self)
            .ok_or_else(|| corrupt("manifest of the artifact"))
    }

    fn sum_of(&self, name: &str) -> Result<&str, Fault> {
        let mut lines = self.0.iter();
        let line = lines.find(|(_, named)| named == name);
        line.map(|(sum, _)| sum.as_str())
            .ok_or_else(|| corrupt("the artifact's manifest does not list all of it"))
    }

    fn check(&self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        match hex(&Sha256::digest(bytes)) == self.sum_of(name)? {
            true => Ok(()),
            false => Err(corrupt("checksum of the artifact's front is wrong")),
        }
    }
}

/// Whether a name is `stem` in a compression that is undone here.
fn is_gzip(name: &str, stem: &str) -> Result<Option<bool>, Fault> {
    match name.strip_prefix(stem) {
        Some("") => Ok(Some(false)),
        Some(".gz") => Ok(Some(true)),
        Some(".xz" | ".zst") => Err(Fault::unsupported(
            "the artifact is compressed with xz or zstd: write it with gzip, or take the image out with 'mender-artifact cp'",
        )),
        _ => Ok(None),
    }
}

/// Reads the front, up to the payload's first byte.
pub(crate) fn open(mut input: Input<'static>) -> Result<(ArtifactLabels, Payload), Fault> {
    let mut manifest = None;
    let mut version = Vec::new();
    let mut labels = ArtifactLabels::default();
    let mut has_header = false;
    for _ in 0..MAX_MEMBERS {
        let Some(member) = next_member(&mut input)? else {
            return Err(corrupt("the artifact has no payload"));
        };
        if let Some(packed) = is_gzip(&member.name, "data/0000.tar")? {
            let manifest = manifest.filter(|_| has_header);
            let manifest =
                manifest.ok_or_else(|| corrupt("the artifact has no manifest or header"))?;
            return payload(input, member.size_bytes, packed, &manifest, labels);
        }
        let bytes = small(&mut input, &member)?;
        match (member.name.as_str(), &manifest) {
            ("version", _) => version = bytes,
            ("manifest", _) => {
                let lines = Manifest::parse(&bytes)?;
                lines.check("version", &version)?;
                manifest = Some(lines);
            }
            (name, Some(manifest)) => {
                if let Some(packed) = is_gzip(name, "header.tar")? {
                    manifest.check(name, &bytes)?;
                    read_header(bytes, packed, &mut labels)?;
                    has_header = true;
                }
            }
            _ => return Err(corrupt("order of the artifact's members")),
        }
    }
    Err(corrupt("too many members in the artifact"))
}

/// `header-info` of the header.
fn read_header(bytes: Vec<u8>, packed: bool, labels: &mut ArtifactLabels) -> Result<(), Fault> {
    let bytes = match packed {
        true => {
            let mut out = vec![0; to_usize(SMALL_BYTES)];
            let mut input = Input::reader(bytes.as_slice())?;
            let count = Gunzip::new()?.read(&mut input, &mut out)?;
            out.truncate(count);
            out
        }
        false => bytes,
    };
    let mut input = Input::reader(bytes.as_slice())?;
    for _ in 0..MAX_MEMBERS {
        let Some(member) = next_member(&mut input)? else {
            break;
        };
        let bytes = small(&mut input, &member)?;
        if member.name != "header-info" {
            continue;
        }
        let info = json::parse(&bytes)?;
        let text = |at: Option<&Value>| at.and_then(Value::text).unwrap_or_default().to_owned();
        let depends = info.get("artifact_depends");
        let types = depends.and_then(|depends| depends.get("device_type"));
        let types = types.and_then(Value::list).unwrap_or_default();
        labels.device_types = types.iter().map(|one| text(Some(one))).collect();
        let provides = info.get("artifact_provides");
        labels.name = text(provides.and_then(|provides| provides.get("artifact_name")));
        let payloads = info.get("payloads").and_then(Value::list);
        if payloads.is_none_or(|payloads| payloads.len() != 1) {
            return Err(Fault::unsupported(
                "the artifact has several payloads: take the image out with 'mender-artifact cp'",
            ));
        }
        return Ok(());
    }
    Err(corrupt("the artifact's header has no header-info"))
}

fn payload(
    input: Input<'static>,
    size_bytes: u64,
    packed: bool,
    manifest: &Manifest,
    mut labels: ArtifactLabels,
) -> Result<(ArtifactLabels, Payload), Fault> {
    let member = Bounded {
        input,
        left: size_bytes,
        padding: tar::padding(size_bytes),
        ended: false,
    };
    let mut inner = match packed {
        false => Input::reader(member)?,
        true => Input::reader(Unpacked {
            gunzip: Gunzip::new()?,
            input: Input::reader(member)?,
        })?,
    };
    if packed && !inner.peek(2)?.is_empty() && inner.buffered().starts_with(&gunzip::MAGIC) {
        return Err(corrupt("the artifact's payload is packed twice"));
    }
    let file =
        next_member(&mut inner)?.ok_or_else(|| corrupt("the artifact's payload is empty"))?;
    let sum = manifest
        .sum_of(&format!("data/0000/{}", file.name))?
        .to_owned();
    labels.payload = file.name;
    let payload = Payload {
        left: file.size_bytes,
        size_bytes: file.size_bytes,
        inner,
        hash: Sha256::new(),
        sum,
        ended: false,
    };
    Ok((labels, payload))
}

/// So many bytes of an input.
struct Bounded {
    input: Input<'static>,
    left: u64,
    /// Zeros that fill the last block behind them.
    padding: u64,
    ended: bool,
}

impl Bounded {
    /// Behind the payload nothing follows but the archive's end.
    fn end(&mut self) -> Result<(), Fault> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        skip(&mut self.input, self.padding)?;
        match next_member(&mut self.input)? {
            None => only_zeros(&mut self.input),
            Some(_) => Err(Fault::unsupported(
                "the artifact has several payloads: take the image out with 'mender-artifact cp'",
            )),
        }
    }
}

impl Supply for Bounded {
    fn supply(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        if self.left == 0 {
            self.end()?;
        }
        let count = at_most(self.left, buffer.len());
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        let count = self.input.read(buffer)?;
        if count < buffer.len() {
            let fault = ends_early("the artifact ends early").at(self.input.offset(), self.left);
            return Err(fault);
        }
        self.left -= to_u64(count);
        Ok(count)
    }
}

/// What a gzip stream unpacks to.
struct Unpacked {
    gunzip: Gunzip,
    input: Input<'static>,
}

impl Supply for Unpacked {
    fn supply(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.gunzip.read(&mut self.input, buffer)
    }
}

/// The image in the artifact; its end is an error unless its checksum is the manifest's.
pub(crate) struct Payload {
    inner: Input<'static>,
    size_bytes: u64,
    left: u64,
    hash: Sha256,
    sum: String,
    ended: bool,
}

impl Payload {
    fn end(&mut self) -> Result<(), Fault> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let hash = std::mem::take(&mut self.hash).finalize();
        if hex(&hash) != self.sum {
            return Err(corrupt(
                "the payload's SHA-256 is not what the artifact's manifest says",
            ));
        }
        skip(&mut self.inner, tar::padding(self.size_bytes))?;
        if next_member(&mut self.inner)?.is_some() {
            return Err(Fault::unsupported(
                "the artifact's payload has several files: take the image out with 'mender-artifact cp'",
            ));
        }
        // What is packed ends with a checksum of its own.
        only_zeros(&mut self.inner)
    }
}

impl Supply for Payload {
    fn supply(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let count = at_most(self.left, buffer.len());
        if count == 0 {
            if self.left == 0 {
                self.end()?;
            }
            return Ok(0);
        }
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        let count = self.inner.read(buffer)?;
        if count < buffer.len() {
            return Err(ends_early("the artifact's payload ends early"));
        }
        self.hash.update(&buffer);
        self.left -= to_u64(count);
        Ok(count)
    }
}
