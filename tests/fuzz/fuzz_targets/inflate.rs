//! Fuzzes the decoder: what it takes, miniz_oxide takes with the same end and gives the same bytes, however the input is cut.
//!
//! Input: one byte for the size of the pieces, then deflate data.
#![no_main]

use inflate::{Decoder, Stop, WINDOW_BYTES, Window};
use libfuzzer_sys::fuzz_target;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::cell::RefCell;

/// Output is cut here: 1032:1 makes much of little.
const LIMIT: usize = 1 << 18;

thread_local! {
    /// Kept from input to input, so that what one leaves behind meets the next.
    static DECODER: RefCell<(Box<Decoder>, Box<Window>)> =
        RefCell::new((Box::default(), vec![0x5a; WINDOW_BYTES].try_into().unwrap()));
}

/// What comes out, and how many bytes were taken; `None` where it is corrupt, ends early or is more than the limit.
fn ours(stream: &[u8], piece: usize) -> Option<(Vec<u8>, usize)> {
    DECODER.with_borrow_mut(|(decoder, window)| {
        decoder.reset();
        let (mut at, mut out) = (0, Vec::new());
        loop {
            let end = stream.len().min(at + piece);
            let ran = decoder.run(&stream[at..end], window);
            out.extend_from_slice(ran.output);
            at += ran.taken;
            match ran.stop {
                Stop::Input if at == stream.len() => return None,
                Stop::Input => assert!(at == end),
                _ if out.len() > LIMIT => return None,
                Stop::Window => assert!(!ran.output.is_empty()),
                Stop::Block { .. } => {}
                Stop::End => return Some((out, at)),
                Stop::Corrupt => return None,
            }
        }
    })
}

fuzz_target!(|data: &[u8]| {
    let [size, stream @ ..] = data else {
        return;
    };
    let Some((out, taken)) = ours(stream, usize::MAX / 2) else {
        assert!(ours(stream, 1 + usize::from(*size)).is_none());
        return;
    };
    assert!(ours(stream, 1 + usize::from(*size)) == Some((out.clone(), taken)));
    let mut theirs = vec![0; out.len()];
    let mut core: Box<DecompressorOxide> = Box::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let ran = decompress(&mut core, stream, &mut theirs, 0, flags);
    assert!(ran == (TINFLStatus::Done, taken, out.len()) && theirs == out);
});
