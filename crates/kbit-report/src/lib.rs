//! Measurements to HTML, Markdown, SVG, CSV and JSON, and model cards.
//!
//! Tables and figures ([`chart`]) are data first. The page, the Markdown text, the CSV and SVG files are written from
//! them, and the page's script works on the same: it sorts and filters the tables' data and finds the points of the figures in it.
//! The page is one file that asks for nothing from outside; without scripts it shows the first rows of every table and all figures.
#![forbid(unsafe_code)]

mod answer;
mod cards;
pub mod chart;
mod curves;
mod data;
mod figures;
mod heat;
mod table;
mod tables;
mod view;

pub use cards::Card;
pub use data::{Contradiction, RunData, contradictions};

use kbit_laws::{Finding, Fits};
use minijinja::Environment;
use std::fmt::Write as _;

/// A report that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The page's template failed: a defect of kbit.
    #[error("the report's template failed: {0}; please report this")]
    Template(#[from] minijinja::Error),
    /// A figure that JSON cannot hold.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A report.
pub struct Report<'a> {
    runs: &'a [RunData],
    fits: &'a Fits,
    findings: &'a [Finding],
    view: view::View,
}

impl<'a> Report<'a> {
    /// The report on `runs` with the laws fitted to all of them and the findings about them. The `name` in a run's provenance is the
    /// title. Runs must not contradict each other: see [`contradictions`].
    #[must_use]
    pub fn new(runs: &'a [RunData], fits: &'a Fits, findings: &'a [Finding]) -> Self {
        Self { runs, fits, findings, view: view::View::new(runs, fits, findings) }
    }

    /// The page.
    ///
    /// # Errors
    /// When the template fails.
    pub fn html(&self) -> Result<String, ReportError> {
        let mut environment = Environment::new();
        environment.add_template("report.html", include_str!("report.html"))?;
        let template = environment.get_template("report.html")?;
        let style = format!("{}\n{}", include_str!("report.css"), view::colours());
        let script = include_str!("report.js");
        let data = serde_json::json!({ "tables": self.view.tables(), "svgStyle": chart::standalone_style() });
        // What ends the block must not stand in it.
        let data = serde_json::to_string(&data)?.replace('<', "\\u003c");
        Ok(template.render(minijinja::context! { view => self.view, style, script, data })?)
    }

    /// The tables in Markdown.
    ///
    /// # Errors
    /// None at present.
    pub fn markdown(&self) -> Result<String, ReportError> {
        let view = &self.view;
        let mut text = format!("# {}\n\n", view.title);
        for line in &view.headlines {
            let _ = writeln!(text, "- {line}");
        }
        for failure in &view.failures {
            let _ = writeln!(text, "- **Failed**: {failure}");
        }
        for table in view.tables().into_iter().filter(|table| view::IN_MARKDOWN.contains(&table.id.as_str()))
        {
            let _ = write!(text, "\n## {}\n\n{}", table.title, table.markdown());
        }
        for line in view.comparisons.iter().chain(&view.refusals) {
            let _ = writeln!(text, "\n{line}");
        }
        Ok(text)
    }

    /// The table of results: one line a model, scheme, text and arithmetic.
    ///
    /// # Errors
    /// None at present.
    pub fn csv(&self) -> Result<String, ReportError> {
        Ok(self.view.results.csv())
    }

    /// Measurements, laws, findings and provenance in one document.
    ///
    /// # Errors
    /// When a figure cannot be written.
    pub fn json(&self) -> Result<String, ReportError> {
        let measurements: Vec<_> = self.runs.iter().flat_map(|run| &run.measurements).collect();
        let provenance = match self.runs {
            [only] => only.provenance.clone(),
            many => many.iter().map(|run| run.provenance.clone()).collect(),
        };
        let document = serde_json::json!({
            "schema": kbit_results::SCHEMA,
            "runs": self.runs.iter().map(|run| &run.name).collect::<Vec<_>>(),
            "provenance": provenance,
            "fits": self.fits,
            "findings": self.findings,
            "measurements": measurements,
        });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    /// Every figure as an SVG file: name and content.
    #[must_use]
    pub fn plots(&self) -> Vec<(String, String)> {
        self.view.drawings().map(|(id, svg)| (format!("{id}.svg"), chart::standalone(svg))).collect()
    }

    /// Every table as a CSV file, and the fitted curves with their bands: name and content.
    #[must_use]
    pub fn table_files(&self) -> Vec<(String, String)> {
        let curves = Some(&self.view.curves).filter(|curves| !curves.rows.is_empty());
        self.view
            .tables()
            .into_iter()
            .chain(curves)
            .map(|table| (format!("{}.csv", table.id), table.csv()))
            .collect()
    }

    /// A model card for every quantized model for which `file` knows the name of the packed file, by model and scheme.
    #[must_use]
    pub fn cards(&self, file: &dyn Fn(&str, &str) -> Option<String>) -> Vec<Card> {
        let (entries, _) = data::entries(self.runs);
        let cards = self.runs.iter().flat_map(|run| cards::cards(run, &entries, file));
        cards.collect()
    }
}
