//! Disks, partitions and names of devices: what of them is mounted, held, or to be found by a label.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use floe::device::Access;
use floe::mounts::{DevId, Holding, Why};

use crate::common::{self, LoopDevice, Scratch};
use crate::disk::Disk;

use super::{Over, look, make, number, refusal, resolve};

/// A disk with two partitions.
macro_rules! require_partitions {
    () => {{
        require!(
            common::is_root() && common::have("sfdisk") && common::have("partx"),
            "root, sfdisk, partx"
        );
        two_partitions()
    }};
}

/// Its first one as an ext4, and a folder to mount it on.
fn first_of(disk: &Disk) -> (PathBuf, PathBuf) {
    let (part, point) = (disk.part(1), disk.scratch.join("mnt"));
    common::mkfs_ext4(&part);
    fs::create_dir(&point).unwrap();
    (part, point)
}

#[test]
fn a_device_without_a_node_is_opened_all_the_same() {
    let disk = require_partitions!();
    let (part, point) = first_of(&disk);
    let _over = Over::mount(&[part.to_str().unwrap()], &point);
    let dev = number(&part);
    // A node that lies: the name of the partition, the number of the disk.
    fs::remove_file(&part).unwrap();
    common::output(
        "cp",
        &[
            "-a",
            disk.device.path().to_str().unwrap(),
            part.to_str().unwrap(),
        ],
    );
    for _ in 0..2 {
        let source = resolve(&point).unwrap();
        assert_eq!(source.dev, Some(dev));
        assert_eq!(DevId::from_raw(source.device.rdev()), dev);
        let mut magic = [0; 2];
        floe::device::ReadAt::read_at(&source.device, 1024 + 56, &mut magic).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert!(source.device.is_direct());
        let _ = fs::remove_file(&part); // now there is none at all
    }
}

fn two_partitions() -> Disk {
    let script = |scratch: &Scratch| {
        format!(
            "label: gpt\nstart=2048, size=40960, name={}\nstart=43008, size=40960, name={}\n",
            partition_name(scratch, 1),
            partition_name(scratch, 2)
        )
    };
    Disk::named(64, script, 512).expect("a disk with partitions")
}

/// No two tests' disks bear the same name.
fn partition_name(scratch: &Scratch, number: u32) -> String {
    let own = scratch
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    format!("{own}.{number}")
}

#[test]
fn partition_names_are_read_from_the_table_itself() {
    let disk = require_partitions!();
    let system = look();
    let entry = system.partition_entry(number(&disk.part(2))).unwrap();
    assert_eq!(
        (entry.number, entry.name.as_str()),
        (2, partition_name(&disk.scratch, 2).as_str())
    );
    for tag in [
        format!("PARTLABEL={}", partition_name(&disk.scratch, 2)),
        format!("PARTUUID={}", entry.uuid.to_uppercase()),
    ] {
        let source = system.resolve(tag.as_ref()).unwrap();
        assert_eq!(source.dev, Some(number(&disk.part(2))));
        assert_eq!(source.shown, disk.part(2));
    }
    // The whole image file is an image, too: it has a table.
    let image = disk.scratch.join("disk");
    assert!(matches!(
        resolve(&image).unwrap().holding,
        Holding::ImageFile
    ));
    common::output(
        "partx",
        &["-d", "--nr", "2", disk.device.path().to_str().unwrap()],
    );
    let text = refusal(resolve(format!(
        "PARTLABEL={}",
        partition_name(&disk.scratch, 2)
    )));
    let name = disk.device.path().display();
    assert!(
        text.ends_with(&format!(
            "is partition 2 of {name}, which the kernel has not read; partx -a {name} first"
        )),
        "{text}"
    );
}

