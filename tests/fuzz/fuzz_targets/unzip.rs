//! Zip archives: the stream reader and the seekable one, which must never accept different entries.
#![no_main]

use floe::stream::input::Input;
use floe::stream::unzip::{Body, Directory, Unzip};

/// More than this is not inflated here.
const LIMIT: u64 = 1 << 20;

fn drain(body: &mut Body, input: &mut Input<'_>) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match body.read(input, &mut buffer) {
            Ok(count) if count == buffer.len() => assert!(body.sums().raw_bytes <= LIMIT + 65_536),
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let directory = Directory::read(&data.to_vec()).ok();
    if let Some(directory) = &directory {
        for entry in &directory.entries {
            let start = usize::try_from(entry.data_offset()).expect("inside");
            let mut input = Input::reader(&data[start..]).expect("memory");
            let mut body = Body::of(entry).expect("memory");
            body.expect(entry.sums.raw_bytes.min(LIMIT));
            if drain(&mut body, &mut input) {
                let _ = body.check(entry);
            }
        }
    }
    let mut input = Input::reader(data).expect("memory");
    let mut unzip = Unzip::new();
    let mut number = 0;
    loop {
        match unzip.next(&mut input) {
            Err(_) => return,
            Ok(None) => break,
            Ok(Some(_)) => {}
        }
        let size = directory
            .as_ref()
            .and_then(|directory| directory.entries.get(number))
            .map_or(0, |entry| entry.sums.raw_bytes);
        let body = unzip.body().expect("an entry has data");
        body.expect(size.min(LIMIT));
        if !drain(body, &mut input) {
            return;
        }
        number += 1;
    }
    // The whole stream was accepted: then the directory was, too, and says the same.
    let directory = directory.expect("accepted as a stream only");
    assert_eq!(unzip.entries(), directory.entries);
});
