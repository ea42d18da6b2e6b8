//! The text form of labels: PromQL's metric syntax, restricted to `=`.

use super::LabelError;

/// Name and value, in no more memory than they need: a label set keeps them as they are.
type Pair = (Box<str>, Box<str>);
/// `a="",`: no pair is shorter.
const MIN_PAIR: usize = 5;

/// Parses a label text such as `{job="app", env='dev'}` into pairs in the order in which they are written.
///
/// Accepted is what Loki accepts, PromQL's metric syntax: names `[a-zA-Z_][a-zA-Z0-9_]*`; values in double or single
/// quotes with Go's escapes, or raw in backticks; a comma at the end; any white space; `{}`; and a metric name before
/// the brace, which becomes the label `__name__`. Names that come twice and empty values are left in.
///
/// # Errors
/// [`LabelError`] with the place of the first character that does not fit. A value whose escapes do not make UTF-8
/// is refused.
pub fn parse_labels(text: &str) -> Result<Vec<Pair>, LabelError> {
    let mut parser = Parser { text, at: 0 };
    let mut pairs = Vec::new();
    parser.skip_space();
    if let Some(name) = parser.identifier(true) {
        pairs.push(("__name__".into(), name.into()));
        parser.skip_space();
    }
    match parser.peek() {
        Some('{') => parser.braces(&mut pairs)?,
        None => return Ok(pairs),
        Some(c) => return Err(parser.error_at(parser.at, format!("unexpected character: {c:?}"))),
    }
    parser.skip_space();
    match parser.peek() {
        None => Ok(pairs),
        Some(c) => Err(parser.error_at(parser.at, format!("unexpected {c:?} after the label set"))),
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte offset of the next character; always on a character boundary.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn identifier(&mut self, colons: bool) -> Option<&'a str> {
        let rest = self.rest();
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
        if !rest.starts_with(|c: char| inner(c) && !c.is_ascii_digit()) {
            return None;
        }
        let len = rest.find(|c| !inner(c)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len)
    }

    fn braces(&mut self, pairs: &mut Vec<Pair>) -> Result<(), LabelError> {
        self.bump();
        // A vector that doubles would take twenty times as much as a hostile text.
        let signs = memchr::memchr_iter(b'=', self.rest().as_bytes()).count();
        pairs.reserve_exact(signs.min(self.rest().len() / MIN_PAIR + 1));
        loop {
            self.skip_space();
            if self.peek() == Some('}') {
                self.bump();
                return Ok(());
            }
            pairs.push(self.pair()?);
            self.skip_space();
            match self.peek() {
                Some(',') => {
                    self.bump();
                }
                Some('}') => {}
                _ => return Err(self.unexpected("\",\" or \"}\"")),
            }
        }
    }

    fn pair(&mut self) -> Result<Pair, LabelError> {
        let Some(name) = self.identifier(false) else {
            return Err(self.unexpected("identifier or \"}\""));
        };
        self.skip_space();
        if self.peek() != Some('=') || self.rest().starts_with("=~") {
            return Err(self.unexpected("\"=\""));
        }
        self.bump();
        self.skip_space();
        let value = match self.peek() {
            Some('`') => self.raw_string()?,
            Some(quote @ ('"' | '\'')) => self.quoted_string(quote)?,
            _ => return Err(self.unexpected("string")),
        };
        Ok((name.into(), value.into()))
    }

    fn raw_string(&mut self) -> Result<String, LabelError> {
        let start = self.at;
        self.bump();
        let rest = self.rest();
        let Some((value, _)) = rest.split_once('`') else {
            return Err(self.error_at(start, "unterminated raw string"));
        };
        self.at += value.len() + 1;
        Ok(value.to_string())
    }

    fn quoted_string(&mut self, quote: char) -> Result<String, LabelError> {
        let start = self.at;
        self.bump();
        let mut value = Vec::new();
        loop {
            let rest = self.rest();
            let len = rest.find([quote, '\\', '\n']).unwrap_or(rest.len());
            value.extend_from_slice(rest.get(..len).unwrap_or("").as_bytes());
            self.at += len;
            match self.bump() {
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, start, &mut value)?,
                _ => return Err(self.error_at(start, "unterminated quoted string")),
            }
        }
        String::from_utf8(value).map_err(|_| self.error_at(start, "the label value's escapes do not make valid UTF-8"))
    }

    /// The part of an escape behind the backslash.
    fn escape(&mut self, quote: char, start: usize, value: &mut Vec<u8>) -> Result<(), LabelError> {
        let at = self.at;
        let byte = match self.bump() {
            None => return Err(self.error_at(start, "escape sequence not terminated")),
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some('\\') => b'\\',
            Some(c) if c == quote => c as u8,
            Some('x') => self.digits(at, 2, 16)? as u8,
            Some('0'..='7') => {
                self.at = at;
                u8::try_from(self.digits(at, 3, 8)?)
                    .map_err(|_| self.error_at(at, "octal escape sequence is larger than \\377"))?
            }
            Some(c @ ('u' | 'U')) => {
                let code = self.digits(at, if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(code)
                    .ok_or_else(|| self.error_at(at, "escape sequence is an invalid Unicode code point"))?;
                value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            Some(c) => return Err(self.error_at(at, format!("unknown escape sequence U+{:04X} '{c}'", c as u32))),
        };
        value.push(byte);
        Ok(())
    }

    fn digits(&mut self, at: usize, count: usize, radix: u32) -> Result<u32, LabelError> {
        let mut code = 0u32;
        for _ in 0..count {
            let digit = self.peek().and_then(|c| c.to_digit(radix));
            let Some(digit) = digit else {
                return Err(self.error_at(at, "an escape sequence has too few digits, or one that is none"));
            };
            // Eight hexadecimal digits fill 32 bits exactly.
            code = code.wrapping_mul(radix) | digit;
            self.bump();
        }
        Ok(code)
    }

    /// `unexpected X in label set, expected Y`, in the words of Prometheus' parser.
    fn unexpected(&self, expected: &str) -> LabelError {
        let mut ahead = Parser { text: self.text, at: self.at };
        let found = match ahead.peek() {
            None => return self.error_at(self.at, "unexpected end of input inside braces"),
            Some('=') if ahead.rest().starts_with("=~") => "<op:=~>".to_string(),
            Some('!') if ahead.rest().starts_with("!~") => "<op:!~>".to_string(),
            Some('!') if ahead.rest().starts_with("!=") => "<op:!=>".to_string(),
            Some(c @ (',' | '=' | '{' | '}')) => format!("\"{c}\""),
            Some('`') => "string".to_string(),
            Some(quote @ ('"' | '\'')) => match ahead.quoted_string(quote) {
                Ok(value) => format!("string {:?}", value.chars().take(40).collect::<String>()),
                Err(e) => return e,
            },
            Some(c) => match ahead.identifier(false) {
                Some(name) => format!("identifier {:?}", name.chars().take(40).collect::<String>()),
                None => return self.error_at(self.at, format!("unexpected character inside braces: {c:?}")),
            },
        };
        self.error_at(self.at, format!("unexpected {found} in label set, expected {expected}"))
    }

    fn error_at(&self, at: usize, reason: impl Into<String>) -> LabelError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1) + 1;
        LabelError { line, column, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LabelSet;
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Vec<Pair> {
        parse_labels(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<Pair> {
        expected.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()
    }

    #[test]
    fn good_texts() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("{}", &[]),
            ("", &[]),
            ("  { }\n", &[]),
            (r#"{a="b"}"#, &[("a", "b")]),
            (r#"{a="b", c='d', e=`r\aw"`,}"#, &[("a", "b"), ("c", "d"), ("e", "r\\aw\"")]),
            ("{ a =\t\"b\"\n,\r\n_c1= 'd' }", &[("a", "b"), ("_c1", "d")]),
            (r#"{a="1",a="2"}"#, &[("a", "1"), ("a", "2")]),
            (r#"{a=""}"#, &[("a", "")]),
            (r#"{a="\a\b\f\n\r\t\v\\\"'"}"#, &[("a", "\x07\x08\x0c\n\r\t\x0b\\\"'")]),
            (r#"{a='\'"'}"#, &[("a", "'\"")]),
            (r#"{a="\x41\101\u00e9\U0001F600\xc3\xa9\303\251"}"#, &[("a", "AAé😀éé")]),
            (r#"{a="世界"}"#, &[("a", "世界")]),
            (r#"up:x{a="b"}"#, &[("__name__", "up:x"), ("a", "b")]),
            ("up", &[("__name__", "up")]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), pairs(expected), "{text}");
        }
    }

    #[test]
    fn bad_texts_say_where_and_what() {
        let cases: &[(&str, &str)] = &[
            ("{a=b}", r#"1:4: parse error: unexpected identifier "b" in label set, expected string"#),
            ("{a}", r#"1:3: parse error: unexpected "}" in label set, expected "=""#),
            ("{a-b=\"c\"}", "1:3: parse error: unexpected character inside braces: '-'"),
            ("{1a=\"c\"}", "1:2: parse error: unexpected character inside braces: '1'"),
            ("{a:b=\"c\"}", "1:3: parse error: unexpected character inside braces: ':'"),
            ("{a=~\"c\"}", r#"1:3: parse error: unexpected <op:=~> in label set, expected "=""#),
            ("{a!=\"c\"}", r#"1:3: parse error: unexpected <op:!=> in label set, expected "=""#),
            ("{,}", r#"1:2: parse error: unexpected "," in label set, expected identifier or "}""#),
            ("{a=\"b\" c=\"d\"}", r#"1:8: parse error: unexpected identifier "c" in label set, expected "," or "}""#),
            ("{a=\"b\",\n c}", r#"2:3: parse error: unexpected "}" in label set, expected "=""#),
            ("{a=\"b", "1:4: parse error: unterminated quoted string"),
            ("{a=\"b\nc\"}", "1:4: parse error: unterminated quoted string"),
            ("{a=`b", "1:4: parse error: unterminated raw string"),
            ("{a=\"b\"", "1:7: parse error: unexpected end of input inside braces"),
            ("{", "1:2: parse error: unexpected end of input inside braces"),
            ("{a=\"\\", "1:4: parse error: escape sequence not terminated"),
            (r#"{a="\q"}"#, "1:6: parse error: unknown escape sequence U+0071 'q'"),
            (r#"{a="\'"}"#, "1:6: parse error: unknown escape sequence U+0027 '''"),
            (r#"{a="\400"}"#, "1:6: parse error: octal escape sequence is larger than \\377"),
            (r#"{a="\ud800"}"#, "1:6: parse error: escape sequence is an invalid Unicode code point"),
            (r#"{a="\xff"}"#, "1:4: parse error: the label value's escapes do not make valid UTF-8"),
            ("{} x", "1:4: parse error: unexpected 'x' after the label set"),
            ("\"a\"", "1:1: parse error: unexpected character: '\"'"),
        ];
        for (text, expected) in cases {
            let error = parse_labels(text).map(|p| format!("{p:?}")).expect_err(text);
            assert_eq!(error.to_string(), *expected, "{text}");
        }
        let short = parse_labels(r#"{a="\x4"}"#).expect_err("one digit");
        assert_eq!((short.line, short.column), (1, 6));
    }

    proptest! {
        #[test]
        fn a_rendered_label_set_parses_back(
            map in proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,8}", any::<String>(), 0..6),
        ) {
            let set = LabelSet::new(map);
            let parsed = parse_labels(set.text()).map_err(|e| TestCaseError::fail(format!("{set}: {e}")))?;
            prop_assert_eq!(LabelSet::new(parsed), set);
        }

        #[test]
        fn any_text_is_parsed_or_refused_with_a_place_inside_it(text in "[{}a1_=!~,\"'`\\\\xuU0\n é]{0,24}") {
            if let Err(e) = parse_labels(&text) {
                prop_assert!(e.line <= text.matches('\n').count() + 1);
                prop_assert!(e.column <= text.len() + 1);
            }
        }
    }
}
