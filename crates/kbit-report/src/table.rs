//! Tables as data: one description from which the page, CSV, Markdown and the page's data block are written.

use crate::chart::escape;
use serde::Serialize;
use std::fmt::Write as _;

/// Rows that stand in the page itself; scripts and the CSV files have all.
pub const STATIC_ROWS: usize = 100;

/// A column.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Name in CSV files.
    pub key: String,
    /// Heading.
    pub label: String,
    /// Numbers stand to the right.
    pub number: bool,
    /// The page offers its values as a filter.
    pub facet: bool,
    /// Left out of the page until it is asked for.
    pub hidden: bool,
    /// Has a column of standard errors beside it in CSV files.
    pub error: bool,
    /// Long texts, which may be broken into lines.
    pub wrap: bool,
}

impl Column {
    /// A column of texts.
    pub fn text(key: &str, label: &str) -> Self {
        Self {
            key: key.to_owned(),
            label: label.to_owned(),
            number: false,
            facet: false,
            hidden: false,
            error: false,
            wrap: false,
        }
    }

    /// A column of numbers.
    pub fn number(key: &str, label: &str) -> Self {
        Self { number: true, ..Self::text(key, label) }
    }

    pub fn facet(self) -> Self {
        Self { facet: true, ..self }
    }

    pub fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    pub fn hidden_if(self, hidden: bool) -> Self {
        Self { hidden, ..self }
    }

    pub fn error(self) -> Self {
        Self { error: true, ..self }
    }

    pub fn wrap(self) -> Self {
        Self { wrap: true, ..self }
    }
}

/// A cell.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Nothing.
    Empty,
    /// A text.
    Text(String),
    /// A number, as it is shown, with its standard error.
    Number(f64, String, Option<f64>),
}

impl Cell {
    /// A number with four significant digits.
    pub fn figure(value: f64, stderr: Option<f64>) -> Self {
        Self::Number(value, crate::data::figure(value), stderr)
    }

    pub fn figure_or_empty(value: Option<(f64, Option<f64>)>) -> Self {
        value.map_or(Self::Empty, |(value, stderr)| Self::figure(value, stderr))
    }

    /// A count.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    pub fn count(value: u64) -> Self {
        Self::Number(value as f64, value.to_string(), None)
    }

    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.is_empty() { Self::Empty } else { Self::Text(text) }
    }

    /// For people, without the error.
    pub fn shown(&self) -> &str {
        match self {
            Self::Empty => "",
            Self::Text(text) | Self::Number(_, text, _) => text,
        }
    }

    fn error_shown(&self) -> Option<String> {
        match self {
            Self::Number(_, _, Some(stderr)) => Some(format!("± {}", crate::data::error(*stderr))),
            _ => None,
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Empty => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Number(value, text, None) => (value, text).serialize(serializer),
            Self::Number(value, text, Some(stderr)) => {
                (value, text, stderr, crate::data::error(*stderr)).serialize(serializer)
            }
        }
    }
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Name of the CSV file and of the element.
    pub id: String,
    /// Title.
    #[serde(skip)]
    pub title: String,
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows.
    pub rows: Vec<Vec<Cell>>,
    /// Rows on the Pareto front.
    pub front: Vec<usize>,
    /// On narrow screens each row is a card, with a line a cell.
    pub stacked: bool,
}

