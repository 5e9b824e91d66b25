//! A stream that comes from a board: everything is checked on its way, and only then its sink may call it good.
//!
//! Checked are the board's exit status, the length and SHA-256 of the stream against the board's own report (which comes on stderr
//! of the same connection), and what is inside: gzip's checksum, the image's length and CRC, a snapshot's checksums. What stands
//! before the stream (a banner, the output of a start-up file) is an error that quotes it.
//!
//! Frames come to their end first, and are checked and held; then what they stand for goes the same way as what comes without them.

mod sink;
mod tee;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use self::tee::{From, Passing, TeeReader};
use crate::board::fleet::Board;
use crate::board::host::Host;
use crate::board::ssh::{CommandEnd, Session};
use crate::error::{Cause, Error, Fault, Result};
use crate::json::{self, Value};
use crate::report::{clean, hex};
use crate::snapshot::archive::Bundle;
use crate::snapshot::framed::{Standard, may_not_fit};
use crate::snapshot::image_path;
use crate::stream::copy::BUFFER_BYTES;
use crate::stream::frames::receive::HeldStream;
use crate::stream::image::{ImageReader, ImageRun};
use crate::stream::input::Input;
use crate::stream::{frames, gunzip};
use crate::sys::memory::Pages;

pub(crate) use self::sink::{Sink, ToFile, ToStdout};

/// What the board sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// An image, packed with gzip (`floe dump`).
    Image,
    /// A snapshot (`floe create`, or one that was kept).
    Snapshot,
}

impl Stream {
    /// What its first bytes are.
    const fn magic(self) -> &'static [u8] {
        match self {
            Self::Image => &gunzip::MAGIC,
            Self::Snapshot => b"PK\x03\x04",
        }
    }
}

/// What is left of a stream that came whole, when ssh ended badly.
const NOTHING_KEPT: &str = "nothing was kept; the same command again pulls it anew";

/// A stream that has arrived and was checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrived {
    /// Where it is now.
    pub path: String,
    /// Length of the stream in bytes.
    pub stream_bytes: u64,
    /// Length of the image in bytes, or of all images.
    pub size_bytes: u64,
    /// SHA-256 of the stream, in hexadecimal.
    pub sha256: String,
    /// How many bytes of the images were here before, and were not sent.
    pub(crate) reused_bytes: u64,
    /// How long the board's filesystems were frozen, where it said so.
    pub frozen_ms: Option<u64>,
    /// The board's report: one JSON object.
    pub report: String,
}

/// What was found inside.
struct Inside {
    size_bytes: u64,
    /// Of an image.
    crc32: Option<u32>,
    /// Of a snapshot: how long each image is, as it is packed there.
    stored_bytes: Vec<u64>,
}

/// What a board said in frames.
struct Came {
    ended: CommandEnd,
    length_bytes: u64,
    reused_bytes: u64,
    sha256: String,
    /// Every chunk is proven on its way to the sink: what the image is, and how much of it has gone there.
    proven: Option<(Inside, Arc<AtomicU64>)>,
}

