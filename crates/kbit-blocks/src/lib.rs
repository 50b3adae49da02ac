//! ggml block types: encode, decode, dot.