#[test]
fn a_disk_with_a_mounted_partition_keeps_the_mounted_one_and_holds_the_other() {
    let disk = require_partitions!();
    let (part, point) = first_of(&disk);
    let over = Over::mount(&[part.to_str().unwrap()], &point);
    let system = look();
    let dev = number(disk.device.path());
    assert_eq!(system.roots().partitions_of(dev).len(), 2);
    assert_eq!(system.roots().disk_of(number(&part)), Some(dev));
    let source = system.resolve(disk.device.path().as_ref()).unwrap();
    match &source.holding {
        Holding::Stacked(stacked) => {
            assert_eq!(stacked.mounted.len(), 1);
            assert_eq!(stacked.mounted[0].mount.point, point);
            assert_eq!(stacked.held.len(), 1);
            assert_eq!(
                DevId::from_raw(stacked.held[0].rdev()),
                number(&disk.part(2))
            );
        }
        other => panic!("{other:?}"),
    }
    let busy = system
        .roots()
        .open_device(number(&disk.part(2)), Access::ReadHeld);
    assert!(busy.unwrap_err().is_errno(rustix::io::Errno::BUSY));
    let uses = system.uses(dev);
    assert_eq!(
        uses[0].why,
        Why::Mounted {
            point: point.clone(),
            pid: None
        }
    );
    assert_eq!(uses[0].device, part);
    assert!(system.overlaps(dev, number(&part)));
    assert!(!system.overlaps(number(&disk.part(2)), number(&part)));
    drop((source, over));
    // Unused, the disk itself can be held: as soon as nobody who lists devices has it open.
    assert!(common::wait_until(Duration::from_secs(20), || matches!(
        resolve(disk.device.path()).unwrap().holding,
        Holding::Unmounted
    )));
}

#[test]
fn an_unmounted_device_is_held_until_the_source_is_dropped() {
    let mut made = make!(kind: "ext4");
    made.unmount();
    let source = resolve(made.device()).unwrap();
    assert!(matches!(source.holding, Holding::Unmounted));
    let mount = || {
        let mut command = Command::new("mount");
        command
            .arg(made.device())
            .arg(made.dir())
            .stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(!mount(), "mounted while it was held");
    // Held by somebody, shown in no table: refused.
    assert!(refusal(resolve(made.device())).contains("in use by another program"));
    assert_eq!(look().uses(number(made.device()))[0].why, Why::Busy);
    // Let go within a moment, as by somebody who only looked: ours.
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(source);
    });
    let source = resolve(made.device()).unwrap();
    assert!(matches!(source.holding, Holding::Unmounted));
    assert!(!mount(), "mounted while it was held");
    other.join().unwrap();
    drop(source);
    assert!(mount());
}

#[test]
fn labels_and_uuids_are_found_and_two_bearers_are_refused() {
    require!(common::is_root() && common::have("mkswap"), "root, mkswap");
    let scratch = Scratch::new();
    let attach = |name: &str| {
        let path = scratch.join(name);
        common::sparse(&path, 4 << 20);
        let device = LoopDevice::attach(&path, 512);
        common::output(
            "mkswap",
            &[
                "-q",
                "-L",
                "floe-it-label",
                "-U",
                UUID,
                device.path().to_str().unwrap(),
            ],
        );
        device
    };
    const UUID: &str = "0f10e000-1234-4321-8888-0123456789ab";
    let first = attach("one");
    for name in [
        "LABEL=floe-it-label".to_owned(),
        format!("UUID={}", UUID.to_uppercase()),
    ] {
        let source = resolve(&name).unwrap();
        assert_eq!(source.dev, Some(number(first.path())));
        assert_eq!(source.shown, first.path());
    }
    let second = attach("two");
    let text = refusal(resolve("LABEL=floe-it-label"));
    for device in [&first, &second] {
        assert!(text.contains(device.path().to_str().unwrap()), "{text}");
    }
    assert!(refusal(resolve("LABEL=floe-it-none")).contains("no block device here bears it"));
}

#[test]
fn a_loop_device_over_a_block_device_counts_as_its_user() {
    let mut made = make!(kind: "ext4");
    made.unmount();
    let rider = LoopDevice::attach(made.device(), 512);
    let point = made.scratch().join("rider");
    fs::create_dir(&point).unwrap();
    let over = Over::mount(&[rider.path().to_str().unwrap()], &point);
    // The kernel lets anyone hold the lower device: O_EXCL knows nothing of the mount.
    let source = resolve(made.device()).unwrap();
    match &source.holding {
        Holding::Stacked(stacked) => assert_eq!(stacked.mounted[0].mount.point, point),
        other => panic!("{other:?}"),
    }
    let uses = look().uses(number(made.device()));
    assert_eq!(
        uses[0].why,
        Why::Loop {
            by: rider.path().to_owned()
        }
    );
    assert!(look().overlaps(number(made.device()), number(rider.path())));
    drop((source, over));
}
