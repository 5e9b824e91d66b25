//! What is kept, and what it says of itself: metadata and archive of a snapshot, the folder it lies in, the machine it was made on,
//! and its way back onto targets.

pub mod archive;
pub(crate) mod entry;
pub(crate) mod framed;
pub(crate) mod kept;
pub(crate) mod machine;
mod metadata;
pub(crate) mod recorded;
pub(crate) mod relaid;
pub(crate) mod replace;
pub(crate) mod retire;
pub(crate) mod store;
pub(crate) mod sums;
#[cfg(test)]
mod testing;
pub(crate) mod unpack;

pub use metadata::*;
