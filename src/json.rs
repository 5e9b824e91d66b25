//! JSON read back (RFC 8259), bounded in size, depth and number of values; what we write is in `report`.
//!
//! Strict: no duplicate keys, no trailing bytes, no unpaired surrogates. Numbers that are no unsigned integer are kept as
//! [`Value::Other`], so that a key we do not know may hold anything. Never allocates more than a small multiple of the text.

use crate::error::Fault;
use crate::units::to_u64;

/// Longest text in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting; also the deepest recursion.
const MAX_DEPTH: u32 = 16;
/// Most values of all kinds.
const MAX_VALUES: u32 = 65_536;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer from 0 to 2^64 - 1.
    Number(u64),
    /// Any other number.
    Other,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An object, keys in their order.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// The member of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Object(members) => members
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// A string's text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An unsigned integer.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A truth value.
    pub fn bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An array's values.
    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }
}

/// Reads one value, which must be the whole text.
pub fn parse(bytes: &[u8]) -> Result<Value, Fault> {
    if bytes.len() > MAX_BYTES {
        return Err(Fault::corrupt("JSON too long"));
    }
    let text = core::str::from_utf8(bytes).map_err(|e| {
        let mut fault = Fault::corrupt("JSON is not UTF-8");
        fault = fault.with_offset(to_u64(e.valid_up_to()));
        fault
    })?;
    let mut parser = Parser {
        text,
        at: 0,
        values: 0,
    };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.bad("JSON goes on after its end"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: u32,
}

impl Parser<'_> {
    fn bad(&self, what: &'static str) -> Fault {
        let mut fault = Fault::corrupt(what);
        fault = fault.with_offset(to_u64(self.at));
        fault
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `word` if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let here = self.rest().starts_with(word);
        if here {
            self.at += word.len();
        }
        here
    }

    fn value(&mut self, depth: u32) -> Result<Value, Fault> {
        self.values += 1;
        if depth > MAX_DEPTH || self.values > MAX_VALUES {
            return Err(self.bad("JSON too deep or too large"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.take("null") => Ok(Value::Null),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ => Err(self.bad("JSON value")),
        }
    }

    fn object(&mut self, depth: u32) -> Result<Value, Fault> {
        let mut members: Vec<(String, Value)> = Vec::new();
        self.at += 1;
        self.space();
        if self.take("}") {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            if members.iter().any(|(known, _)| *known == key) {
                return Err(self.bad("JSON key given twice"));
            }
            self.space();
            if !self.take(":") {
                return Err(self.bad("JSON object"));
            }
            members.push((key, self.value(depth + 1)?));
            self.space();
            if self.take("}") {
                return Ok(Value::Object(members));
            }
            if !self.take(",") || members.len() > 1024 {
                return Err(self.bad("JSON object"));
            }
        }
    }

    fn list(&mut self, depth: u32) -> Result<Value, Fault> {
        let mut values = Vec::new();
        self.at += 1;
        self.space();
        if self.take("]") {
            return Ok(Value::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Value::List(values));
            }
            if !self.take(",") {
                return Err(self.bad("JSON array"));
            }
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        if !self.take("\"") {
            return Err(self.bad("JSON string"));
        }
        let mut out = String::new();
        loop {
            let plain = self.rest();
            let end = plain
                .find(|letter: char| letter == '"' || letter == '\\' || letter < ' ')
                .ok_or_else(|| self.bad("JSON string"))?;
            out.push_str(plain.get(..end).unwrap_or_default());
            self.at += end;
            if self.take("\"") {
                return Ok(out);
            }
            if !self.take("\\") {
                return Err(self.bad("control character in a JSON string"));
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let letter = self.peek().ok_or_else(|| self.bad("JSON escape"))?;
        self.at += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(self.bad("JSON escape")),
        })
    }

    /// Four digits, or two groups of four that are a surrogate pair.
    fn unicode(&mut self) -> Result<char, Fault> {
        let mut units = [self.hex()?, 0];
        let pair = matches!(units, [0xd800..=0xdbff, _]);
        if pair {
            if !self.take("\\u") {
                return Err(self.bad("JSON escape"));
            }
            units[1] = self.hex()?;
        }
        let count = if pair { 2 } else { 1 };
        char::decode_utf16(units.into_iter().take(count))
            .next()
            .and_then(Result::ok)
            .ok_or_else(|| self.bad("JSON escape"))
    }

    fn hex(&mut self) -> Result<u16, Fault> {
        let digits = self
            .rest()
            .get(..4)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.bad("JSON escape"))?;
        self.at += 4;
        Ok(digits)
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let text = self.rest();
        let end = text
            .find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
            .unwrap_or(text.len());
        let word = text.get(..end).unwrap_or_default();
        let value = if word.bytes().all(|byte| byte.is_ascii_digit()) {
            let leading_zero = word.len() > 1 && word.starts_with('0');
            if leading_zero {
                return Err(self.bad("JSON number"));
            }
            word.parse().map_or(Value::Other, Value::Number)
        } else if is_number(word) {
            Value::Other
        } else {
            return Err(self.bad("JSON number"));
        };
        self.at += end;
        Ok(value)
    }
}

/// A number by RFC 8259, section 6: `-`, an integer without leading zeros, a fraction, an exponent.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_grammar() {
        for good in ["-1", "1.5", "0.0", "1e9", "-12.5E-3", "1e+2"] {
            assert!(is_number(good), "{good}");
        }
        for bad in [
            "", "-", "01.5", "1.", ".5", "1e", "1e+", "+1", "--1", "1.2.3", "1e2e3",
        ] {
            assert!(!is_number(bad), "{bad}");
        }
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let text =
            br#" {"a": [1, 18446744073709551615, -1, 1.5e3, true, null], "b": {"c": "\u00e4\n\ud83d\ude00\"/"}} "#;
        let value = parse(text).unwrap();
        let list = value.get("a").unwrap().list().unwrap();
        assert_eq!(list[1].number(), Some(u64::MAX));
        assert_eq!(list[2..4], [Value::Other, Value::Other]);
        assert_eq!(list[4].bool(), Some(true));
        assert_eq!(list[5], Value::Null);
        let c = value.get("b").unwrap().get("c").unwrap();
        assert_eq!(c.text(), Some("ä\n😀\"/"));
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_corrupt() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "01",
            "1e",
            "--1",
            "+1",
            ".5",
            "\"\n\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "nul",
            "1 2",
            "{\"a\":1,\"a\":2}",
            "\"\\u00",
            "{1:2}",
            "'a'",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        let wide = format!("[{}1]", "1,".repeat(70_000));
        assert!(parse(wide.as_bytes()).is_err());
        let long = format!("\"{}\"", "x".repeat(MAX_BYTES));
        assert!(parse(long.as_bytes()).is_err());
    }

    #[test]
    fn what_the_report_writes_is_read_back() {
        let wild = "a \"quote\" \\ and \u{1}\t\n\u{7f} ü 😀";
        let mut out = String::new();
        crate::report::json_string(&mut out, wild);
        assert_eq!(parse(out.as_bytes()).unwrap().text(), Some(wild));
    }
}
