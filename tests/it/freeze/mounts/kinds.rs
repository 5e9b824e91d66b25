//! Filesystems of several devices, above others or in memory, files that are no filesystem, and what an error has stopped.

use std::fs;
use std::path::Path;

use floe::error::Exit;
use floe::mounts::{Holding, Source, Why};
use floe::sys::ioctl::{fifreeze, fithaw};

use crate::common::{self, LoopDevice, LoopFs, Scratch, Spec};

use super::{
    Over, assert_found, look, make, mounted, number, refusal, resolve, resolve_filesystem,
};

#[test]
fn btrfs_is_found_through_folder_subvolume_and_device() {
    let made = require_ok!(LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }));
    let sub = made.dir().join("sub");
    common::output("btrfs", &["subvolume", "create", sub.to_str().unwrap()]);
    let elsewhere = made.scratch().join("sub");
    fs::create_dir(&elsewhere).unwrap();
    let _over = Over::mount(
        &["-o", "subvol=sub", made.device().to_str().unwrap()],
        &elsewhere,
    );
    for path in [made.dir(), &sub, &elsewhere, made.device()] {
        let source = resolve(path).unwrap();
        assert_found(&source, made.device());
        assert_eq!(mounted(&source).mounts.len(), 2);
    }
    let mut uses = look().uses(number(made.device()));
    // Another test's namespace may begin with a copy of ours.
    uses.retain(|found| matches!(found.why, Why::Mounted { pid: None, .. }));
    assert_eq!(uses.len(), 2, "{uses:?}");
    fifreeze(&mounted(&resolve(&elsewhere).unwrap()).fd).unwrap();
    fithaw(&mounted(&resolve(made.device()).unwrap()).fd).unwrap();
}

#[test]
fn a_btrfs_of_two_devices_is_refused_by_name() {
    require!(
        common::is_root() && common::have("mkfs.btrfs") && common::kernel_has("btrfs"),
        "root, btrfs"
    );
    let scratch = Scratch::new();
    let loops: Vec<LoopDevice> = ["a", "b"]
        .iter()
        .map(|name| {
            let path = scratch.join(name);
            common::sparse(&path, 128 << 20);
            LoopDevice::attach(&path, 512)
        })
        .collect();
    let names: Vec<&str> = loops
        .iter()
        .map(|device| device.path().to_str().unwrap())
        .collect();
    common::output("mkfs.btrfs", &["-q", "-f", names[0], names[1]]);
    common::output("btrfs", &["device", "scan", names[0], names[1]]);
    let point = scratch.join("mnt");
    fs::create_dir(&point).unwrap();
    let _over = Over::mount(&["-t", "btrfs", names[0]], &point);
    let text = refusal(resolve(&point));
    assert!(
        text.contains("spans 2 devices") && text.contains(names[1]),
        "{text}"
    );
    // A member is in use although the mount table names the other one.
    assert!(matches!(
        look().uses(number(loops[1].path()))[0].why,
        Why::Mounted { .. }
    ));
}

#[test]
fn an_overlay_is_refused_with_the_filesystem_to_dump_instead() {
    let made = make!(kind: "ext4");
    require!(common::kernel_has("overlay"), "overlay in this kernel");
    let at = |name: &str| {
        let path = made.dir().join(name);
        fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("low"),
        at("up"),
        at("work")
    );
    let point = made.scratch().join("merged");
    fs::create_dir(&point).unwrap();
    let _over = Over::mount(&["-t", "overlay", "overlay", "-o", &options], &point);
    let text = refusal(resolve(&point));
    let words = format!(
        "overlay has no device of its own; dump {} (its upper layer, ext4) instead",
        made.dir().display()
    );
    assert!(text.ends_with(&words), "{text}");
}

#[test]
fn tmpfs_and_special_files_are_refused() {
    require!(common::is_root(), "root");
    let scratch = Scratch::new();
    let point = scratch.join("memory");
    fs::create_dir(&point).unwrap();
    let _over = Over::mount(&["-t", "tmpfs", "none"], &point);
    let text = refusal(resolve(&point));
    assert!(
        text.contains("tmpfs lives in memory; what can be dumped here: "),
        "{text}"
    );
    assert!(refusal(resolve("/proc")).contains("proc has no block device"));
    assert!(refusal(resolve("/dev/null")).contains("is a character device"));
    let fifo = scratch.join("fifo");
    common::output("mkfifo", &[fifo.to_str().unwrap()]);
    assert!(refusal(resolve(&fifo)).contains("is a FIFO"));
    assert!(matches!(
        resolve(scratch.join("missing")),
        Err(error) if error.exit() == Some(Exit::Refused)
    ));
}

#[test]
fn a_regular_file_is_an_image_only_when_its_content_is_one() {
    let made = make!(kind: "ext4");
    let plain = made.dir().join("plain");
    fs::write(&plain, b"just text").unwrap();
    let empty = made.dir().join("empty");
    fs::write(&empty, b"").unwrap();
    for file in [&plain, &empty] {
        // Either may have been meant; --fs-path says which.
        let text = refusal(resolve(file));
        assert!(
            text.contains("--fs-path") && text.contains("--whole"),
            "{text}"
        );
        assert_found(&resolve_filesystem(file).unwrap(), made.device());
    }
    let image = made.dir().join("image");
    common::sparse(&image, 4 << 20);
    common::output("mkswap", &["-q", image.to_str().unwrap()]);
    let source = resolve(&image).unwrap();
    assert!(matches!(source.holding, Holding::ImageFile));
    assert_eq!(source.dev, None);
    assert_eq!(source.shown, image);
}

#[test]
fn a_filesystem_stopped_by_an_error_is_told_from_a_writable_one() {
    let made = require_ok!(LoopFs::make(Spec {
        options: "errors=remount-ro",
        ..Spec::default()
    }));
    let stopped = |source: &Source| {
        let found = mounted(source);
        found.emergency_read_only() || found.super_read_only()
    };
    assert!(!stopped(&resolve(made.dir()).unwrap()));
    let name = made.device().file_name().unwrap().to_str().unwrap();
    let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
    require!(
        Path::new(&trigger).exists(),
        "trigger_fs_error in this kernel"
    );
    fs::write(trigger, "a test").unwrap();
    assert!(stopped(&resolve(made.dir()).unwrap()));
}
