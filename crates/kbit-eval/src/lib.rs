//! Quality metrics over the engine: perplexity, KL divergence, bits per byte.