impl Table {
    pub fn new(id: &str, title: &str, columns: Vec<Column>) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            columns,
            rows: Vec::new(),
            front: Vec::new(),
            stacked: false,
        }
    }

    /// See the field.
    pub fn stacked(self) -> Self {
        Self { stacked: true, ..self }
    }

    /// Leaves out the columns in which nothing stands.
    pub fn without_empty_columns(mut self) -> Self {
        let used: Vec<bool> = (0..self.columns.len())
            .map(|index| self.rows.iter().any(|row| !matches!(row[index], Cell::Empty)))
            .collect();
        let mut kept = used.iter();
        self.columns.retain(|_| kept.next().copied().unwrap_or(true));
        for row in &mut self.rows {
            let mut kept = used.iter();
            row.retain(|_| kept.next().copied().unwrap_or(true));
        }
        self
    }

    /// All rows, with a heading; standard errors in columns of their own; numbers in full.
    pub fn csv(&self) -> String {
        let mut text = String::new();
        let mut heads = Vec::new();
        for column in &self.columns {
            heads.push(csv_cell(&column.key));
            if column.error {
                heads.push(csv_cell(&format!("{}_stderr", column.key)));
            }
        }
        let _ = writeln!(text, "{}", heads.join(","));
        for row in &self.rows {
            let mut cells = Vec::new();
            for (column, cell) in self.columns.iter().zip(row) {
                cells.push(match cell {
                    Cell::Empty => String::new(),
                    Cell::Text(text) => csv_cell(text),
                    Cell::Number(value, ..) => value.to_string(),
                });
                if column.error {
                    cells.push(match cell {
                        Cell::Number(_, _, Some(stderr)) => stderr.to_string(),
                        _ => String::new(),
                    });
                }
            }
            let _ = writeln!(text, "{}", cells.join(","));
        }
        text
    }

    /// The columns that are not hidden, in Markdown.
    pub fn markdown(&self) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|index| !self.columns[*index].hidden).collect();
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(shown.iter().map(|index| self.columns[*index].label.clone()).collect());
        let rule = |index: &usize| if self.columns[*index].number { "--:" } else { "---" }.to_owned();
        text += &line(shown.iter().map(rule).collect());
        for row in &self.rows {
            let cell = |index: &usize| {
                let cell = &row[*index];
                let words = match cell.error_shown() {
                    Some(error) => format!("{} {error}", cell.shown()),
                    None => cell.shown().to_owned(),
                };
                words.replace('|', "\\|").replace('\n', " ")
            };
            text += &line(shown.iter().map(cell).collect());
        }
        text
    }

    /// The element: the first rows as they stand, which scripts take over.
    pub fn html(&self) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|index| !self.columns[*index].hidden).collect();
        let mut html = format!(
            "<div class=\"table{2}\" data-table=\"{0}\"><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{1}\"><table><caption class=\"hide\">{1}</caption><thead><tr>",
            escape(&self.id),
            escape(&self.title),
            if self.stacked { " stacked" } else { "" }
        );
        for index in &shown {
            let column = &self.columns[*index];
            let class = if column.number { " class=\"n\"" } else { "" };
            let _ = write!(html, "<th scope=\"col\"{class}>{}</th>", escape(&column.label));
        }
        html.push_str("</tr></thead><tbody>\n");
        for (number, row) in self.rows.iter().take(STATIC_ROWS).enumerate() {
            html.push_str(if self.front.contains(&number) { "<tr class=\"front\">" } else { "<tr>" });
            for index in &shown {
                let column = &self.columns[*index];
                let class = match (column.number, column.wrap) {
                    (true, _) => " class=\"n\"",
                    (_, true) => " class=\"wrap\"",
                    _ => "",
                };
                // What stands above the column, for where the heading is not shown.
                let label = match self.stacked {
                    true => format!(" data-label=\"{}\"", escape(&column.label)),
                    false => String::new(),
                };
                let _ = write!(html, "<td{class}{label}>{}", escape(row[*index].shown()));
                if let Some(error) = row[*index].error_shown() {
                    let _ = write!(html, " <span class=\"err\">{error}</span>");
                }
                html.push_str("</td>");
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>");
        if self.rows.len() > STATIC_ROWS {
            let _ = write!(
                html,
                "<p class=\"soft cut\">The first {STATIC_ROWS} of {} rows; all are in report/tables/{}.csv (kbit report --format csv).</p>",
                self.rows.len(),
                escape(&self.id)
            );
        }
        html.push_str("</div>");
        html
    }
}

/// A cell of a CSV file (RFC 4180).
fn csv_cell(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}
