//! floe: freeze, and let it flow.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod cli;
pub mod command;
pub mod crc;
pub mod device;
pub mod error;
pub mod freeze;
pub mod fs;
mod guard;
pub mod help;
pub mod json;
pub mod layout;
pub mod mounts;
pub mod ptable;
pub mod report;
pub mod snapshot;
pub mod stream;
#[allow(unsafe_code)]
pub mod sys;
pub mod units;
pub mod utc;

/// Runs the program with the arguments after its name and gives the exit code; dies by a signal where the run did.
pub fn main(arguments: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    let code = match command::run(arguments) {
        Ok(()) => 0,
        Err(error) => report::end(error),
    };
    std::process::ExitCode::from(code)
}
