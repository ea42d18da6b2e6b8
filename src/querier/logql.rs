use super::LineFilter;
use crate::model::{MatchOp, Matcher};
use std::fmt;

/// Longest query text, in bytes; Loki's limit.
pub const MAX_QUERY_BYTES: usize = 131_072;
/// Most matchers of one selector.
pub const MAX_MATCHERS: usize = 128;
/// Most line filter patterns of one query.
pub const MAX_FILTERS: usize = 64;

/// Largest compiled form of one regular expression, and of all of a query.
const MAX_REGEX: usize = 2 << 20;
const MAX_REGEXES: usize = 16 << 20;

const NEEDS_A_MATCHER: &str = "queries require at least one regexp or equality matcher that does not have an \
    empty-compatible value. For instance, app=~\".*\" does not meet this requirement, but app=~\".+\" will";
const SUPPORTED: &str =
    "supported are a stream selector and line filters, such as {app=\"x\"} |= \"text\" (|=, !=, |~, !~)";

/// A log query: a stream selector and line filters.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Conditions on a stream's labels; all must hold, and at least one does not accept an absent label.
    pub matchers: Vec<Matcher>,
    /// Conditions on a line; all must hold.
    pub filters: Vec<LineFilter>,
}

impl LogQuery {
    /// Does the line satisfy all filters?
    pub fn keeps(&self, line: &[u8]) -> bool {
        self.filters.iter().all(|f| f.keeps(line))
    }
}

/// Why a query was refused. Shown in Loki's form: `parse error at line 1, col 6: ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the text, from 1; 0 if the error has no place.
    pub line: usize,
    /// Column of the text in characters, from 1; 0 if the error has no place.
    pub column: usize,
    /// What was wrong there.
    pub reason: String,
}

impl ParseError {
    fn whole(reason: impl Into<String>) -> Self {
        Self { line: 0, column: 0, reason: reason.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "parse error : {}", self.reason);
        }
        write!(f, "parse error at line {}, col {}: {}", self.line, self.column, self.reason)
    }
}

impl std::error::Error for ParseError {}

/// Parses `{selector} filter*`.
///
/// # Errors
/// The text is not LogQL, is longer than [`MAX_QUERY_BYTES`], uses what is not supported (metric queries, parsers and
/// other stages), or has no matcher that refuses an absent label.
pub fn parse(text: &str) -> Result<LogQuery, ParseError> {
    let mut parser = Parser::new(text)?;
    parser.refuse_metric_query()?;
    let matchers = parser.selector()?;
    let filters = parser.filters()?;
    require_selective(&matchers)?;
    Ok(LogQuery { matchers, filters })
}

/// Parses a selector alone, as `/labels` and `/series` take it. `{}` gives no matchers.
///
/// # Errors
/// As [`parse`], and when anything follows the selector.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    let mut parser = Parser::new(text)?;
    parser.refuse_metric_query()?;
    let matchers = parser.selector()?;
    if parser.token != Token::End {
        return Err(ParseError::whole("only label matchers are supported"));
    }
    if !matchers.is_empty() {
        require_selective(&matchers)?;
    }
    Ok(matchers)
}

fn require_selective(matchers: &[Matcher]) -> Result<(), ParseError> {
    match matchers.iter().any(|m| !m.matches_value("")) {
        true => Ok(()),
        false => Err(ParseError::whole(NEEDS_A_MATCHER)),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Identifier(&'a str),
    /// Unquoted; Go's `\x` escapes can make it invalid UTF-8.
    String(Vec<u8>),
    Number,
    /// Punctuation, such as `{` or `!=`.
    Symbol(&'a str),
    End,
}

impl fmt::Display for Token<'_> {
    /// The names that Loki's messages use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::Identifier(_) => "IDENTIFIER",
            Token::String(_) => "STRING",
            Token::Number => "NUMBER",
            Token::Symbol(symbol) => symbol,
            Token::End => "$end",
        })
    }
}

