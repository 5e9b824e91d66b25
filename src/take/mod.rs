//! From a name to bytes that held still: what a source is, what freezes it, which of its blocks are read, and the one run that
//! `dump`, `create` and `clone` share.

pub mod capture;
pub mod emptied;
pub mod identity;
pub mod memory;
pub mod options;
pub mod precopy;
pub mod source;
pub mod survey;
mod watched;
