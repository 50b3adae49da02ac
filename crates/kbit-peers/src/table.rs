//! Tables for terminals and for Markdown.

/// Rows of texts under headings. The first column is left-aligned, numbers right.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&text| text.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    /// A column is right-aligned where all its cells begin with a digit, a sign or are empty.
    fn is_numeric(&self, column: usize) -> bool {
        column > 0
            && self.rows.iter().all(|row| {
                let cell = row[column].as_str();
                cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            })
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
            })
            .collect()
    }

    fn line(&self, cells: &[String], widths: &[usize], between: &str) -> String {
        let padded = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if self.is_numeric(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        padded.collect::<Vec<_>>().join(between)
    }

    /// Aligned by blanks.
    pub fn text(&self) -> String {
        let widths = self.widths();
        let lines = std::iter::once(&self.head).chain(&self.rows);
        lines.map(|cells| format!("{}\n", self.line(cells, &widths, "  ").trim_end())).collect()
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let widths = self.widths();
        let rules: Vec<_> = (0..self.head.len())
            .map(|column| if self.is_numeric(column) { "---:" } else { "---" }.to_owned())
            .collect();
        let row = |cells: &[String]| format!("| {} |\n", self.line(cells, &widths, " | "));
        let head = row(&self.head) + &format!("|{}|\n", rules.join("|"));
        self.rows.iter().fold(head, |text, cells| text + &row(cells))
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    fn table() -> Table {
        let mut table = Table::new(&["case", "ratio", "bytes"]);
        table.row(vec!["q4_0".into(), "5.1".into(), "equal".into()]);
        table.row(vec!["iq4_nl".into(), "12.0".into()]);
        table
    }

    #[test]
    fn text_aligns_numbers_right() {
        assert_eq!(table().text(), "case    ratio  bytes\nq4_0      5.1  equal\niq4_nl   12.0\n");
    }

    #[test]
    fn markdown_marks_columns_of_numbers() {
        assert_eq!(
            table().markdown(),
            "| case   | ratio | bytes |\n|---|---:|---|\n| q4_0   |   5.1 | equal |\n| iq4_nl |  12.0 |       |\n"
        );
    }
}