/// Recursive descent with one token of lookahead.
struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Place of `token`.
    place: (usize, usize),
    /// Largest compiled form of each regular expression.
    regex_limit: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        if text.len() > MAX_QUERY_BYTES {
            let reason = format!("input size too long ({} > {MAX_QUERY_BYTES})", text.len());
            return Err(ParseError::whole(reason));
        }
        let lexer = Lexer { rest: text, line: 1, column: 1 };
        let mut parser = Self { lexer, token: Token::End, place: (1, 1), regex_limit: regex_limit(text) };
        parser.advance()?;
        Ok(parser)
    }

    /// Moves on and returns the token that was current.
    fn advance(&mut self) -> Result<Token<'a>, ParseError> {
        self.lexer.skip_blanks();
        self.place = (self.lexer.line, self.lexer.column);
        let next = self.lexer.token()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { line: self.place.0, column: self.place.1, reason: reason.into() }
    }

    fn unexpected(&self, expecting: &str) -> ParseError {
        let expecting = if expecting.is_empty() { String::new() } else { format!(", expecting {expecting}") };
        self.error(format!("syntax error: unexpected {}{expecting}", self.token))
    }

    fn at(&self, symbol: &str) -> bool {
        self.token == Token::Symbol(symbol)
    }

    /// A query that begins like a metric query gets an answer that says what is supported.
    fn refuse_metric_query(&self) -> Result<(), ParseError> {
        let is_metric = match &self.token {
            Token::Identifier(_) => {
                let rest = self.lexer.rest.trim_start();
                ["(", "by", "without"].iter().any(|s| rest.starts_with(s))
            }
            Token::Number => true,
            Token::Symbol(symbol) => ["(", "-", "+"].contains(symbol),
            Token::String(_) | Token::End => false,
        };
        if is_metric {
            return Err(self.error(format!("metric queries are not supported: {SUPPORTED}")));
        }
        Ok(())
    }

    fn selector(&mut self) -> Result<Vec<Matcher>, ParseError> {
        if !self.at("{") {
            return Err(self.unexpected(""));
        }
        self.advance()?;
        let mut matchers = Vec::new();
        if self.at("}") {
            self.advance()?;
            return Ok(matchers);
        }
        loop {
            if matchers.len() == MAX_MATCHERS {
                return Err(self.error(format!("more than {MAX_MATCHERS} matchers in a selector: use fewer")));
            }
            let expecting = if matchers.is_empty() { "IDENTIFIER or }" } else { "IDENTIFIER" };
            matchers.push(self.matcher(expecting)?);
            if self.at("}") {
                self.advance()?;
                return Ok(matchers);
            }
            if !self.at(",") {
                return Err(self.unexpected("} or ,"));
            }
            self.advance()?;
        }
    }

    fn matcher(&mut self, expecting: &str) -> Result<Matcher, ParseError> {
        let Token::Identifier(name) = self.token else { return Err(self.unexpected(expecting)) };
        self.advance()?;
        let op = match self.token {
            Token::Symbol("=") => MatchOp::Equal,
            Token::Symbol("!=") => MatchOp::NotEqual,
            Token::Symbol("=~") => MatchOp::Regex,
            Token::Symbol("!~") => MatchOp::NotRegex,
            _ => return Err(self.unexpected("= or =~ or !~ or !=")),
        };
        self.advance()?;
        let value = self.text()?;
        let matcher =
            Matcher::with_size_limit(name, op, value, self.regex_limit).map_err(|e| self.error(regex_reason(&e)))?;
        self.advance()?;
        Ok(matcher)
    }

    fn filters(&mut self) -> Result<Vec<LineFilter>, ParseError> {
        let mut filters = Vec::new();
        let mut patterns = 0;
        loop {
            let (is_regex, keep_matching) = match self.token {
                Token::Symbol("|=") => (false, true),
                Token::Symbol("!=") => (false, false),
                Token::Symbol("|~") => (true, true),
                Token::Symbol("!~") => (true, false),
                Token::End => return Ok(filters),
                _ => return Err(self.unsupported_stage()),
            };
            filters.push(self.filter(is_regex, keep_matching, &mut patterns)?);
        }
    }

    fn filter(&mut self, is_regex: bool, keep_matching: bool, patterns: &mut usize) -> Result<LineFilter, ParseError> {
        let mut filter = LineFilter::new(keep_matching);
        loop {
            self.advance()?; // the operator, or `or`
            if *patterns == MAX_FILTERS {
                return Err(self.error(format!("more than {MAX_FILTERS} line filters: join them into one regexp")));
            }
            *patterns += 1;
            if is_regex {
                let expression = self.text()?;
                filter.or_regex(&expression, self.regex_limit).map_err(|e| self.error(regex_reason(&e)))?;
            } else {
                filter.or_substring(self.bytes()?);
            }
            self.advance()?;
            if self.token != Token::Identifier("or") {
                return Ok(filter);
            }
        }
    }

    /// What follows the selector or a filter and is no line filter.
    fn unsupported_stage(&mut self) -> ParseError {
        let place = self.place;
        match self.token {
            Token::Symbol("|") => {
                let stage = match self.advance().map(|_| self.token.clone()) {
                    Ok(Token::Identifier(name)) => format!("| {name}"),
                    _ => "|".to_string(),
                };
                let reason = format!("stage \"{stage}\" is not supported: {SUPPORTED}");
                ParseError { line: place.0, column: place.1, reason }
            }
            Token::Symbol(symbol @ ("|>" | "!>")) => {
                self.error(format!("pattern filter \"{symbol}\" is not supported: {SUPPORTED}"))
            }
            _ => self.unexpected(""),
        }
    }

    fn bytes(&self) -> Result<&[u8], ParseError> {
        match &self.token {
            Token::String(bytes) => Ok(bytes),
            Token::Identifier("ip") => Err(self.error(format!("the ip() filter is not supported: {SUPPORTED}"))),
            _ => Err(self.unexpected("STRING")),
        }
    }

    fn text(&self) -> Result<String, ParseError> {
        let bytes = self.bytes()?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.error("the string is not valid UTF-8"))
    }
}

