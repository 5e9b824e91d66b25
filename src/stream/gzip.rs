//! The gzip frame around a deflate stream (RFC 1952): one member, no name, no time.

/// Header: magic, deflate, no flags, no time, "fastest" (4), Unix (3).
pub const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 3];

/// An extra field (RFC 1952, 2.3.1.1) without content: this is a copy of something as it is. Nothing in it says that it is an image
/// or how long it should be; whoever asked for it (`dump --whole` of a damaged disk, `dump` of a partition without a known
/// filesystem) knew that, and gets it back.
pub const AS_IT_IS: [u8; 2] = *b"fL";

/// The header with [`AS_IT_IS`].
pub const HEADER_AS_IT_IS: [u8; 16] = {
    let [a, b] = AS_IT_IS;
    [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 4, 3, 4, 0, a, b, 0, 0]
};

/// Trailer: CRC-32 of the raw bytes and their count modulo 2^32, little-endian.
pub fn trailer(crc32: u32, raw_bytes: u64) -> [u8; 8] {
    let [a, b, c, d] = crc32.to_le_bytes();
    let [e, f, g, h, ..] = raw_bytes.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}
