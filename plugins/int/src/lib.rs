//! Integer quantization, 2 to 8 bits.
