//! A file as documents: splits at `---` lines before any parsing, so that one broken document cannot take the others.

/// The text of one document and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document<'t> {
    /// 1-based line of the first line of `text`.
    pub(crate) line: usize,
    pub(crate) text: &'t str,
}

/// What a document says it is, read without a YAML parser; for documents that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Salvage {
    pub(crate) api_version: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
}

/// Splits a stream at its `---` lines. A document whose marker line carries content (`--- {a: b}`) keeps that content.
///
/// No YAML scalar may contain `---` at the start of a line, so a cut never falls inside a value.
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) && offset > start {
            push(&mut documents, start_line, &text[start..offset]);
            (start, start_line) = (offset, index + 1);
        }
        offset += line.len();
    }
    push(&mut documents, start_line, &text[start..]);
    documents
}

/// Reads the identity of a document that does not parse, from the lines that still look like one.
pub(crate) fn salvage(text: &str) -> Salvage {
    let mut found = Salvage::default();
    let mut metadata_indent: Option<Option<usize>> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if trimmed.is_empty() || trimmed.starts_with('#') || line.starts_with("---") {
            continue;
        }
        if indent == 0 {
            metadata_indent = None;
            if let Some(value) = plain_value(trimmed, "apiVersion") {
                found.api_version = Some(value);
            } else if let Some(value) = plain_value(trimmed, "kind") {
                found.kind = Some(value);
            } else if trimmed.trim_end() == "metadata:" {
                metadata_indent = Some(None);
            }
            continue;
        }
        let Some(expected) = metadata_indent else {
            continue;
        };
        let at = expected.unwrap_or(indent);
        metadata_indent = Some(Some(at));
        if indent != at {
            continue;
        }
        if let Some(value) = plain_value(trimmed, "name") {
            found.name = Some(value);
        } else if let Some(value) = plain_value(trimmed, "namespace") {
            found.namespace = Some(value);
        }
    }
    found
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Keeps a piece unless it is only comments, blank lines and directives (`%YAML 1.2` before the first marker).
fn push<'t>(documents: &mut Vec<Document<'t>>, line: usize, text: &'t str) {
    let content = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !(line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "...")
    };
    if text.lines().any(content) {
        documents.push(Document { line, text });
    }
}

fn plain_value(line: &str, key: &str) -> Option<String> {
    let rest = line.strip_prefix(key)?.strip_prefix(':')?;
    let value = rest.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(['"', '\'']);
    let plain = !value.is_empty()
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-./".contains(&b));
    plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_marker_lines_and_keep_their_line_numbers() {
        let text = "# head\n---\na: 1\n---\n# only a comment\n--- {b: 2}\n---x: not a marker\n";
        let found: Vec<_> = split(text).into_iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(
            found,
            [(2, "---\na: 1\n"), (6, "--- {b: 2}\n---x: not a marker\n")]
        );
    }

    #[test]
    fn a_byte_order_mark_carriage_returns_and_directives_are_no_documents() {
        let found: Vec<_> = split("\u{feff}%YAML 1.2\r\n---\r\na: 1\r\n")
            .into_iter()
            .map(|d| d.line)
            .collect();
        assert_eq!(found, [2]);
        assert!(split("").is_empty());
        assert!(split("---\n---\n").is_empty());
    }

    #[test]
    fn the_identity_of_a_document_that_does_not_parse_is_still_read() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy # x\nmetadata:\n  labels:\n    name: no\n  name: \"guard\"\n  namespace: shop\nspec:\n  name: no\n  rules: [*.x]\n";
        let expected = Salvage {
            api_version: Some("security.istio.io/v1".into()),
            kind: Some("AuthorizationPolicy".into()),
            name: Some("guard".into()),
            namespace: Some("shop".into()),
        };
        assert_eq!(salvage(text), expected);
    }
}
