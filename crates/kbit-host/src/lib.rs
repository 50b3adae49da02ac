//! Finds, pins, inspects, loads and calls quantizer plugins.
