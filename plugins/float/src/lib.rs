//! Small floating-point data types, 3 to 8 bits.
