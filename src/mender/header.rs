//! What a Mender artifact says about itself: the options that become its header, and the header's bytes.
//!
//! Mender artifact format version 3 (the public "Mender Artifact file format" document): `header-info` names the payload's type, what
//! the artifact provides and which devices it is for; state scripts follow; `type-info` holds what is recorded on the device with the
//! payload. The header's length does not depend on the payload's checksum, so that it can be written before the payload is known.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli::Args;
use crate::device::limited;
use crate::error::{Error, Fault, Result};
use crate::report::{JsonObject, hex, json_string};
use crate::stream::tar::{self, Member};
use crate::units::to_u64;
use std::ffi::OsStr;
use std::time::SystemTime;

/// The only type of payload written here.
const ROOTFS: &str = "rootfs-image";

/// Most bytes of all state scripts together: they are held in memory.
const MAX_SCRIPTS_BYTES: u64 = 16 << 20;

/// States whose scripts an artifact may carry, and whether they have an Error script; Idle, Sync and Download belong to the device.
const STATES: [(&str, bool); 6] = [
    ("ArtifactInstall", true),
    ("ArtifactReboot", true),
    ("ArtifactCommit", true),
    ("ArtifactRollback", false),
    ("ArtifactRollbackReboot", false),
    ("ArtifactFailure", false),
];

/// As typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    /// `-n/--artifact-name`.
    pub name: String,
    /// `-t/--device-type`, at least one.
    pub device_types: Vec<String>,
    group: Option<String>,
    software_name: Option<String>,
    software_version: Option<String>,
    software_filesystem: Option<String>,
    provides: Vec<(String, String)>,
    /// How many `--provides` stood before the last `--software-…`: it overrides those.
    provides_before_software: usize,
    depends: Vec<(String, String)>,
    clears: Vec<String>,
    scripts: Vec<PathBuf>,
}

/// A state script that was read.
#[derive(Debug)]
pub(crate) struct Script {
    name: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl Labels {
    /// Takes `option` if it is one of these.
    pub(crate) fn option(&mut self, option: &str, args: &mut Args) -> Result<bool> {
        match option {
            "--artifact-name" => {
                let spaced = "a name without spaces";
                self.name = args.parsed(|text| word(text).map(str::to_owned), spaced)?;
            }
            "--device-type" => self.device_types.push(filled(args)?),
            "--artifact-group" => self.group = Some(filled(args)?),
            "--software-name" => self.software_name = Some(filled(args)?),
            "--software-version" => self.software_version = Some(filled(args)?),
            "--software-filesystem" => self.software_filesystem = Some(filled(args)?),
            "--provides" => add(&mut self.provides, args)?,
            "--depends" => add(&mut self.depends, args)?,
            "--clears-provides" => self.clears.push(filled(args)?),
            "--script" => self.scripts.push(args.path()?),
            _ => return Ok(false),
        }
        if option.starts_with("--software") {
            self.provides_before_software = self.provides.len();
        }
        Ok(true)
    }

    /// What must have been given was given, and every script has a name that Mender runs.
    pub(crate) fn check(&self, args: &Args) -> Result<()> {
        if self.name.is_empty() {
            return Err(args.missing("-n NAME"));
        }
        if self.device_types.is_empty() {
            return Err(args.missing("-t DEVICE_TYPE"));
        }
        let mut seen: Vec<&str> = Vec::new();
        for path in &self.scripts {
            let name = script_name(path)?;
            if seen.contains(&name) {
                return Err(Error::usage(format_args!("--script: {name} twice")));
            }
            seen.push(name);
        }
        Ok(())
    }

    /// Reads the state scripts.
    pub(crate) fn read_scripts(&self) -> Result<Vec<Script>> {
        let mut left = MAX_SCRIPTS_BYTES;
        let mut scripts = Vec::new();
        for path in &self.scripts {
            let fail = |error| Error::std(path.display(), "open", &error);
            let mut file = std::fs::File::open(path).map_err(fail)?;
            let mode = file.metadata().map_err(fail)?.permissions().mode();
            let mut bytes = Vec::new();
            limited(&mut file, left + 1)
                .read_to_end(&mut bytes)
                .map_err(fail)?;
            left = left.checked_sub(to_u64(bytes.len())).ok_or_else(|| {
                Error::refused(format_args!(
                    "{}: the scripts are longer than 16 MiB together",
                    path.display()
                ))
            })?;
            scripts.push(Script {
                name: format!("scripts/{}", script_name(path)?),
                mode: mode & 0o777,
                bytes,
            });
        }
        Ok(scripts)
    }

    /// The tar archive `header.tar`, for a payload with this checksum.
    pub(crate) fn header(
        &self,
        scripts: &[Script],
        sha256: &[u8; 32],
    ) -> std::result::Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        let mut add = |name: &str, mode: u32, bytes: &[u8]| {
            let member = Member {
                name,
                mode,
                modified: 0,
                size_bytes: 0,
            };
            tar::append(&mut out, member, bytes)
        };
        add("header-info", 0o600, self.header_info().as_bytes())?;
        for script in scripts {
            add(&script.name, script.mode, &script.bytes)?;
        }
        let type_info = self.type_info(sha256);
        add("headers/0000/type-info", 0o600, type_info.as_bytes())?;
        // Must be there; this type of payload has nothing to say in it.
        add("headers/0000/meta-data", 0o600, b"")?;
        out.extend_from_slice(&[0; 1024]);
        Ok(out)
    }

