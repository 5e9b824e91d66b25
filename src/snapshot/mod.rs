//! What is kept, and what it says of itself: metadata and archive of a snapshot, the folder it lies in, the machine it was made on,
//! and its way back onto targets.

pub mod archive;
pub mod framed;
pub mod kept;
pub mod machine;
mod metadata;
pub mod recorded;
pub mod relaid;
pub mod store;
pub mod sums;
pub mod unpack;

pub use metadata::*;
