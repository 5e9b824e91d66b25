//! Partition tables against the real tools: what sgdisk and sfdisk write we read, what we write they accept.

use crate::common::{self, Limit, Scratch};
use floe::device::{Access, Device};
use floe::ptable::{
    self, Guid, Length, NewPartition, NewTable, PartitionTable, PartitionType, Patch, Scheme,
};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn shell(script: &str) -> String {
    common::shell(script, Limit::secs(60))
        .expect_code(0)
        .stdout_text()
}

fn read(image: &Path, sector: u32) -> PartitionTable {
    let device = Device::open(image, Access::Read).expect("image");
    ptable::read(&device, sector).expect("read").expect("table")
}

fn write(image: &Path, pieces: &[Patch]) {
    let file = OpenOptions::new().write(true).open(image).expect("image");
    for piece in pieces {
        file.write_all_at(&piece.bytes, piece.offset)
            .expect("write");
    }
}

/// `NUMBER START SIZE TYPE UUID NAME` of each partition, as sfdisk states them (start and size in sectors).
fn by_sfdisk(image: &Path) -> Vec<String> {
    let text = shell(&format!("sfdisk --dump '{}' 2>/dev/null", image.display()));
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.contains(" : start=")) {
        let (node, rest) = line.split_once(" : ").expect("a node");
        let number: String = node
            .rsplit(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .to_owned();
        let field = |key: &str| {
            let value = rest
                .split(", ")
                .find_map(|part| part.trim().strip_prefix(key));
            value.unwrap_or("").trim().trim_matches('"').to_lowercase()
        };
        let kind = field("type=");
        if !["5", "f", "85"].contains(&kind.as_str()) {
            found.push(format!(
                "{number} {} {} {kind} {} {}",
                field("start="),
                field("size="),
                field("uuid="),
                field("name=")
            ));
        }
    }
    found
}

/// The same of a table that we read.
fn ours(table: &PartitionTable) -> Vec<String> {
    let sector = u64::from(table.sector_bytes);
    let line = |p: &ptable::Partition| {
        let (kind, uuid) = match p.kind {
            PartitionType::Guid(guid) => (guid.to_string(), p.uuid.as_str()),
            PartitionType::Byte(byte) => (format!("{byte:x}"), ""),
        };
        // sfdisk writes what is not ASCII as \\xNN.
        let escape = |letter: char| match letter.is_ascii() {
            true => letter.to_string(),
            false => letter
                .to_string()
                .bytes()
                .map(|byte| format!("\\x{byte:02x}"))
                .collect(),
        };
        let name: String = p.name.to_lowercase().chars().map(escape).collect();
        let (start, count) = (p.extent.offset / sector, p.extent.length_bytes / sector);
        format!("{} {start} {count} {kind} {uuid} {name}", p.number)
    };
    table.partitions.iter().map(line).collect()
}

#[test]
fn tables_of_sgdisk_are_read_as_sfdisk_reads_them() {
    require!(
        common::have("sgdisk") && common::have("sfdisk"),
        "gdisk and fdisk"
    );
    let scratch = Scratch::new();
    let a = scratch.join("a");
    let shown = a.display();
    for (clear, create) in [
        ("", "-n 1:2048:+5M -n 3::+7M -c 3:'böot A' -t 3:ef00 -n 2::"),
        ("", "-n 7:40:+1M -A 7:set:2 -a 1 -n 9:5555:6666"),
        ("-S 512", "-n 300::+1M -n 1::"),
        ("-j 64", "-n 1::"),
        ("", "-n 1::+4M -n 2::+4M -h 1:2"),
    ] {
        shell(&format!(
            "rm -f {shown}; truncate -s 40M {shown}; sgdisk -Z {shown} >/dev/null 2>&1; sgdisk -o {clear} {create} {shown} >/dev/null"
        ));
        let table = read(&a, 512);
        assert_eq!(
            (table.scheme, table.doubt),
            (Scheme::Gpt, None),
            "{clear} {create}"
        );
        assert_eq!(table.end_bytes, 40 << 20);
        let mut expected = by_sfdisk(&a);
        expected.sort_by_key(|line| line.split(' ').next().unwrap().parse::<u32>().unwrap());
        assert_eq!(ours(&table), expected);
        let id = shell(&format!("sfdisk --disk-id {shown} 2>/dev/null"));
        assert_eq!(table.disk_id.as_str(), id.trim().to_lowercase());
    }
}

#[test]
fn tables_of_sfdisk_with_logical_partitions_are_read_as_it_reads_them() {
    require!(common::have("sfdisk"), "fdisk");
    let scratch = Scratch::new();
    let a = scratch.join("a");
    let shown = a.display();
    for script in [
        ",3M,c,*\\n,4M,82\\n,,L\\n",
        ",3M\\n,,E\\n,2M\\n,3M,b\\n,1M,82\\n,4M\\n",
        ",1M\\n,1M\\n,10M,5\\n,5M\\n,2M\\n,1M\\n,1M\\n",
    ] {
        shell(&format!(
            "rm -f {shown}; truncate -s 40M {shown}; printf 'label: dos\\n{script}' | sfdisk -q {shown}"
        ));
        let table = read(&a, 512);
        assert_eq!((table.scheme, table.doubt), (Scheme::Mbr, None), "{script}");
        assert_eq!(ours(&table), by_sfdisk(&a), "{script}");
        let id = shell(&format!("sfdisk --disk-id {shown} 2>/dev/null"));
        assert_eq!(format!("0x{}", table.disk_id), id.trim());
        let first = table.partitions.first().expect("one");
        assert_eq!(first.uuid.as_str(), format!("{}-01", table.disk_id));
    }
}

