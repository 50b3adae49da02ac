//! Mixes in recipes and plans: which one a scheme argument names, and what it chooses for the tensors of a model.

use crate::error::PipelineError;
use crate::recipe::Recipe;
use kbit_formats::gguf::Metadata;
use kbit_mixes::{Choice, Mix, ModelFacts, Options, TensorFacts};
use kbit_models::Conversion;
use kbit_types::GgmlType;
use kbit_yaml::DocumentError;
use std::path::Path;

/// A scheme argument that begins so names a mix of the user's own by its file.
const FILE: &str = "mix:";

/// A mix with options.
#[derive(Clone, Debug)]
pub struct MixRecipe {
    /// The mix.
    pub mix: Mix,
    /// How it is applied.
    pub options: MixOptions,
}

/// llama-quantize's options for the types of a file, under kbit's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MixOptions {
    /// The mix's own type for all matrices.
    pub pure: bool,
    /// The output matrix stays as it is.
    pub leave_output: bool,
    /// Type of the output matrix.
    pub output_type: Option<GgmlType>,
    /// Type of the token embeddings.
    pub embedding_type: Option<GgmlType>,
}

impl MixOptions {
    /// The names of those that are set.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        [
            (self.pure, "pure"),
            (self.leave_output, "leave_output"),
            (self.output_type.is_some(), "output_type"),
            (self.embedding_type.is_some(), "embedding_type"),
        ]
        .into_iter()
        .filter_map(|(given, name)| given.then_some(name))
        .collect()
    }
}

impl MixRecipe {
    /// The mix that `text` names, if it names one: a file type of llama-quantize, or `mix:FILE`; relative paths start at `folder`.
    ///
    /// # Errors
    /// Every mistake in the file.
    pub fn named(text: &str, folder: &Path, options: &MixOptions) -> Option<Result<Self, DocumentError>> {
        let mix = match text.strip_prefix(FILE) {
            Some(path) => Mix::read(&folder.join(path)),
            None => Ok(kbit_mixes::builtin(text)?.clone()),
        };
        Some(mix.map(|mix| Self { mix, options: options.clone() }))
    }

    /// Name in tables: llama-quantize's in lower case, or `mix:` and the name of the user's own.
    #[must_use]
    pub fn label(&self) -> String {
        let name = self.mix.name.to_lowercase();
        let is_own = kbit_mixes::builtin(&name).is_none_or(|known| known.name != self.mix.name);
        if is_own { format!("{FILE}{}", self.mix.name) } else { name }
    }

    /// Which of llama.cpp's file types the file has. A copy has that of its source: `stated`, or what the types of its tensors, `types`,
    /// let guess.
    pub(crate) fn file_type(
        &self,
        stated: Option<u32>,
        types: impl IntoIterator<Item = GgmlType>,
    ) -> Option<u32> {
        match self.mix.main {
            Some(main) => self.mix.file_type.or_else(|| kbit_mixes::file_type_of(main)),
            None => stated.or_else(|| Some(kbit_mixes::guessed_file_type(types))),
        }
    }

    /// What the mix chooses for the tensors of `conversion`, in their order. `metadata` is that of the conversion, edited; the rules of
    /// `recipe` come before the mix's.
    pub(crate) fn choose(
        &self,
        conversion: &Conversion,
        metadata: &Metadata,
        recipe: &Recipe,
        importance: bool,
        in_given_order: bool,
    ) -> Result<Vec<Choice>, PipelineError> {
        let options = Options {
            in_given_order,
            pure: self.options.pure,
            leave_output: self.options.leave_output,
            output_type: self.options.output_type,
            embedding_type: self.options.embedding_type,
            overrides: recipe
                .rules
                .iter()
                .map(|(pattern, chosen)| {
                    let ty = match chosen {
                        None => Some(GgmlType::F32),
                        Some(chosen) => chosen.scheme.ggml_type(),
                    };
                    (pattern.clone(), ty)
                })
                .collect(),
        };
        let tensors: Vec<_> = conversion
            .tensors
            .iter()
            .map(|tensor| TensorFacts { name: &tensor.name, shape: &tensor.shape })
            .collect();
        let model = ModelFacts::from_metadata(metadata);
        Ok(kbit_mixes::choose(&self.mix, &model, &tensors, &options, importance)?)
    }
}
