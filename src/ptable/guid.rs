//! GUIDs as GPT stores them: the first three groups little-endian, the rest as they are read.

use core::fmt;

/// A GUID in its on-disk order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Guid(pub [u8; 16]);

/// Byte of the on-disk form for each byte of the text.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Linux filesystem data.
    pub const LINUX: Self = Self::from_text(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);
    /// Linux swap.
    pub const SWAP: Self = Self::from_text(0x0657_fd6d_a4ab_43c4_84e5_0933_c84b_4f4f);
    /// EFI system partition.
    pub const EFI: Self = Self::from_text(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
    /// Microsoft basic data: FAT that is no EFI system partition.
    pub const BASIC_DATA: Self = Self::from_text(0xebd0_a0a2_b9e5_4433_87c0_68b6_b726_99c7);

    /// From the 32 digits of the text read as one number.
    pub const fn from_text(digits: u128) -> Self {
        let text = digits.to_be_bytes();
        let mut bytes = [0; 16];
        let mut index = 0;
        while index < 16 {
            bytes[ORDER[index]] = text[index];
            index += 1;
        }
        Self(bytes)
    }

    /// From text with or without dashes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = || text.bytes().filter(|byte| *byte != b'-');
        if digits().count() != 32 || !digits().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let number = digits().fold(0u128, |number, byte| {
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            number << 4 | u128::from(digit)
        });
        Some(Self::from_text(number))
    }

    /// From 16 random bytes, marked as random (version 4).
    pub fn random(mut bytes: [u8; 16]) -> Self {
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// True for the GUID of an unused entry.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in ORDER.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(*place).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_order_differ_in_the_first_three_groups() {
        assert_eq!(Guid::LINUX.0[..4], [0xaf, 0x3d, 0xc6, 0x0f]);
        let text = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(Guid::LINUX.to_string(), text);
        assert_eq!(Guid::parse(&text.to_uppercase()), Some(Guid::LINUX));
        assert_eq!(Guid::parse("0fc63daf"), None);
        assert_eq!(Guid::parse("zzc63daf-8483-4772-8e79-3d69d8477de4"), None);
        let random = Guid::random([0xff; 16]).to_string();
        assert_eq!(random, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
