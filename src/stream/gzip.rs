//! The gzip frame around a deflate stream (RFC 1952): one member, no name, no time.

/// Header: magic, deflate, no flags, no time, "fastest" (4), Unix (3).
pub const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 3];

/// Trailer: CRC-32 of the raw bytes and their count modulo 2^32, little-endian.
pub fn trailer(crc32: u32, raw_bytes: u64) -> [u8; 8] {
    let [a, b, c, d] = crc32.to_le_bytes();
    let [e, f, g, h, ..] = raw_bytes.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}
