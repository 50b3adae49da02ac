//! ggml block types as kbit schemes.
