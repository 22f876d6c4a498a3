//! The page that says of each requirement where it stands: its sums are those of its rows.

/// Sections, as the table of sums names them, and what the ids of their rows begin with.
const SECTIONS: [(&str, char); 4] = [
    ("Features", 'F'),
    ("Pitfalls avoided", 'P'),
    ("Acceptance scenarios", 'A'),
    ("Hardening", 'H'),
];
const STATUSES: [&str; 3] = ["done", "partly", "open"];

/// What is wrong with the page.
pub(super) fn breaches(page: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for (section, letter) in SECTIONS {
        let mut sums = [0_usize; STATUSES.len()];
        for (id, status) in page.lines().filter_map(|line| row(line, letter)) {
            match STATUSES.iter().position(|known| *known == status) {
                Some(place) => sums[place] += 1,
                None => breaches.push(format!("{id} is {status:?}, which is no status")),
            }
        }
        let [done, partly, open] = sums;
        let right = format!("| {section} | {done} | {partly} | {open} |");
        if !page.lines().any(|line| line == right) {
            breaches.push(format!(
                "the sum of {section} is not what its rows say: {right}"
            ));
        }
    }
    breaches
}

/// Id and status of a row: `| F1 | what | done | shown by |`.
fn row(line: &str, letter: char) -> Option<(&str, &str)> {
    let mut columns = line.strip_prefix("| ")?.split(" | ");
    let id = columns.next()?;
    let number = id.strip_prefix(letter)?;
    if number.is_empty() || !number.chars().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some((id, columns.nth(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
| Features | 1 | 1 | 0 |
| Pitfalls avoided | 0 | 0 | 1 |
| Acceptance scenarios | 0 | 0 | 0 |
| Hardening | 0 | 0 | 0 |

| F1 | this | done | a test |
| F2 | that | partly | half of it |
| P1 | another | open | not built |
";

    #[test]
    fn sums_are_those_of_the_rows() {
        assert_eq!(breaches(PAGE), Vec::<String>::new());
        let changed = PAGE.replace("| F2 | that | partly |", "| F2 | that | done |");
        let right = "the sum of Features is not what its rows say: | Features | 2 | 0 | 0 |";
        assert_eq!(breaches(&changed), [right]);
        let misspelt = PAGE.replace("| P1 | another | open |", "| P1 | another | opne |");
        assert_eq!(breaches(&misspelt)[0], "P1 is \"opne\", which is no status");
    }
}
