//! What a scheme entry of the configuration expands to, matched with the loaded plugins.

use crate::config::{Config, ConfigError, RuleEntry, SchemeEntry, SchemeRequest};
use crate::error::PipelineError;
use crate::mix::{MixOptions, MixRecipe};
use kbit_host::{HostError, Isolation, ParamKind, ParamValue, ParamValues, Registry, Scheme, SchemeSpec};
use kbit_types::GgmlType;
use kbit_yaml::{Mistake, Node, Place, Tree};
use regex::Regex;
use std::path::Path;
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

/// What stores the tensors that no rule names.
#[derive(Clone)]
pub enum Main {
    /// One scheme for all matrices.
    Scheme(Chosen),
    /// A type each, by a mix.
    Mix(Box<MixRecipe>),
}

impl Main {
    /// Scheme id; of a mix, its label.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Scheme(chosen) => chosen.scheme.id().to_owned(),
            Self::Mix(mix) => mix.label(),
        }
    }

    /// Parameters of the scheme; of a mix, the options that are set.
    #[must_use]
    pub fn params(&self) -> Vec<(String, serde_json::Value)> {
        match self {
            Self::Scheme(chosen) => {
                chosen.params.iter().map(|(key, value)| (key.clone(), serde_json::json!(value))).collect()
            }
            Self::Mix(mix) => {
                let MixOptions { pure, leave_output, output_type, embedding_type } = &mix.options;
                let name = |ty: &Option<GgmlType>| serde_json::json!(ty.map(GgmlType::name));
                let all = [
                    ("pure", (*pure).into()),
                    ("leave_output", (*leave_output).into()),
                    ("output_type", name(output_type)),
                    ("embedding_type", name(embedding_type)),
                ];
                let given = mix.options.given();
                all.into_iter()
                    .filter(|(key, _)| given.contains(key))
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()
            }
        }
    }

    /// Where the plugin runs; the ggml types of mixes run in the process.
    #[must_use]
    pub const fn isolation(&self) -> Isolation {
        match self {
            Self::Scheme(chosen) => chosen.isolation,
            Self::Mix(_) => Isolation::InProcess,
        }
    }
}

/// One output a model: a scheme for most tensors, others by rule.
#[derive(Clone)]
pub struct Recipe {
    /// Name in tables and of the file.
    pub label: String,
    /// Family in tables: the scheme's short name.
    pub family: String,
    /// What stores tensors without a rule.
    pub main: Main,
    /// Rules in order; `None` keeps the tensor as f32.
    pub rules: Vec<(Regex, Option<Chosen>)>,
}

impl Recipe {
    /// The recipe for one scheme argument of the command line, with `rules` as `REGEX=SCHEME`. `options` go with a mix.
    ///
    /// # Errors
    /// An unknown scheme or parameter, mistakes in a mix of the user's own, or options that the scheme does not understand.
    pub fn from_arguments(
        registry: &Registry,
        scheme: &str,
        rules: &[(Regex, String)],
        options: &MixOptions,
        isolation: Isolation,
    ) -> Result<Self, PipelineError> {
        let choose = |spec: &SchemeSpec, found: Arc<Scheme>| -> Result<Chosen, HostError> {
            let params = found.resolve(&spec.params)?;
            Ok(Chosen { scheme: found, params, isolation })
        };
        let rules = rules
            .iter()
            .map(|(pattern, text)| {
                if text == "f32" {
                    return Ok((pattern.clone(), None));
                }
                let (spec, found) = scheme_of_rule(registry, text)?;
                Ok((pattern.clone(), Some(choose(&spec, found)?)))
            })
            .collect::<Result<_, PipelineError>>()?;
        if let Some(mix) = MixRecipe::named(scheme, Path::new(""), options) {
            return Ok(Self::of_mix(mix?, None, rules));
        }
        if let Some(option) = options.given().first() {
            return Err(PipelineError::MixOption { option, scheme: scheme.to_owned() });
        }
        let (spec, found) = scheme_written(registry, scheme)?;
        let main = Main::Scheme(choose(&spec, found)?);
        Ok(Self { label: spec.to_string(), family: family(&spec.name), main, rules })
    }

    fn of_mix(mix: MixRecipe, label: Option<String>, rules: Vec<(Regex, Option<Chosen>)>) -> Self {
        let label = label.unwrap_or_else(|| mix.label());
        Self { label, family: "mix".to_owned(), main: Main::Mix(Box::new(mix)), rules }
    }

    /// The rule for the tensor `name`, if there is one; its scheme, or `None` where that keeps the tensor as f32.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<Option<&Chosen>> {
        self.rules.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, chosen)| chosen.as_ref())
    }

    /// Nominal bits a weight: the ggml type's, or the scheme's parameter `bits`.
    #[must_use]
    pub fn nominal_bits(&self) -> Option<f64> {
        let chosen = match &self.main {
            Main::Mix(mix) => return mix.mix.main.map(|ty| nominal_ggml_bits(ty.name())),
            Main::Scheme(chosen) => chosen,
        };
        if let Some(ty) = chosen.scheme.ggml_type() {
            return Some(nominal_ggml_bits(ty.name()));
        }
        match chosen.params.get("bits") {
            #[expect(clippy::cast_precision_loss, reason = "a bit width is small")]
            Some(ParamValue::Int(bits)) => Some(*bits as f64),
            Some(ParamValue::Float(bits)) => Some(*bits),
            _ => None,
        }
    }
}

