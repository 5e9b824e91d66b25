//! Another machine over ssh: the connection, many of them at once, what is sent there, and what comes from it.

pub mod artifact;
pub mod fleet;
pub mod reach;
pub mod receive;
pub mod send;
pub mod ssh;
