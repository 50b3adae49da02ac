//! CPU inference over codecs: forward pass, KV cache, kernels, sampling.