/// Takes all frames, to the board's good end; from then on what they stand for comes.
fn take_frames(
    host: &Host,
    shared: &TeeReader,
    mut input: Input<'_>,
    hold: HeldStream,
    board: &Board,
    stream: Stream,
) -> Result<Came> {
    let fail = |fault| Error::fault(&host.shown, fault);
    shared.lock().decide(Passing::Off).map_err(fail)?;
    // What has no room here is no fault of the board's.
    let held = hold.left.as_ref().map(|left| left.path());
    let received = frames::receive::begin(&mut input).and_then(|begun| {
        if let Some(note) = may_not_fit(&begun.header, &hold) {
            board.note(note);
        }
        frames::receive::take(&mut input, begun, hold)
    });
    let received = received.map_err(|fault| match &held {
        Some(held) if fault.is(Cause::NoRoom) => Error::fault(held.display(), fault),
        _ => fail(fault),
    });
    drop(input);
    let mut tee = shared.lock();
    let From::Board(session) = std::mem::replace(&mut tee.from, From::Nothing) else {
        return Err(lost(host));
    };
    if let Some(error) = session.stalled() {
        return Err(error);
    }
    if !tee.ended {
        return Err(received.err().unwrap_or_else(|| lost(host)));
    }
    let ended = session.end()?;
    let is_cut = ended.is_cut();
    let done = match held {
        // The next pull goes on from there, and says so.
        Some(_) if is_cut => "",
        _ => NOTHING_KEPT,
    };
    if let Err(error) = ended.check_leaving(host, done) {
        // All of it came; yet what ended badly there is not what the next pull goes on from.
        if let (Ok(received), false) = (&received, is_cut) {
            received.forget();
        }
        return Err(error);
    }
    let mut received = received?;
    let proven = match stream {
        Stream::Image if !tee.sink.takes_data() && !received.header.is_snapshot => {
            received.prove().map_err(fail)?;
            let inside = Inside {
                size_bytes: received.size_bytes(),
                crc32: Some(received.crc32()),
                stored_bytes: Vec::new(),
            };
            Some((inside, received.done()))
        }
        _ => None,
    };
    let reused_bytes = received.reused_bytes();
    board.far.lock().set("checking", 0, received.size_bytes());
    let standard = Standard::start(received).map_err(fail)?;
    tee.from = From::Held(standard);
    tee.ended = false;
    tee.decide(Passing::On).map_err(fail)?;
    let hash = std::mem::replace(&mut tee.hash, Sha256::new());
    Ok(Came {
        ended,
        length_bytes: std::mem::take(&mut tee.length_bytes),
        reused_bytes,
        sha256: hex(&hash.finalize()),
        proven,
    })
}

/// Takes all of the stream, checks it, and has the sink finish it. `frames`: they may come, and where they are held. `expected`: a key
/// without which the board's report is not that of the work that was asked for.
pub(crate) fn receive(
    host: &Host,
    session: Session,
    stream: Stream,
    sink: Box<dyn Sink>,
    board: &Board,
    frames: Option<HeldStream>,
    expected: Option<&str>,
) -> Result<Arrived> {
    let remains = frames.as_ref().and_then(|hold| hold.left.as_ref()?.file());
    let shared = TeeReader::new(session, sink, board);
    let ReadStream { came, inside } = read_all(host, &shared, stream, board, frames)?;
    let mut tee = shared.end(host)?;
    if let Some(error) = tee.failed.take().or_else(|| tee.from.stalled()) {
        return Err(error);
    }
    if !tee.ended {
        // It goes on, and is wrong already: dropping the session ends it.
        return Err(inside.err().unwrap_or_else(|| lost(host)));
    }
    let sha256 = hex(&tee.hash.finalize());
    let came = match (came, tee.from) {
        (Some(came), _) => came,
        (None, From::Board(session)) => {
            let ended = session.end()?;
            ended.check_leaving(host, NOTHING_KEPT)?;
            Came {
                ended,
                length_bytes: tee.length_bytes,
                reused_bytes: 0,
                sha256: sha256.clone(),
                proven: None,
            }
        }
        (None, _) => return Err(lost(host)),
    };
    let checked = inside.and_then(|inside| compare(host, &inside, came));
    let checked = checked.and_then(|arrived| {
        check_report(host, &arrived.report, expected)?;
        Ok(arrived)
    });
    if let (Err(_), Some(remains)) = (&checked, remains) {
        // All of it came, and something in it is wrong: the next pull does not go on from that.
        let _ = remains.set_len(0);
    }
    // That of the file.
    let arrived = Arrived { sha256, ..checked? };
    tee.sink.finish(&arrived)?;
    Ok(arrived)
}

fn lost(host: &Host) -> Error {
    Error::failed(format_args!("{}: the session is lost", host.shown))
}

/// A stream that was read.
struct ReadStream {
    /// Where it came in frames.
    came: Option<Came>,
    inside: Result<Inside>,
}

