//! JSON as it is written: objects, lists of strings, and hexadecimal.

use std::fmt::Write;

use super::is_hostile;

/// One JSON object, written key by key in order.
#[derive(Debug, Default)]
pub struct JsonObject {
    text: String,
}

impl JsonObject {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str) {
        self.text
            .push_str(if self.text.is_empty() { "{" } else { "," });
        json_string(&mut self.text, key);
        self.text.push(':');
    }

    /// A string.
    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        json_string(&mut self.text, value);
        self
    }

    /// A number.
    pub fn u64(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{value}");
        self
    }

    /// True or false.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{value}");
        self
    }

    /// null.
    pub fn null(&mut self, key: &str) -> &mut Self {
        self.key(key);
        self.text.push_str("null");
        self
    }

    /// A value that is JSON already: made here, or a board's report that was parsed. Hostile letters stand in its strings only,
    /// where they may be escaped.
    pub fn raw(&mut self, key: &str, json: &str) -> &mut Self {
        self.key(key);
        for letter in json.chars() {
            match is_hostile(letter) {
                // White space between JSON's tokens.
                true if letter < ' ' => self.text.push(' '),
                true => push_escaped(&mut self.text, letter),
                false => self.text.push(letter),
            }
        }
        self
    }

    /// The object's text.
    pub fn finish(&self) -> String {
        if self.text.is_empty() {
            "{}".into()
        } else {
            format!("{}}}", self.text)
        }
    }
}

/// A letter of the Basic Multilingual Plane, as every hostile one is.
fn push_escaped(out: &mut String, letter: char) {
    let _ = write!(out, "\\u{:04x}", u32::from(letter));
}

/// Appends `value` as a JSON string (RFC 8259, section 7), with nothing in it that a terminal could mind.
pub fn json_string(out: &mut String, value: &str) {
    out.push('"');
    for letter in value.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            letter if is_hostile(letter) => push_escaped(out, letter),
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// A JSON list of strings.
pub fn json_list(values: &[String]) -> String {
    let mut out = String::from("[");
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        json_string(&mut out, value);
    }
    out.push(']');
    out
}

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_escapes_what_must_be_escaped() {
        let mut object = JsonObject::new();
        assert_eq!(object.finish(), "{}");
        object
            .str("a\"b", "x\\y\n\u{1}é")
            .u64("n", u64::MAX)
            .bool("t", true)
            .null("z");
        assert_eq!(
            object.finish(),
            "{\"a\\\"b\":\"x\\\\y\\n\\u0001é\",\"n\":18446744073709551615,\"t\":true,\"z\":null}"
        );
    }
}
