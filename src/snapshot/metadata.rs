//! What a snapshot says about itself: `snapshot.json` in front, `checksums.json` and `checksums.sha256` behind.
//!
//! Written whole, read strictly: texts are bounded, names must be safe, unknown keys are ignored, a newer format version is
//! refused. Knows neither archives nor devices.

use sha2::{Digest, Sha256};

use crate::error::Fault;
use crate::json::{self, Value};
use crate::report::{JsonObject, hex, json_list};
use crate::utc::Utc;

/// The version that is written; every version up to it is read.
pub const FORMAT: u64 = 1;
/// Most entries that can be imaged into one snapshot.
pub const MAX_IMAGES: usize = 64;
/// Longest NAME of an entry in bytes.
pub const MAX_NAME: usize = 64;
/// Longest text of any field in bytes.
pub const MAX_TEXT: usize = 1024;
/// Largest size in bytes that is believed.
const MAX_SIZE: u64 = 1 << 62;

/// The first entry of the archive.
pub const SNAPSHOT: &str = "snapshot.json";
/// The partition table's bytes, where asked for.
pub const TABLE: &str = "disk/table.bin";
/// The boot area's bytes, where asked for.
pub const BOOT: &str = "disk/boot.bin";
/// The last entry but one.
pub const CHECKSUMS: &str = "checksums.json";
/// The last entry.
pub const CHECKSUMS_SHA256: &str = "checksums.sha256";

/// The archive's name of an image.
pub fn image_path(name: &str) -> String {
    format!("images/{name}.img")
}

/// The NAME of an image by the archive's name of it.
pub fn image_name(path: &str) -> Option<&str> {
    path.strip_prefix("images/")?.strip_suffix(".img")
}

/// Whether NAME is `[a-z0-9._-]+`, short, and safe as a part of a file name.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain) && !matches!(name, "." | "..")
}

/// One image of a snapshot. Texts are empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ImageEntry {
    pub name: String,
    /// As it was given on the command line.
    pub source: String,
    pub device: String,
    pub filesystem: String,
    pub uuid: String,
    pub label: String,
    pub partition_type: String,
    pub partition_label: String,
    pub partition_uuid: String,
    /// Number in the partition table; 0 where there is none.
    pub partition_number: u64,
    /// Size of the image.
    pub size_bytes: u64,
    pub used_bytes: u64,
}

/// The disk whose table and boot area were taken along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DiskEntry {
    pub device: String,
    /// `gpt` or `mbr`.
    pub table: String,
    pub size_bytes: u64,
    pub sector_bytes: u64,
    /// Length of [`TABLE`].
    pub table_bytes: u64,
    /// Length of [`BOOT`].
    pub boot_bytes: u64,
}

/// `snapshot.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Snapshot {
    /// Version of floe that made it.
    pub floe: String,
    /// Seconds since the epoch; boards may have no clock.
    pub time_s: u64,
    pub host: String,
    pub architecture: String,
    /// Board model, from the device tree.
    pub board: String,
    pub kernel: String,
    pub os: String,
    pub comment: String,
    pub factory: bool,
    pub rescue: bool,
    /// Made with `--golden`.
    pub golden: bool,
    /// The paths of `--empty`.
    pub empty: Vec<String>,
    pub disk: Option<DiskEntry>,
    /// In the order of the archive.
    pub images: Vec<ImageEntry>,
}

/// As what a snapshot is to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub factory: bool,
    pub rescue: bool,
}

impl Marks {
    /// Whether it is to be kept at all.
    pub(crate) fn any(self) -> bool {
        self.factory || self.rescue
    }

    /// Whether it has every mark of the other.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.factory >= other.factory && self.rescue >= other.rescue
    }

    /// As a message names what has them.
    pub(crate) fn name(self) -> &'static str {
        match (self.factory, self.rescue) {
            (true, true) => "a factory and rescue snapshot",
            (true, false) => "a factory snapshot",
            (false, true) => "a rescue snapshot",
            (false, false) => "a snapshot",
        }
    }
}

impl Snapshot {
    /// As what it is to be kept.
    pub(crate) fn marks(&self) -> Marks {
        Marks {
            factory: self.factory,
            rescue: self.rescue,
        }
    }