/// What each regular expression may take, so that all together stay within the limit: an upper bound of their number is as good as
/// their number.
fn regex_limit(text: &str) -> usize {
    let most = text.matches('~').count() + text.matches("or").count();
    (MAX_REGEXES / most.max(1)).min(MAX_REGEX)
}

/// The crate's messages draw the expression over several lines; the last one says what is wrong.
fn regex_reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    format!("error parsing regexp: {}", last.strip_prefix("error: ").unwrap_or(last))
}

/// Splits the text into tokens. `line` and `column` are those of `rest`.
struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
}

/// Longest first.
const SYMBOLS: [&str; 22] = [
    "|=", "|~", "|>", "!=", "!~", "!>", "=~", "=", "|", "{", "}", ",", "(", ")", "[", "]", "+", "-", "*", "/", "<", ">",
];

impl<'a> Lexer<'a> {
    fn skip_blanks(&mut self) {
        loop {
            let blanks = self.rest.len() - self.rest.trim_start().len();
            self.take(blanks);
            if !self.rest.starts_with('#') {
                return;
            }
            let comment = self.rest.find('\n').unwrap_or(self.rest.len());
            self.take(comment);
        }
    }

    /// The token at the front; blanks are skipped already.
    fn token(&mut self) -> Result<Token<'a>, ParseError> {
        let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
        match first {
            '"' => self.quoted().map(Token::String),
            '`' => self.raw().map(Token::String),
            c if c.is_ascii_alphabetic() || c == '_' => {
                Ok(Token::Identifier(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')))
            }
            c if c.is_ascii_digit() => {
                self.take_while(|c| c.is_ascii_alphanumeric() || c == '.');
                Ok(Token::Number)
            }
            c => {
                let known = SYMBOLS.iter().find(|s| self.rest.starts_with(**s));
                Ok(Token::Symbol(self.take(known.map_or(c.len_utf8(), |s| s.len()))))
            }
        }
    }

    /// Takes `len` bytes, which end at a character's boundary.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        for c in taken.chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        self.take(len)
    }

    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { line: self.line, column: self.column, reason: reason.into() }
    }

    /// A string in backticks: nothing is escaped, carriage returns are dropped (as Go does).
    fn raw(&mut self) -> Result<Vec<u8>, ParseError> {
        let body = self.rest.strip_prefix('`').unwrap_or_default();
        let Some(len) = body.find('`') else { return Err(self.error("literal not terminated")) };
        let taken = self.take(len + 2);
        Ok(taken.bytes().filter(|b| *b != b'`' && *b != b'\r').collect())
    }

    /// A string in double quotes with Go's escapes.
    fn quoted(&mut self) -> Result<Vec<u8>, ParseError> {
        let opening = (self.line, self.column);
        let unterminated =
            || ParseError { line: opening.0, column: opening.1, reason: "literal not terminated".into() };
        self.take(1);
        let mut out = Vec::new();
        loop {
            out.extend_from_slice(self.take_while(|c| !matches!(c, '"' | '\\' | '\n')).as_bytes());
            match self.rest.chars().next() {
                Some('"') => {
                    self.take(1);
                    return Ok(out);
                }
                Some('\\') => self.escape(&mut out)?,
                _ => return Err(unterminated()),
            }
        }
    }

    /// One escape of a quoted string, the backslash included.
    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), ParseError> {
        let body = self.rest.get(1..).unwrap_or_default();
        let (len, bytes) = unescape(body).ok_or_else(|| {
            self.error("invalid escape in a string: write \\\\ for a backslash, or put the string in backticks")
        })?;
        out.extend_from_slice(&bytes);
        self.take(1 + len);
        Ok(())
    }
}

