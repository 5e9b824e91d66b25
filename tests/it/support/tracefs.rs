//! What floe has in tracefs.

use std::fs;
use std::os::fd::AsRawFd;

use floe::mounts::mount_kernel;

/// The instances of floes there are, without mounting tracefs where somebody would see it.
pub fn instances() -> Vec<String> {
    let root = mount_kernel("tracefs").expect("tracefs");
    let folder = format!("/proc/self/fd/{}/instances", root.as_raw_fd());
    let names = fs::read_dir(folder).expect("instances").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("floe-")).collect()
}

/// Those of one floe.
pub fn instances_of(pid: u32) -> Vec<String> {
    let mut all = instances();
    all.retain(|name| name.starts_with(&format!("floe-{pid}-")));
    all
}
