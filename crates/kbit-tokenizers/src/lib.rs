//! Text to tokens and back, from GGUF metadata and Hugging Face files.
