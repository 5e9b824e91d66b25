//! `/etc/floe.conf`: where snapshots are kept, and the pairs of a clone.

pub(crate) mod pairs;

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The configuration file.
pub(crate) const CONFIG: &str = "/etc/floe.conf";

/// `store = DIR` of /etc/floe.conf: where snapshots are kept.
pub(crate) fn store() -> Result<Option<PathBuf>> {
    match std::fs::read_to_string(CONFIG) {
        Ok(text) => {
            let store = store_in(&text);
            let store = store.map_err(|(line, why)| {
                Error::usage(format_args!("{CONFIG}: line {line}: {why}"))
            })?;
            match store.as_ref().filter(|folder| !folder.is_dir()) {
                Some(folder) => Err(Error::refused(format_args!(
                    "{}: is no folder, and {CONFIG} names it as the store: make it (or mount what it is on), or name another one there",
                    folder.display()
                ))),
                None => Ok(store),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::std(CONFIG, "read", &error)),
    }
}

/// A line without what a `#` begins, where it stands first or after a blank (a name may hold one); and without blanks around it.
fn uncommented(line: &[u8]) -> &[u8] {
    let mut before = b' ';
    let begins = |byte: &u8| {
        let found = *byte == b'#' && before.is_ascii_whitespace();
        before = *byte;
        found
    };
    let end = line.iter().position(begins).unwrap_or(line.len());
    line.get(..end).unwrap_or_default().trim_ascii()
}

/// The last `store` line counts. `Err` has the number of a line that is wrong: where there is no `store`, any that is no pair may be
/// a slip of it, and what was to be kept would go somewhere else.
fn store_in(text: &str) -> std::result::Result<Option<PathBuf>, (usize, String)> {
    let mut store = None;
    for (number, line) in (1usize..).zip(text.lines()) {
        let line = std::str::from_utf8(uncommented(line.as_bytes())).unwrap_or_default();
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if key.trim() == "store" {
            let folder = PathBuf::from(value.trim());
            store = Some(folder).filter(|folder| folder.is_absolute());
            if store.is_none() {
                return Err((number, "store must name a folder from /".into()));
            }
        }
    }
    if store.is_none() {
        pairs::parse(text.as_bytes())?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_found_among_other_lines() {
        let text = "# kept\n/=/dev/mmcblk0p3\n store = /data/snapshots \t# from /\n";
        assert_eq!(store_in(text), Ok(Some("/data/snapshots".into())));
        assert_eq!(store_in("/config=PARTLABEL=b\n#store = /x\n"), Ok(None));
        assert_eq!(store_in("store = /a#b\n"), Ok(Some("/a#b".into())));
        assert_eq!(uncommented(b"#x"), b"");
        let line_of = |text| store_in(text).map_err(|(line, _)| line);
        assert_eq!(line_of("\nstore = relative\n"), Err(2));
        assert_eq!(line_of("store=\n"), Err(1));
        assert_eq!(line_of("/=/dev/x\nstor = /data\n"), Err(2));
        assert_eq!(line_of("store /data\n"), Err(1));
    }
}
