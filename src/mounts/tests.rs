//! Fixture trees: machines that this one is not (md, LVM, bcache, eMMC), as folders of their proc and sys files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A machine made of files, removed on drop.
struct Machine {
    top: PathBuf,
}

impl Machine {
    fn new(mountinfo: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("floe-mounts.{}.{number}", std::process::id()));
        let machine = Self { top };
        for folder in [
            "sys/dev/block",
            "sys/fs/btrfs",
            "proc/self/ns",
            "proc/self/root",
            "dev",
        ] {
            fs::create_dir_all(machine.top.join(folder)).unwrap();
        }
        machine.file("proc/self/mountinfo", mountinfo);
        symlink("mnt:[1]", machine.top.join("proc/self/ns/mnt")).unwrap();
        machine
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.top.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A device's folder below sys/devices, with its number, size in sectors, and link.
    fn block(&self, path: &str, dev: &str, sectors: u64) -> DevId {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        let at = |attribute: &str| format!("sys/devices/{path}/{attribute}");
        self.file(&at("dev"), &format!("{dev}\n"));
        self.file(&at("size"), &format!("{sectors}\n"));
        self.file(&at("ro"), "0\n");
        self.file(&at("uevent"), &format!("DEVNAME={name}\nDEVTYPE=disk\n"));
        let link = self.top.join("sys/dev/block").join(dev);
        symlink(Path::new("../../devices").join(path), link).unwrap();
        DevId::parse(dev.as_bytes()).unwrap()
    }

    fn partition(&self, path: &str, dev: &str, number: u32, start: u64, sectors: u64) -> DevId {
        let found = self.block(path, dev, sectors);
        self.file(
            &format!("sys/devices/{path}/partition"),
            &format!("{number}\n"),
        );
        self.file(&format!("sys/devices/{path}/start"), &format!("{start}\n"));
        found
    }

    /// `upper` holds `lower`: the two links that the kernel makes.
    fn hold(&self, upper: &str, lower: &str) {
        let devices = self.top.join("sys/devices");
        let name = |path: &str| Path::new(path).file_name().unwrap().to_owned();
        for (from, to, folder) in [(upper, lower, "slaves"), (lower, upper, "holders")] {
            let folder = devices.join(from).join(folder);
            fs::create_dir_all(&folder).unwrap();
            symlink(devices.join(to), folder.join(name(to))).unwrap();
        }
    }

    fn system(&self) -> System {
        System::look_at(Roots {
            proc: self.top.join("proc"),
            sys: self.top.join("sys"),
            dev: self.top.join("dev"),
        })
        .unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.top);
    }
}

const MEMORY_ROOT: &str = "1 1 0:2 / / rw - rootfs none rw\n";

/// Majors in fixtures are above the 511 that the kernel gives out, so that nothing on the testing machine answers to them.
fn mirror() -> Machine {
    let machine = Machine::new(&format!(
        "{MEMORY_ROOT}2 1 3245:0 / /data rw - ext4 /dev/md0 rw\n"
    ));
    machine.block("pci/sda", "3240:0", 2_000_000);
    machine.partition("pci/sda/sda1", "3240:1", 1, 2048, 100_000);
    machine.partition("pci/sda/sda2", "3240:2", 2, 102_048, 1_000_000);
    machine.block("pci/sdb", "3240:16", 2_000_000);
    machine.partition("pci/sdb/sdb2", "3240:18", 2, 102_048, 1_000_000);
    machine.block("virtual/md0", "3245:0", 999_000);
    machine.file("sys/devices/virtual/md0/md/level", "raid1\n");
    machine.file("sys/devices/virtual/md0/md/sync_action", "idle\n");
    machine.hold("virtual/md0", "pci/sda/sda2");
    machine.hold("virtual/md0", "pci/sdb/sdb2");
    machine
}

fn dev(text: &str) -> DevId {
    DevId::parse(text.as_bytes()).unwrap()
}