/// Decodes what follows a backslash: the number of bytes it takes, and what it stands for.
fn unescape(body: &str) -> Option<(usize, Vec<u8>)> {
    let first = body.chars().next()?;
    let simple = match first {
        'a' => Some(0x07),
        'b' => Some(0x08),
        'f' => Some(0x0c),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(0x0b),
        '\\' => Some(b'\\'),
        '"' => Some(b'"'),
        _ => None,
    };
    if let Some(byte) = simple {
        return Some((1, vec![byte]));
    }
    match first {
        'x' => digits(body, 1, 2, 16).and_then(|v| Some((3, vec![u8::try_from(v).ok()?]))),
        'u' => digits(body, 1, 4, 16).and_then(|v| Some((5, utf8(v)?))),
        'U' => digits(body, 1, 8, 16).and_then(|v| Some((9, utf8(v)?))),
        '0'..='7' => digits(body, 0, 3, 8).and_then(|v| Some((3, vec![u8::try_from(v).ok()?]))),
        _ => None,
    }
}

fn digits(body: &str, from: usize, count: usize, radix: u32) -> Option<u32> {
    let text = body.get(from..from + count)?;
    // `from_str_radix` would take a sign.
    text.chars().all(|c| c.is_digit(radix)).then(|| u32::from_str_radix(text, radix).ok())?
}

