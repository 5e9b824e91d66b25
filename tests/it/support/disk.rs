//! A loop disk with a partition table; partition nodes are made with `partx` where the kernel parses no tables.

use std::path::PathBuf;
use std::process::Command;

use crate::common::{self, Limit, LoopDevice, Scratch};

/// A loop disk with a table and partition nodes; they go away with it.
pub struct Disk {
    pub device: LoopDevice,
    pub image: PathBuf,
    pub scratch: Scratch,
}

impl Disk {
    pub fn make(mib: u64, script: &str, sector: u32) -> Result<Disk, String> {
        Self::named(mib, |_| script.to_owned(), sector)
    }

    /// With a script for sfdisk that knows the folder: its name is no other test's.
    pub fn named(
        mib: u64,
        script: impl FnOnce(&Scratch) -> String,
        sector: u32,
    ) -> Result<Disk, String> {
        Self::within(Scratch::new(), mib, script, sector)
    }

    /// The same in this folder.
    pub fn within(
        scratch: Scratch,
        mib: u64,
        script: impl FnOnce(&Scratch) -> String,
        sector: u32,
    ) -> Result<Disk, String> {
        for tool in ["sfdisk", "partx", "mkfs.vfat", "mke2fs"] {
            if !common::have(tool) {
                return Err(tool.to_owned());
            }
        }
        if !common::is_root() {
            return Err("root".to_owned());
        }
        let image = scratch.join("disk");
        common::sparse(&image, mib << 20);
        let device = LoopDevice::attach(&image, sector);
        let disk = Disk {
            device,
            image,
            scratch,
        };
        let path = disk.device.path().to_string_lossy().into_owned();
        common::run_with_input(
            Command::new("sfdisk").args(["-q", "--no-reread", "--no-tell-kernel", &path]),
            script(&disk.scratch).as_bytes(),
            Limit::secs(30),
        )
        .expect_code(0);
        if !disk.part(1).exists() {
            common::output("partx", &["-a", &path]);
        }
        if disk.part(1).exists() {
            Ok(disk)
        } else {
            Err("partition nodes".to_owned())
        }
    }

    pub fn part(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.path().display()))
    }

    pub fn part_text(&self, number: u32) -> String {
        self.part(number).to_string_lossy().into_owned()
    }
}
