//! Loop devices, filesystems on them, and who writes to those.

use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::{Limit, Scratch, fill, have, is_root, output, run, wait_for, wait_until};

/// A loop device of the test's own over a file; detached on drop.
pub struct LoopDevice {
    device: PathBuf,
    /// What the kernel says lies behind it: by this it is known to be still ours.
    behind: String,
}

impl LoopDevice {
    /// Attaches a file. `sector_size` is 512 or 4096.
    #[track_caller]
    pub fn attach(file: &Path, sector_size: u32) -> LoopDevice {
        let sector = sector_size.to_string();
        Self::attach_with(file, &["--sector-size", &sector])
    }

    /// Over a new file `name` of `mib` MiB, all of this byte; zeros are a hole.
    #[track_caller]
    pub fn filled(scratch: &Scratch, name: &str, mib: u64, byte: u8) -> LoopDevice {
        let path = scratch.join(name);
        let mut file = fs::File::create(&path).expect("file");
        if byte == 0 {
            file.set_len(mib << 20).expect("file");
        } else {
            let piece = vec![byte; 1 << 20];
            (0..mib).for_each(|_| file.write_all(&piece).expect("fill"));
        }
        Self::attach(&path, 512)
    }

    /// With these options of `losetup`; `-P`: it may have partitions, which go away with it.
    #[track_caller]
    pub fn attach_with(file: &Path, options: &[&str]) -> LoopDevice {
        let shown = file.to_string_lossy();
        let mut unfit = Vec::new(); // held until one fits, so that the next one is another
        for attempt in 0..40 {
            let mut losetup = Command::new("losetup");
            losetup.args(["-f", "--show"]).args(options).arg(&*shown);
            let made = run(losetup.stdin(Stdio::null()), Limit::secs(60));
            // Between finding a free one and taking it somebody else may be quicker.
            if made.code != Some(0) {
                let text = made.stderr_text();
                let raced = text.contains("busy") || text.contains("No such");
                assert!(raced && attempt < 39, "{made}");
                thread::sleep(Duration::from_millis(10 + 5 * attempt));
                continue;
            }
            let device = PathBuf::from(made.stdout_text().trim());
            let behind = behind(&device);
            let made = LoopDevice { device, behind };
            made.forget_partitions();
            // A partition that is still in use somewhere stays, and would be in this test's way.
            if made.is_whole(file) && !made.has_partitions(options) {
                return made;
            }
            unfit.push(made);
        }
        panic!("{shown}: no loop device fits: all have partitions of others");
    }

    /// As long as its file: nobody detached it in the same instant.
    fn is_whole(&self, file: &Path) -> bool {
        let name = self.device.file_name().unwrap();
        let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size"));
        let sectors = sectors
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let length = fs::metadata(file).map_or(0, |meta| meta.len());
        length < 4096 || sectors.is_some_and(|sectors| sectors != 0)
    }

    fn has_partitions(&self, options: &[&str]) -> bool {
        !options.contains(&"-P") && self.partitions() > 0
    }

    /// Partitions that the kernel knows of.
    fn partitions(&self) -> usize {
        let name = self.device.file_name().unwrap().to_string_lossy();
        let inside = fs::read_dir(format!("/sys/block/{name}")).into_iter();
        let names = inside.flatten().flatten().map(|entry| entry.file_name());
        names
            .filter(|entry| entry.to_string_lossy().starts_with(&*name))
            .count()
    }

