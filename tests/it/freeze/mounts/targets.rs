//! What may not be written to: active swap, the running root, what is not there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use floe::error::Exit;
use floe::mounts::{DevId, Holding};

use crate::common::{self, LoopDevice, Scratch};

use super::{look, number, resolve};

#[test]
fn active_swap_is_in_use_and_known_by_file_and_device() {
    require!(
        common::is_root() && common::have("mkswap") && common::have("swapon"),
        "root, mkswap, swapon"
    );
    let scratch = Scratch::new();
    let image = scratch.join("image");
    fs::write(&image, vec![0; 4 << 20]).unwrap();
    let device = LoopDevice::attach(&image, 512);
    let name = device.path().to_str().unwrap();
    common::output("mkswap", &["-q", name]);
    let on = Command::new("swapon")
        .arg(name)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    require!(on.success(), "swap in this kernel");
    let system = look();
    let uses = system.uses(number(device.path()));
    let source = system.resolve(name.as_ref());
    let off = Command::new("swapoff").arg(name).status().unwrap();
    assert!(off.success());
    assert_eq!(
        uses[0].to_string(),
        format!("{name} is active swap; swapoff it first")
    );
    match source.unwrap().holding {
        Holding::Stacked(stacked) => assert_eq!(stacked.swaps, [number(device.path())]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_root_of_the_machine_is_found_by_its_names_and_may_not_be_a_target() {
    require!(common::is_root(), "root");
    let dev = DevId::from_raw(fs::metadata("/").unwrap().dev());
    require!(!dev.is_anonymous(), "a root filesystem on a block device");
    // Looked at only: nothing here freezes or writes.
    for name in ["/", "/etc", "/dev/root"] {
        match resolve(name) {
            Ok(source) => assert_eq!(source.dev, Some(dev), "{name}"),
            // A container may deny the device itself; which one it is was found out all the same.
            Err(error) => {
                let device = look().roots().shown(dev);
                let words = format!("{}: open: ", device.display());
                assert!(error.to_string().contains(&words), "{name}: {error}");
            }
        }
    }
    let system = look();
    assert!(system.root_devices().contains(&dev));
    let target = system.target("/dev/root".as_ref()).unwrap();
    let uses = system.uses_of(&target).unwrap();
    assert!(
        uses[0]
            .to_string()
            .ends_with("holds the running root; choose another target"),
        "{uses:?}"
    );
}

#[test]
fn a_missing_or_special_target_is_refused() {
    let system = look();
    for name in ["/no/such/target", "/dev/null", "/etc"] {
        match system.target(name.as_ref()) {
            // The state is the verb's to add where it was not known.
            Err(error) => assert_eq!(error.exit(), Some(Exit::Refused), "{error}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}
