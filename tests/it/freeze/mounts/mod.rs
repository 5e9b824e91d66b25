//! Sources and targets on real loop devices: whatever path or device is named, the right filesystem is found and nothing else.
//!
//! The library is linked here; the executable is not needed. Nothing is frozen but the tests' own filesystems.

mod devices;
mod kinds;
mod loops;
mod points;
mod targets;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use floe::error::Exit;
use floe::mounts::{DevId, Holding, Mounted, Source, System};

use crate::common;

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

macro_rules! make {
    ($($field:ident: $value:expr),*) => {
        require_ok!($crate::common::LoopFs::make($crate::common::Spec {
            $($field: $value,)*
            mib: 64,
            ..$crate::common::Spec::default()
        }))
    };
}

use make;
