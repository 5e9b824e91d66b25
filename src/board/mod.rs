//! Another machine over ssh: the connection, many of them at once, what is sent there, and what comes from it.

pub(crate) mod artifact;
pub(crate) mod fleet;
pub(crate) mod heard;
pub(crate) mod host;
pub(crate) mod reach;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod ssh;
pub(crate) mod unable;
