//! What a scheme entry of the configuration expands to, matched with the loaded plugins.

use crate::config::{Config, ConfigError, RuleEntry, SchemeEntry, SchemeRequest};
use crate::schema::Mistake;
use crate::yaml::{Node, Place, Tree};
use kbit_host::{HostError, Isolation, ParamKind, ParamValue, ParamValues, Registry, Scheme, SchemeSpec};
use regex::Regex;
use std::sync::Arc;

/// A scheme with resolved parameters.
#[derive(Clone)]
pub struct Chosen {
    /// The scheme.
    pub scheme: Arc<Scheme>,
    /// Every parameter, defaults filled in.
    pub params: ParamValues,
    /// Where the plugin runs.
    pub isolation: Isolation,
}

impl Chosen {
    /// Scheme id, plugin hash and parameters, as canonical JSON: two equal texts mean equal bytes.
    #[must_use]
    pub fn fingerprint(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.scheme.id(),
            "params": self.params,
            "plugin": { "version": self.scheme.plugin().version(), "sha256": self.scheme.plugin().sha256() },
        })
    }
}

/// One output a model: a scheme for most tensors, others by rule.
#[derive(Clone)]
pub struct Recipe {
    /// Name in tables and of the file.
    pub label: String,
    /// Family in tables: the scheme's short name.
    pub family: String,
    /// The scheme for tensors without a rule.
    pub main: Chosen,
    /// Rules in order; `None` keeps the tensor as f32.
    pub rules: Vec<(Regex, Option<Chosen>)>,
}

impl Recipe {
    /// The recipe for one scheme argument of the command line, with `rules` as `REGEX=SCHEME`.
    ///
    /// # Errors
    /// An unknown scheme or parameter, or a rule that is not a regular expression.
    pub fn from_arguments(
        registry: &Registry,
        scheme: &str,
        rules: &[(Regex, String)],
        isolation: Isolation,
    ) -> Result<Self, HostError> {
        let choose = |text: &str| -> Result<(SchemeSpec, Chosen), HostError> {
            let spec: SchemeSpec = text.parse()?;
            let found = scheme_named(registry, &spec.name)?;
            let params = found.resolve(&spec.params)?;
            Ok((spec, Chosen { scheme: found, params, isolation }))
        };
        let (spec, main) = choose(scheme)?;
        let rules = rules
            .iter()
            .map(|(pattern, text)| {
                Ok((pattern.clone(), if text == "f32" { None } else { Some(choose(text)?.1) }))
            })
            .collect::<Result<_, HostError>>()?;
        Ok(Self { label: spec.to_string(), family: family(&spec.name), main, rules })
    }

    /// The scheme for the tensor `name`; `None` keeps it as f32.
    #[must_use]
    pub fn choose(&self, name: &str) -> Option<&Chosen> {
        match self.rules.iter().find(|(pattern, _)| pattern.is_match(name)) {
            Some((_, chosen)) => chosen.as_ref(),
            None => Some(&self.main),
        }
    }

    /// Nominal bits a weight: the ggml type's, or the scheme's parameter `bits`.
    #[must_use]
    pub fn nominal_bits(&self) -> Option<f64> {
        if let Some(ty) = self.main.scheme.ggml_type() {
            return Some(nominal_ggml_bits(ty.name()));
        }
        match self.main.params.get("bits") {
            #[expect(clippy::cast_precision_loss, reason = "a bit width is small")]
            Some(ParamValue::Int(bits)) => Some(*bits as f64),
            _ => None,
        }
    }
}

/// The scheme of that name. The bare name of a ggml type is llama-quantize's name of a mix of types, and is not taken for the
/// type.
fn scheme_named(registry: &Registry, name: &str) -> Result<Arc<Scheme>, HostError> {
    let block_type = format!("ggml:{name}");
    if !name.contains([':', '.']) && registry.scheme(&block_type).is_ok() {
        return Err(HostError::UnknownScheme { name: name.to_owned(), nearest: vec![block_type] });
    }
    registry.scheme(name)
}

/// The first number in a ggml type's name: `Q4_0` has 4 bits, `BF16` has 16.
fn nominal_ggml_bits(name: &str) -> f64 {
    let digits: String =
        name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0.0)
}

/// `ggml:q4_0` and `org.kbit.int/1` belong to the families `ggml` and `int`.
fn family(name: &str) -> String {
    let short = name.split(':').next().unwrap_or(name);
    let short = short.split('/').next().unwrap_or(short);
    if short.split('.').any(|part| part == "ggml") {
        return "ggml".to_owned();
    }
    short.rsplit('.').next().unwrap_or(short).to_owned()
}

/// Expands the grids of `config` and matches every scheme with the loaded plugins.
///
/// # Errors
/// Every unknown scheme or parameter and every value out of range, with its place.
pub fn recipes(config: &Config, registry: &Registry) -> Result<Vec<Recipe>, ConfigError> {
    let mut resolver = Resolver { config, registry, mistakes: Vec::new() };
    let mut recipes: Vec<Recipe> = Vec::new();
    for entry in &config.schemes {
        for recipe in resolver.expand(entry) {
            if let Some(earlier) = recipes.iter().find(|earlier| earlier.label == recipe.label) {
                let message = format!("the scheme `{}` is listed twice", earlier.label);
                let help = "remove one, or give one a `label:` of its own";
                resolver.mistakes.push(Mistake::new(entry.request.place, message, help));
            } else {
                recipes.push(recipe);
            }
        }
    }
    if resolver.mistakes.is_empty() { Ok(recipes) } else { Err(config.error(resolver.mistakes)) }
}

struct Resolver<'a> {
    config: &'a Config,
    registry: &'a Registry,
    mistakes: Vec<Mistake>,
}