    /// Partitions that somebody told the kernel of outlive `losetup -d`, and would be the next file's. So may nodes that no
    /// partition has any more: the kernel makes none of its own where one of that name stands.
    fn forget_partitions(&self) {
        let name = self.device.file_name().unwrap().to_string_lossy();
        if self.partitions() > 0 {
            let _ = Command::new("partx")
                .arg("-d")
                .arg(&self.device)
                .stderr(Stdio::null())
                .status();
        }
        for number in 1..10 {
            let part = format!("{name}p{number}");
            if !Path::new(&format!("/sys/block/{name}/{part}")).exists() {
                let _ = fs::remove_file(format!("/dev/{part}"));
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Waits until nothing holds it: a mount namespace that somebody made meanwhile began with a copy of our mount, and
    /// whoever lists devices (`losetup`, `blkid`, a floe that searches) has each open for a moment.
    pub fn wait_until_free(&self) {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        wait_until(Duration::from_secs(30), || {
            rustix::fs::open(&self.device, flags, rustix::fs::Mode::empty()).is_ok()
        });
    }
}

/// The file behind a loop device, in the kernel's words; a file that was deleted since is the same file.
fn behind(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().trim_end_matches(" (deleted)").to_owned()
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Detached by the test itself, it may be somebody else's by now.
        if behind(&self.device) != self.behind {
            return;
        }
        self.forget_partitions();
        let _ = Command::new("losetup")
            .arg("-d")
            .arg(&self.device)
            .stderr(Stdio::null())
            .status();
    }
}

/// What filesystem to make. `..Spec::default()` fills in ext4, 64 MiB, 512 byte sectors.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// As `mkfs.KIND` and `mount -t KIND` name it.
    pub kind: &'a str,
    pub mib: u64,
    /// Further options of mkfs.
    pub mkfs: &'a [&'a str],
    /// Mount options, comma separated.
    pub options: &'a str,
    pub sector_size: u32,
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Spec {
            kind: "ext4",
            mib: 64,
            mkfs: &[],
            options: "",
            sector_size: 512,
        }
    }
}

/// A filesystem of the test's own: image file, loop device, mounted. On drop it is thawed, unmounted and detached,
/// whatever the test left it in.
pub struct LoopFs {
    kind: String,
    options: String,
    mount_point: PathBuf,
    image: PathBuf,
    // Fields drop in this order: the device before the folder that holds its file.
    device: LoopDevice,
    scratch: Scratch,
}

impl LoopFs {
    /// Makes and mounts it, or says what is missing (to be given to `skip`).
    #[track_caller]
    pub fn make(spec: Spec<'_>) -> Result<LoopFs, String> {
        if !is_root() {
            return Err("root".to_owned());
        }
        if !have(&format!("mkfs.{}", spec.kind)) {
            return Err(format!("mkfs.{}", spec.kind));
        }
        if !kernel_has(spec.kind) {
            return Err(format!("{} in this kernel", spec.kind));
        }
        let scratch = Scratch::new();
        let image = scratch.join("image");
        let mount_point = scratch.join("mnt");
        fs::create_dir(&mount_point).expect("mount point");
        super::sparse(&image, spec.mib * 1024 * 1024);
        let device = LoopDevice::attach(&image, spec.sector_size);
        let force: &[&str] = match spec.kind {
            "ext2" | "ext3" | "ext4" => &["-q", "-F"],
            "xfs" | "btrfs" => &["-q", "-f"],
            "f2fs" => &["-f"],
            _ => &[],
        };
        let node = device.path().to_string_lossy();
        output(
            &format!("mkfs.{}", spec.kind),
            &[force, spec.mkfs, &[&*node]].concat(),
        );
        let mut made = LoopFs {
            kind: spec.kind.to_owned(),
            options: spec.options.to_owned(),
            mount_point,
            image,
            device,
            scratch,
        };
        made.mount();
        Ok(made)
    }

    pub fn dir(&self) -> &Path {
        &self.mount_point
    }

