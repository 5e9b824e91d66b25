//! Mount points, whatever they are called, cover or are bound to; and devices that only another namespace mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use floe::sys::ioctl::{fifreeze, fithaw};

use crate::common::{self, LoopFs, Spec};

use super::{Over, assert_found, look, make, mounted, number, resolve, resolve_filesystem};

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
fn a_covered_btrfs_is_entered_through_its_device() {
    let lower = require_ok!(LoopFs::make(Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    }));
    let over = Over::mount(&["-t", "tmpfs", "none"], lower.dir());
    let source = resolve(lower.device()).unwrap();
    assert_found(&source, lower.device());
    fifreeze(&mounted(&source).fd).unwrap();
    fithaw(&mounted(&source).fd).unwrap();
    drop((source, over));
    common::assert_not_frozen(lower.dir(), "after the test");
}
