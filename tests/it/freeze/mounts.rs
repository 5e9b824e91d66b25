//! Sources and targets on real loop devices: whatever path or device is named, the right filesystem is found and nothing else.
//!
//! The library is linked here; the executable is not needed. Nothing is frozen but the tests' own filesystems.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use floe::device::Access;
use floe::error::Exit;
use floe::mounts::{DevId, Holding, Mounted, Source, System, Why};
use floe::sys::ioctl::{fifreeze, fithaw};

use crate::common::{self, LoopDevice, LoopFs, Scratch, Spec};
use crate::disk::Disk;

fn look() -> System {
    System::look().expect("mount table")
}

fn resolve(name: impl AsRef<OsStr>) -> floe::error::Result<Source> {
    look().resolve(name.as_ref())
}

/// The filesystem that a path lies on, whatever the path is.
fn resolve_filesystem(name: impl AsRef<OsStr>) -> floe::error::Result<Source> {
    look().resolve_as(name.as_ref(), floe::mounts::Means::Filesystem)
}

fn number(device: &Path) -> DevId {
    DevId::from_raw(fs::metadata(device).expect("device").rdev())
}

#[track_caller]
fn mounted(source: &Source) -> &Mounted {
    match &source.holding {
        Holding::Mounted(mounted) => mounted,
        other => panic!("not mounted but {other:?}"),
    }
}

#[track_caller]
fn refusal(result: floe::error::Result<Source>) -> String {
    match result {
        Err(error) if error.exit() == Some(Exit::Refused) => error.to_string(),
        other => panic!("not refused but {other:?}"),
    }
}

/// The descriptor to freeze by and the device to read belong to this device's filesystem, and no other.
#[track_caller]
fn assert_found(source: &Source, device: &Path) {
    let dev = number(device);
    assert_eq!(source.dev, Some(dev));
    assert_eq!(DevId::from_raw(source.device.rdev()), dev);
    let stat = rustix::fs::fstat(&mounted(source).fd).unwrap();
    let found = mounted(source);
    if !found.mount.dev.is_anonymous() {
        assert_eq!(
            DevId::from_raw(stat.st_dev),
            dev,
            "freezing would hit another filesystem"
        );
    }
    assert_eq!(found.devices, [dev]);
}

/// Unmounts (lazily, should something hold it) when a test ends, however it ends.
struct Over(PathBuf);