    fn header_info(&self) -> String {
        let mut payload = JsonObject::new();
        payload.str("type", ROOTFS);
        let mut provides = JsonObject::new();
        provides.str("artifact_name", &self.name);
        if let Some(group) = &self.group {
            provides.str("artifact_group", group);
        }
        let mut depends = JsonObject::new();
        depends.raw("device_type", &array(&self.device_types));
        let mut object = JsonObject::new();
        object
            .raw("payloads", &format!("[{}]", payload.finish()))
            .raw("artifact_provides", &provides.finish())
            .raw("artifact_depends", &depends.finish());
        object.finish()
    }

    fn type_info(&self, sha256: &[u8; 32]) -> String {
        let mut object = JsonObject::new();
        object.str("type", ROOTFS);
        if !self.depends.is_empty() {
            object.raw("artifact_depends", &map(&self.depends));
        }
        object.raw("artifact_provides", &map(&self.all_provides(&hex(sha256))));
        object.raw("clears_artifact_provides", &array(&self.all_clears()));
        object.finish()
    }

    /// The user's, the software's version, and the checksum by which a delta update recognises the image.
    fn all_provides(&self, sha256: &str) -> Vec<(String, String)> {
        let filesystem = self.software_filesystem.as_deref().unwrap_or(ROOTFS);
        let key = match &self.software_name {
            Some(name) => format!("{filesystem}.{name}.version"),
            None => format!("{filesystem}.version"),
        };
        let mut all: Vec<(String, String)> = Vec::new();
        let mut put = |key: &str, value: &str| {
            all.retain(|(known, _)| known != key);
            all.push((key.to_owned(), value.to_owned()));
        };
        let (before, after) = self
            .provides
            .split_at_checked(self.provides_before_software)
            .unwrap_or((&[], &self.provides));
        before.iter().for_each(|(key, value)| put(key, value));
        put(&key, self.software_version.as_ref().unwrap_or(&self.name));
        after.iter().for_each(|(key, value)| put(key, value));
        put("rootfs-image.checksum", sha256);
        all
    }

    /// What the device is to forget: by default all that an earlier image of the same software has left.
    fn all_clears(&self) -> Vec<String> {
        let filesystem = self.software_filesystem.as_deref().unwrap_or(ROOTFS);
        let mut all = self.clears.clone();
        let own = match &self.software_name {
            Some(name) => format!("{filesystem}.{name}.*"),
            None => format!("{filesystem}.*"),
        };
        if self.software_name.is_none() && filesystem == ROOTFS {
            // The second is what the checksum was called in old versions.
            all.extend(["artifact_group".into(), "rootfs_image_checksum".into()]);
        }
        if !all.contains(&own) {
            all.push(own);
        }
        all
    }
}

fn filled(args: &mut Args) -> Result<String> {
    args.parsed(
        |text| (!text.is_empty()).then(|| text.to_owned()),
        "a text that is not empty",
    )
}

fn word(text: &str) -> Option<&str> {
    (!text.is_empty() && !text.contains(char::is_whitespace)).then_some(text)
}

