//! training.json: what a model cost, for laws of quality against size.

use crate::ModelError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Parameters, tokens and operations of a model's training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingInfo {
    /// Parameters.
    pub params: u64,
    /// Tokens that it was trained on.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Floating-point operations of training.
    #[serde(default)]
    pub flops: Option<f64>,
}

impl TrainingInfo {
    /// Reads training.json of `folder`; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or says something else.
    pub fn read(folder: &Path) -> Result<Option<Self>, ModelError> {
        /// Largest file that is read, in bytes.
        const MAX_FILE: u64 = 1 << 20;
        let path = folder.join("training.json");
        let bad = |reason: String| ModelError::Config { path: path.clone(), reason };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(format!("{error}; check the file and its permissions"))),
            Ok(file) if file.len() > MAX_FILE => {
                return Err(bad(format!(
                    "it has {} bytes, where a few hundred make sense; check it",
                    file.len()
                )));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path)
            .map_err(|error| bad(format!("{error}; check the file and its permissions")))?;
        let info: Self = serde_json::from_slice(&bytes).map_err(|error| {
            bad(format!(
                "line {}, column {}: {error}; it needs params, and may have tokens and flops",
                error.line(),
                error.column()
            ))
        })?;
        if info.flops.is_some_and(|flops| !flops.is_finite() || flops < 0.0) {
            return Err(bad("flops is not a count; mend or remove it".to_owned()));
        }
        Ok(Some(info))
    }
}
