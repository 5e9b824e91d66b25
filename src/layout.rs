//! One macro for on-disk structures: a table of `offset field: type`, read from bytes with bounds checked.
//!
//! Fields stand in ascending order; an offset that overlaps the field before it, or a field that passes the end of the
//! structure, does not compile. Every reader adds a test that pins its offsets against a real image.

/// A fixed-size value at an offset in bytes, in either byte order.
pub(crate) trait Field: Sized {
    /// Size on disk in bytes.
    const SIZE: usize;
    /// Reads it in little-endian order; `None` past the end.
    fn le(bytes: &[u8], offset: usize) -> Option<Self>;
    /// Reads it in big-endian order; `None` past the end.
    fn be(bytes: &[u8], offset: usize) -> Option<Self>;
}

/// An on-disk structure, for who reads it by its type.
pub(crate) trait Structure: Sized {
    /// Size on disk in bytes.
    const BYTES: usize;
    /// Its fields; `None` when the bytes are too few.
    fn of(bytes: &[u8]) -> Option<Self>;
}

macro_rules! integer_field {
    ($($ty:ty),*) => {$(
        impl Field for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn le(bytes: &[u8], offset: usize) -> Option<Self> {
                Some(Self::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
            }
            fn be(bytes: &[u8], offset: usize) -> Option<Self> {
                Some(Self::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
            }
        }
    )*};
}
integer_field!(u8, u16, u32, u64);

impl<const N: usize> Field for [u8; N] {
    const SIZE: usize = N;
    fn le(bytes: &[u8], offset: usize) -> Option<Self> {
        bytes.get(offset..)?.first_chunk().copied()
    }
    fn be(bytes: &[u8], offset: usize) -> Option<Self> {
        <Self as Field>::le(bytes, offset)
    }
}

/// Declares an on-disk structure: `layout! { le pub struct Name: SIZE { 0x00 field: u32, … } }` (`be` for big-endian).
///
/// Gives the struct, `SIZE`, `Name::field` as the offset of a field, and `parse(&[u8]) -> Option<Self>`, which is `None` when fewer than `SIZE` bytes are there.
#[macro_export]
macro_rules! layout {
    ($(#[$meta:meta])* $order:ident $vis:vis struct $name:ident: $size:literal {
        $( $(#[$fmeta:meta])* $offset:literal $field:ident: $ty:ty ),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        // Of some fields only the place is used.
        #[allow(dead_code, missing_docs)]
        $vis struct $name { $( $(#[$fmeta])* pub $field: $ty ),* }

        impl $name {
            /// Size on disk in bytes.
            #[allow(dead_code)]
            $vis const SIZE: usize = $size;
            const OFFSETS_ASCEND: () = {
                let mut end = 0usize;
                $(
                    assert!($offset >= end, concat!("overlapping field ", stringify!($field)));
                    end = $offset + <$ty as $crate::layout::Field>::SIZE;
                )*
                assert!(end <= $size, "field past the end");
            };
            /// Reads the structure; `None` when the bytes are too few.
            $vis fn parse(bytes: &[u8]) -> Option<Self> {
                let () = Self::OFFSETS_ASCEND;
                let bytes = bytes.get(..$size)?;
                Some(Self { $( $field: <$ty as $crate::layout::Field>::$order(bytes, $offset)? ),* })
            }
        }

        /// Where each field stands, in bytes.
        #[allow(dead_code, missing_docs, non_upper_case_globals)]
        impl $name {
            $( $vis const $field: usize = $offset; )*
        }

        impl $crate::layout::Structure for $name {
            const BYTES: usize = $size;
            fn of(bytes: &[u8]) -> Option<Self> {
                Self::parse(bytes)
            }
        }
    };
}

/// Reads a little-endian value at `offset`; `None` past the end.
pub(crate) fn le<T: Field>(bytes: &[u8], offset: usize) -> Option<T> {
    T::le(bytes, offset)
}

/// Reads a big-endian value at `offset`; `None` past the end.
pub(crate) fn be<T: Field>(bytes: &[u8], offset: usize) -> Option<T> {
    T::be(bytes, offset)
}

/// Puts the bytes of a field at `offset`; nothing where they go past the end.
pub(crate) fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..offset.saturating_add(field.len())) {
        place.copy_from_slice(field);
    }
}

#[cfg(test)]
mod tests {
    layout! {
        /// A sample.
        be struct Sample: 8 { 0x00 magic: u16, 0x04 count: u32 }
    }

    #[test]
    fn fields_are_read_in_order_and_short_input_is_none() {
        let sample = Sample::parse(&[0x12, 0x34, 0, 0, 0, 0, 0, 5, 9]).unwrap();
        assert_eq!((sample.magic, sample.count), (0x1234, 5));
        assert!(Sample::parse(&[0; 7]).is_none());
        assert_eq!(Sample::count, 4);
    }
}
