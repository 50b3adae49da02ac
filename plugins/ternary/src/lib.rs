//! Absmean ternary weights, five to a byte.
