//! SDK for authors of kbit quantization schemes in Rust.