    /// The text of `snapshot.json`.
    pub fn to_json(&self) -> String {
        let mut object = JsonObject::new();
        object.u64("format", FORMAT);
        for (key, text) in [
            ("floe", &self.floe),
            ("time", &Utc::from_unix(self.time_s).to_string()),
            ("host", &self.host),
            ("architecture", &self.architecture),
            ("board", &self.board),
            ("kernel", &self.kernel),
            ("os", &self.os),
            ("comment", &self.comment),
        ] {
            object.str(key, cut(text));
        }
        object.u64("time_s", self.time_s);
        object.bool("factory", self.factory);
        object.bool("rescue", self.rescue);
        object.bool("golden", self.golden);
        if !self.empty.is_empty() {
            object.raw("empty", &json_list(&self.empty));
        }
        if let Some(disk) = &self.disk {
            object.raw("disk", &disk.to_json());
        }
        let images: Vec<String> = self.images.iter().map(ImageEntry::to_json).collect();
        object.raw("entries", &list(&images));
        object.finish() + "\n"
    }

    /// Reads `snapshot.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Fault> {
        let root = json::parse(bytes)?;
        check_format(&root)?;
        let flag = |key: &str| root.get(key).and_then(Value::bool).unwrap_or(false);
        let mut images: Vec<ImageEntry> = Vec::new();
        for value in array(&root, "entries")? {
            let image = ImageEntry::from_json(value)?;
            if images.len() == MAX_IMAGES || images.iter().any(|known| known.name == image.name) {
                return Err(Fault::corrupt("entries of the snapshot"));
            }
            images.push(image);
        }
        Ok(Self {
            floe: text(&root, "floe")?,
            time_s: size(&root, "time_s")?.unwrap_or(0),
            host: text(&root, "host")?,
            architecture: text(&root, "architecture")?,
            board: text(&root, "board")?,
            kernel: text(&root, "kernel")?,
            os: text(&root, "os")?,
            comment: text(&root, "comment")?,
            factory: flag("factory"),
            rescue: flag("rescue"),
            golden: flag("golden"),
            empty: texts(&root, "empty"),
            disk: match root.get("disk") {
                None | Some(Value::Null) => None,
                Some(disk) => Some(DiskEntry::from_json(disk)?),
            },
            images,
        })
    }

    /// The image of this NAME.
    pub fn image(&self, name: &str) -> Option<&ImageEntry> {
        self.images.iter().find(|image| image.name == name)
    }

    /// Raw bytes that the archive's entry of this name must have; `None` for an entry that does not belong there, and for those
    /// whose size is theirs alone (the three texts).
    pub fn entry_bytes(&self, path: &str) -> Option<u64> {
        let disk = self.disk.as_ref();
        match path {
            TABLE => disk.map(|disk| disk.table_bytes),
            BOOT => disk.map(|disk| disk.boot_bytes),
            _ => self.image(image_name(path)?).map(|image| image.size_bytes),
        }
    }

    /// The archive's entries in their order, the three texts included.
    pub fn paths(&self) -> Vec<String> {
        let disk =
            |wanted: fn(&DiskEntry) -> u64| self.disk.as_ref().is_some_and(|d| wanted(d) != 0);
        let mut paths = vec![SNAPSHOT.to_owned()];
        if disk(|disk| disk.table_bytes) {
            paths.push(TABLE.to_owned());
        }
        if disk(|disk| disk.boot_bytes) {
            paths.push(BOOT.to_owned());
        }
        paths.extend(self.images.iter().map(|image| image_path(&image.name)));
        paths.extend([CHECKSUMS.to_owned(), CHECKSUMS_SHA256.to_owned()]);
        paths
    }
}

impl ImageEntry {
    /// Its texts, by their keys.
    pub(crate) fn texts(&self) -> [(&'static str, &String); 9] {
        [
            ("name", &self.name),
            ("source", &self.source),
            ("device", &self.device),
            ("filesystem", &self.filesystem),
            ("uuid", &self.uuid),
            ("label", &self.label),
            ("partition_type", &self.partition_type),
            ("partition_label", &self.partition_label),
            ("partition_uuid", &self.partition_uuid),
        ]
    }

    fn to_json(&self) -> String {
        let mut object = JsonObject::new();
        for (key, text) in self.texts() {
            object.str(key, cut(text));
        }
        object.u64("partition_number", self.partition_number);
        object.u64("size_bytes", self.size_bytes);
        object.u64("used_bytes", self.used_bytes);
        object.finish()
    }

    fn from_json(value: &Value) -> Result<Self, Fault> {
        let image = Self {
            name: text(value, "name")?,
            source: text(value, "source")?,
            device: text(value, "device")?,
            filesystem: text(value, "filesystem")?,
            uuid: text(value, "uuid")?,
            label: text(value, "label")?,
            partition_type: text(value, "partition_type")?,
            partition_label: text(value, "partition_label")?,
            partition_uuid: text(value, "partition_uuid")?,
            partition_number: size(value, "partition_number")?.unwrap_or(0),
            size_bytes: needed(value, "size_bytes")?,
            used_bytes: size(value, "used_bytes")?.unwrap_or(0),
        };
        if is_name(&image.name) {
            Ok(image)
        } else {
            Err(Fault::corrupt("name of an entry of the snapshot"))
        }
    }
}

impl DiskEntry {
    fn to_json(&self) -> String {
        let mut object = JsonObject::new();
        object.str("device", cut(&self.device));
        object.str("table", cut(&self.table));
        object.u64("size_bytes", self.size_bytes);
        object.u64("sector_bytes", self.sector_bytes);
        object.u64("table_bytes", self.table_bytes);
        object.u64("boot_bytes", self.boot_bytes);
        object.finish()
    }