impl Over {
    #[track_caller]
    fn mount(args: &[&str], point: &Path) -> Self {
        let point_text = point.to_str().expect("UTF-8");
        common::output("mount", &[args, &[point_text]].concat());
        Self(point.to_owned())
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

/// A process in a mount namespace of its own that has run a script there and stays until dropped.
struct Elsewhere(Child);

impl Elsewhere {
    #[track_caller]
    fn run(script: &str, ready: &Path) -> Self {
        let ready_text = ready.display();
        let script = format!("set -e; {script}; : > '{ready_text}'; exec sleep 120");
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "slave", "bash", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let child = Self(child);
        let end = Instant::now() + Duration::from_secs(20);
        while !ready.exists() {
            assert!(
                Instant::now() < end,
                "the script in the namespace did not get ready"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

macro_rules! make {
    ($($field:ident: $value:expr),*) => {
        match LoopFs::make(Spec { $($field: $value,)* mib: 64, ..Spec::default() }) {
            Ok(made) => made,
            Err(missing) => return common::skip(&missing),
        }
    };
}

#[test]
fn a_mount_point_with_space_newline_and_backslash_is_found() {
    let made = make!(kind: "ext4");
    let odd = made.scratch().join(OsStr::from_bytes(b"a b\\040c\nd\\e"));
    fs::create_dir(&odd).unwrap();
    let _over = Over::mount(&["--bind", made.dir().to_str().unwrap()], &odd);
    fs::create_dir(odd.join("inner")).unwrap();
    for path in [odd.clone(), odd.join("inner")] {
        let source = resolve(&path).unwrap();
        assert_found(&source, made.device());
        assert_eq!(mounted(&source).mount.point, odd);
        assert_eq!(mounted(&source).mounts.len(), 2);
    }
}

#[test]
fn a_mount_point_that_is_not_utf8_is_found() {
    let made = make!(kind: "ext4");
    let odd = made.scratch().join(OsStr::from_bytes(b"\xff\xfe#"));
    fs::create_dir(&odd).unwrap();
    let status = Command::new("mount")
        .arg("--bind")
        .arg(made.dir())
        .arg(&odd)
        .status()
        .unwrap();
    assert!(status.success());
    let _over = Over(odd.clone());
    let source = resolve(&odd).unwrap();
    assert_found(&source, made.device());
    assert_eq!(mounted(&source).mount.point, odd);
}

#[test]
fn a_covered_mount_point_means_what_covers_it_and_its_device_is_still_entered() {
    let lower = make!(kind: "ext4");
    let upper = make!(kind: "ext4");
    let point = lower.dir().to_owned();
    let over = Over::mount(&[upper.device().to_str().unwrap()], &point);
    assert_found(&resolve(&point).unwrap(), upper.device());
    // Only the device names the lower one now, and no path leads to it.
    let source = resolve(lower.device()).unwrap();
    assert_found(&source, lower.device());
    assert_eq!(
        mounted(&source).mounts.len(),
        1,
        "the look inside must leave no mount behind"
    );
    // Those of neighbours come and go.
    let own = format!("/.floe.{}.", std::process::id());
    let gone = || !common::mount_table().contains(&own);
    assert!(common::wait_until(Duration::from_secs(60), gone));
    fifreeze(&mounted(&source).fd).unwrap();
    fithaw(&mounted(&source).fd).unwrap();
    drop(source);
    drop(over);
    common::assert_not_frozen(&point, "after the test");
}

#[test]
fn a_bind_mount_of_a_folder_or_a_single_file_means_the_whole_filesystem() {
    let made = make!(kind: "ext4");
    fs::create_dir(made.dir().join("part")).unwrap();
    fs::write(made.dir().join("file"), b"text").unwrap();
    let folder = made.scratch().join("folder");
    let file = made.scratch().join("file");
    fs::create_dir(&folder).unwrap();
    fs::write(&file, b"").unwrap();
    let from = |name: &str| made.dir().join(name).to_str().unwrap().to_owned();
    let _one = Over::mount(&["--bind", &from("part")], &folder);
    let _two = Over::mount(&["--bind", &from("file")], &file);
    for (path, root) in [(&folder, "/part"), (&file, "/file")] {
        let source = resolve_filesystem(path).unwrap();
        assert_found(&source, made.device());
        assert_eq!(mounted(&source).mount.root, Path::new(root));
        assert_eq!(mounted(&source).mounts.len(), 3);
    }
    // By device: the mount of the whole filesystem is preferred.
    let source = resolve(made.device()).unwrap();
    assert_found(&source, made.device());
    assert_eq!(mounted(&source).mount.root, Path::new("/"));
}

#[test]
fn a_read_only_bind_of_a_writable_filesystem_is_not_read_only() {
    let made = make!(kind: "ext4");
    let point = made.scratch().join("ro");
    fs::create_dir(&point).unwrap();
    let _over = Over::mount(&["--bind", made.dir().to_str().unwrap()], &point);
    common::output("mount", &["-o", "remount,bind,ro", point.to_str().unwrap()]);
    let source = resolve(&point).unwrap();
    let options = &mounted(&source).mount.options;
    assert!(
        options
            .to_str()
            .unwrap()
            .split(',')
            .any(|option| option == "ro")
    );
    assert!(!mounted(&source).super_read_only());
    drop(source);
    common::output("mount", &["-o", "remount,ro", made.dir().to_str().unwrap()]);
    assert!(mounted(&resolve(&point).unwrap()).super_read_only());
}

#[test]
fn a_device_mounted_in_another_namespace_only_is_entered_there() {
    let mut made = make!(kind: "ext4");
    made.unmount();
    let device = made.device().to_owned();
    let (dir, ready) = (made.dir().to_owned(), made.scratch().join("ready"));
    let script = format!("mount {} {}", device.display(), dir.display());
    let elsewhere = Elsewhere::run(&script, &ready);
    assert!(!common::is_mounted(&dir));
    let source = resolve(&device).unwrap();
    assert_found(&source, &device);
    let pid = elsewhere.0.id();
    assert_eq!(mounted(&source).pid, Some(pid));
    assert_eq!(mounted(&source).mount.point, dir);
    fifreeze(&mounted(&source).fd).unwrap();
    fithaw(&mounted(&source).fd).unwrap();
    let uses = look().uses(number(&device));
    let words = format!(
        "is mounted on {} in the mount namespace of process {pid}",
        dir.display()
    );
    assert!(
        uses.iter().any(|found| found.to_string().contains(&words)),
        "{uses:?}"
    );
    // By the path that leads there.
    let path = Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(dir.strip_prefix("/").unwrap());
    assert_found(&resolve(path).unwrap(), &device);
}

#[test]
fn a_device_without_a_node_is_opened_all_the_same() {
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk, partx"
    );
    let disk = two_partitions();
    let part = disk.part(1);
    common::output("mkfs.ext4", &["-q", "-F", part.to_str().unwrap()]);
    let point = disk.scratch.join("mnt");
    fs::create_dir(&point).unwrap();
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

/// A disk with two partitions.
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
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk, partx"
    );
    let disk = two_partitions();
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
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk, partx"
    );
    let disk = two_partitions();
    let part = disk.part(1);
    common::output("mkfs.ext4", &["-q", "-F", part.to_str().unwrap()]);
    let point = disk.scratch.join("mnt");
    fs::create_dir(&point).unwrap();
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
fn btrfs_is_found_through_folder_subvolume_and_device() {
    let made = match LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
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
            fs::File::create(&path)
                .and_then(|file| file.set_len(128 << 20))
                .unwrap();
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
    fs::File::create(&image)
        .and_then(|file| file.set_len(4 << 20))
        .unwrap();
    common::output("mkswap", &["-q", image.to_str().unwrap()]);
    let source = resolve(&image).unwrap();
    assert!(matches!(source.holding, Holding::ImageFile));
    assert_eq!(source.dev, None);
    assert_eq!(source.shown, image);
}

#[test]
fn an_image_that_a_busy_loop_device_shows_is_refused_as_source_and_target() {
    require!(common::is_root() && common::have("mkswap"), "root, mkswap");
    let scratch = Scratch::new();
    let image = scratch.join("image");
    fs::File::create(&image)
        .and_then(|file| file.set_len(4 << 20))
        .unwrap();
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
    let _held = system
        .roots()
        .open_device(number(device.path()), Access::ReadHeld)
        .unwrap();
    assert!(refusal(resolve(&image)).contains("is in use through /dev/loop"));
}

#[test]
fn a_loop_filesystem_freezes_before_the_one_its_file_lies_on() {
    let outer = make!(kind: "ext4");
    inner_before_outer(&outer, false);
}

#[test]
fn a_loop_filesystem_on_btrfs_freezes_before_it_and_a_deleted_file_there_is_refused() {
    let outer = match LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    inner_before_outer(&outer, true);
}

/// Three filesystems, one in a file of the next, and one beside them.
fn inner_before_outer(outer: &LoopFs, hides_deleted: bool) {
    let nest = |folder: &Path| {
        let image = folder.join("inner");
        fs::File::create(&image)
            .and_then(|file| file.set_len(16 << 20))
            .unwrap();
        common::output("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        common::Mounted::new("ext4", &image, "")
    };
    let middle = nest(outer.dir());
    let image = middle.dir().join("small");
    fs::File::create(&image)
        .and_then(|file| file.set_len(2 << 20))
        .unwrap();
    common::output("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let inner = common::Mounted::new("ext4", &image, "");
    let beside = match LoopFs::make(Spec::default()) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
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

#[test]
fn labels_and_uuids_are_found_and_two_bearers_are_refused() {
    require!(common::is_root() && common::have("mkswap"), "root, mkswap");
    let scratch = Scratch::new();
    let attach = |name: &str| {
        let path = scratch.join(name);
        fs::File::create(&path)
            .and_then(|file| file.set_len(4 << 20))
            .unwrap();
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
                assert!(error.to_string().starts_with(&words), "{name}: {error}");
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

#[test]
fn a_filesystem_stopped_by_an_error_is_told_from_a_writable_one() {
    let made = match LoopFs::make(Spec {
        options: "errors=remount-ro",
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
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

#[test]
fn a_covered_btrfs_is_entered_through_its_device() {
    let lower = match LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let over = Over::mount(&["-t", "tmpfs", "none"], lower.dir());
    let source = resolve(lower.device()).unwrap();
    assert_found(&source, lower.device());
    fifreeze(&mounted(&source).fd).unwrap();
    fithaw(&mounted(&source).fd).unwrap();
    drop((source, over));
    common::assert_not_frozen(lower.dir(), "after the test");
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
