//! Fuzzes the ext reader: the input damages the metadata of a sound image that mke2fs made (one of several kinds, most without
//! checksums, so that the damage reaches what lies behind them). Nothing may panic or run for long; the superblock stays used.
//!
//! Input: one byte chooses the image; then records of five bytes: place among the metadata (24 bits), how, value.
#![no_main]

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use floe::fs::{self as readers, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

const SIZE_BYTES: u64 = 6 << 20;
const KINDS: [&[&str]; 6] = [
    &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"],
    &["-t", "ext3"],
    &["-t", "ext4", "-O", "^metadata_csum,bigalloc", "-C", "4096"],
    &[
        "-t",
        "ext4",
        "-O",
        "^metadata_csum,meta_bg,^resize_inode",
        "-g",
        "1024",
    ],
    &[
        "-t",
        "ext4",
        "-O",
        "^has_journal,^metadata_csum,sparse_super2,^resize_inode",
        "-g",
        "512",
    ],
    &["-t", "ext4"],
];

struct Image {
    bytes: Vec<u8>,
    /// Where metadata lies: pieces of this many bytes.
    metadata: Vec<usize>,
}

const PIECE: usize = 256;

fn make(options: &[&str]) -> Image {
    let folder = std::env::temp_dir().join(format!("floe-fuzz-{}", std::process::id()));
    let (content, path) = (folder.join("content"), folder.join("image"));
    fs::create_dir_all(&content).expect("folder");
    let holes = File::create(content.join("holes")).expect("file");
    for piece in 0..60 {
        holes.write_all_at(b"x", piece * 8192).expect("write");
    }
    fs::write(content.join("text"), vec![b't'; 300_000]).expect("file");
    File::create(&path)
        .and_then(|file| file.set_len(SIZE_BYTES))
        .expect("image");
    let status = Command::new("mke2fs")
        .args(["-q", "-F", "-b", "1024", "-N", "256", "-J", "size=1", "-d"])
        .arg(&content)
        .args(options)
        .arg(&path)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "mke2fs {options:?}"
    );
    for request in ["fallocate /holes 1000 1400", "ln /text /again"] {
        let debugfs = Command::new("debugfs")
            .args(["-w", "-R", request])
            .arg(&path)
            .output();
        assert!(debugfs.is_ok_and(|output| output.status.success()));
    }
    let bytes = fs::read(&path).expect("image");
    let _ = fs::remove_dir_all(&folder);
    let map = walk(&bytes).expect("a sound image");
    let metadata = (0..bytes.len() / PIECE)
        .map(|piece| piece * PIECE)
        .filter(|at| {
            let piece = &bytes[*at..at + PIECE];
            map.is_used(*at as u64) && piece.iter().any(|byte| *byte != b't')
        })
        .collect();
    Image { bytes, metadata }
}

/// The map, where there is one.
fn walk(bytes: &Vec<u8>) -> Option<UsedMap> {
    let identity = readers::probe(bytes).ok()??;
    let block = BlockSize::from_bytes(identity.block_bytes.into())?;
    if identity.size_bytes > 1 << 40 {
        return None;
    }
    let mut map = UsedMap::new(identity.size_bytes, block)?;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let verdict = readers::walk(
        &identity,
        Still::Frozen,
        &mut Walk::new(bytes, &mut scratch),
        &mut map,
    );
    let _ = readers::witness(&identity, &mut Walk::new(bytes, &mut scratch));
    verdict.ok()?;
    assert!(map.is_used(identity.superblock.offset), "superblock lost");
    Some(map)
}

thread_local! {
    static IMAGES: RefCell<Vec<Image>> = RefCell::new(KINDS.iter().map(|kind| make(kind)).collect());
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, records)) = data.split_first() else {
        return;
    };
    IMAGES.with_borrow_mut(|images| {
        let count = images.len();
        let image = &mut images[usize::from(*choice) % count];
        let mut undo = Vec::new();
        for record in records.chunks_exact(5) {
            let place =
                usize::from(record[0]) | usize::from(record[1]) << 8 | usize::from(record[2]) << 16;
            let place = place % (image.metadata.len() * PIECE);
            let place = image.metadata[place / PIECE] + place % PIECE;
            undo.push((place, image.bytes[place]));
            match record[3] % 3 {
                0 => image.bytes[place] = record[4],
                1 => image.bytes[place] ^= record[4],
                _ => image.bytes[place] = image.bytes[place].wrapping_add(record[4]),
            }
        }
        let _ = walk(&image.bytes);
        for (place, byte) in undo.into_iter().rev() {
            image.bytes[place] = byte;
        }
    });
});