#[test]
fn a_partition_knows_its_disk_and_a_disk_its_partitions() {
    let machine = mirror();
    let system = machine.system();
    let roots = system.roots();
    assert_eq!(roots.disk_of(dev("3240:2")), Some(dev("3240:0")));
    assert_eq!(roots.disk_of(dev("3240:0")), None);
    assert_eq!(roots.disk_of(dev("3245:0")), None);
    let parts = roots.partitions_of(dev("3240:0"));
    assert_eq!(parts.len(), 2);
    assert_eq!((parts[0].number, parts[0].start_bytes), (1, 2048 * 512));
    assert_eq!(parts[1].size_bytes, 512_000_000);
    assert_eq!(roots.shown(dev("3240:2")), Path::new("/dev/sda2"));
    assert_eq!(roots.size_bytes(dev("3240:0")), Some(1_024_000_000));
}

#[test]
fn what_lies_below_an_array_is_known_through_what_is_between() {
    let machine = mirror();
    machine.block("virtual/dm-0", "3246:0", 900_000);
    machine.file("sys/devices/virtual/dm-0/dm/uuid", "CRYPT-LUKS2-x\n");
    machine.block("virtual/md1", "3245:1", 800_000);
    machine.file("sys/devices/virtual/md1/md/level", "raid1\n");
    machine.hold("virtual/dm-0", "pci/sda/sda1");
    machine.hold("virtual/md1", "virtual/dm-0");
    let system = machine.system();
    // The partition of the container, the disk, a member.
    for below in ["3240:1", "3246:0", "3240:0", "3240:18"] {
        assert!(system.is_below_md(dev(below)), "{below}");
    }
    for other in ["3245:0", "3245:1"] {
        assert!(!system.is_below_md(dev(other)), "{other}");
    }
}

#[test]
fn a_mirror_member_and_its_disk_are_in_use_in_the_contracts_words() {
    let machine = mirror();
    let system = machine.system();
    let member = "/dev/sda2 is a member of md0 (raid1); a snapshot onto a mirror is not possible";
    assert_eq!(system.uses(dev("3240:2"))[0].to_string(), member);
    assert_eq!(system.uses(dev("3240:0"))[0].to_string(), member);
    let mounted = system.uses(dev("3245:0"));
    assert_eq!(
        mounted[0].to_string(),
        "/dev/md0 is mounted on /data; umount /data first"
    );
}

#[test]
fn a_mirror_lies_on_its_members_and_their_disks_but_not_on_their_neighbours() {
    let machine = mirror();
    let system = machine.system();
    let md = dev("3245:0");
    assert!(system.overlaps(md, dev("3240:2")) && system.overlaps(dev("3240:18"), md));
    assert!(system.overlaps(md, dev("3240:0")) && system.overlaps(md, dev("3240:16")));
    assert!(!system.overlaps(md, dev("3240:1")));
    assert!(!system.overlaps(dev("3240:1"), dev("3240:2")));
    assert!(system.overlaps(dev("3240:1"), dev("3240:0")));
}

#[test]
fn a_resyncing_array_moves_whichever_part_of_it_is_the_source() {
    let machine = mirror();
    let parts = ["3245:0", "3240:2", "3240:0"].map(dev);
    assert!(
        parts
            .iter()
            .all(|at| machine.system().roots().moving(*at).is_none())
    );
    machine.file("sys/devices/virtual/md0/md/sync_action", "recover\n");
    for at in parts {
        assert_eq!(
            machine.system().roots().moving(at).unwrap(),
            "md0 is in recovery"
        );
    }
    assert!(machine.system().roots().moving(dev("3240:1")).is_none());
    machine.file("sys/devices/virtual/md0/md/sync_action", "check\n");
    assert!(machine.system().roots().moving(dev("3245:0")).is_none());
}

