//! Dynamic-exponent (tree) data type, 3 to 8 bits.
