//! Archives of our zip writer before the real tools: Info-ZIP unzip, 7z, bsdtar (from a file and from a pipe), Python's
//! zipfile and busybox unzip. Entries and offsets beyond 4 GiB are zeros, so that the files stay small.

use crate::common::{self, Limit, Scratch};
use floe::crc;
use floe::device::{Access, Device};
use floe::error::Fault;
use floe::stream::deflate::FINAL_BLOCK;
use floe::stream::input::Input;
use floe::stream::unzip::{Body, Directory, Unzip};
use floe::stream::zeros::ZeroRun;
use floe::stream::zip::{EntrySums, Record, ZipWriter};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// What an entry of a test archive is made of.
#[derive(Clone, Copy)]
enum Content<'a> {
    Stored(&'a [u8]),
    /// These bytes, then so many zeros in the form the pipeline gives them.
    Deflated(&'a [u8], u64),
    /// So many zeros in stored blocks: as many bytes in the archive, which is sparse on disk.
    Bulky(u64),
}

fn make(path: &Path, entries: &[(&str, Content<'_>)]) {
    let mut file = File::create(path).expect("archive");
    let mut writer = ZipWriter::new(entries.len(), 1_795_000_000).expect("few entries");
    let mut out = Record::new();
    for (name, content) in entries {
        out.clear();
        if let Content::Stored(data) = content {
            let length = u32::try_from(data.len()).unwrap();
            writer
                .stored(name, crc::crc32(0, data), length, &mut out)
                .unwrap();
            file.write_all(&out).unwrap();
            file.write_all(data).unwrap();
            continue;
        }
        writer.begin(name, &mut out).unwrap();
        file.write_all(&out).unwrap();
        let start = file.stream_position().unwrap();
        let (raw_bytes, crc32) = write_data(&mut file, *content);
        file.write_all(&FINAL_BLOCK).unwrap();
        let sums = EntrySums {
            crc32,
            stored_bytes: file.stream_position().unwrap() - start,
            raw_bytes,
        };
        out.clear();
        writer.end(sums, &mut out).unwrap();
        file.write_all(&out).unwrap();
    }
    writer
        .finish(|bytes| {
            file.write_all(bytes).unwrap();
            Ok::<(), Fault>(())
        })
        .unwrap();
}

/// Gives the raw length and CRC of what it wrote.
fn write_data(file: &mut File, content: Content<'_>) -> (u64, u32) {
    match content {
        Content::Stored(_) => unreachable!("has no deflate data"),
        Content::Deflated(data, zeros) => {
            if !data.is_empty() {
                // Raw deflate that ends on a byte, as chunks do: zlib's sync flush.
                let mut packed = miniz_oxide::deflate::core::CompressorOxide::new(1);
                let mut buffer = vec![0; data.len() * 2 + 100];
                let (_, _, count) = miniz_oxide::deflate::core::compress(
                    &mut packed,
                    data,
                    &mut buffer,
                    miniz_oxide::deflate::core::TDEFLFlush::Sync,
                );
                file.write_all(&buffer[..count]).unwrap();
            }
            if zeros > 0 {
                let run = ZeroRun::new(zeros).expect("long enough");
                file.write_all(run.head()).unwrap();
                let middle = vec![0; usize::try_from(run.zero_bytes()).unwrap()];
                file.write_all(&middle).unwrap();
                file.write_all(run.tail()).unwrap();
            }
            let crc = crc::combine(crc::crc32(0, data), crc::zeros(zeros), zeros);
            (u64::try_from(data.len()).unwrap() + zeros, crc)
        }
        Content::Bulky(zeros) => {
            let mut left = zeros;
            while left > 0 {
                let length = u16::try_from(left.min(65_535)).unwrap();
                let [a, b] = length.to_le_bytes();
                file.write_all(&[0, a, b, !a, !b]).unwrap();
                file.seek(SeekFrom::Current(i64::from(length))).unwrap();
                left -= u64::from(length);
            }
            (zeros, crc::zeros(zeros))
        }
    }
}

/// Both of our readers over a whole archive; gives name and sums of each entry.
fn read_by_us(path: &Path) -> Vec<(String, EntrySums)> {
    let device = Device::open(path, Access::Read).expect("archive");
    let directory = Directory::read(&device).expect("directory");
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let mut drain = |body: &mut Body, input: &mut Input<'_>| loop {
        let count = body.read(input, &mut buffer).expect("data");
        if count < buffer.len() {
            return;
        }
    };
    for entry in &directory.entries {
        found.push((entry.name.to_string(), entry.sums));
        if entry.sums.raw_bytes > 1 << 30 {
            continue; // once, as a stream, is enough
        }
        let mut file = File::open(path).unwrap();
        file.seek(SeekFrom::Start(entry.data_offset())).unwrap();
        let mut input = Input::file(file, None).unwrap();
        let mut body = Body::of(entry).unwrap();
        body.expect(entry.sums.raw_bytes);
        drain(&mut body, &mut input);
        body.check(entry).expect("sums");
    }
    // A reader, not a file: nothing can be sought.
    let mut input = Input::reader(File::open(path).unwrap().take(u64::MAX)).unwrap();
    let mut unzip = Unzip::new();
    let mut number = 0;
    while let Some(entry) = unzip.next(&mut input).expect("stream") {
        assert_eq!(entry.name, directory.entries[number].name);
        let body = unzip.body().expect("data");
        body.expect(directory.entries[number].sums.raw_bytes);
        drain(body, &mut input);
        number += 1;
    }
    assert_eq!(unzip.entries(), directory.entries);
    found
}

fn shell(script: &str) -> String {
    common::shell(script, Limit::secs(280))
        .expect_code(0)
        .stdout_text()
}

fn read_file(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}

/// The scripts extract everything below the current folder from `$Z`.
const TOOLS: [(&str, &str); 6] = [
    ("unzip", "unzip -tq $Z; unzip -q $Z"),
    ("7z", "7z t -bd -y $Z >/dev/null; 7z x -bd -y $Z >/dev/null"),
    ("bsdtar", "bsdtar -xf $Z"),
    ("bsdtar", "cat $Z | bsdtar -xf -"),
    (
        "python3",
        "python3 -c 'import sys,zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; z.extractall()' $Z",
    ),
    ("busybox", "busybox unzip -q $Z"),
];

#[test]
fn a_small_archive_is_extracted_by_every_tool_byte_for_byte() {
    let scratch = Scratch::new();
    let zip = scratch.join("a.zip");
    let data = common::Random(77).bytes(300_000);
    let mut image = data.clone();
    image.resize(300_000 + 5_000_000, 0);
    make(
        &zip,
        &[
            ("snapshot.json", Content::Stored(b"{\"format\":1}\n")),
            ("disk/table.bin", Content::Deflated(&data[..70_000], 0)),
            ("images/root.img", Content::Deflated(&data, 5_000_000)),
            ("images/config.img", Content::Deflated(b"", 2000)),
            ("images/empty.img", Content::Deflated(b"", 0)),
            ("checksums.json", Content::Stored(b"{}")),
            ("checksums.sha256", Content::Stored(b"")),
        ],
    );
    assert_eq!(read_by_us(&zip).len(), 7);
    for (number, (tool, script)) in TOOLS.iter().enumerate() {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let out = scratch.join(format!("out{number}"));
        shell(&format!(
            "Z={}; mkdir {1}; cd {1}; {script}",
            zip.display(),
            out.display()
        ));
        let file = |name: &str| read_file(&out.join(name));
        assert!(file("images/root.img") == image, "{script}");
        assert!(file("images/config.img") == vec![0; 2000], "{script}");
        assert!(file("images/empty.img").is_empty(), "{script}");
        assert!(file("disk/table.bin") == data[..70_000], "{script}");
        assert_eq!(file("snapshot.json"), b"{\"format\":1}\n", "{script}");
        assert_eq!(file("checksums.json"), b"{}", "{script}");
        assert_eq!(file("checksums.sha256"), b"", "{script}");
    }
    // Only the owner may read what was extracted: snapshots carry credentials.
    if common::have("unzip") {
        let mode = shell(&format!(
            "stat -c %a {}/out0/images/root.img",
            scratch.path().display()
        ));
        assert_eq!(mode.trim(), "600");
    }
}

#[test]
#[ignore = "a minute of CPU: six tools unpack 4 GiB each (tests/run --full)"]
fn entries_of_more_than_four_gib_are_read_by_every_tool_that_can() {
    // Gigabytes through our own readers, compiled for this machine: the executable under test plays no part.
    require!(
        common::runner().is_none(),
        "no runner in front of the executable"
    );
    let _alone = common::serial();
    let scratch = Scratch::new();
    let zip = scratch.join("a.zip");
    let large = (4u64 << 30) + 4097;
    make(
        &zip,
        &[
            ("snapshot.json", Content::Stored(b"{}")),
            ("images/root.img", Content::Deflated(b"head", large)),
            ("images/small.img", Content::Deflated(b"small", 0)),
            ("checksums.json", Content::Stored(b"{}")),
        ],
    );
    let ours = read_by_us(&zip);
    assert_eq!(ours[1].1.raw_bytes, large + 4);
    let size = large + 4;
    for (tool, script) in [
        ("unzip", "unzip -p $Z images/root.img | wc -c"),
        ("7z", "7z e -so $Z images/root.img | wc -c"),
        ("bsdtar", "bsdtar -xOf $Z images/root.img | wc -c"),
        ("bsdtar", "cat $Z | bsdtar -xOf - images/root.img | wc -c"),
        (
            "python3",
            "python3 -c 'import sys,zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; print(z.getinfo(\"images/root.img\").file_size)' $Z",
        ),
    ] {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let found = shell(&format!("Z={}; {script}", zip.display()));
        assert_eq!(
            found.trim().lines().last(),
            Some(&*size.to_string()),
            "{script}"
        );
        let small = shell(&match tool {
            "unzip" => format!("unzip -p {} images/small.img", zip.display()),
            "7z" => format!("7z e -so {} images/small.img", zip.display()),
            "bsdtar" => format!("cat {} | bsdtar -xOf - images/small.img", zip.display()),
            _ => continue,
        });
        assert_eq!(small, "small", "{script}");
    }
}

#[test]
#[ignore = "costly: tools read 4 GiB (tests/run --full)"]
fn archives_of_more_than_four_gib_have_a_directory_that_the_tools_find() {
    // Gigabytes through our own readers, compiled for this machine: the executable under test plays no part.
    require!(
        common::runner().is_none(),
        "no runner in front of the executable"
    );
    let _alone = common::serial();
    let scratch = Scratch::new();
    let zip = scratch.join("a.zip");
    make(
        &zip,
        &[
            ("images/root.img", Content::Bulky((4u64 << 30) + 99)),
            ("images/small.img", Content::Deflated(b"small", 0)),
            ("checksums.json", Content::Stored(b"{}")),
        ],
    );
    assert!(std::fs::metadata(&zip).unwrap().len() > 4 << 30);
    let ours = read_by_us(&zip);
    assert!(ours[0].1.stored_bytes > 4 << 30);
    for (tool, script) in [
        ("unzip", "unzip -p $Z images/small.img"),
        ("7z", "7z e -so $Z images/small.img"),
        ("bsdtar", "bsdtar -xOf $Z images/small.img"),
        ("bsdtar", "cat $Z | bsdtar -xOf - images/small.img"),
        (
            "python3",
            "python3 -c 'import sys,zipfile; print(zipfile.ZipFile(sys.argv[1]).read(\"images/small.img\").decode())' $Z",
        ),
    ] {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let found = shell(&format!("Z={}; {script}", zip.display()));
        assert_eq!(found.trim(), "small", "{script}");
    }
}
