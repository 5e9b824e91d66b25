//! Streams: chunks read, encoded on every core and emitted in order; gzip and raw images read back. Knows no filesystem.

pub mod deflate;
pub mod gzip;
pub mod output;
pub mod partfile;
pub mod pipeline;
pub mod plan;
pub mod zeros;