fn new_partitions(scheme: Scheme, count: u8) -> Vec<NewPartition<'static>> {
    let names = ["boot", "root", "config", "data", "swäp"];
    (1..=count)
        .zip(names)
        .map(|(number, name)| NewPartition {
            extent: floe::units::Extent::at(0, 0),
            kind: match scheme {
                Scheme::Gpt => PartitionType::Guid(Guid::LINUX),
                Scheme::Mbr => PartitionType::Byte(0x83),
            },
            uuid: Guid::random([number; 16]),
            name,
            attributes: 0,
        })
        .collect()
}

/// Lays out and writes a table over `image` (MiB), and gives what was meant.
fn write_table(image: &Path, scheme: Scheme, mib: u64, count: u8) -> Vec<String> {
    let disk_bytes = mib << 20;
    common::sparse(image, disk_bytes);
    let mut lengths = vec![Length::Bytes(3 << 20); usize::from(count)];
    lengths[1] = Length::Rest;
    let extents = ptable::allocate(scheme, 512, disk_bytes, 0, &lengths).expect("room");
    let mut partitions = new_partitions(scheme, count);
    for (partition, extent) in partitions.iter_mut().zip(extents) {
        partition.extent = extent;
    }
    let table = NewTable {
        scheme,
        sector_bytes: 512,
        disk_bytes,
        disk_id: Guid::random([9; 16]),
        partitions: &partitions,
    };
    write(image, &table.build().expect("table"));
    ours(&read(image, 512))
}

#[test]
fn tables_that_we_write_satisfy_sgdisk_and_sfdisk() {
    require!(
        common::have("sgdisk") && common::have("sfdisk"),
        "gdisk and fdisk"
    );
    let scratch = Scratch::new();
    let a = scratch.join("a");
    let shown = a.display();
    for count in [2, 4, 5] {
        for scheme in [Scheme::Gpt, Scheme::Mbr] {
            let meant = write_table(&a, scheme, 64, count);
            assert_eq!(meant.len(), usize::from(count));
            assert_eq!(meant, by_sfdisk(&a));
            let check = shell(&format!("sfdisk --verify {shown} 2>&1"));
            assert!(check.contains("No errors detected"), "{check}");
        }
        write_table(&a, Scheme::Gpt, 64, count);
        let check = shell(&format!("sgdisk -v {shown}"));
        assert!(check.contains("No problems found"), "{check}");
    }
}

#[test]
fn a_gpt_moved_to_a_larger_disk_satisfies_sgdisk() {
    require!(common::have("sgdisk"), "gdisk");
    let scratch = Scratch::new();
    let a = scratch.join("a");
    let shown = a.display();
    for hybrid in ["", "sgdisk -h 1 {} >/dev/null;"] {
        let hybrid = hybrid.replace("{}", &shown.to_string());
        shell(&format!(
            "rm -f {shown}; truncate -s 40M {shown}; sgdisk -o -n 1::+4M -n 2:: -c 2:rest {shown} >/dev/null; {hybrid} truncate -s 100M {shown}"
        ));
        let before = read(&a, 512);
        assert_eq!((before.doubt, before.end_bytes), (None, 40 << 20));
        let device = Device::open(&a, Access::Read).expect("image");
        let pieces = ptable::gpt::relocate(&device, 512, 100 << 20).expect("room");
        write(&a, &pieces);
        let after = read(&a, 512);
        assert_eq!(ours(&before), ours(&after));
        assert_eq!((after.doubt, after.end_bytes), (None, 100 << 20));
        let check = shell(&format!("sgdisk -v {shown}"));
        assert!(check.contains("No problems found"), "{check}");
    }
}

#[test]
fn tables_of_disks_with_4096_byte_sectors_are_read_and_written() {
    require!(
        common::is_root() && common::have("sfdisk"),
        "root and fdisk"
    );
    let scratch = Scratch::new();
    let a = scratch.join("a");
    common::sparse(&a, 64 << 20);
    let device = common::LoopDevice::attach(&a, 4096);
    for label in ["gpt", "dos"] {
        shell(&format!(
            "printf 'label: {label}\\n,5M\\n,8M\\n,4M\\n,\\n' | sfdisk -q --wipe always --no-reread --no-tell-kernel {}",
            device.path().display()
        ));
        let opened = Device::open(device.path(), Access::Read).expect("device");
        let table = ptable::read(&opened, 4096).expect("read").expect("table");
        assert_eq!(table.doubt, None);
        assert_eq!(ours(&table), by_sfdisk(device.path()), "{label}");
        if label == "gpt" {
            let image = ptable::read_image(&opened).expect("read").expect("table");
            assert_eq!(image.sector_bytes, 4096);
        }
    }
}

#[test]
fn filesystems_without_a_table_are_not_taken_for_one() {
    let scratch = Scratch::new();
    let a = scratch.join("a");
    for (tool, script) in [
        ("mkfs.fat", "mkfs.fat -F 16"),
        ("mkfs.fat", "mkfs.fat -F 32"),
        ("mkfs.ext4", "mkfs.ext4 -qF"),
        ("mkfs.exfat", "mkfs.exfat"),
    ] {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let shown = a.display();
        shell(&format!(
            "rm -f {shown}; truncate -s 64M {shown}; {script} {shown} >/dev/null"
        ));
        let device = Device::open(&a, Access::Read).expect("image");
        assert!(
            ptable::read_image(&device).expect("read").is_none(),
            "{script}"
        );
    }
}
