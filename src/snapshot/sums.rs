//! What a file is known by on its way between machines: its length and its SHA-256.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::report::hex;
use crate::units::to_u64;

/// Length and SHA-256 of what was copied.
pub(crate) struct Sums {
    /// Length in bytes.
    pub length_bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// Gives everything to `to`, and what it was.
pub(crate) fn copy(
    from: &mut dyn Read,
    shown: &str,
    to: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Sums> {
    let mut hash = Sha256::new();
    let mut length_bytes = 0u64;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::std(shown, "read", &e)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        length_bytes = length_bytes.saturating_add(to_u64(count));
        to(bytes)?;
    }
    Ok(Sums {
        length_bytes,
        sha256: hex(&hash.finalize()),
    })
}

/// Length and SHA-256 of a file.
pub(crate) fn sums_of(path: &Path) -> Result<(u64, String)> {
    let shown = path.display().to_string();
    let mut file = File::open(path).map_err(|e| Error::std(&shown, "open", &e))?;
    let sums = copy(&mut file, &shown, &mut |_| Ok(()))?;
    Ok((sums.length_bytes, sums.sha256))
}
