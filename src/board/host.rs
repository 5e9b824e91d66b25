//! How a board is named: by whoever types it, in messages, and in the names of files.

use crate::cli;
use crate::error::{Error, Result};

/// A board as the user named it: `host`, `user@host`, `host:port`, `ssh://user@host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// As messages name it: without the user.
    pub shown: String,
    pub(super) user: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

/// What stands behind the user: `NAME`, `NAME:PORT`, `[NAME]` or `[NAME]:PORT`. Says what is wrong.
fn name_and_port(place: &str) -> std::result::Result<(&str, Option<&str>), &'static str> {
    if let Some(inside) = place.strip_prefix('[') {
        let (name, after) = inside.split_once(']').ok_or("the closing ] is missing")?;
        return match (after, after.strip_prefix(':')) {
            ("", _) => Ok((name, None)),
            (_, Some(port)) => Ok((name, Some(port))),
            (_, None) => Err("behind ] a :port"),
        };
    }
    match place.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err("an IPv6 address stands in brackets, as in [fd00::7]:22")
        }
        Some((name, port)) => Ok((name, Some(port))),
        None => Ok((place, None)),
    }
}

/// ssh puts names into commands of its configuration (ProxyCommand's %h and %r): nothing a shell could read otherwise. `also`: what
/// may stand in it besides letters and digits.
fn is_plain(text: &str, also: &str) -> bool {
    let is_allowed = |c: char| c.is_alphanumeric() || also.contains(c);
    !text.is_empty() && !text.starts_with('-') && text.len() <= 255 && text.chars().all(is_allowed)
}

impl Host {
    /// Takes the forms above apart; whatever ssh could take for an option is refused.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format_args!("'{text}' is no HOST: {why}"));
        let rest = text.strip_prefix("ssh://").unwrap_or(text);
        let rest = match text.starts_with("ssh://") {
            true => rest.strip_suffix('/').unwrap_or(rest),
            false => rest,
        };
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let is_bracketed = place.starts_with('[');
        let (name, port) = name_and_port(place).map_err(wrong)?;
        let port = match port {
            Some(port) => match cli::number(port).and_then(|port| u16::try_from(port).ok()) {
                Some(port) if port > 0 => Some(port),
                _ => return Err(wrong("the port is a number from 1 to 65535")),
            },
            None => None,
        };
        if !is_plain(name, if is_bracketed { ".:%-_" } else { ".-_" }) {
            return Err(wrong(match name.starts_with('-') {
                true => "it begins with -, and ssh would take it for an option",
                false => {
                    "a name has letters, digits, '.', '-' and '_', an IPv6 address stands in brackets"
                }
            }));
        }
        if user.is_some_and(|user| !is_plain(user, "._+@-")) {
            return Err(wrong("that is no user's name"));
        }
        let mut shown = match is_bracketed {
            true => format!("[{name}]"),
            false => name.to_owned(),
        };
        if let Some(port) = port {
            shown.push_str(&format!(":{port}"));
        }
        Ok(Self {
            shown,
            user: user.map(str::to_owned),
            name: name.to_owned(),
            port,
        })
    }

    /// `HOST` or `HOST_PORT`, as the name of a file.
    pub(crate) fn file_stem(&self) -> String {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
        let mut stem: String = self
            .name
            .chars()
            .map(|c| if plain(c) { c } else { '_' })
            .collect();
        if stem.starts_with('.') {
            stem.insert_str(0, "host");
        }
        if let Some(port) = self.port {
            stem.push_str(&format!("_{port}"));
        }
        stem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_host_is_understood() {
        let host = |text| Host::parse(text).unwrap();
        let parts = |text| {
            let host = host(text);
            (host.user, host.name, host.port)
        };
        assert_eq!(parts("board"), (None, "board".into(), None));
        assert_eq!(
            parts("me@b:2222"),
            (Some("me".into()), "b".into(), Some(2222))
        );
        assert_eq!(
            parts("ssh://admin@[fd00::7]:22"),
            (Some("admin".into()), "fd00::7".into(), Some(22))
        );
        assert_eq!(parts("[fe80::1%eth0]"), (None, "fe80::1%eth0".into(), None));
        assert_eq!(parts("ssh://b/"), (None, "b".into(), None));
        assert_eq!(host("root@[fd00::7]:22").shown, "[fd00::7]:22");
        assert_eq!(host("root@[fd00::7]:22").file_stem(), "fd00__7_22");
        assert_eq!(host("me@b").file_stem(), "b");
        for wrong in [
            "",
            "-oProxyCommand=x",
            "me@-x",
            "-l@b",
            "b:",
            "b:0",
            "b:x",
            "b:70000",
            "fd00::7",
            "[fd00::7",
            "[fd00::7]22",
            "a b",
            "b;c",
            "$(x)@b",
            "b/../c",
            "ssh://",
            "@b",
            "b\n",
        ] {
            assert!(Host::parse(wrong).is_err(), "{wrong}");
        }
    }
}
