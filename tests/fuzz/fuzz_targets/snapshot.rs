//! A snapshot's metadata: whatever is accepted is written, and read back the same.
#![no_main]

use floe::snapshot::{Checksums, Snapshot};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(snapshot) = Snapshot::from_json(data) {
        let text = snapshot.to_json();
        assert_eq!(Snapshot::from_json(text.as_bytes()), Ok(snapshot));
    }
    if let Ok(checksums) = Checksums::from_json(data) {
        let text = checksums.to_json();
        assert_eq!(Checksums::from_json(text.as_bytes()), Ok(checksums));
    }
});
