//! What makes one machine out of many: the list of files that hold an identity, and what of it a filesystem has.
//!
//! The list names what a machine makes for itself and what must not be the same twice: not configuration (network passwords, wpa
//! and iwd profiles, authorized keys), which is what a golden image is for. Every path is one that its maker makes anew when the file
//! is empty or, where it insists on that, missing (docs/golden.md).

mod tree;

use core::fmt::Write;

use sha2::{Digest, Sha256};

use crate::fs::files::{FoundFile, Pattern};
pub use crate::help::golden::LIST;
pub use tree::Tree;

/// Most bytes of a file that are looked at.
pub const MAX_CONTENT: usize = 64 * 1024;

/// The list as patterns.
pub fn patterns() -> Vec<Pattern> {
    let parsed = LIST.iter().map(|item| Pattern::parse(item.path.as_bytes()));
    parsed.flatten().collect()
}

/// One file of the list that is there.
pub struct ListedFile {
    /// Where.
    pub path: String,
    /// How long.
    pub size_bytes: u64,
    /// What tells it from another machine's.
    pub fingerprint: String,
}

impl ListedFile {
    /// From what was read.
    pub fn new(seen: FoundFile<'_>) -> Self {
        Self {
            path: String::from_utf8_lossy(seen.path).into_owned(),
            size_bytes: seen.size_bytes,
            fingerprint: match (seen.size_bytes, seen.content) {
                (0, _) => "empty".into(),
                (_, None) => "encrypted".into(),
                (_, Some(content)) => fingerprint(seen.path, content),
            },
        }
    }
}

/// An id as it is; a public key as ssh-keygen -l shows it; of everything else a hash.
fn fingerprint(path: &[u8], content: &[u8]) -> String {
    let text = core::str::from_utf8(content).map_or("", str::trim);
    if path.ends_with(b"machine-id")
        && text.len() <= 64
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return text.into();
    }
    let mut words = text.split_ascii_whitespace();
    if path.ends_with(b".pub")
        && let (Some(kind), Some(key)) = (words.next(), words.next())
        && kind.bytes().all(|byte| byte.is_ascii_graphic())
        && let Some(key) = from_base64(key)
    {
        return format!("{kind} SHA256:{}", base64(&Sha256::digest(&key)));
    }
    let mut out = String::from("sha256 ");
    for byte in Sha256::digest(content).iter().take(16) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Without padding.
fn base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let byte = |index| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..=three.len() {
            let value = bits >> (18 - 6 * digit) & 63;
            let value = usize::try_from(value).unwrap_or(0);
            out.extend(DIGITS.get(value).map(|byte| char::from(*byte)));
        }
    }
    out
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|digit| *digit == byte)?;
        bits = bits << 6 & 0xff_ffff | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            let [low, ..] = (bits >> count).to_le_bytes();
            out.push(low);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_list_is_a_pattern() {
        assert_eq!(patterns().len(), LIST.len());
    }

    #[test]
    fn fingerprints_are_those_of_the_tools() {
        let id = b"0123456789abcdef0123456789abcdef\n";
        assert_eq!(
            fingerprint(b"/etc/machine-id", id),
            "0123456789abcdef0123456789abcdef"
        );
        // ssh-keygen -lf of this key says so.
        let key =
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBKU4cEyWP3Qz1sniVyrgS4fD9skDdvKi89PR1CKtuTH x\n";
        assert_eq!(
            fingerprint(b"/etc/ssh/ssh_host_ed25519_key.pub", key),
            "ssh-ed25519 SHA256:6S7OACqyiYI0bpsTNDf5IVJvC+W2qMz5hvcA/rI04Mc"
        );
        assert_eq!(
            fingerprint(b"/var/lib/systemd/random-seed", b"abc"),
            "sha256 ba7816bf8f01cfea414140de5dae2223"
        );
        // What only looks like a key or an id is hashed.
        assert!(fingerprint(b"/x.pub", b"ssh-rsa !!!").starts_with("sha256 "));
        assert!(fingerprint(b"/etc/machine-id", &[1, 2, 3]).starts_with("sha256 "));
        for length in 0..20u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(77)).collect();
            assert_eq!(from_base64(&base64(&bytes)), Some(bytes));
        }
    }
}
