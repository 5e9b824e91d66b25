//! A filesystem under torture, dumped, and the proof that the image is what a copy under the same freeze is.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::common::{self, Limit, LoopFs, Mounted, Scratch, Spec};
use crate::torture::Torture;

use super::held::{Held, Told};

/// Whether every block of an image that is not zeros is the copy's. How many are zeros and not so in the copy.
pub(super) fn same_blocks(image: &Path, copy: &Path) -> Result<u64, String> {
    let (mut image, mut copy) = (
        File::open(image).expect("image"),
        File::open(copy).expect("copy"),
    );
    let mut pieces = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    let (mut at, mut zeros, mut wrong) = (0u64, 0, Vec::new());
    loop {
        let length = fill(&mut image, &mut pieces.0);
        if length != fill(&mut copy, &mut pieces.1) {
            return Err("lengths differ".to_owned());
        }
        if length == 0 {
            break;
        }
        let pairs = pieces.0[..length].chunks(512).zip(pieces.1.chunks(512));
        for (number, (ours, theirs)) in (at / 512..).zip(pairs) {
            if ours == theirs {
            } else if ours.iter().all(|byte| *byte == 0) {
                zeros += 1;
            } else {
                wrong.push(number);
            }
        }
        at += length as u64;
    }
    match wrong.is_empty() {
        true => Ok(zeros),
        false => Err(format!(
            "{} sectors differ from the copy under the freeze: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(12)]
        )),
    }
}

fn fill(from: &mut File, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer[done..]) {
        done += count;
    }
    done
}

/// Whether an image and the copy hold the same files, and whether its checker finds nothing. The original is not mounted meanwhile.
fn same_files(kind: &str, image: &Path, copy: &Path) -> Result<(), String> {
    let tree = |path: &Path| common::tree(Mounted::new(kind, path, "").dir());
    // An image that lies may be as wrong as that.
    let found = std::panic::catch_unwind(|| {
        let found = tree(image);
        common::fsck(kind, image);
        found
    });
    let found = found.map_err(|_| format!("the image is no whole {kind}"))?;
    // As far as the device goes: a copy may be longer than its filesystem.
    let expected = tree(copy);
    let mut wrong = expected
        .iter()
        .filter(|(path, line)| found.get(*path) != Some(line));
    match (wrong.next(), found.len() == expected.len()) {
        (None, true) => Ok(()),
        (first, _) => Err(format!("files differ: {first:?}")),
    }
}

/// A filesystem to torture.
pub(super) struct Rack {
    pub kind: &'static str,
    pub fs: LoopFs,
}

impl Rack {
    pub(super) fn new(kind: &'static str) -> Option<Self> {
        let mib = if kind == "xfs" { 320 } else { 160 };
        let spec = Spec {
            kind,
            mib,
            ..Spec::default()
        };
        match LoopFs::make(spec) {
            Ok(fs) => {
                Torture::prepare(fs.dir());
                Some(Self { kind, fs })
            }
            Err(missing) => {
                common::skip(&missing);
                None
            }
        }
    }

    /// Dumps it under torture and proves the image.
    pub(super) fn dump(&mut self, words: &[&str], pause: u64, lies: &str) -> Result<Told, String> {
        let scratch = Scratch::new();
        let (out, image, copy) = (
            scratch.join("out"),
            scratch.join("image"),
            scratch.join("copy"),
        );
        let dir = self.fs.dir().to_owned();
        let frames = words.contains(&"--frames");
        let held = Held {
            dirs: &[&dir],
            copies: &[(self.fs.image(), &copy)],
            pause: Duration::from_millis(pause),
            lies,
            meanwhile: "",
            group: None,
            frames_to: frames.then_some(&image),
        };
        let (dir, to) = (dir.to_string_lossy(), out.to_string_lossy());
        let mut all = vec!["dump", &dir];
        if !frames {
            all.extend(["-o", &to]);
        }
        all.extend(words);
        let told = held.run(&all)?;
        if frames {
            // It was made where the frames went.
        } else if words.windows(2).any(|pair| pair == ["-z", "none"]) {
            fs::rename(&out, &image).expect("image");
        } else {
            let script = format!("zcat < '{to}' > '{}'", image.display());
            common::shell(&script, Limit::secs(100)).expect_code(0);
        }
        self.prove(&image, &copy)?;
        Ok(told)
    }

    pub(super) fn prove(&mut self, image: &Path, copy: &Path) -> Result<(), String> {
        let zeros = same_blocks(image, copy)?;
        eprintln!("{}: {zeros} sectors of what is free are zeros", self.kind);
        self.fs.unmount();
        let same = same_files(self.kind, image, copy);
        self.fs.mount();
        same
    }
}
