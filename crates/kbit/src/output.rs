//! What a command prints: results to stdout (text or one JSON document), messages to stderr.

use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Log messages of plugins and libraries go to stderr; `KBIT_LOG=debug` shows more.
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KBIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}

/// Prints `text` to stdout. A closed pipe (as by `head`) ends the output quietly.
pub fn text(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") });
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints one JSON document to stdout.
pub fn json(value: &impl Serialize) -> std::io::Result<()> {
    text(&serde_json::to_string_pretty(value)?)
}

/// Prints a message for people to stderr.
#[expect(clippy::print_stderr, reason = "messages for people go to stderr")]
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// A table with aligned columns.
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names; a name that starts with `>` aligns its column to the right.
    pub fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text.
    pub fn render(&self) -> String {
        let names: Vec<String> =
            self.header.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        let widths: Vec<usize> = (0..names.len())
            .map(|column| {
                let cells =
                    self.rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
                cells.chain([names[column].chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in std::iter::once(&names).chain(&self.rows) {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let right = self.header[column].starts_with('>');
                let (before, after) = if right { (padding.as_str(), "") } else { ("", padding.as_str()) };
                if column > 0 {
                    line.push_str("  ");
                }
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Bytes for people, in binary units.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// `value`, an object, with the peak resident memory as `peak_rss_bytes`.
pub fn with_peak_memory(value: &impl Serialize) -> serde_json::Result<serde_json::Value> {
    let mut value = serde_json::to_value(value)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("peak_rss_bytes".to_owned(), kbit_formats::peak_rss_bytes().into());
    }
    Ok(value)
}

/// A line a file, but one for all of a folder that has more than a few.
pub fn files(paths: &[PathBuf]) -> String {
    const FEW: usize = 4;
    let mut text = String::new();
    for together in paths.chunk_by(|a, b| a.parent() == b.parent()) {
        match together[0].parent() {
            Some(folder) if together.len() > FEW => {
                text += &format!("{}: {} files\n", folder.display(), together.len());
            }
            _ => together.iter().for_each(|path| text += &format!("{}\n", path.display())),
        }
    }
    text
}

/// "peak memory 12.3 MiB", for the end of commands that read a model.
pub fn peak_memory() -> String {
    kbit_formats::peak_rss_bytes().map_or_else(String::new, |peak| format!("peak memory {}", bytes(peak)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_many_files_have_one_line() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let all = paths(&["r/a.html", "r/p/1", "r/p/2", "r/p/3", "r/p/4", "r/p/5", "r/b.json"]);
        assert_eq!(files(&all), "r/a.html\nr/p: 5 files\nr/b.json\n");
    }

    #[test]
    fn tables_align_text_left_and_numbers_right() {
        let mut table = Table::new(&["name", ">bits"]);
        table.row(vec!["a".into(), "4.50".into()]);
        table.row(vec!["long name".into(), "16".into()]);
        assert_eq!(table.render(), "name       bits\na          4.50\nlong name    16\n");
    }

    #[test]
    fn bytes_have_binary_units() {
        assert_eq!(
            (bytes(512), bytes(1536), bytes(3 << 30)),
            ("512 B".into(), "1.50 KiB".into(), "3.00 GiB".into())
        );
    }
}
