//! A mount namespace for the whole run, entered before the first test, and a scratch folder in memory inside it.
//!
//! Two runs side by side do not see each other's mounts then: a namespace that one of them makes is no copy of the other's, which
//! would keep its devices busy after their `umount`. Within a run the scratch folder is a shared mount, so that an `umount`
//! reaches the namespaces that tests made with `--propagation slave`, too. In memory because loop filesystems sync all the time:
//! on a disk the tests do little but wait for it.
//!
//! `tests/run` has done all that itself when it sets `FLOE_SCRATCH`.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

/// What the tests need in memory at most, with room to spare.
const ROOM_KIB: u64 = 8 << 20;

// Before `main`: the harness has no place of its own for this, and a namespace must be entered while there is one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

extern "C" fn enter() {
    if std::env::var_os("FLOE_SCRATCH").is_some() || !super::common::is_root() {
        return;
    }
    let folder = std::env::temp_dir().join("floe-it");
    // Where it cannot be done (no CAP_SYS_ADMIN), the tests that mount say so themselves.
    if let Err(error) = prepare(&folder) {
        eprintln!("no namespace of its own for this run: {error}");
        return;
    }
    // SAFETY: this is the only thread.
    unsafe { std::env::set_var("FLOE_SCRATCH", &folder) };
}

fn prepare(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    // SAFETY: no other thread shares the file system context that this one leaves.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    if available_kib() > ROOM_KIB {
        rustix::mount::mount("floe-it", folder, "tmpfs", MountFlags::empty(), None)?;
    } else {
        rustix::mount::mount_bind(folder, folder)?;
    }
    rustix::mount::mount_change(folder, MountPropagationFlags::SHARED)?;
    Ok(())
}

/// Memory that can be had without swapping.
fn available_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}