    fn from_json(value: &Value) -> Result<Self, Fault> {
        Ok(Self {
            device: text(value, "device")?,
            table: text(value, "table")?,
            size_bytes: needed(value, "size_bytes")?,
            sector_bytes: needed(value, "sector_bytes")?,
            table_bytes: needed(value, "table_bytes")?,
            boot_bytes: needed(value, "boot_bytes")?,
        })
    }
}

/// What is known about an entry once it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The archive's name of it.
    pub path: String,
    /// Raw size in bytes.
    pub size_bytes: u64,
    /// Bytes in the archive.
    pub stored_bytes: u64,
    /// CRC-32 of the raw bytes.
    pub crc32: u32,
    /// SHA-256 of the bytes in the archive.
    pub sha256: [u8; 32],
    /// `used`, `partial` or `whole`; empty for what is no image.
    pub map: String,
    /// Of an image: how much of it was to be read. `None`: an older floe wrote it.
    pub used_bytes: Option<u64>,
}

/// What the map of an image may be (`fs::Coverage`).
const MAPS: [&str; 3] = ["used", "partial", "whole"];
/// How the images may have been held (`take::source`).
const CONSISTENT: [&str; 4] = ["frozen", "readonly", "unmounted", "live"];

/// `checksums.json`: of every entry in front of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// How long the filesystems were frozen.
    pub frozen_ms: u64,
    /// `frozen`, `readonly`, `unmounted` or `live`: the weakest of the images.
    pub consistent: String,
    /// In the order of the archive.
    pub entries: Vec<Checksum>,
}

impl Checksums {
    /// The text of `checksums.json`.
    pub fn to_json(&self) -> String {
        let entry = |entry: &Checksum| {
            let mut object = JsonObject::new();
            object.str("path", &entry.path);
            object.u64("size_bytes", entry.size_bytes);
            object.u64("stored_bytes", entry.stored_bytes);
            object.str("crc32", &format!("{:08x}", entry.crc32));
            object.str("sha256", &hex(&entry.sha256));
            if !entry.map.is_empty() {
                object.str("map", &entry.map);
            }
            if let Some(used_bytes) = entry.used_bytes {
                object.u64("used_bytes", used_bytes);
            }
            object.finish()
        };
        let entries: Vec<String> = self.entries.iter().map(entry).collect();
        let mut object = JsonObject::new();
        object.u64("format", FORMAT);
        object.u64("frozen_ms", self.frozen_ms);
        object.str("consistent", &self.consistent);
        object.raw("entries", &list(&entries));
        object.finish() + "\n"
    }

    /// Reads `checksums.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Fault> {
        let root = json::parse(bytes)?;
        check_format(&root)?;
        let bad = || Fault::corrupt("checksums of the snapshot");
        let mut entries: Vec<Checksum> = Vec::new();
        for value in array(&root, "entries")? {
            let mut crc32 = [0u8; 4];
            let mut sha256 = [0u8; 32];
            unhex(&text(value, "crc32")?, &mut crc32).ok_or_else(bad)?;
            unhex(&text(value, "sha256")?, &mut sha256).ok_or_else(bad)?;
            let entry = Checksum {
                path: text(value, "path")?,
                size_bytes: needed(value, "size_bytes")?,
                stored_bytes: needed(value, "stored_bytes")?,
                crc32: u32::from_be_bytes(crc32),
                sha256,
                map: text(value, "map")?,
                used_bytes: size(value, "used_bytes")?,
            };
            let maps: &[&str] = match image_name(&entry.path) {
                Some(_) => &MAPS,
                None => &[""],
            };
            let twice = entries.iter().any(|known| known.path == entry.path);
            if twice || !maps.contains(&entry.map.as_str()) || entries.len() >= MAX_IMAGES + 3 {
                return Err(bad());
            }
            entries.push(entry);
        }
        let consistent = text(&root, "consistent")?;
        if !CONSISTENT.contains(&consistent.as_str()) {
            return Err(bad());
        }
        Ok(Self {
            frozen_ms: size(&root, "frozen_ms")?.unwrap_or(0),
            consistent,
            entries,
        })
    }

    /// The checksums of the entry of this name.
    pub fn find(&self, path: &str) -> Option<&Checksum> {
        self.entries.iter().find(|entry| entry.path == path)
    }
}

