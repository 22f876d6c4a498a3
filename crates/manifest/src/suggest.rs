//! Which known word a person most likely meant.

/// The candidate that differs from `word` by case, by one word boundary style, or by at most two edits.
pub(crate) fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let folded = fold(word);
    if let Some(same) = candidates
        .iter()
        .find(|candidate| fold(candidate) == folded)
    {
        return Some(same);
    }
    let allowed = match folded.chars().count() {
        0..=3 => 1,
        _ => 2,
    };
    candidates
        .iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), *candidate))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut current = i + 1;
        for (right, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            let replaced = diagonal + usize::from(left != *right);
            current = replaced.min(above + 1).min(current + 1);
            diagonal = above;
            *cell = current;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn the_nearest_known_word_is_suggested_and_strangers_get_none() {
        let known = [
            "name",
            "namespace",
            "labels",
            "matchLabels",
            "notPrincipals",
        ];
        for (word, expected) in [
            ("Name", Some("name")),
            ("nmae", Some("name")),
            ("match_labels", Some("matchLabels")),
            ("matchLabel", Some("matchLabels")),
            ("not-principals", Some("notPrincipals")),
            ("route", None),
            ("", None),
        ] {
            assert_eq!(closest(word, &known), expected, "{word}");
        }
    }
}
