//! Columns that line up, for people: no borders, nothing cut off.

use std::fmt;

/// A table with a head.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub(crate) fn new(head: [&'static str; N]) -> Self {
        Self {
            head,
            rows: Vec::new(),
        }
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Sorts by the first column, then the next.
    pub(crate) fn sorted(mut self) -> Self {
        self.rows.sort();
        self
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |cell: &String| if cell.is_empty() { "-" } else { cell }.to_owned();
        let head = self.head.map(str::to_owned);
        let rows = self.rows.iter().map(|row| row.each_ref().map(shown));
        let lines: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
        let mut widths = [0; N];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in &lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(widths) {
                text.push_str(&format!("{cell:width$}   "));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_what_is_empty_has_a_dash() {
        let mut table = Table::new(["POD", "STATE", "WHY"]);
        for row in [["shop/web", "captured", ""], ["a/b", "", "no label"]] {
            table.row(row.map(str::to_owned));
        }
        assert_eq!(
            table.sorted().to_string(),
            "POD        STATE      WHY\na/b        -          no label\nshop/web   captured   -\n"
        );
    }
}
