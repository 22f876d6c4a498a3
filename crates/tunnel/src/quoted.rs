//! How header fields quote a string: in double quotes, with `\` before `"` and `\`.
//!
//! RFC 9110 section 5.6.4 (quoted-string) and RFC 9651 section 3.3.3 (String) agree on that; they
//! differ in which characters may stand inside, which the caller decides.

/// Appends `text` in quotes. The caller has checked the characters.
pub(crate) fn push(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}

/// Takes a quoted string from the front of `input`: the text and what follows its closing quote.
/// `None` when there is none or it is not closed.
pub(crate) fn take(input: &str) -> Option<(String, &str)> {
    let mut characters = input.strip_prefix('"')?.char_indices();
    let mut text = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return input.get(at + 2..).map(|rest| (text, rest)),
            '\\' => text.push(characters.next()?.1),
            other => text.push(other),
        }
    }
    None
}

/// Takes the characters up to the first of `ends`, trimmed: a token or an empty string.
pub(crate) fn take_token<'a>(input: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    let end = input.find(ends).unwrap_or(input.len());
    let (token, rest) = input.split_at(end);
    (token.trim(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_round_trips() {
        for text in ["", "plain", r#"a "b" \c\"#, "ü → ∞", r"\\\"] {
            let mut out = String::new();
            push(&mut out, text);
            out.push_str(";rest");
            assert_eq!(take(&out), Some((text.to_owned(), ";rest")), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_closed_is_not_a_string() {
        for text in ["", "x", "\"", "\"abc", "\"abc\\\"", "\"\\"] {
            assert_eq!(take(text), None, "{text:?}");
        }
    }
}
