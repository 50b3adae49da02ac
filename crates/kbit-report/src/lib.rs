//! Measurements to HTML, Markdown, CSV and JSON: one self-contained page that works from a file, light and dark.
#![forbid(unsafe_code)]

pub mod chart;
mod view;

use kbit_laws::Fits;
use kbit_results::{Cost, Measurement};
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
    measurements: &'a [Measurement],
    fits: &'a Fits,
    view: view::View,
    provenance: serde_json::Value,
}

impl<'a> Report<'a> {
    /// The report on `measurements` and `costs`, with the laws fitted to them. `provenance` is shown as it is; its `name` is
    /// the title.
    #[must_use]
    pub fn new(
        measurements: &'a [Measurement],
        costs: &'a [Cost],
        fits: &'a Fits,
        provenance: serde_json::Value,
    ) -> Self {
        Self { measurements, fits, view: view::View::new(measurements, costs, fits, &provenance), provenance }
    }

    /// The page.
    ///
    /// # Errors
    /// When the template fails.
    pub fn html(&self) -> Result<String, ReportError> {
        let mut environment = Environment::new();
        environment.add_template("report.html", include_str!("report.html"))?;
        let template = environment.get_template("report.html")?;
        let style = include_str!("report.css");
        let script = include_str!("report.js");
        let provenance = serde_json::to_string_pretty(&self.provenance)?;
        Ok(template.render(minijinja::context! { view => self.view, style, script, provenance })?)
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
        if view.rows.is_empty() {
            return Ok(text);
        }
        text.push_str(
            "\n## Runs\n\n| model | scheme | bits/weight | size | perplexity | KL divergence | same top | Pareto |\n|---|---|--:|--:|--:|--:|--:|:-:|\n",
        );
        for row in &view.rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                row.model,
                if view.arithmetic.is_some() {
                    row.scheme.clone()
                } else {
                    format!("{} ({})", row.scheme, row.arithmetic)
                },
                row.bpw,
                row.size,
                row.perplexity,
                row.kld,
                row.same_top,
                if row.pareto { "yes" } else { "" }
            );
        }
        if !view.fits.is_empty() {
            text.push_str("\n## Laws\n\n| law | family | constants (95 % interval) | R² | AIC | leave-one-out | points |\n|---|---|---|--:|--:|--:|--:|\n");
            for fit in &view.fits {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} | {} | {} |",
                    fit.form,
                    fit.family,
                    fit.estimates.join("; "),
                    fit.r_squared,
                    fit.aic,
                    fit.leave_one_out,
                    fit.points
                );
            }
        }
        for line in view.comparisons.iter().chain(&view.refusals) {
            let _ = writeln!(text, "\n{line}");
        }
        Ok(text)
    }

    /// One line a run.
    ///
    /// # Errors
    /// None at present.
    pub fn csv(&self) -> Result<String, ReportError> {
        let mut text = String::from(
            "model,params,scheme,family,bits,bpw_file,bpw_decoder,bytes,total_bits,data,mode,cache_type,perplexity,perplexity_stderr,nll,bits_per_byte,kl_divergence,kl_divergence_stderr,same_top\n",
        );
        for record in &self.view.records {
            let cells: Vec<String> = record.iter().map(|cell| csv_cell(cell)).collect();
            let _ = writeln!(text, "{}", cells.join(","));
        }
        Ok(text)
    }

    /// Measurements, laws and provenance in one document.
    ///
    /// # Errors
    /// When a figure cannot be written.
    pub fn json(&self) -> Result<String, ReportError> {
        let document = serde_json::json!({
            "schema": kbit_results::SCHEMA,
            "provenance": self.provenance,
            "fits": self.fits,
            "measurements": self.measurements,
        });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

fn csv_cell(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}