#[test]
fn a_bcache_in_writeback_moves_and_its_parts_are_in_use() {
    let machine = Machine::new(MEMORY_ROOT);
    let disk = machine.block("pci/sdc", "3240:32", 1000);
    let cache = machine.block("virtual/bcache0", "3246:0", 990);
    machine.file("sys/devices/virtual/bcache0/bcache/x", "");
    machine.file(
        "sys/devices/pci/sdc/bcache/cache_mode",
        "writethrough [writeback] writearound none\n",
    );
    machine.hold("virtual/bcache0", "pci/sdc");
    let system = machine.system();
    let text = system.uses(disk)[0].to_string();
    assert_eq!(text, "/dev/sdc is part of bcache0; stop that first");
    assert!(system.roots().moving(disk).unwrap().contains("writeback"));
    assert!(system.roots().moving(cache).unwrap().contains("writeback"));
    machine.file(
        "sys/devices/pci/sdc/bcache/cache_mode",
        "[writethrough] writeback\n",
    );
    assert!(machine.system().roots().moving(cache).is_none());
}

#[test]
fn volumes_are_told_apart_by_their_maker() {
    let machine = Machine::new(MEMORY_ROOT);
    let disk = machine.block("pci/sda", "3240:0", 1000);
    for (minor, name, uuid) in [
        (0, "vg-root", "LVM-abc"),
        (1, "secret", "CRYPT-LUKS2-abc-secret"),
        (2, "mpatha", "mpath-abc"),
        (3, "odd", ""),
    ] {
        let path = format!("virtual/dm-{minor}");
        machine.block(&path, &format!("3247:{minor}"), 100);
        machine.file(&format!("sys/devices/{path}/dm/name"), &format!("{name}\n"));
        machine.file(&format!("sys/devices/{path}/dm/uuid"), &format!("{uuid}\n"));
        machine.hold(&path, "pci/sda");
    }
    let system = machine.system();
    let texts: Vec<String> = system.uses(disk).iter().map(Use::to_string).collect();
    assert!(
        texts[0].contains("below the LVM volume vg-root"),
        "{texts:?}"
    );
    assert!(
        texts[1].contains("encrypted volume secret; cryptsetup close"),
        "{texts:?}"
    );
    assert!(
        texts[2].contains("path of the multipath device mpatha"),
        "{texts:?}"
    );
    assert!(texts[3].contains("device-mapper device odd"), "{texts:?}");
    assert_eq!(
        system.roots().shown(dev("3247:0")),
        Path::new("/dev/mapper/vg-root")
    );
    assert!(!system.overlaps(dev("3247:0"), dev("3247:1")));
}

#[test]
fn a_loop_device_over_one_volume_is_in_the_way_of_no_other_volume() {
    let machine = Machine::new(&format!(
        "{MEMORY_ROOT}2 1 3248:0 / /vm rw - ext4 /dev/loop0 rw\n"
    ));
    machine.block("pci/sda", "3240:0", 2_000_000);
    machine.partition("pci/sda/sda1", "3240:1", 1, 2048, 1_000_000);
    let [one, other] = [0, 1].map(|minor| {
        let path = format!("virtual/dm-{minor}");
        let dev = machine.block(&path, &format!("3247:{minor}"), 1000);
        machine.hold(&path, "pci/sda/sda1");
        dev
    });
    let node = machine.top.join("dev/dm-0");
    let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::RUSR);
    if let Err(errno) = rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, one.raw()) {
        eprintln!("skipped: needs mknod: {errno}");
        return;
    }
    machine.block("virtual/loop0", "3248:0", 1000);
    let file = format!("{}\n", node.display());
    machine.file("sys/devices/virtual/loop0/loop/backing_file", &file);
    let system = machine.system();
    let texts: Vec<String> = system.uses(one).iter().map(Use::to_string).collect();
    assert!(texts[0].contains("loop0"), "{texts:?}");
    assert_eq!(system.uses(other), []);
    // The volume's disk has the bytes of both.
    assert!(system.uses_beside(dev("3240:0"), false).is_empty());
}