fn add(pairs: &mut Vec<(String, String)>, args: &mut Args) -> Result<()> {
    let split = |text: &str| {
        let (key, value) = text.split_once(':')?;
        (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
    };
    pairs.push(args.parsed(split, "KEY:VALUE")?);
    Ok(())
}

/// A JSON array of strings.
pub(crate) fn array(texts: &[String]) -> String {
    let mut out = String::from("[");
    for text in texts {
        if out.len() > 1 {
            out.push(',');
        }
        json_string(&mut out, text);
    }
    out.push(']');
    out
}

/// A JSON object of strings; of a key that stands twice the last.
fn map(pairs: &[(String, String)]) -> String {
    let mut object = JsonObject::new();
    for (index, (key, value)) in pairs.iter().enumerate() {
        let later = pairs.get(index + 1..).unwrap_or_default();
        if !later.iter().any(|(other, _)| other == key) {
            object.str(key, value);
        }
    }
    object.finish()
}

/// `STATE_Enter_NN`, `_Leave_` or `_Error_`, then maybe `_` and any name: what Mender's client runs, in the order of NN.
fn script_name(path: &Path) -> Result<&str> {
    let bad = |why: &str| {
        Error::usage(format_args!(
            "--script: {}: {why}; a name is such as ArtifactInstall_Enter_05_wifi-driver",
            path.display()
        ))
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| bad("not a file's name in UTF-8"))?;
    let mut parts = name.splitn(4, '_');
    let (state, event) = (parts.next(), parts.next().unwrap_or_default());
    let (number, rest) = (parts.next().unwrap_or_default(), parts.next());
    let (_, has_error) = STATES
        .iter()
        .find(|(known, _)| Some(*known) == state)
        .ok_or_else(|| bad("not a state whose scripts an artifact carries"))?;
    match event {
        "Enter" | "Leave" => {}
        "Error" if *has_error => {}
        "Error" => return Err(bad("this state has no Error script")),
        _ => return Err(bad("neither Enter nor Leave nor Error")),
    }
    if number.len() != 2 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("no number of two digits"));
    }
    if rest.is_some_and(|rest| word(rest).is_none()) || name.len() + 8 > tar::MAX_NAME {
        return Err(bad("spaces, nothing behind the last '_', or too long"));
    }
    Ok(name)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The payload's name: the image's own without `.gz`, where Mender's tools take it.
pub(crate) fn payload_name(path: &OsStr) -> String {
    let name = Path::new(path).file_name().and_then(OsStr::to_str);
    let name = name.map_or("", |name| name.strip_suffix(".gz").unwrap_or(name));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.,".contains(&byte);
    let good = name.bytes().all(plain) && !name.starts_with(['.', '-']);
    if good && !name.is_empty() && name.len() <= tar::MAX_NAME {
        return name.into();
    }
    "rootfs.img".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(words: &[&str]) -> Result<Labels> {
        let mut args = Args::new("artifact", lexopt::Parser::from_args(words));
        let mut labels = Labels::default();
        while let Some(crate::cli::Item::Option(name)) = args.next_item()? {
            assert!(labels.option(name, &mut args)?);
        }
        labels.check(&args).map(|()| labels)
    }

    #[test]
    fn header_and_type_info_say_what_was_given() {
        let given = labels(&["-n", "rel-1", "-t", "a\"b", "-t", "rpi", "-g", "all"]).unwrap();
        assert_eq!(
            given.header_info(),
            r#"{"payloads":[{"type":"rootfs-image"}],"artifact_provides":{"artifact_name":"rel-1","artifact_group":"all"},"artifact_depends":{"device_type":["a\"b","rpi"]}}"#
        );
        let sum = "ab".repeat(32);
        assert_eq!(
            given.type_info(&[0xab; 32]),
            format!(
                r#"{{"type":"rootfs-image","artifact_provides":{{"rootfs-image.version":"rel-1","rootfs-image.checksum":"{sum}"}},"clears_artifact_provides":["artifact_group","rootfs_image_checksum","rootfs-image.*"]}}"#
            )
        );
    }

    #[test]
    fn the_later_of_provides_and_software_wins() {
        let key = "rootfs-image.version:own";
        for (words, version) in [
            (vec!["--provides", key], "own"),
            (vec!["--provides", key, "--software-version", "2"], "2"),
            (vec!["--software-version", "2", "--provides", key], "own"),
        ] {
            let all = [&["-n", "x", "-t", "y"], &words[..]].concat();
            let found = labels(&all).unwrap().all_provides("s");
            assert_eq!(found.len(), 2, "{found:?}");
            assert_eq!(
                found.iter().find(|p| p.0.ends_with("n")).unwrap().1,
                version
            );
        }
    }

    #[test]
    fn only_scripts_that_mender_runs_are_taken() {
        for good in [
            "ArtifactInstall_Enter_05_wifi-driver",
            "x/ArtifactCommit_Error_00",
            "ArtifactFailure_Leave_99_a_b_c",
        ] {
            assert!(script_name(Path::new(good)).is_ok(), "{good}");
        }
        for bad in [
            "Download_Enter_05",
            "ArtifactInstall_Enter_5",
            "ArtifactInstall_enter_05",
            "ArtifactInstall_Enter_05_",
            "ArtifactInstall_Enter_05_a b",
            "ArtifactInstall_Enter_055",
            "ArtifactFailure_Error_05",
            "XArtifactInstall_Enter_05",
            "/",
        ] {
            assert!(script_name(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(labels(&["-n", "a b", "-t", "c"]).is_err());
        assert!(labels(&["-n", "a", "-t", ""]).is_err());
        assert!(labels(&["-n", "a", "-t", "b", "--provides", "novalue"]).is_err());
        assert!(labels(&["-n", "a"]).is_err());
    }
}
