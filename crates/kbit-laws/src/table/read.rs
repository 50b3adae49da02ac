//! From the lines of a table to observations.

use super::csv::{Record, records};
use super::declare::{Column, Form, Table};
use crate::observe::{At, Observation, complete};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What a table holds.
#[derive(Clone, Debug)]
pub struct Read {
    /// The observations, in the order of their first lines.
    pub observations: Vec<Observation>,
    /// What was left out and why.
    pub notes: Vec<String>,
}

/// A table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The system refused.
    #[error("{}: {error}; set `file` to the CSV file, seen from the YAML file's folder", path.display())]
    Io {
        /// CSV file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A line is not as it should be.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// CSV file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// Lines of one point.
struct Point {
    at: At,
    family: String,
    /// Loss and divergence by the value of the column that is averaged over.
    figures: BTreeMap<String, (Option<f64>, Option<f64>)>,
}

impl Table {
    /// The observations in the CSV file.
    ///
    /// # Errors
    /// A file that cannot be read, a heading that it lacks, a line with another number of fields, or a field that is no number.
    pub fn read_observations(&self) -> Result<Read, TableError> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| TableError::Io { path: self.file.clone(), error })?;
        self.observations(&text)
    }

    /// The same of `csv`, the text of the file.
    ///
    /// # Errors
    /// As [`Table::read_observations`], but for reading.
    pub fn observations(&self, csv: &str) -> Result<Read, TableError> {
        let fail = |line, message| TableError::Line { path: self.file.clone(), line, message };
        let lines = records(csv)
            .map_err(|line| fail(line, "a quote begins here that does not end; end it".to_owned()))?;
        let Some((headings, lines)) = lines.split_first() else {
            return Err(fail(1, "the file has no headings; give a CSV file with headings".to_owned()));
        };
        let headings = &headings.fields;
        let place = |heading: &String| {
            headings
                .iter()
                .position(|known| known == heading)
                .ok_or_else(|| fail(1, Self::unknown(heading, headings)))
        };
        let only = self.only.iter().map(|(heading, texts)| Ok((place(heading)?, texts)));
        let only = only.collect::<Result<Vec<_>, TableError>>()?;
        let limits = self.limits.iter().map(|(heading, least, most)| Ok((place(heading)?, *least, *most)));
        let limits = limits.collect::<Result<Vec<_>, TableError>>()?;
        let average = self.average.as_ref().map(place).transpose()?;
        let model = place(&self.model)?;
        let scheme = self.scheme.as_ref().map(place).transpose()?;
        let family = self.family.as_ref().map(place).transpose()?;
        let columns =
            self.columns.iter().map(|(name, column)| Ok((*name, (place(&column.heading)?, column))));
        let columns = columns.collect::<Result<BTreeMap<_, _>, TableError>>()?;

        let mut points: Vec<Point> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut parts = BTreeSet::new();
        for record in lines {
            let Record { line, fields } = record;
            if fields.len() != headings.len() {
                let message = format!(
                    "{} fields where the headings are {}; mend the line",
                    fields.len(),
                    headings.len()
                );
                return Err(fail(*line, message));
            }
            if !only.iter().all(|(place, texts)| texts.iter().any(|text| alike(text, &fields[*place]))) {
                continue;
            }
            let mut within = true;
            for (place, least, most) in &limits {
                let value =
                    number(&fields[*place], &headings[*place]).map_err(|message| fail(*line, message))?;
                within &= (*least..=*most).contains(&value);
            }
            if !within {
                continue;
            }
            let get = |name: &str| -> Result<Option<f64>, TableError> {
                let Some((place, column)) = columns.get(name) else { return Ok(None) };
                column.value(&fields[*place]).map(Some).map_err(|message| fail(*line, message))
            };
            let scheme = scheme.map_or_else(|| "none".to_owned(), |place| fields[place].clone());
            let family = match (family, scheme.as_str()) {
                (_, "none") => "none".to_owned(),
                (Some(place), _) => fields[place].clone(),
                (None, _) => scheme.clone(),
            };
            let (params, bits) = (get("params")?, get("bits")?);
            let width = get("width")?.or_else(|| bits.map(f64::round));
            let at = At {
                model: fields[model].clone(),
                scheme,
                params,
                tokens: get("tokens")?,
                flops: get("flops")?,
                bits,
                nominal_bits: width,
                total_bits: params.zip(bits).map(|(params, bits)| params * bits),
                ..At::default()
            };
            let part = average.map_or_else(String::new, |place| fields[place].clone());
            let figures = (get("loss")?, get("divergence")?);
            let key = format!("{at:?} {family}");
            let index = *places.entry(key).or_insert_with(|| {
                points.push(Point { at, family, figures: BTreeMap::new() });
                points.len() - 1
            });
            if points[index].figures.insert(part.clone(), figures).is_some() {
                let message = "a second line of the same point; say with `where` which one counts, or with `average` what to average over";
                return Err(fail(*line, message.to_owned()));
            }
            let _ = parts.insert(part);
        }
        if points.is_empty() {
            return Err(fail(1, "no line is as `where`, `least` and `most` have it; change them".to_owned()));
        }
        let all = points.len();
        points.retain(|point| point.figures.len() == parts.len());
        let mut notes = Vec::new();
        if points.len() < all {
            let what = self.average.as_deref().unwrap_or_default();
            notes.push(format!("{} of {all} points lack some {what} and were left out", all - points.len()));
        }
        let mut observations: Vec<Observation> = points.into_iter().map(Point::observation).collect();
        complete(&mut observations);
        Ok(Read { observations, notes })
    }
}

impl Point {
    fn observation(self) -> Observation {
        #[expect(clippy::cast_precision_loss, reason = "a count of lines")]
        let mean =
            |values: Option<Vec<f64>>| values.map(|values| values.iter().sum::<f64>() / values.len() as f64);
        Observation {
            loss: mean(self.figures.values().map(|figures| figures.0).collect()),
            divergence: mean(self.figures.values().map(|figures| figures.1).collect()),
            scheme_id: self.at.scheme.clone(),
            at: self.at,
            family: self.family,
            first: true,
            added: None,
        }
    }
}

/// True for the same text, or the same number written otherwise.
fn alike(wanted: &str, found: &str) -> bool {
    let numbers = wanted.parse::<f64>().ok().zip(found.trim().parse::<f64>().ok());
    wanted == found || numbers.is_some_and(|(wanted, found)| wanted == found)
}

fn number(field: &str, heading: &str) -> Result<f64, String> {
    let value = field.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| {
        format!(
            "`{field}` in the column `{heading}` is no number; mend it, or leave the line out with `where`"
        )
    })
}

impl Column {
    /// The number that the column's `field` stands for.
    fn value(&self, field: &str) -> Result<f64, String> {
        let value = if self.values.is_empty() {
            number(field, &self.heading)?
        } else {
            let known = self.values.get(field).copied();
            known.ok_or_else(|| {
                format!("`{field}` in the column `{}` has no number; add it below `values`", self.heading)
            })?
        };
        let value = value * self.times;
        match self.form {
            Form::Value => Ok(value),
            Form::OneMinus => Ok(1.0 - value),
            Form::Log if value > 0.0 => Ok(value.ln()),
            Form::Log => Err(format!(
                "`{field}` in the column `{}` has no logarithm; leave the line out with `least`",
                self.heading
            )),
        }
    }
}
