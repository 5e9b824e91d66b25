//! Unit tests of the zip readers on archives that our writer made, and on spoiled ones; the real tools are in tests/it.

use super::*;

/// An archive of stored and streamed entries as a snapshot has them.
fn archive() -> (Vec<u8>, Vec<(&'static str, Vec<u8>)>) {
    let image: Vec<u8> = (0..10_000u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
    let files = vec![
        ("snapshot.json", b"{\"format\":1}".to_vec()),
        ("images/root.img", image),
        ("images/empty.img", Vec::new()),
        ("checksums.json", b"{}".to_vec()),
    ];
    (write(&files), files)
}

fn write(files: &[(&'static str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = Vec::new();
    let mut out = Record::new();
    let mut writer = ZipWriter::new(files.len(), 1_795_000_000).unwrap();
    for (name, data) in files {
        out.clear();
        let crc32 = crc::crc32(0, data);
        if name.ends_with(".img") {
            writer.begin(name, &mut out).unwrap();
            zip.extend_from_slice(&out);
            let packed = miniz_oxide::deflate::compress_to_vec(data, 1);
            zip.extend_from_slice(&packed);
            out.clear();
            let sums = EntrySums {
                crc32,
                stored_bytes: to_u64(packed.len()),
                raw_bytes: to_u64(data.len()),
            };
            writer.end(sums, &mut out).unwrap();
            zip.extend_from_slice(&out);
        } else {
            let length = u32::try_from(data.len()).unwrap();
            writer.stored(name, crc32, length, &mut out).unwrap();
            zip.extend_from_slice(&out);
            zip.extend_from_slice(data);
        }
        assert_eq!(writer.offset(), to_u64(zip.len()));
    }
    writer
        .finish(|bytes| {
            zip.extend_from_slice(bytes);
            Ok::<(), Fault>(())
        })
        .unwrap();
    assert_eq!(writer.offset(), to_u64(zip.len()));
    zip
}

type Files = Vec<(String, Vec<u8>)>;

/// Reads everything as a stream; `sizes` are what the metadata would say.
fn stream(zip: &[u8], sizes: &[(&str, usize)]) -> Result<Files, Fault> {
    let mut input = Input::reader(zip).unwrap();
    let mut unzip = Unzip::new();
    let mut files = Vec::new();
    while let Some(entry) = unzip.next(&mut input)? {
        let name = entry.name.to_string();
        let size = sizes.iter().find(|(known, _)| *known == name);
        let body = unzip.body().unwrap();
        body.expect(size.map_or(0, |(_, size)| to_u64(*size)));
        files.push((name, drain(body, &mut input)?));
    }
    Ok(files)
}

fn drain(body: &mut Body, input: &mut Input<'_>) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::new();
    let mut buffer = [0u8; 5000];
    loop {
        let count = body.read(input, &mut buffer)?;
        data.extend_from_slice(&buffer[..count]);
        if count < buffer.len() {
            return Ok(data);
        }
    }
}

/// Reads everything through the central directory.
fn seek(zip: &[u8]) -> Result<Files, Fault> {
    let directory = Directory::read(&zip.to_vec())?;
    let mut files = Vec::new();
    for entry in &directory.entries {
        let mut input = Input::reader(&zip[to_usize(entry.data_offset())..]).unwrap();
        let mut body = Body::of(entry).unwrap();
        body.expect(entry.sums.raw_bytes);
        let data = drain(&mut body, &mut input)?;
        body.check(entry)?;
        files.push((entry.name.to_string(), data));
    }
    Ok(files)
}

fn sizes<'a>(files: &'a [(&'static str, Vec<u8>)]) -> Vec<(&'a str, usize)> {
    files
        .iter()
        .map(|(name, data)| (*name, data.len()))
        .collect()
}

#[test]
fn both_readers_give_back_what_was_written() {
    let (zip, files) = archive();
    let expected: Files = files
        .iter()
        .map(|(name, data)| ((*name).to_owned(), data.clone()))
        .collect();
    assert!(stream(&zip, &sizes(&files)).unwrap() == expected);
    assert!(seek(&zip).unwrap() == expected);
    assert!(
        Directory::read(&zip)
            .unwrap()
            .find("images/root.img")
            .is_some()
    );
}

#[test]
fn a_flipped_bit_in_any_header_or_trailer_is_corrupt_for_both_readers() {
    let (zip, files) = archive();
    let directory = Directory::read(&zip).unwrap();
    let root = directory.find("images/root.img").unwrap();
    let data = to_usize(root.data_offset());
    let data = data..data + to_usize(root.sums.stored_bytes);
    let sizes = sizes(&files);
    for place in (0..zip.len()).filter(|place| !data.contains(place)) {
        let mut broken = zip.clone();
        broken[place] ^= 1 << (place % 8);
        // The deflate data of the empty image is one byte of block header and padding.
        let harmless = seek(&broken).is_ok_and(|found| found[2].1.is_empty());
        assert!(harmless == stream(&broken, &sizes).is_ok(), "byte {place}");
        assert!(!harmless || place > data.end, "byte {place}");
    }
}

#[test]
fn an_archive_cut_anywhere_or_with_more_behind_it_is_corrupt() {
    let (zip, files) = archive();
    let sizes = sizes(&files);
    for cut in (0..zip.len()).filter(|cut| cut % 37 == 0 || cut + 600 > zip.len()) {
        let fault = stream(&zip[..cut], &sizes).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Corrupt, "{cut}");
        assert_eq!(seek(&zip[..cut]).unwrap_err().kind(), FaultKind::Corrupt);
    }
    let mut longer = zip.clone();
    longer.push(0);
    assert!(stream(&longer, &sizes).is_err() && seek(&longer).is_err());
    let mut shifted = vec![0u8; 3];
    shifted.extend_from_slice(&zip);
    assert!(stream(&shifted, &sizes).is_err() && seek(&shifted).is_err());
}

#[test]
fn more_or_less_data_than_the_metadata_says_is_corrupt() {
    let (zip, files) = archive();
    for wrong in [39_999, 40_001, 0, 1] {
        let mut sizes = sizes(&files);
        sizes[1].1 = wrong;
        let fault = stream(&zip, &sizes).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Corrupt, "{wrong}");
    }
    let directory = Directory::read(&zip).unwrap();
    let mut body = Body::of(directory.find("images/root.img").unwrap()).unwrap();
    let mut input = Input::reader(&zip[..]).unwrap();
    let fault = body.read(&mut input, &mut [0; 10]).unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Refused);
}

/// Replaces every occurrence of a name, so that the headers still agree with each other.
fn renamed(zip: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut out = zip.to_vec();
    for at in 0..out.len() - from.len() {
        if out[at..].starts_with(from) {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}

#[test]
fn names_given_twice_or_leaving_their_folder_are_corrupt() {
    let (zip, files) = archive();
    let sizes = sizes(&files);
    for (from, to) in [
        (&b"images/root.img"[..], &b"../../../etc/pw"[..]),
        (b"images/root.img", b"/images/root.im"),
        (b"images/root.img", b"images\\root.img"),
        (b"images/root.img", b"images//oot.img"),
        (b"checksums.json", b"c/../../a.json"),
        (b"snapshot.json", b"\0napshot.json"),
    ] {
        let spoiled = renamed(&zip, from, to);
        assert_eq!(seek(&spoiled).unwrap_err().kind(), FaultKind::Corrupt);
        let fault = stream(&spoiled, &sizes).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Corrupt);
    }
    let twins = write(&[("a.txt", vec![1]), ("b.txt", vec![2])]);
    let twins = renamed(&twins, b"b.txt", b"a.txt");
    assert!(seek(&twins).is_err());
    assert!(stream(&twins, &[("a.txt", 1)]).is_err());
}

#[test]
fn entries_that_overlap_are_corrupt() {
    // The second directory entry points at the first entry's header.
    let zip = write(&[("a.txt", vec![1; 50]), ("b.txt", vec![1; 50])]);
    let second = Directory::read(&zip).unwrap().entries[1].offset;
    let mut spoiled = zip.clone();
    let at = spoiled.len() - 22 - 5 - 4;
    assert_eq!(
        spoiled[at..at + 4],
        u32::try_from(second).unwrap().to_le_bytes()
    );
    spoiled[at..at + 4].fill(0);
    assert_eq!(
        seek(&spoiled).unwrap_err().what(),
        "entries overlap or leave a gap"
    );
}

#[test]
fn more_entries_than_the_bound_are_refused() {
    let mut input_bytes = Vec::new();
    let mut writer = ZipWriter::dated(MAX_ENTRIES + 1, 0, 33);
    for number in 0..=MAX_ENTRIES {
        let mut out = Record::new();
        writer
            .stored(&format!("n{number}"), 0, 0, &mut out)
            .unwrap();
        input_bytes.extend_from_slice(&out);
    }
    writer
        .finish(|bytes| {
            input_bytes.extend_from_slice(bytes);
            Ok::<(), Fault>(())
        })
        .unwrap();
    assert!(stream(&input_bytes, &[]).is_err());
    assert!(seek(&input_bytes).is_err());
}