#[test]
fn a_cached_lvm_volume_moves() {
    let machine = Machine::new(MEMORY_ROOT);
    for (minor, name) in [
        (0, "vg-data"),
        (1, "vg-data_corig"),
        (2, "vg-pool_cpool_cdata"),
        (3, "vg-plain"),
    ] {
        let path = format!("virtual/dm-{minor}");
        machine.block(&path, &format!("3247:{minor}"), 100);
        machine.file(&format!("sys/devices/{path}/dm/name"), &format!("{name}\n"));
        machine.file(&format!("sys/devices/{path}/dm/uuid"), "LVM-x\n");
    }
    machine.hold("virtual/dm-0", "virtual/dm-1");
    machine.hold("virtual/dm-0", "virtual/dm-2");
    let system = machine.system();
    assert!(
        system
            .roots()
            .moving(dev("3247:0"))
            .unwrap()
            .contains("cache")
    );
    assert!(system.roots().moving(dev("3247:1")).is_some());
    assert!(system.roots().moving(dev("3247:3")).is_none());
}

#[test]
fn the_running_root_and_everything_below_it_is_in_use() {
    let machine = Machine::new("1 0 3240:2 / / rw - ext4 /dev/root rw\n");
    machine.block("pci/sda", "3240:0", 2_000_000);
    machine.partition("pci/sda/sda1", "3240:1", 1, 2048, 1000);
    machine.partition("pci/sda/sda2", "3240:2", 2, 4096, 1000);
    let system = machine.system();
    for at in ["3240:0", "3240:2"] {
        let text = system.uses(dev(at))[0].to_string();
        assert!(
            text.ends_with("holds the running root; choose another target"),
            "{text}"
        );
    }
    let neighbour = system.uses(dev("3240:1"));
    assert!(
        !neighbour.iter().any(|found| found.why == Why::RunningRoot),
        "{neighbour:?}"
    );
}

#[test]
fn a_mount_in_another_namespace_or_below_another_root_is_found_once() {
    let machine = Machine::new(MEMORY_ROOT);
    let disk = machine.block("pci/sda", "3240:0", 1000);
    let table = "5 1 3240:0 / /inside rw - ext4 /dev/sda rw\n";
    for (pid, namespace, root) in [
        (10, "mnt:[2]", "a"),
        (11, "mnt:[2]", "a"),
        (12, "mnt:[1]", "b"),
        (13, "mnt:[1]", "self"),
    ] {
        machine.file(&format!("proc/{pid}/mountinfo"), table);
        fs::create_dir_all(machine.top.join(format!("proc/{pid}/ns"))).unwrap();
        symlink(namespace, machine.top.join(format!("proc/{pid}/ns/mnt"))).unwrap();
        let root = if root == "self" {
            machine.top.join("proc/self/root")
        } else {
            let path = machine.top.join("roots").join(root);
            fs::create_dir_all(&path).unwrap();
            path
        };
        symlink(root, machine.top.join(format!("proc/{pid}/root"))).unwrap();
    }
    machine.file("proc/14/mountinfo", table); // a process that is going away: no namespace to read
    let system = machine.system();
    let pids: Vec<u32> = system.namespaces().iter().map(|other| other.pid).collect();
    assert_eq!(pids, [10, 12]);
    let uses = system.uses(disk);
    assert_eq!(uses.len(), 2, "{uses:?}");
    assert!(
        uses[0]
            .to_string()
            .contains("/inside in the mount namespace of process 10")
    );
}

#[test]
fn swap_is_found_by_name_where_it_has_no_node() {
    let machine = Machine::new(MEMORY_ROOT);
    machine.block("pci/xda", "3240:0", 9000);
    let part = machine.partition("pci/xda/xda3", "3240:3", 3, 2048, 1000);
    machine.file(
        "proc/swaps",
        "Filename\tType\tSize\tUsed\tPriority\n/dev/xda3 partition 500 0 -2\n",
    );
    let system = machine.system();
    assert_eq!(system.swap_devices(), [part]);
    assert_eq!(
        system.uses(part)[0].to_string(),
        "/dev/xda3 is active swap; swapoff it first"
    );
    assert_eq!(system.uses(dev("3240:0"))[0].why, Why::Swap);
}