impl Resolver<'_> {
    fn expand(&mut self, entry: &SchemeEntry) -> Vec<Recipe> {
        let isolation = if entry.isolated.unwrap_or(self.config.isolated) {
            Isolation::Process
        } else {
            Isolation::InProcess
        };
        let rules = entry.rules.as_ref().unwrap_or(&self.config.rules);
        let rules = self.rules(rules, isolation);
        let expanded = self.request(&entry.request, isolation);
        if entry.label.is_some() && expanded.len() > 1 {
            let message = format!("one `label` cannot name {} runs", expanded.len());
            self.mistakes.push(Mistake::new(
                entry.request.place,
                message,
                "remove `label`, or the lists in `params`",
            ));
            return Vec::new();
        }
        expanded
            .into_iter()
            .map(|(spec, main)| Recipe {
                label: entry.label.clone().unwrap_or_else(|| spec.to_string()),
                family: family(&spec.name),
                main,
                rules: rules.clone(),
            })
            .collect()
    }

    fn rules(&mut self, rules: &[RuleEntry], isolation: Isolation) -> Vec<(Regex, Option<Chosen>)> {
        let mut resolved = Vec::new();
        for rule in rules {
            let chosen = match &rule.scheme {
                None => None,
                Some(request) => match self.request(request, isolation).pop() {
                    Some((_, chosen)) => Some(chosen),
                    None => continue,
                },
            };
            resolved.push((rule.pattern.clone(), chosen));
        }
        resolved
    }

    /// Every combination of the request's parameter lists, the last key fastest.
    fn request(&mut self, request: &SchemeRequest, isolation: Isolation) -> Vec<(SchemeSpec, Chosen)> {
        let found = request
            .text
            .parse::<SchemeSpec>()
            .and_then(|spec| Ok((scheme_named(self.registry, &spec.name)?, spec)));
        let (scheme, spec) = match found {
            Ok(found) => found,
            Err(error) => {
                self.host_mistake(request.place, &error);
                return Vec::new();
            }
        };
        let mut grid = vec![spec.params.clone()];
        for (key, place, node) in &request.params {
            let takes_list = scheme
                .params()
                .iter()
                .any(|param| &param.key == key && matches!(param.kind, ParamKind::Numbers));
            let values: Vec<ParamValue> = if takes_list {
                numbers(node).into_iter().collect()
            } else {
                node.items().iter().filter_map(scalar).collect()
            };
            if values.is_empty() {
                let message = format!("the parameter `{key}` cannot be {}", node.kind());
                self.mistakes.push(Mistake::new(
                    node.place,
                    message,
                    "give a number, a word, true or false, or a list of them",
                ));
                return Vec::new();
            }
            // One value at a time against the scheme's declaration, so that a mistake is told once, at its key.
            for value in &values {
                let mut single = ParamValues::new();
                single.insert(key.clone(), value.clone());
                if let Err(error) = scheme.check_values(&single) {
                    self.host_mistake(*place, &error);
                    return Vec::new();
                }
            }
            grid = grid
                .iter()
                .flat_map(|params| {
                    values.iter().map(|value| {
                        let mut params = params.clone();
                        params.insert(key.clone(), value.clone());
                        params
                    })
                })
                .collect();
        }
        let mut chosen = Vec::new();
        for params in grid {
            match scheme.resolve(&params).and_then(|resolved| {
                // Opening lets the scheme itself refuse combinations of values, before any tensor is read.
                scheme.open(&resolved, Isolation::InProcess)?;
                Ok(resolved)
            }) {
                Ok(resolved) => {
                    let spec = SchemeSpec { name: spec.name.clone(), params };
                    chosen.push((spec, Chosen { scheme: Arc::clone(&scheme), params: resolved, isolation }));
                }
                Err(error) => {
                    self.host_mistake(request.place, &error);
                    return Vec::new();
                }
            }
        }
        chosen
    }

    fn host_mistake(&mut self, place: Place, error: &HostError) {
        self.mistakes.push(Mistake::new(
            place,
            error.to_string(),
            "`kbit plugin list` and `kbit plugin show NAME` tell what there is",
        ));
    }
}

fn scalar(node: &Node) -> Option<ParamValue> {
    match &node.value {
        Tree::Bool(value) => Some(ParamValue::Bool(*value)),
        Tree::Int(value) => Some(ParamValue::Int(*value)),
        Tree::Float(value) => Some(ParamValue::Float(*value)),
        Tree::Str(value) => Some(ParamValue::Str(value.clone())),
        Tree::Null | Tree::List(_) | Tree::Map(_) => None,
    }
}

fn numbers(node: &Node) -> Option<ParamValue> {
    #[expect(clippy::cast_precision_loss, reason = "a parameter declared as numbers is read as f64")]
    let number = |item: &Node| match item.value {
        Tree::Int(value) => Some(value as f64),
        Tree::Float(value) => Some(value),
        _ => None,
    };
    node.items().iter().map(number).collect::<Option<Vec<_>>>().map(ParamValue::Numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_short_names() {
        for (name, expected) in [
            ("int", "int"),
            ("ggml:q4_0", "ggml"),
            ("org.kbit.ggml.q4_0/1", "ggml"),
            ("org.kbit.c-rtn/1", "c-rtn"),
        ] {
            assert_eq!(family(name), expected);
        }
    }

    #[test]
    fn nominal_bits_come_from_the_name_of_a_ggml_type() {
        for (name, bits) in [("Q4_0", 4.0), ("BF16", 16.0), ("F32", 32.0), ("Q8_0", 8.0)] {
            assert!((nominal_ggml_bits(name) - bits).abs() < f64::EPSILON);
        }
    }
}
