//! Files that are devices, and filesystems that lie in them: what is inside freezes first.

use std::fs;
use std::path::Path;

use floe::device::Access;
use floe::mounts::{Holding, Mounted};
use floe::sys::ioctl::{fifreeze, fithaw};

use crate::common::{self, LoopDevice, LoopFs, Scratch, Spec};

use super::{look, make, mounted, number, refusal, resolve};

#[test]
fn an_image_that_a_busy_loop_device_shows_is_refused_as_source_and_target() {
    require!(common::is_root() && common::have("mkswap"), "root, mkswap");
    let scratch = Scratch::new();
    let image = scratch.join("image");
    common::sparse(&image, 4 << 20);
    common::output("mkswap", &["-q", image.to_str().unwrap()]);
    let device = LoopDevice::attach(&image, 512);
    let system = look();
    let target = system.target(image.as_ref()).unwrap();
    let uses = system.uses_of(&target).unwrap();
    let name = device.path().display();
    assert_eq!(
        uses[0].to_string(),
        format!(
            "{} is attached to {name}; losetup -d {name} first",
            image.display()
        )
    );
    assert!(matches!(
        resolve(&image).unwrap().holding,
        Holding::ImageFile
    ));
    let hold = || {
        let roots = system.roots();
        roots.open_device(number(device.path()), Access::ReadHeld)
    };
    let _held = common::patiently(hold).unwrap();
    assert!(refusal(resolve(&image)).contains("is in use through /dev/loop"));
}

#[test]
fn a_loop_filesystem_freezes_before_the_one_its_file_lies_on() {
    let outer = make!(kind: "ext4");
    inner_before_outer(&outer, false);
}

#[test]
fn a_loop_filesystem_on_btrfs_freezes_before_it_and_a_deleted_file_there_is_refused() {
    let outer = require_ok!(LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }));
    inner_before_outer(&outer, true);
}

/// Three filesystems, one in a file of the next, and one beside them.
fn inner_before_outer(outer: &LoopFs, hides_deleted: bool) {
    let nest = |folder: &Path| {
        let image = folder.join("inner");
        common::sparse(&image, 16 << 20);
        common::mkfs_ext4(&image);
        common::Mounted::new("ext4", &image, "")
    };
    let middle = nest(outer.dir());
    let image = middle.dir().join("small");
    common::sparse(&image, 2 << 20);
    common::mkfs_ext4(&image);
    let inner = common::Mounted::new("ext4", &image, "");
    let beside = require_ok!(LoopFs::make(Spec::default()));
    let system = look();
    let find = |path: &Path| system.resolve(path.as_os_str()).unwrap();
    let sources = [
        find(beside.dir()),
        find(outer.dir()),
        find(inner.dir()),
        find(middle.dir()),
        find(inner.dir()),
    ];
    let all: Vec<&Mounted> = sources.iter().map(mounted).collect();
    assert_eq!(system.freeze_order(&all).unwrap(), [0, 2, 3, 1]);
    let reversed: Vec<&Mounted> = all.iter().rev().copied().collect();
    assert_eq!(system.freeze_order(&reversed).unwrap(), [0, 1, 3, 4]);
    // It is the right order: freezing in it works, thawing in reverse works.
    for index in [2, 3, 1] {
        fifreeze(&all[index].fd).unwrap();
    }
    for index in [1, 3, 2] {
        fithaw(&all[index].fd).unwrap();
    }
    for inside in [2, 3] {
        assert!(system.overlaps(sources[inside].dev.unwrap(), sources[1].dev.unwrap()));
    }
    // The kernel still knows where a deleted file lies, unless its device number is a subvolume's.
    fs::remove_file(outer.dir().join("inner")).unwrap();
    let order = look().freeze_order(&all);
    if hides_deleted {
        let text = order.unwrap_err().to_string();
        assert!(text.contains("cannot be placed: it was deleted"), "{text}");
    } else {
        assert_eq!(order.unwrap(), [0, 2, 3, 1]);
    }
}
