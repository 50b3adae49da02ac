//! The measurement record: JSON lines, schema, merging.