/// Reads all of the stream, as far as it is good.
fn read_all(
    host: &Host,
    shared: &TeeReader,
    stream: Stream,
    board: &Board,
    frames: Option<HeldStream>,
) -> Result<ReadStream> {
    let fail = |fault| Error::fault(&host.shown, fault);
    let mut input = Input::reader(shared.clone()).map_err(fail)?;
    let magic = &frames::MAGIC;
    let (mut came, input) = match frames {
        Some(hold)
            if input
                .peek(magic.len())
                .is_ok_and(|it| it.starts_with(magic)) =>
        {
            let came = take_frames(host, shared, input, hold, board, stream)?;
            (Some(came), Input::reader(shared.clone()).map_err(fail)?)
        }
        _ => (None, input),
    };
    let passed = shared.lock().decide(Passing::On);
    let proven = came.as_mut().and_then(|came| came.proven.take());
    let mut inside = match (passed, proven) {
        (Ok(()), Some((inside, done))) => pass(host, input, &mut || {
            board.far.lock().done_bytes = done.load(Ordering::Relaxed);
        })
        .map(|()| inside),
        // Frames have all come: only now what they stand for is looked at.
        (Ok(()), None) => unpack(host, input, shared, stream, &mut |done_bytes| {
            if came.is_some() {
                board.far.lock().done_bytes = done_bytes;
            }
        }),
        (Err(fault), _) => Err(fail(fault)),
    };
    if inside.is_ok()
        && let Err(fault) = drain(shared)
    {
        inside = Err(fail(fault));
    }
    Ok(ReadStream { came, inside })
}

/// What ran there may be something that takes no words from us: a forced command, a wrapper.
pub(crate) fn check_report(host: &Host, report: &str, expected: Option<&str>) -> Result<()> {
    match expected.filter(|key| !report.contains(&format!("\"{key}\":"))) {
        None => Ok(()),
        Some(key) => Err(Error::failed(format_args!(
            "{}: the report of floe there has no {key}: it was not asked for what was asked for here",
            host.shown
        ))
        .leaving("nothing was kept")),
    }
}

/// Reads to the stream's end; there should be nothing, and what there is shows in the length.
fn drain(shared: &TeeReader) -> std::result::Result<(), Fault> {
    let mut buffer = [0; 4096];
    while !shared.lock().ended {
        let count = shared.lock().read(&mut buffer);
        count.map_err(|_| Fault::short("read of the end of the stream"))?;
    }
    Ok(())
}

/// All of it to the sink; what it is was proven before it came.
fn pass(host: &Host, mut input: Input<'static>, done: &mut dyn FnMut()) -> Result<()> {
    loop {
        let bytes = input
            .fill()
            .map_err(|fault| Error::fault(&host.shown, fault))?;
        let count = bytes.len();
        if count == 0 {
            return Ok(());
        }
        input.consume(count);
        done();
    }
}

