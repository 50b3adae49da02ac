//! Heat maps of what a figure is for each tensor: kinds of tensors by layers.

use crate::chart::{HEAT, escape};
use crate::data::{RunData, scheme_name};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The maps of one model, darkest for the largest value of all its schemes.
#[derive(Serialize)]
pub struct Model {
    pub model: String,
    pub maps: Vec<Map>,
    pub low: String,
    pub high: String,
}

/// One map.
#[derive(Serialize)]
pub struct Map {
    /// Name of its file.
    pub id: String,
    pub scheme: String,
    pub svg: String,
}

/// Layer and kind of a tensor: `blk.3.attn_q.weight` is `attn_q` of layer 3.
pub fn place(tensor: &str) -> (Option<u64>, &str) {
    let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let parts = name.strip_prefix("blk.").map(|rest| rest.split_once('.').unwrap_or((rest, "all")));
    match parts.map(|(layer, kind)| (layer.parse(), kind)) {
        Some((Ok(layer), kind)) => (Some(layer), kind),
        _ => (None, name),
    }
}

const CELL: f64 = 22.0;
const HEIGHT: f64 = 20.0;
const LEFT: f64 = 118.0;
const TOP: f64 = 24.0;

/// Heat maps of `metric`, by model and scheme.
pub fn maps(runs: &[RunData], metric: &str) -> Vec<Model> {
    type Values<'a> = BTreeMap<(&'a str, Option<u64>), f64>;
    let mut models: Vec<(&str, Vec<(&str, Values<'_>)>)> = Vec::new();
    for measurement in runs.iter().flat_map(|run| &run.measurements).filter(|m| m.metric == metric) {
        let Some(tensor) = &measurement.tensor else { continue };
        let (layer, kind) = place(tensor);
        let model = models.iter().position(|(id, _)| *id == measurement.model.id).unwrap_or_else(|| {
            models.push((&measurement.model.id, Vec::new()));
            models.len() - 1
        });
        let schemes = &mut models[model].1;
        let label = scheme_name(&measurement.scheme);
        let scheme = schemes.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
            schemes.push((label, BTreeMap::new()));
            schemes.len() - 1
        });
        schemes[scheme].1.insert((kind, layer), measurement.value);
    }
    models
        .iter()
        .map(|(model, schemes)| {
            let positive =
                schemes.iter().flat_map(|(_, values)| values.values()).filter(|value| **value > 0.0);
            let (low, high) = positive
                .fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(*value), high.max(*value)));
            let maps = schemes.iter().map(|(scheme, values)| Map {
                id: crate::figures::file_name(&format!("{metric}-{model}-{scheme}")),
                scheme: (*scheme).to_owned(),
                svg: draw(&format!("{metric} of {model} {scheme}"), values, low, high),
            });
            let maps = maps.collect();
            Model { model: (*model).to_owned(), maps, low: format!("{low:.1e}"), high: format!("{high:.1e}") }
        })
        .collect()
}

fn level(value: f64, low: f64, high: f64) -> usize {
    if value <= 0.0 || high <= low {
        return 0;
    }
    let place = (value.ln() - low.ln()) / (high.ln() - low.ln());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "0 to 10"
    )]
    {
        (place * (HEAT.len() - 1) as f64).round().clamp(0.0, (HEAT.len() - 1) as f64) as usize
    }
}

#[expect(clippy::cast_precision_loss, reason = "places in a drawing")]
fn draw(title: &str, values: &BTreeMap<(&str, Option<u64>), f64>, low: f64, high: f64) -> String {
    let mut kinds: Vec<&str> = values.keys().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    // Tensors outside of the layers come last.
    kinds.sort_by_key(|kind| values.contains_key(&(*kind, None)));
    let mut layers: Vec<Option<u64>> = values.keys().map(|(_, layer)| *layer).collect();
    layers.sort_by_key(|layer| layer.map_or(u64::MAX, |layer| layer));
    layers.dedup();
    let (width, height) = (LEFT + CELL * layers.len() as f64 + 6.0, TOP + HEIGHT * kinds.len() as f64 + 4.0);
    let mut svg = format!(
        "<svg class=\"heatmap\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">",
        escape(title)
    );
    let every = layers.len().div_ceil(24);
    for (column, layer) in layers.iter().enumerate() {
        if column % every == 0 || layer.is_none() {
            let text = layer.map_or_else(|| "\u{2013}".to_owned(), |layer| layer.to_string());
            let x = LEFT + CELL * (column as f64 + 0.5);
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                TOP - 7.0
            );
        }
    }
    for (row, kind) in kinds.iter().enumerate() {
        let y = TOP + HEIGHT * row as f64;
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 14.0,
            escape(kind)
        );
        for (column, layer) in layers.iter().enumerate() {
            let Some(value) = values.get(&(*kind, *layer)) else { continue };
            let _ = write!(
                svg,
                "<rect class=\"h{}\" x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\"><title>{}{}: {value:.2e}</title></rect>",
                level(*value, low, high),
                LEFT + CELL * column as f64,
                CELL - 1.0,
                HEIGHT - 1.0,
                escape(kind),
                layer.map_or_else(String::new, |layer| format!(", layer {layer}"))
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_layer_and_kind() {
        assert_eq!(place("blk.12.attn_q.weight"), (Some(12), "attn_q"));
        assert_eq!(place("token_embd.weight"), (None, "token_embd"));
        assert_eq!(place("blk.3"), (Some(3), "all"));
    }

    #[test]
    fn larger_errors_are_darker() {
        assert_eq!([1e-6, 1e-4, 1e-2].map(|value| level(value, 1e-6, 1e-2)), [0, 5, 10]);
        assert_eq!(level(0.0, 1e-6, 1e-2), 0);
    }
}
