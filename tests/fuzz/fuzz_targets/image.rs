//! Fuzzes the image reader: runs of data and zeros put together again are the image, whatever its packing, holes and the sizes of
//! head and buffer; and what stands at its beginning is recognised or not, without a panic.
//!
//! Input: one byte each for the head, the buffer and the packing; then records of three bytes: how many times (8 KiB) which byte
//! comes (a zero makes zero runs), and how far off the boundary of a granule.
#![no_main]

use floe::crc::crc32;
use floe::fs;
use floe::ptable;
use floe::stream::image::{Format, ImageReader, ImageRun};
use floe::stream::input::Input;
use libfuzzer_sys::fuzz_target;

const GRANULE: usize = 65_536;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    out.extend(miniz_oxide::deflate::compress_to_vec(plain, 1));
    out.extend(crc32(0, plain).to_le_bytes());
    out.extend((plain.len() as u32).to_le_bytes());
    out
}

fuzz_target!(|data: &[u8]| {
    // As it stands: must end, and not panic.
    if let Ok(mut reader) = ImageReader::new(Input::reader(data).unwrap()) {
        let mut buffer = vec![0; GRANULE];
        for _ in 0..64 {
            match reader.next(&mut buffer) {
                Ok(ImageRun::End) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
    let bytes = data.to_vec();
    let _ = ptable::read_image(&bytes);
    let _ = fs::probe(&bytes);

    let [head, size, packing, records @ ..] = data else {
        return;
    };
    let mut plain = Vec::new();
    for record in records.chunks_exact(3).take(64) {
        let count = usize::from(record[0]) * 8192 + usize::from(record[2]);
        plain.resize(plain.len() + count, record[1]);
    }
    let packed = if packing % 2 == 0 {
        plain.clone()
    } else {
        gzip(&plain)
    };
    let Ok(mut reader) = ImageReader::new(Input::reader(packed.as_slice()).unwrap()) else {
        return;
    };
    if packing % 2 == 0 && reader.format() != Format::Raw {
        return;
    }
    let mut out = vec![0; usize::from(head % 4) * GRANULE];
    let count = reader.head(&mut out).unwrap();
    out.truncate(count);
    let mut buffer = vec![0xee; (1 + usize::from(size % 5)) * GRANULE];
    loop {
        assert_eq!(reader.offset(), out.len() as u64);
        match reader.next(&mut buffer).unwrap() {
            ImageRun::Data(count) => out.extend_from_slice(&buffer[..count]),
            ImageRun::Zeros(count) => out.resize(out.len() + count as usize, 0),
            ImageRun::End => break,
        }
    }
    assert!(out == plain);
    assert_eq!(reader.crc32(), crc32(0, &plain));
});
