//! Mender's artifact format, version 3: what an artifact says of itself, and the writer that needs one pass over the image.

pub(crate) mod header;
pub(crate) mod writer;