fn unpack(
    host: &Host,
    mut input: Input<'static>,
    shared: &TeeReader,
    stream: Stream,
    done: &mut dyn FnMut(u64),
) -> Result<Inside> {
    let fail = |fault| Error::fault(&host.shown, fault);
    let magic = stream.magic();
    let first = input.peek(magic.len()).map_err(fail)?;
    if first.is_empty() {
        return Err(Error::failed(format_args!("{}: sent nothing", host.shown)));
    }
    if !first.starts_with(magic) {
        return Err(noise(host, first, magic));
    }
    match stream {
        Stream::Snapshot => {
            let mut bundle = Bundle::open(&host.shown, input)?;
            while bundle.next()?.is_some() {
                done(bundle.size_bytes());
            }
            let images = bundle.snapshot.images.iter();
            let stored = images.map(|image| {
                let found = bundle.checksums.find(&image_path(&image.name));
                found.map_or(0, |found| found.stored_bytes)
            });
            Ok(Inside {
                size_bytes: bundle.size_bytes(),
                crc32: None,
                stored_bytes: stored.collect(),
            })
        }
        Stream::Image => {
            let mut reader = ImageReader::new(input).map_err(fail)?;
            let mut buffer = Pages::new(BUFFER_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
            // Each turn takes at least one granule of the input, or is the last.
            loop {
                let piece = reader.next(&mut buffer).map_err(fail)?;
                let mut tee = shared.lock();
                let taken = match piece {
                    ImageRun::Data(count) => tee.sink.data(buffer.get(..count).unwrap_or_default()),
                    ImageRun::Zeros(count) => tee.sink.zeros(count),
                    ImageRun::End => break,
                };
                tee.keep(taken).map_err(fail)?;
                drop(tee);
                done(reader.offset());
            }
            Ok(Inside {
                size_bytes: reader.offset(),
                crc32: Some(reader.crc32()),
                stored_bytes: Vec::new(),
            })
        }
    }
}

/// What came instead of the stream, up to where the stream begins.
fn noise(host: &Host, first: &[u8], magic: &[u8]) -> Error {
    let end = first
        .windows(magic.len())
        .position(|window| window == magic)
        .unwrap_or(first.len());
    let text = String::from_utf8_lossy(first.get(..end.min(200)).unwrap_or_default());
    let text = clean(text.trim().lines().next().unwrap_or_default());
    Error::failed(format_args!(
        "{}: something wrote \"{text}\" before the stream; see to it that the login shell there prints nothing when it is given a command",
        host.shown
    )).leaving("nothing was kept")
}

/// The board's report against what came.
fn compare(host: &Host, inside: &Inside, came: Came) -> Result<Arrived> {
    let host = &host.shown;
    let Came {
        ended,
        length_bytes: stream_bytes,
        reused_bytes,
        sha256,
        ..
    } = came;
    let bad =
        |what: &str| Error::failed(format_args!("{host}: {what}")).leaving("nothing was kept");
    let [text] = ended.told.reports.as_slice() else {
        return Err(bad("the report of floe there is missing, or came twice"));
    };
    let report = json::parse(text.as_bytes())
        .map_err(|fault| bad(&format!("the report of floe there: {fault}")))?;
    let number = |key| report.get(key).and_then(Value::number);
    let written = number("written_bytes").ok_or_else(|| bad("the report has no written_bytes"))?;
    if written != stream_bytes {
        return Err(bad(&format!(
            "{written} bytes were sent, and {stream_bytes} came"
        )));
    }
    let said = report.get("sha256").and_then(Value::text);
    if said.is_none() && inside.crc32.is_some() {
        return Err(bad("the report has no sha256"));
    }
    if said.is_some_and(|said| said != sha256) {
        return Err(bad("the SHA-256 of what came is not that of what was sent"));
    }
    if let Some(crc32) = inside.crc32 {
        let crc32 = format!("{crc32:08x}");
        let same = report.get("crc32").and_then(Value::text) == Some(&crc32)
            && number("size_bytes") == Some(inside.size_bytes);
        if !same {
            return Err(bad("the image is not the one that the report describes"));
        }
    }
    Ok(Arrived {
        path: String::new(),
        stream_bytes,
        size_bytes: inside.size_bytes,
        sha256,
        reused_bytes,
        frozen_ms: number("frozen_ms"),
        report: with_stored(text, &inside.stored_bytes),
    })
}

/// What the board cannot know of a snapshot that it sent in frames, put where its report says so: in each of its entries, in order.
fn with_stored(report: &str, stored_bytes: &[u64]) -> String {
    // Inside a string of JSON its second quote would not stand like that.
    const UNKNOWN: &str = "\"stored_bytes\":null";
    if report.matches(UNKNOWN).count() != stored_bytes.len() {
        return report.to_owned();
    }
    let mut out = String::with_capacity(report.len());
    let mut pieces = report.split(UNKNOWN);
    out.push_str(pieces.next().unwrap_or_default());
    for (piece, stored) in pieces.zip(stored_bytes) {
        out.push_str(&format!("\"stored_bytes\":{stored}"));
        out.push_str(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_every_entry_leaves_open_is_put_into_a_report() {
        let report = r#"{"entries":[{"name":"\"stored_bytes\":null","stored_bytes":null},{"stored_bytes":null}],"x":1}"#;
        let whole = r#"{"entries":[{"name":"\"stored_bytes\":null","stored_bytes":7},{"stored_bytes":80}],"x":1}"#;
        assert_eq!(with_stored(report, &[7, 80]), whole);
        assert_eq!(with_stored(report, &[7]), report);
        assert_eq!(with_stored(whole, &[]), whole);
    }
}