#[test]
fn a_partition_label_is_read_from_sysfs_and_two_bearers_are_refused() {
    let machine = Machine::new(MEMORY_ROOT);
    machine.block("pci/mmcblk9", "3240:0", 9000);
    for number in 1..=3u32 {
        let path = format!("pci/mmcblk9/mmcblk9p{number}");
        machine.partition(&path, &format!("3240:{number}"), number, 2048, 1000);
        let name = if number == 1 { "boot" } else { "root" };
        let text = format!("DEVNAME=mmcblk9p{number}\nPARTNAME={name}\nPARTUUID=ABCD-0{number}\n");
        machine.file(&format!("sys/devices/{path}/uevent"), &text);
    }
    let system = machine.system();
    let find = |text: &str| system.target(std::ffi::OsStr::new(text));
    assert_eq!(find("PARTLABEL=boot").unwrap().dev, Some(dev("3240:1")));
    assert_eq!(
        find("PARTUUID=abcd-03").unwrap().shown,
        Path::new("/dev/mmcblk9p3")
    );
    let text = find("PARTLABEL=root").unwrap_err().to_string();
    assert!(text.contains("/dev/mmcblk9p2, /dev/mmcblk9p3"), "{text}");
    assert!(find("PARTLABEL=none").is_err());
    assert!(find("LABEL=boot").is_err());
}

#[test]
fn media_are_told_by_bus_and_name() {
    let machine = Machine::new(MEMORY_ROOT);
    for (path, number, media) in [
        ("pci/usb1/1-1/host2/block/sdx", "3240:0", Media::Usb),
        ("mmc0/block/mmcblk0", "3240:16", Media::Sd),
        ("mmc1/block/mmcblk1", "3240:32", Media::Mmc),
        ("mmc1/block/mmcblk1boot0", "3240:48", Media::Other),
        ("pci/nvme0n1", "3240:64", Media::Nvme),
        ("pci/vda", "3240:80", Media::Disk),
        ("virtual/loop7", "3240:96", Media::Other),
    ] {
        machine.block(path, number, 100);
        let kind = if media == Media::Sd { "SD\n" } else { "MMC\n" };
        machine.file(&format!("sys/devices/{path}/device/type"), kind);
        assert_eq!(machine.system().roots().media(dev(number)), media, "{path}");
    }
}

#[test]
fn garbage_in_sysfs_is_no_device_and_no_panic() {
    let machine = Machine::new(MEMORY_ROOT);
    let disk = machine.block("pci/sda", "3240:0", 1);
    machine.file("sys/devices/pci/sda/size", "99999999999999999999\n");
    machine.file("sys/devices/pci/sda/uevent", "\u{0}\nDEVNAME\n=\n");
    machine.file("sys/devices/pci/sda/sda1/partition", "x\n");
    machine.file("sys/devices/pci/sda/sda1/dev", ":\n");
    fs::create_dir_all(machine.top.join("sys/devices/pci/sda/holders/ghost")).unwrap();
    fs::create_dir_all(machine.top.join("sys/dev/block/nonsense")).unwrap();
    let system = machine.system();
    let roots = system.roots();
    assert_eq!(roots.size_bytes(disk), None);
    assert!(roots.partitions_of(disk).is_empty() && roots.holders(disk).is_empty());
    assert_eq!(roots.devices(), [disk]);
    assert_eq!(roots.shown(disk), Path::new("/dev/sda"));
    assert_eq!(roots.shown(dev("9:9")), Path::new("block device 9:9"));
}

#[test]
fn holders_in_a_circle_end() {
    let machine = Machine::new(MEMORY_ROOT);
    machine.block("virtual/dm-0", "3247:0", 100);
    machine.block("virtual/dm-1", "3247:1", 100);
    machine.hold("virtual/dm-0", "virtual/dm-1");
    machine.hold("virtual/dm-1", "virtual/dm-0");
    let system = machine.system();
    assert_eq!(system.under(dev("3247:0")).unwrap().len(), 2);
    assert_eq!(system.roots().up(dev("3247:0")), [dev("3247:1")]);
}
