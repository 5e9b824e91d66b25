//! What each verb does, refuses and says.

mod artifact;
mod basics;
mod clone;
mod contract;
mod create;
mod disk;
mod dump;
mod frames;
mod golden;
mod grow;
mod hostile;
mod medium;
mod mender;
mod progress;
mod pull;
mod push;
mod restore;
mod sets;
mod show;
mod snapshots;
mod store;
mod targets;
mod thaw;
mod verify;
mod whole;
