//! The mixes and sets of rules that kbit brings: one file each under `mixes/`, listed here.

use crate::language::{Mix, Rule, parse_set};
use std::path::Path;
use std::sync::LazyLock;

macro_rules! files {
    ($folder:literal: $($name:ident,)*) => {
        &[$((stringify!($name), include_str!(concat!("../mixes/", $folder, stringify!($name), ".yaml")))),*]
    };
}

/// Mixes, by llama-quantize's number of the file type.
const MIXES: &[(&str, &str)] = files! { "":
    f32,
    f16,
    q4_0,
    q4_1,
    q8_0,
    q5_0,
    q5_1,
    q2_k,
    q3_k_s,
    q3_k_m,
    q3_k_l,
    q4_k_s,
    q4_k_m,
    q5_k_s,
    q5_k_m,
    q6_k,
    iq2_xxs,
    iq2_xs,
    q2_k_s,
    iq3_xs,
    iq3_xxs,
    iq1_s,
    iq4_nl,
    iq3_s,
    iq3_m,
    iq2_s,
    iq2_m,
    iq4_xs,
    iq1_m,
    bf16,
    tq1_0,
    tq2_0,
    mxfp4_moe,
    q1_0,
    q2_0,
    copy,
};

/// Rules that several mixes use.
const SETS: &[(&str, &str)] = files! { "sets/":
    kept,
    sensitive,
    output_q6_k,
    output_q5_k,
    eight_experts,
};

static PARSED_SETS: LazyLock<Vec<(&str, Vec<Rule>)>> = LazyLock::new(|| {
    SETS.iter().filter_map(|(name, text)| Some((*name, parse_set(Path::new(name), text).ok()?))).collect()
});

static PARSED: LazyLock<Vec<Mix>> = LazyLock::new(|| {
    MIXES.iter().filter_map(|(name, text)| Mix::parse(Path::new(name), text).ok()).collect()
});

/// The mixes that kbit brings: llama-quantize's file types, by their numbers.
#[must_use]
pub fn builtins() -> &'static [Mix] {
    &PARSED
}

/// The built-in mix of that name or alias, in any case.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static Mix> {
    let is = |known: &String| known.eq_ignore_ascii_case(name);
    builtins().iter().find(|mix| is(&mix.name) || mix.aliases.iter().any(is))
}

/// Tensors that no mix encodes.
pub(crate) fn kept() -> &'static [Rule] {
    PARSED_SETS.iter().find(|(name, _)| *name == "kept").map_or(&[], |(_, rules)| rules)
}

/// The rules of the built-in set or mix `name`. Sets come first, so that reading a mix asks only for sets.
pub(crate) fn rules(name: &str) -> Option<Vec<Rule>> {
    if let Some((_, rules)) = PARSED_SETS.iter().find(|(known, _)| *known == name) {
        return Some(rules.clone());
    }
    if !MIXES.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return None;
    }
    builtin(name).map(|mix| mix.rules.clone())
}

/// Names that `use` takes.
pub(crate) fn rule_names() -> Vec<&'static str> {
    MIXES.iter().chain(SETS).map(|(name, _)| *name).collect()
}

/// Every mistake in the built-in files.
#[cfg(test)]
fn mistakes() -> Vec<kbit_yaml::DocumentError> {
    let sets = SETS.iter().filter_map(|(name, text)| parse_set(Path::new(name), text).err());
    let mixes = MIXES.iter().filter_map(|(name, text)| Mix::parse(Path::new(name), text).err());
    sets.chain(mixes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_file_is_right() {
        let mistakes: Vec<String> = mistakes().iter().map(ToString::to_string).collect();
        assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
        assert_eq!(builtins().len(), MIXES.len());
    }

    #[test]
    fn every_file_of_the_folder_is_listed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mixes");
        for (folder, listed) in [(folder.clone(), MIXES), (folder.join("sets"), SETS)] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let stem = path.file_stem().unwrap().to_str().unwrap();
                assert!(path.is_dir() || listed.iter().any(|(name, _)| *name == stem), "{}", path.display());
            }
        }
    }

    #[test]
    fn names_are_found_in_any_case_and_by_alias() {
        assert_eq!(builtin("q4_k").unwrap().name, "Q4_K_M");
        assert_eq!(builtin("Iq4_Xs").unwrap().name, "IQ4_XS");
        assert!(builtin("q4_k_x").is_none());
    }

    #[test]
    fn names_of_mixes_are_the_names_of_their_files() {
        for ((stem, _), mix) in MIXES.iter().zip(builtins()) {
            assert_eq!(*stem, mix.name.to_lowercase());
            assert!(!mix.about.is_empty());
        }
    }
}
