//! Fuzzes the receiver of frames: whatever comes, it ends in an error, or in an image that has the checksum which the frames say.
//!
//! Input: a byte that says whether the rest is a stream as it stands, or the frames behind a good header (so that what is behind its
//! checksum is reached); two more choose the lengths of two parts.
#![no_main]

use floe::stream::frames::receive::{HeldStream, receive};
use floe::stream::frames::{Framed, StreamHeader};
use floe::stream::gzip;
use floe::stream::input::Input;
use floe::stream::output::{GzipEmitter, Output, TotalsCell};
use floe::stream::partfile::unnamed_anywhere;
use floe::stream::pipeline::Meter;
use libfuzzer_sys::fuzz_target;

struct NoMeter;
impl Meter for NoMeter {
    fn read(&self, _: u64) {}
    fn taken(&self, _: u64) {}
}

fuzz_target!(|data: &[u8]| {
    let [mode, one, two, rest @ ..] = data else {
        return;
    };
    let mut stream = Vec::new();
    if mode % 4 != 0 {
        let parts = vec![u64::from(*one) * 5000, u64::from(*two) * 777];
        let image = |name: &str| Framed {
            path: name.into(),
            parts: parts.clone(),
        };
        let header = StreamHeader {
            images: vec![image("image")],
            ..StreamHeader::default()
        };
        stream = header.to_bytes().expect("a good header");
    }
    stream.extend_from_slice(rest);
    if mode % 4 == 2 {
        // The end, with its checksum: right where nothing packed came.
        let size = u64::from(*one) * 5000 + u64::from(*two) * 777;
        stream.push(6);
        stream.extend(size.to_le_bytes());
        stream.extend(0u32.to_le_bytes());
        let sum = floe::crc::crc32(0, &stream);
        stream.extend(sum.to_le_bytes());
    }
    let (Ok(mut input), Ok(held), Ok(index)) = (
        Input::reader(&stream[..]),
        unnamed_anywhere(),
        unnamed_anywhere(),
    ) else {
        return;
    };
    let Ok(received) = receive(&mut input, HeldStream::of(held, index)) else {
        return;
    };
    let Ok(sink) = std::fs::File::create("/dev/null") else {
        return;
    };
    let output = Output::new(sink.into(), &NoMeter, false);
    let Ok(mut emit) = GzipEmitter::new(output, &gzip::HEADER, TotalsCell::default()) else {
        return;
    };
    assert!(received.emit(&mut emit).is_ok());
});
