//! Whole snapshots: the stream reader and the one that begins at the central directory, which must agree.
#![no_main]

use floe::cli::Common;
use floe::device::{Access, Device};
use floe::report::Progress;
use floe::snapshot::archive::{Bundle, Catalog};
use floe::stream::input::Input;

/// More than this is not inflated here.
const LIMIT: u64 = 1 << 20;

fn stream(file: std::fs::File) -> Option<Bundle> {
    let input = Input::file(file, None).expect("memory");
    let mut bundle = Bundle::open("x", input).ok()?;
    if bundle.size_bytes() > LIMIT {
        return None;
    }
    loop {
        match bundle.next() {
            Err(_) => return None,
            Ok(None) => return Some(bundle),
            Ok(Some(_)) => {}
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("floe-fuzz-bundle-{}", std::process::id()));
    std::fs::write(&path, data).expect("file");
    let file = std::fs::File::open(&path).expect("file");
    let device = Device::open(&path, Access::Read);
    let _ = std::fs::remove_file(&path);
    let catalog = device
        .ok()
        .and_then(|device| Catalog::read("x", device).ok());
    if let Some(catalog) = &catalog {
        for path in catalog.snapshot.paths() {
            let mut line = Progress::new(&Common {
                quiet: true,
                ..Common::default()
            });
            let _ = catalog.check_bytes(&path, &mut line);
        }
    }
    if let Some(bundle) = stream(file) {
        let catalog = catalog.expect("accepted as a stream only");
        assert_eq!(catalog.snapshot, bundle.snapshot);
        assert_eq!(catalog.checksums, bundle.checksums);
    }
});