/// The text of `checksums.sha256`: a line that `sha256sum -c` understands.
pub fn sha256_line(checksums_json: &[u8]) -> String {
    format!("{}  {CHECKSUMS}\n", hex(&Sha256::digest(checksums_json)))
}

/// Whether `checksums.sha256` is right.
pub fn check_sha256_line(checksums_json: &[u8], line: &[u8]) -> Result<(), Fault> {
    if sha256_line(checksums_json).as_bytes() == line {
        Ok(())
    } else {
        Err(Fault::corrupt(
            "checksums.json is not what checksums.sha256 says",
        ))
    }
}

fn check_format(root: &Value) -> Result<(), Fault> {
    match root.get("format").and_then(Value::number) {
        Some(1..=FORMAT) => Ok(()),
        Some(0) | None => Err(Fault::corrupt("format version of the snapshot")),
        Some(newer) => Err(Fault::refused(
            "a newer floe made this snapshot, its format is not known here",
        )
        .in_unit("version", newer)),
    }
}

/// A text field; empty where it is missing.
fn text(value: &Value, key: &str) -> Result<String, Fault> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::Text(text)) if text.len() <= MAX_TEXT => Ok(text.clone()),
        Some(_) => Err(Fault::corrupt("text in the snapshot's metadata")),
    }
}

/// A size or count; `None` where it is missing.
fn size(value: &Value, key: &str) -> Result<Option<u64>, Fault> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if *number <= MAX_SIZE => Ok(Some(*number)),
        Some(_) => Err(Fault::corrupt("number in the snapshot's metadata")),
    }
}

fn needed(value: &Value, key: &str) -> Result<u64, Fault> {
    size(value, key)?.ok_or_else(|| Fault::corrupt("size missing in the snapshot's metadata"))
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], Fault> {
    value
        .get(key)
        .and_then(Value::list)
        .ok_or_else(|| Fault::corrupt("entries of the snapshot"))
}

/// The texts of a list; what is not one of them is left out.
fn texts(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::list).unwrap_or_default();
    let texts = list.iter().filter_map(|value| match value {
        Value::Text(text) if text.len() <= MAX_TEXT => Some(text.clone()),
        _ => None,
    });
    texts.collect()
}

fn list(objects: &[String]) -> String {
    format!("[{}]", objects.join(","))
}

