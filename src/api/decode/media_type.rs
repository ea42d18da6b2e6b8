//! `Content-Type` as Go's `mime.ParseMediaType` reads it, because Loki's clients meet its texts and its leniencies.

use crate::model::PushError;

/// The format of a push body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Protobuf,
}

/// `application/json` with any valid parameters is JSON; every other valid media type is protobuf.
pub(super) fn format(content_type: Option<&str>) -> Result<Format, PushError> {
    let media_type = parse(content_type.unwrap_or_default()).map_err(PushError::bad_request)?;
    Ok(if media_type.eq_ignore_ascii_case("application/json") { Format::Json } else { Format::Protobuf })
}

fn parse(header: &str) -> Result<&str, &'static str> {
    let (base, rest) = header.split_at(header.find(';').unwrap_or(header.len()));
    let base = base.trim();
    check_type(base)?;
    check_parameters(rest)?;
    Ok(base)
}

fn check_type(base: &str) -> Result<(), &'static str> {
    let (kind, rest) = take_token(base);
    if kind.is_empty() {
        return Err("mime: no media type");
    }
    let Some(rest) = rest.strip_prefix('/') else {
        return if rest.is_empty() { Ok(()) } else { Err("mime: expected slash after first token") };
    };
    let (subtype, rest) = take_token(rest);
    if subtype.is_empty() {
        return Err("mime: expected token after slash");
    }
    if rest.is_empty() { Ok(()) } else { Err("mime: unexpected content after media subtype") }
}

fn check_parameters(mut rest: &str) -> Result<(), &'static str> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    loop {
        rest = rest.trim_start();
        // Go ignores one semicolon without a parameter at the end.
        if rest.is_empty() || rest.trim_end() == ";" {
            return Ok(());
        }
        let (name, value, after) = take_parameter(rest).ok_or("mime: invalid media parameter")?;
        if seen.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && *v != value) {
            return Err("mime: duplicate parameter name");
        }
        if seen.len() == MAX_PARAMETERS {
            return Err("mime: invalid media parameter");
        }
        seen.push((name, value));
        rest = after;
    }
}

/// Real media types have one or two; the bound keeps the search for duplicates cheap.
const MAX_PARAMETERS: usize = 32;

fn take_parameter(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = take_token(text.strip_prefix(';')?.trim_start());
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let (value, rest) = take_value(rest)?;
    (!name.is_empty()).then_some((name, value, rest))
}

fn take_value(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, rest) = take_token(text);
        return (!token.is_empty()).then_some((token, rest));
    };
    let mut escaped = false;
    for (i, c) in quoted.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((quoted.get(..i)?, quoted.get(i + 1..)?)),
            '\r' | '\n' => return None,
            _ => {}
        }
    }
    None
}

fn take_token(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

fn is_token(c: char) -> bool {
    c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_read_as_go_does() {
        let table: &[(&str, Result<Format, &str>)] = &[
            ("", Err("mime: no media type")),
            (" ; charset=utf-8", Err("mime: no media type")),
            ("application/json", Ok(Format::Json)),
            ("Application/JSON", Ok(Format::Json)),
            ("application/json; charset=utf-8", Ok(Format::Json)),
            ("application/json ;charset=\"utf-8\"", Ok(Format::Json)),
            ("application/json;", Ok(Format::Json)),
            ("application/json; a=\"x\\\"y\"; b=c", Ok(Format::Json)),
            ("application/json; a=b; A=b", Ok(Format::Json)),
            ("application/json; charsetutf-8", Err("mime: invalid media parameter")),
            ("application/json; charset=", Err("mime: invalid media parameter")),
            ("application/json; charset=\"x", Err("mime: invalid media parameter")),
            ("application/json;;", Err("mime: invalid media parameter")),
            ("application/json; a=b; a=c", Err("mime: duplicate parameter name")),
            ("application/", Err("mime: expected token after slash")),
            ("application/json x", Err("mime: unexpected content after media subtype")),
            ("a b", Err("mime: expected slash after first token")),
            ("application/jsonn", Ok(Format::Protobuf)),
            ("application/x-protobuf", Ok(Format::Protobuf)),
            ("text", Ok(Format::Protobuf)),
        ];
        for (header, want) in table {
            let got = format(Some(header)).map_err(|e| (e.status, e.message));
            assert_eq!(got, want.map_err(|m| (400, m.to_string())), "{header:?}");
        }
        assert_eq!(format(None).unwrap_err().message, "mime: no media type");
    }
}
