//! `-config.expand-env`: `${NAME}` and `${NAME:default}` in a configuration file, before YAML is read.

/// The text with every `${...}` replaced, and the names of variables that were unset and had no default. They become
/// empty, as in Loki. `${NAME:-default}` is the same as `${NAME:default}`; `$${` stands for `${`.
///
/// # Errors
/// A `${` without its `}` on the same line, or without a name; the error names the line.
pub(super) fn expand(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(String, Vec<String>), (u64, String)> {
    let (mut out, mut missing) = (String::with_capacity(text.len()), Vec::new());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        expand_line(line, &lookup, &mut out, &mut missing).map_err(|reason| (index as u64 + 1, reason))?;
    }
    Ok((out, missing))
}

fn expand_line(
    line: &str,
    lookup: &impl Fn(&str) -> Option<String>,
    out: &mut String,
    missing: &mut Vec<String>,
) -> Result<(), String> {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(escaped) = before.strip_suffix('$') {
            out.push_str(escaped);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let (inner, tail) =
            after.split_once('}').ok_or("a ${ has no } on its line; write ${NAME} or ${NAME:default}")?;
        let (name, default) = match inner.split_once(':') {
            Some((name, default)) => (name, Some(default.strip_prefix('-').unwrap_or(default))),
            None => (inner, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("${{{inner}}} names no environment variable; write ${{NAME}} or ${{NAME:default}}"));
        }
        match (lookup(name).filter(|value| !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => missing.push(name.to_string()),
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<(String, Vec<String>), (u64, String)> {
        expand(text, |name| match name {
            "PORT" => Some("3101".to_string()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced() {
        for (text, expected) in [
            ("a: ${PORT}\n", "a: 3101\n"),
            ("a: ${PORT:9}${PORT}", "a: 31013101"),
            ("a: ${NO:9}", "a: 9"),
            ("a: ${NO:-9}", "a: 9"),
            ("a: ${EMPTY:9}", "a: 9"),
            ("a: ${NO:http://x:1}", "a: http://x:1"),
            ("a: $${PORT} $PORT $$", "a: ${PORT} $PORT $$"),
        ] {
            assert_eq!(run(text), Ok((expected.to_string(), vec![])), "{text}");
        }
    }

    #[test]
    fn an_unset_variable_is_empty_and_named() {
        assert_eq!(run("a: ${NO}b ${EMPTY}"), Ok(("a: b ".to_string(), vec!["NO".to_string(), "EMPTY".to_string()])));
    }

    #[test]
    fn broken_references_tell_their_line() {
        for text in ["a: 1\nb: ${PORT\n}", "a: 1\nb: ${}", "a: 1\nb: ${A B}"] {
            assert_eq!(run(text).unwrap_err().0, 2, "{text}");
        }
    }
}