/// The text up to [`MAX_TEXT`], at a character's boundary.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Lowercase hexadecimal of exactly `out.len()` bytes.
fn unhex(text: &str, out: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != out.len() * 2 {
        return None;
    }
    for (place, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let [high, low] = *pair else { return None };
        *place = digit(high)? << 4 | digit(low)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FaultKind;

    fn sample() -> Snapshot {
        Snapshot {
            floe: "0.1.0".into(),
            time_s: 1_795_000_000,
            host: "board \"1\"\n".into(),
            architecture: "armv7".into(),
            board: "Acme Board ä".into(),
            comment: "before the update".into(),
            factory: true,
            disk: Some(DiskEntry {
                device: "/dev/mmcblk0".into(),
                table: "gpt".into(),
                size_bytes: 1 << 30,
                sector_bytes: 512,
                table_bytes: 33_792,
                boot_bytes: 0,
            }),
            images: vec![
                ImageEntry {
                    name: "root".into(),
                    source: "/".into(),
                    filesystem: "ext4".into(),
                    size_bytes: 5 << 30,
                    used_bytes: 1 << 30,
                    ..ImageEntry::default()
                },
                ImageEntry {
                    name: "config".into(),
                    size_bytes: 1 << 20,
                    ..ImageEntry::default()
                },
            ],
            ..Snapshot::default()
        }
    }

    #[test]
    fn metadata_that_was_written_is_read_back() {
        let snapshot = sample();
        let text = snapshot.to_json();
        assert!(text.contains("\"time\":\"2026-11-18T11:06:40Z\""));
        assert_eq!(Snapshot::from_json(text.as_bytes()).unwrap(), snapshot);
        assert_eq!(
            snapshot.paths(),
            [
                SNAPSHOT,
                TABLE,
                "images/root.img",
                "images/config.img",
                CHECKSUMS,
                CHECKSUMS_SHA256
            ]
        );
        assert_eq!(snapshot.entry_bytes("images/root.img"), Some(5 << 30));
        assert_eq!(snapshot.entry_bytes("disk/table.bin"), Some(33_792));
        assert_eq!(snapshot.entry_bytes("images/other.img"), None);
        assert_eq!(snapshot.entry_bytes("root"), None);
    }

    #[test]
    fn unknown_keys_are_ignored_and_a_newer_format_is_refused() {
        let text = sample().to_json();
        let more = text.replacen('{', "{\"later\":[{\"x\":-1.5}],", 1);
        assert_eq!(Snapshot::from_json(more.as_bytes()).unwrap(), sample());
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        let fault = Snapshot::from_json(newer.as_bytes()).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused);
        for bad in ["\"format\":0", "\"format\":\"1\"", "\"other\":1"] {
            let text = text.replacen("\"format\":1", bad, 1);
            let fault = Snapshot::from_json(text.as_bytes()).unwrap_err();
            assert_eq!(fault.kind(), FaultKind::Corrupt);
        }
    }

    #[test]
    fn unsafe_names_names_given_twice_and_wild_sizes_are_corrupt() {
        let text = sample().to_json();
        for (from, to) in [
            ("\"name\":\"root\"", "\"name\":\"../root\""),
            ("\"name\":\"root\"", "\"name\":\"..\""),
            ("\"name\":\"root\"", "\"name\":\"\""),
            ("\"name\":\"root\"", "\"name\":\"Root\""),
            ("\"name\":\"root\"", "\"name\":\"config\""),
            ("\"size_bytes\":1048576", "\"size_bytes\":-1"),
            (
                "\"size_bytes\":1048576",
                "\"size_bytes\":18446744073709551615",
            ),
            ("\"size_bytes\":1048576", "\"size\":1048576"),
            ("\"entries\":[", "\"entries\":{},\"old\":["),
        ] {
            assert!(text.contains(from), "{from}");
            let spoiled = text.replacen(from, to, 1);
            let fault = Snapshot::from_json(spoiled.as_bytes()).unwrap_err();
            assert_eq!(fault.kind(), FaultKind::Corrupt, "{to}");
        }
        let long = text.replacen("armv7", &"x".repeat(MAX_TEXT + 1), 1);
        assert!(Snapshot::from_json(long.as_bytes()).is_err());
    }

    #[test]
    fn long_texts_of_the_system_are_cut_at_a_character() {
        let mut snapshot = sample();
        snapshot.os = format!("{}ä", "x".repeat(MAX_TEXT - 1));
        let read = Snapshot::from_json(snapshot.to_json().as_bytes()).unwrap();
        assert_eq!(read.os, "x".repeat(MAX_TEXT - 1));
    }

    #[test]
    fn checksums_are_read_back_and_vouched_for_by_their_own_sum() {
        let checksums = Checksums {
            frozen_ms: 120,
            consistent: "frozen".into(),
            entries: vec![Checksum {
                path: "images/root.img".into(),
                size_bytes: 5 << 30,
                stored_bytes: 77,
                crc32: 0x00ab_cdef,
                sha256: [0x5a; 32],
                map: "used".into(),
                used_bytes: Some(17),
            }],
        };
        let text = checksums.to_json();
        assert_eq!(Checksums::from_json(text.as_bytes()).unwrap(), checksums);
        let line = sha256_line(text.as_bytes());
        assert!(line.ends_with("  checksums.json\n") && line.len() == 64 + 17);
        assert!(check_sha256_line(text.as_bytes(), line.as_bytes()).is_ok());
        assert!(check_sha256_line(b"{}", line.as_bytes()).is_err());
        let short = text.replacen("5a5a", "5a", 1);
        assert!(Checksums::from_json(short.as_bytes()).is_err());
        for (from, to) in [
            ("\"used\"", "\"\""),
            ("\"used\"", "\"Used\""),
            ("\"used\"", "\"all of it, believe me\""),
            ("images/root.img", "disk/table.bin"),
            ("\"frozen\"", "\"\""),
            ("\"frozen\"", "\"perfectly\""),
            ("\"consistent\"", "\"other\""),
        ] {
            assert!(text.contains(from), "{from}");
            let other = text.replacen(from, to, 1);
            assert!(Checksums::from_json(other.as_bytes()).is_err(), "{to}");
        }
        for (from, to) in [
            ("used", "whole"),
            ("used", "partial"),
            ("\"frozen\"", "\"live\""),
        ] {
            let other = text.replacen(from, to, 1);
            assert!(Checksums::from_json(other.as_bytes()).is_ok(), "{to}");
        }
    }
}
