//! From a name to bytes that held still: what a source is, what freezes it, which of its blocks are read, and the one run that
//! `dump`, `create` and `clone` share.

pub(crate) mod capture;
pub(crate) mod counters;
mod disk;
mod draft;
pub(crate) mod emptied;
pub(crate) mod glimpse;
pub(crate) mod identity;
pub(crate) mod mapped;
pub(crate) mod memory;
pub(crate) mod options;
pub(crate) mod precopy;
pub(crate) mod ready;
pub(crate) mod source;
pub(crate) mod still;
pub(crate) mod survey;
pub(crate) mod walks;
mod watched;
