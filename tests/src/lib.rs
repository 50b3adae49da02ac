//! End-to-end tests of kbit: whole commands on real files.
