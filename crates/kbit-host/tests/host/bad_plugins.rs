//! Deliberately bad plugins: each gets its clear message.