/// The scheme of that name. The bare name of a ggml type is not taken for the type; most are file types anyway.
fn scheme_named(registry: &Registry, name: &str) -> Result<Arc<Scheme>, HostError> {
    let block_type = format!("ggml:{name}");
    if !name.contains([':', '.']) && registry.scheme(&block_type).is_ok() {
        return Err(HostError::UnknownScheme { name: name.to_owned(), nearest: vec![block_type] });
    }
    registry.scheme(name).map_err(|error| match error {
        HostError::UnknownScheme { name, mut nearest } => {
            let names: Vec<_> = kbit_mixes::builtins().iter().map(|mix| mix.name.to_lowercase()).collect();
            nearest.extend(kbit_yaml::nearest(&name, names.iter().map(String::as_str)).map(str::to_owned));
            HostError::UnknownScheme { name, nearest }
        }
        error => error,
    })
}

/// The scheme that an entry of `schemes` names.
fn scheme_written(registry: &Registry, text: &str) -> Result<(SchemeSpec, Arc<Scheme>), PipelineError> {
    let spec: SchemeSpec = text.parse()?;
    let found = scheme_named(registry, &spec.name)?;
    Ok((spec, found))
}

/// The scheme that a rule names. For single tensors the bare name of a ggml type is that type, as in llama-quantize's
/// `--tensor-type`.
pub(crate) fn scheme_of_rule(
    registry: &Registry,
    text: &str,
) -> Result<(SchemeSpec, Arc<Scheme>), PipelineError> {
    if let Some(ty) = GgmlType::from_name(text) {
        let spec: SchemeSpec = format!("ggml:{}", ty.name().to_lowercase()).parse()?;
        let found = registry.scheme(&spec.name)?;
        return Ok((spec, found));
    }
    if text.starts_with("mix:") || kbit_mixes::builtin(text).is_some() {
        return Err(PipelineError::MixInRule { name: text.to_owned() });
    }
    scheme_written(registry, text)
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

/// How a scheme is found by what is written: [`scheme_written`] or [`scheme_of_rule`].
type Find = fn(&Registry, &str) -> Result<(SchemeSpec, Arc<Scheme>), PipelineError>;

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
        let folder = self.config.file.parent().unwrap_or(Path::new(""));
        if let Some(mix) = MixRecipe::named(&entry.request.text, folder, &entry.mix) {
            return self.mix(entry, mix, rules);
        }
        if let Some(option) = entry.mix.given().first() {
            let error = PipelineError::MixOption { option, scheme: entry.request.text.clone() };
            self.mistakes.push(Mistake::new(entry.request.place, error.to_string(), "remove the key"));
            return Vec::new();
        }
        let expanded = self.request(&entry.request, scheme_written, isolation);
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
                main: Main::Scheme(main),
                rules: rules.clone(),
            })
            .collect()
    }

    fn mix(
        &mut self,
        entry: &SchemeEntry,
        mix: Result<MixRecipe, ConfigError>,
        rules: Vec<(Regex, Option<Chosen>)>,
    ) -> Vec<Recipe> {
        if let Some((key, place, _)) = entry.request.params.first() {
            let message = format!("a mix has no parameter `{key}`");
            self.mistakes.push(Mistake::new(
                *place,
                message,
                "its options stand beside `scheme`: pure, leave_output, output_type, embedding_type",
            ));
        }
        match mix {
            Ok(mix) => vec![Recipe::of_mix(mix, entry.label.clone(), rules)],
            Err(error) => {
                let help = "mend the mix; every mistake is told with its place in that file";
                self.mistakes.push(Mistake::new(entry.request.place, error.to_string(), help));
                Vec::new()
            }
        }
    }

    fn rules(&mut self, rules: &[RuleEntry], isolation: Isolation) -> Vec<(Regex, Option<Chosen>)> {
        let mut resolved = Vec::new();
        for rule in rules {
            let chosen = match &rule.scheme {
                None => None,
                Some(request) => match self.request(request, scheme_of_rule, isolation).pop() {
                    Some((_, chosen)) => Some(chosen),
                    None => continue,
                },
            };
            resolved.push((rule.pattern.clone(), chosen));
        }
        resolved
    }

    /// Every combination of the request's parameter lists, the last key fastest.
    fn request(
        &mut self,
        request: &SchemeRequest,
        find: Find,
        isolation: Isolation,
    ) -> Vec<(SchemeSpec, Chosen)> {
        let (spec, scheme) = match find(self.registry, &request.text) {
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

    fn host_mistake(&mut self, place: Place, error: &dyn std::error::Error) {
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
