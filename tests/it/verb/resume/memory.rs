//! Neither a huge source nor a board that lies costs memory.

use std::fs;
use std::process::Command;

use crate::common::{self, Limit, Random};

use super::{NOISE_BYTES, require_bench};

#[test]
fn a_sparse_image_of_200_gib_is_compared_within_the_memory_of_a_small_one() {
    let bench = require_bench!();
    let (small, folder) = (bench.image().0, bench.join("content"));
    let large = bench.join("large");
    let mkfs = "mkfs.ext4 -q -F -b 4096 -J size=8 -E nodiscard,lazy_itable_init=1 -d";
    common::shell(
        &format!(
            "truncate -s 200G '{0}' && {mkfs} '{1}' '{0}'",
            large.display(),
            folder.display()
        ),
        Limit::secs(60),
    )
    .expect_code(0);
    let peaks = bench.join("peaks");
    bench.board(&format!(
        "(while grep VmHWM /proc/$$/status >> '{}'; do sleep 0.02; done) 2> /dev/null &\nexec sh -c \"exec $line\"",
        peaks.display()
    ));
    let mut most = [0, 0];
    for (source, name) in [(&small, "small.img.gz"), (&large, "large.img.gz")] {
        let dump = [
            "--dump",
            source.to_str().expect("text"),
            "--spool",
            "4M",
            "-j",
            "2",
        ];
        bench.pulled(&dump, name);
        let _ = fs::remove_file(&peaks);
        let host = bench.weighed(&dump, name);
        assert!(bench.number("reused_bytes") as usize >= NOISE_BYTES);
        assert!(bench.number("sent_bytes") < 1 << 20);
        let text = fs::read_to_string(&peaks).expect("peaks");
        let numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        let board: u64 = numbers.max().expect("a peak");
        println!("{name}: host {host} KiB, board {board} KiB");
        if name == "small.img.gz" {
            most = [host, board];
        } else {
            // One bit for each block of the source, and never more than 4 MiB of them.
            assert!(host < most[0] + 4096, "host: {host} KiB, was {}", most[0]);
            assert!(
                board < most[1] + 12_288,
                "board: {board} KiB, was {}",
                most[1]
            );
        }
    }
}

/// As in gzip, a bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

#[test]
fn numbers_of_chunks_far_apart_cost_the_host_no_memory() {
    let bench = require_bench!();
    let old = bench.join("old");
    fs::write(&old, Random(5).bytes(300_000)).expect("old");
    // An image of 16 TiB, as the most that is taken.
    let chunks = 1u32 << 27;
    let mut body = vec![0, 1];
    body.extend(0u64.to_le_bytes());
    body.extend([0, 0, 1, 0, 1, b'i', 1, 0]);
    body.extend((u64::from(chunks) << 17).to_le_bytes());
    let mut frames = b"\x89floe\r\n\x1a\x01\0".to_vec();
    frames.extend((body.len() as u32).to_le_bytes());
    frames.extend(body);
    frames.extend(crc32(&frames).to_le_bytes());
    for number in 0..4096 {
        // Zeros, and what is said to be known here, each where nothing else is near.
        let number = number * (chunks / 4096);
        frames.push(1);
        frames.extend([number, 0, 0].map(u32::to_le_bytes).concat());
        frames.push(7);
        frames.extend([number + 2048, 0].map(u32::to_le_bytes).concat());
        frames.extend([number as u8; 16]);
    }
    frames.push(99);
    let lie = bench.join("lie");
    fs::write(&lie, frames).expect("lie");
    bench.board(&format!("cat > /dev/null & exec cat '{}'", lie.display()));
    let pull = bench.pull(&["--since", old.to_str().expect("text")], "one.img.gz");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -v 400000; exec \"$@\"", "sh"])
        .arg(pull.get_program())
        .args(pull.get_args())
        .envs(
            pull.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let run = common::run(&mut shell, Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("kind of a frame"), "{run}");
}