fn utf8(code: u32) -> Option<Vec<u8>> {
    char::from_u32(code).map(|c| c.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn selectors_and_filters_are_parsed() {
        let q = parse("{a=\"b\", c != \"d\",e=~`f.*`,g!~\"h\"} |= \"x\" != \"y\" |~ \"z+\" !~ `w` # done").unwrap();
        let matchers: Vec<_> = q.matchers.iter().map(|m| (m.name.as_str(), m.op, m.value.as_str())).collect();
        assert_eq!(
            matchers,
            [
                ("a", MatchOp::Equal, "b"),
                ("c", MatchOp::NotEqual, "d"),
                ("e", MatchOp::Regex, "f.*"),
                ("g", MatchOp::NotRegex, "h")
            ]
        );
        assert!(q.keeps(b"x zz"));
        assert!(!q.keeps(b"x zz y") && !q.keeps(b"x zz w") && !q.keeps(b"zz") && !q.keeps(b"x"));
    }

    #[test]
    fn filters_keep_what_they_should() {
        // (filters, line, kept)
        let cases: [(&str, &[u8], bool); 21] = [
            ("|= \"\"", b"", true),
            ("|= \"\"", b"abc", true),
            ("|= ``", b"", true),
            ("!= \"\"", b"abc", false),
            ("|~ \"\"", b"", true),
            ("|= \"b\"", b"abc", true),
            ("|= \"B\"", b"abc", false),
            ("|~ \"(?i)B\"", b"abc", true),
            ("|~ \"^b\"", b"abc", false),
            ("!~ \"^b\"", b"abc", true),
            ("|= \"a\\\"b\"", b"a\"b", true),
            ("|= `a\\b`", b"a\\b", true),
            ("|= \"\\a\\b\\f\\n\\r\\t\\v\\\\\"", b"\x07\x08\x0c\n\r\t\x0b\\", true),
            ("|= \"\\xff\"", b"\xff\xfe", true),
            ("|= \"\\u00e9\"", "é".as_bytes(), true),
            ("|= \"\\U0001F600\\t\\101\"", "😀\tA".as_bytes(), true),
            ("|~ \"a.c\"", b"\xffabc", true),
            ("|= \"a\" or \"b\"", b"b", true),
            ("|= \"a\" or \"b\"", b"c", false),
            ("!= \"a\" or \"b\"", b"b", false),
            ("!~ \"a\" or \"b\"", b"c", true),
        ];
        for (filters, line, kept) in cases {
            let q = parse(&format!("{{a=\"b\"}} {filters}")).unwrap();
            assert_eq!(q.keeps(line), kept, "{filters} on {line:?}");
        }
    }

    #[test]
    fn errors_are_in_lokis_form() {
        // The first is a captured answer of Loki.
        let cases = [
            ("{job=", "parse error at line 1, col 6: syntax error: unexpected $end, expecting STRING"),
            ("", "parse error at line 1, col 1: syntax error: unexpected $end"),
            ("{", "parse error at line 1, col 2: syntax error: unexpected $end, expecting IDENTIFIER or }"),
            ("{a", "parse error at line 1, col 3: syntax error: unexpected $end, expecting = or =~ or !~ or !="),
            ("{a=b}", "parse error at line 1, col 4: syntax error: unexpected IDENTIFIER, expecting STRING"),
            ("{a=\"b\"", "parse error at line 1, col 7: syntax error: unexpected $end, expecting } or ,"),
            ("{a=\"b\",}", "parse error at line 1, col 8: syntax error: unexpected }, expecting IDENTIFIER"),
            ("{a=\"b\"}\n  x", "parse error at line 2, col 3: syntax error: unexpected IDENTIFIER"),
            ("{é=\"b\"}", "parse error at line 1, col 2: syntax error: unexpected é, expecting IDENTIFIER or }"),
            ("{a=\"b}", "parse error at line 1, col 4: literal not terminated"),
            ("{a=`b}", "parse error at line 1, col 4: literal not terminated"),
            ("app", "parse error at line 1, col 1: syntax error: unexpected IDENTIFIER"),
            ("{a=\"b\"} |=", "parse error at line 1, col 11: syntax error: unexpected $end, expecting STRING"),
            ("{a=\"b\"}[5m]", "parse error at line 1, col 8: syntax error: unexpected ["),
            ("{a=~\"(\"}", "parse error at line 1, col 5: error parsing regexp: unclosed group"),
            ("{a=\"b\"} |~ \"[\"", "parse error at line 1, col 12: error parsing regexp: unclosed character class"),
            ("{a=\"\\xff\"}", "parse error at line 1, col 4: the string is not valid UTF-8"),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected, "{text}");
        }
        assert!(error("{a=\"\\d\"}").starts_with("parse error at line 1, col 5: invalid escape in a string"));
    }

    #[test]
    fn a_selector_must_exclude_something() {
        let text = format!("parse error : {NEEDS_A_MATCHER}");
        for query in ["{}", "{a=\"\"}", "{a=~\".*\"}", "{a!=\"b\"}", "{a!~\"b\"}", "{a=~\"x|\"} |= \"y\""] {
            assert_eq!(error(query), text, "{query}");
        }
        for query in ["{a=~\".+\"}", "{a!=\"\"}", "{a!=\"b\",c=\"d\"}"] {
            assert!(parse(query).is_ok(), "{query}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for query in ["rate({a=\"b\"}[5m])", "sum by (x) (rate({a=\"b\"}[5m]))", "1+1", "(rate({a=\"b\"}[5m]))"] {
            assert!(
                error(query).starts_with("parse error at line 1, col 1: metric queries are not supported"),
                "{query}"
            );
        }
        assert!(error("{a=\"b\"} | json").contains("col 9: stage \"| json\" is not supported: supported are"));
        assert!(error("{a=\"b\"} |> \"x\"").contains("pattern filter \"|>\" is not supported"));
        assert!(error("{a=\"b\"} |= ip(\"::1\")").contains("ip() filter is not supported"));
    }

    #[test]
    fn sizes_are_bounded() {
        let long = format!("{{a=\"{}\"}}", "x".repeat(MAX_QUERY_BYTES - 6));
        assert!(parse(&long).is_ok());
        assert!(error(&format!("{long} ")).contains("input size too long (131073 > 131072)"));
        let filters = |n: usize| format!("{{a=\"b\"}}{}", " |= \"x\"".repeat(n));
        assert!(parse(&filters(MAX_FILTERS)).is_ok());
        assert!(error(&filters(MAX_FILTERS + 1)).contains("more than 64 line filters"));
        let matchers = |n: usize| format!("{{{}}}", vec!["a=\"b\""; n].join(","));
        assert!(parse(&matchers(MAX_MATCHERS)).is_ok());
        assert!(error(&matchers(MAX_MATCHERS + 1)).contains("more than 128 matchers"));
        assert!(error("{a=\"b\"} |~ \"(?:\\\\w{1000}){1000}\"").contains("error parsing regexp"));
    }

    /// One may be as large as 2 MiB, many share what there is.
    #[test]
    fn expressions_share_their_memory() {
        let many = |n: usize| format!("{{{}}}", vec!["a=~`\\w{40}`"; n].join(","));
        assert!(parse(&many(1)).is_ok());
        assert!(parse(&many(8)).is_ok());
        assert!(error(&many(120)).contains("exceeds size limit"), "{}", error(&many(120)));
        let small = format!("{{{}}}", vec!["a=~`x|y.+`"; MAX_MATCHERS].join(","));
        assert!(parse(&small).is_ok());
    }

    #[test]
    fn a_selector_alone_has_nothing_behind_it() {
        assert_eq!(parse_selector("{}").unwrap().len(), 0);
        assert_eq!(parse_selector(" {a=\"b\"} ").unwrap().len(), 1);
        assert_eq!(
            parse_selector("{a=\"b\"} |= \"x\"").unwrap_err().to_string(),
            "parse error : only label matchers are supported"
        );
        assert!(parse_selector("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[{}a=~!|\"`\\\\xuU0-9,\\n é#()or ]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&format!("{{a=\"b\"}}{text}"));
        }

        #[test]
        fn a_quoted_text_is_found_again(text in "[ -~é\\n\\t]{0,30}") {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
            let q = parse(&format!("{{a!=\"\",b=\"{quoted}\"}} |= \"{quoted}\"")).unwrap();
            prop_assert_eq!(&q.matchers[1].value, &text);
            let line = format!("<{text}>");
            prop_assert!(q.keeps(line.as_bytes()));
        }
    }
}
