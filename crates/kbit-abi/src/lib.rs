//! The kbit plugin ABI: C header and its no_std Rust mirror.
