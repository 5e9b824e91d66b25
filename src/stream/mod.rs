//! Streams: chunks read, encoded on every core and emitted in order; gzip and raw images read back and written to a target.
//! Knows no filesystem.
//!
//! Out: [`plan`] says what is read, [`pipeline`] reads and encodes ([`deflate`], [`zeros`]), [`output`] emits, [`gzip`] frames;
//! [`inplace`] puts a raw image together in its own file. [`partfile`] has names appear only for what is complete; [`bmap`] is the
//! list of blocks beside an image. In: [`input`] buffers a file or pipe, [`gunzip`] undoes gzip through [`inflate`], [`image`]
//! turns either form into data and zero runs in order, opens it, checks it, and says whether it is whole; [`target`] takes those
//! runs onto a device or file, [`copy`] joins both ends with a thread each, [`digest`] remembers what was written. Archives:
//! [`archive`] emits them, [`zip`] writes their records, [`unzip`] reads them, as a stream or through the directory; [`tar`] writes
//! headers, [`pack`] encodes an image into the body of a member, [`artifact`] reads a Mender artifact. Between two floes:
//! [`frames`], chunks in any order.

pub(crate) mod archive;
pub(crate) mod artifact;
pub(crate) mod bmap;
pub(crate) mod copy;
pub mod deflate;
pub(crate) mod digest;
pub mod frames;
pub mod gunzip;
pub mod gzip;
pub mod image;
pub(crate) mod inflate;
pub(crate) mod inplace;
pub mod input;
pub mod output;
pub(crate) mod pack;
pub mod partfile;
pub mod pipeline;
pub(crate) mod plan;
pub(crate) mod tar;
pub(crate) mod target;
pub mod unzip;
pub mod zeros;
pub mod zip;
