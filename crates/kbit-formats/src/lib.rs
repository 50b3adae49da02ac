//! Checkpoints in, packed files out: safetensors and GGUF.
