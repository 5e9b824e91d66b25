//! Small snapshots for the tests of this room: whole archives in which no image lies.

use sha2::{Digest, Sha256};

use super::framed::closing;
use super::{Marks, SNAPSHOT, Snapshot};
use crate::crc;
use crate::error::Fault;
use crate::stream::archive::{TextEntry, Written};
use crate::stream::zip::{EntrySums, Record, ZipWriter};
use crate::units::to_u64;

/// A snapshot with these marks.
pub(crate) fn marked(marks: Marks) -> Vec<u8> {
    let snapshot = Snapshot {
        factory: marks.factory,
        rescue: marks.rescue,
        ..Snapshot::default()
    };
    archive(snapshot.to_json())
}

/// One that this floe is too old for.
pub(crate) fn newer() -> Vec<u8> {
    let text = Snapshot::default().to_json();
    archive(text.replace("\"format\":1,", "\"format\":9,"))
}

fn archive(text: String) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ZipWriter::new(3, 0).unwrap();
    let mut put = |entry: &TextEntry| {
        let (crc32, mut record) = (crc::crc32(0, &entry.bytes), Record::new());
        let length = u32::try_from(entry.bytes.len()).unwrap();
        writer
            .stored(&entry.path, crc32, length, &mut record)
            .unwrap();
        bytes.extend_from_slice(&record);
        bytes.extend_from_slice(&entry.bytes);
        let length = to_u64(entry.bytes.len());
        Written {
            path: entry.path.clone(),
            sums: EntrySums {
                crc32,
                stored_bytes: length,
                raw_bytes: length,
            },
            sha256: Sha256::digest(&entry.bytes).into(),
        }
    };
    let first = put(&TextEntry {
        path: SNAPSHOT.into(),
        bytes: text.into_bytes(),
    });
    let none = std::iter::empty::<(&str, Option<u64>)>();
    for entry in closing(&[first], "frozen", 0, none).1 {
        put(&entry);
    }
    let mut end = |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok::<(), Fault>(())
    };
    writer.finish(&mut end).unwrap();
    bytes
}
