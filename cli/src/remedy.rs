//! What to do about a refusal, as the documentation says it.

/// The page that has a row for every reason; a test of `model` compares the rows with the code.
const PAGE: &str = include_str!("../../docs/observability.md");

/// The remedy for a reason, by its word.
pub(crate) fn of(word: &str) -> Option<&'static str> {
    let (_, section) = PAGE.split_once("\n## Refusals")?;
    let section = section.split("\n## ").next()?;
    let cell = format!("| `{word}` |");
    let row = section.lines().find(|line| line.starts_with(&cell))?;
    let remedy = row.trim_end_matches('|').rsplit(" | ").next()?.trim();
    (!remedy.is_empty()).then_some(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_remedy() {
        for reason in model::Reason::ALL {
            let remedy = of(reason.as_str());
            assert!(
                remedy.is_some_and(|text| text.len() > 5),
                "{reason}: {remedy:?}"
            );
        }
        assert_eq!(of("no_such_reason"), None);
    }
}