    pub fn device(&self) -> &Path {
        self.device.path()
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A folder beside the image (on the machine's own filesystem), for outputs.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    #[track_caller]
    pub fn mount(&mut self) {
        let device = self.device.path().to_string_lossy().into_owned();
        let dir = self.mount_point.to_string_lossy().into_owned();
        let mut args = vec!["-t", self.kind.as_str()];
        if !self.options.is_empty() {
            args.extend(["-o", self.options.as_str()]);
        }
        args.extend([device.as_str(), dir.as_str()]);
        output("mount", &args);
    }

    #[track_caller]
    pub fn unmount(&mut self) {
        thaw(&self.mount_point);
        output("umount", &[&self.mount_point.to_string_lossy()]);
        self.device.wait_until_free();
    }

    /// Writes a mixture of files (small, large, sparse, in folders, linked, some deleted again), and syncs.
    pub fn fill(&self, files: u32) {
        fill(&self.mount_point, files);
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if is_mounted(&self.mount_point) {
            release(&self.mount_point);
        }
    }
}

/// Mounts a device or image somewhere of its own, read-write unless the options say otherwise; unmounted on drop.
pub struct Mounted {
    dir: PathBuf,
    _scratch: Scratch,
}

impl Mounted {
    /// A file is mounted through a loop device that goes away with the mount.
    #[track_caller]
    pub fn new(kind: &str, source: &Path, options: &str) -> Mounted {
        let scratch = Scratch::new();
        let dir = scratch.join("mnt");
        fs::create_dir(&dir).expect("mount point");
        let is_block = fs::metadata(source).is_ok_and(|meta| meta.file_type().is_block_device());
        let mut all = options.to_owned();
        if !is_block {
            all = format!("loop,{all}").trim_end_matches(',').to_owned();
        }
        let source = source.to_string_lossy();
        let place = dir.to_string_lossy();
        if all.is_empty() {
            output("mount", &["-t", kind, &source, &place]);
        } else {
            output("mount", &["-t", kind, "-o", &all, &source, &place]);
        }
        Mounted {
            dir,
            _scratch: scratch,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            release(&self.dir);
        }
    }
}

/// The filesystem's own checker finds nothing; it changes nothing either.
#[track_caller]
pub fn fsck(kind: &str, image: &Path) {
    let (tool, words): (&str, &[&str]) = match kind {
        // -f: the image is a file.
        "xfs" if image.is_file() => ("xfs_repair", &["-f", "-n"]),
        "xfs" => ("xfs_repair", &["-n"]),
        "btrfs" => ("btrfs", &["check", "--readonly"]),
        "vfat" => ("fsck.vfat", &["-n"]),
        _ => ("e2fsck", &["-fn"]),
    };
    run(
        Command::new(tool)
            .args(words)
            .arg(image)
            .stdin(Stdio::null()),
        Limit::secs(120),
    )
    .expect_code(0);
}

/// Thaws what may be frozen; says nothing when it was not.
pub fn thaw(dir: &Path) {
    let _ = Command::new("timeout")
        .args(["20", "fsfreeze", "-u"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Freezes a filesystem of the test's own, as somebody else would.
#[track_caller]
pub fn freeze(dir: &Path) {
    assert!(is_mounted(dir), "{} is not mounted", dir.display());
    output("timeout", &["30", "fsfreeze", "-f", &dir.to_string_lossy()]);
}

/// Whether it is frozen, without a change to that: a second freeze is busy, and one that succeeds is undone at once.
#[track_caller]
pub fn is_frozen(dir: &Path) -> bool {
    let dir = fs::File::open(dir).expect("a folder");
    match floe::sys::ioctl::fifreeze(&dir) {
        Ok(()) => {
            floe::sys::ioctl::fithaw(&dir).expect("to thaw it again");
            false
        }
        Err(errno) => {
            assert_eq!(errno, rustix::io::Errno::BUSY, "it can be frozen");
            true
        }
    }
}

/// How long it stays frozen, asked by a second freeze: a write among many others may take longer than a second without one. A
/// guardian that was told of a freeze which floe was just about to make may thaw ours.
#[track_caller]
pub fn frozen_for(dir: &Path) -> Duration {
    let began = Instant::now();
    let dir = fs::File::open(dir).expect("a folder");
    let mut frozen = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(20) {
        match floe::sys::ioctl::fifreeze(&dir) {
            Err(rustix::io::Errno::BUSY) => {}
            _ => {
                let _ = floe::sys::ioctl::fithaw(&dir);
                break;
            }
        }
        frozen = began.elapsed();
        thread::sleep(Duration::from_millis(5));
    }
    frozen
}

fn release(dir: &Path) {
    for attempt in 0..40 {
        thaw(dir);
        let done = Command::new("umount")
            .arg(dir)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if done && !is_mounted(dir) {
            return;
        }
        thread::sleep(Duration::from_millis(20 * (1 + attempt % 10)));
    }
    eprintln!("could not unmount {}; detaching it", dir.display());
    let _ = Command::new("umount").arg("-l").arg(dir).status();
}

/// Our mount table. A neighbour may have mounted something under a name that is no text.
pub fn mount_table() -> String {
    let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
    String::from_utf8_lossy(&table).into_owned()
}

/// Whether something is mounted exactly here.
pub fn is_mounted(dir: &Path) -> bool {
    let wanted = dir.to_string_lossy().replace(' ', "\\040");
    mount_table()
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}

/// Whether the kernel mounts this kind of filesystem (loading its module where there is one).
pub fn kernel_has(kind: &str) -> bool {
    let known = || {
        fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
    };
    known() || {
        let _ = Command::new("modprobe")
            .args(["-q", kind])
            .stderr(Stdio::null())
            .status();
        known()
    }
}

/// Starts to write a block to a file, down to its device.
pub fn write_probe(file: &Path) -> Child {
    Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=4096",
            "count=1",
            "conv=fsync",
            "status=none",
        ])
        .arg(format!("of={}", file.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dd")
}

/// The lines of a strace from the first freeze to the last thaw.
#[track_caller]
pub fn frozen_calls(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).expect("trace");
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| line.contains("FIFREEZE"));
    let last = lines.iter().rposition(|line| line.contains("FITHAW"));
    let window = first.expect("a freeze")..=last.expect("a thaw");
    lines[window]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// The value of a key in what `blkid -p -o export` prints, empty when it is not there.
pub fn blkid(image: &Path, key: &str) -> String {
    let mut blkid = Command::new("blkid");
    let blkid = blkid.args(["-p", "-o", "export"]).arg(image);
    let text = super::run(blkid.stdin(Stdio::null()), super::Limit::secs(30)).stdout_text();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or_default().to_owned()
}

/// Whether the system's own probe finds anything: its exit code is 2 for "nothing". Its cache is not asked.
#[track_caller]
pub fn is_recognised(device: &Path) -> bool {
    let mut blkid = Command::new("blkid");
    let blkid = blkid.args(["-p", "-c", "/dev/null"]).arg(device);
    super::run(blkid.stdin(Stdio::null()), super::Limit::secs(20)).code != Some(2)
}

/// Makes an ext4 of what is there, with default options.
#[track_caller]
pub fn mkfs_ext4(on: impl AsRef<Path>) {
    output("mkfs.ext4", &["-q", "-F", &on.as_ref().to_string_lossy()]);
}

/// Whether a write to this folder ends within the limit. When it does not, the filesystem is thawed, so that the
/// writer (in state D, no signal reaches it) can end.
pub fn write_ends_within(dir: &Path, limit: Duration) -> bool {
    let file = dir.join(".write-probe");
    let mut child = write_probe(&file);
    let ended = wait_for(&mut child, limit).is_some_and(|status| status.success());
    if !ended {
        thaw(dir);
        let _ = wait_for(&mut child, Duration::from_secs(20));
    }
    let _ = fs::remove_file(file);
    ended
}

/// Asserts promise 1: a write ends within a second. On a busy disk one may take longer without a freeze: then a second freeze is
/// asked, which nobody but the kernel answers.
#[track_caller]
pub fn assert_not_frozen(dir: &Path, when: &str) {
    let mut child = write_probe(&dir.join(".write-probe"));
    let ended = wait_for(&mut child, Duration::from_secs(1)).is_some();
    let frozen = !ended && !frozen_for(dir).is_zero();
    thaw(dir);
    let status = wait_for(&mut child, Duration::from_secs(60));
    let _ = fs::remove_file(dir.join(".write-probe"));
    assert!(!frozen, "{} is still frozen {when}", dir.display());
    let status = status.unwrap_or_else(|| panic!("{}: a write hangs {when}", dir.display()));
    assert!(status.success(), "{}: {status} {when}", dir.display());
}

/// A process that creates, appends, renames and deletes files until it is dropped.
pub struct Writer {
    child: Child,
    dir: PathBuf,
}

impl Writer {
    pub fn start(dir: &Path) -> Writer {
        let busy = dir.join("busy");
        fs::create_dir_all(&busy).expect("folder for the writer");
        let script = "i=0; while :; do i=$((i + 1)); n=$((i % 50)); \
            head -c $((n * 997 + 1)) /dev/urandom > \"$1/new.$n\" && mv \"$1/new.$n\" \"$1/file.$n\"; \
            echo $i >> \"$1/log\"; [ $((i % 7)) = 0 ] && rm -f \"$1/file.$(((n + 25) % 50))\"; \
            [ $((i % 1000)) = 0 ] && : > \"$1/log\"; sleep 0.002; done";
        let child = Command::new("sh")
            .args(["-c", script, "writer"])
            .arg(&busy)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("writer");
        Writer {
            child,
            dir: dir.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        if wait_for(&mut self.child, Duration::from_millis(500)).is_none() {
            thaw(&self.dir); // held inside a frozen write
            let _ = wait_for(&mut self.child, Duration::from_secs(20));
        }
    }
}
