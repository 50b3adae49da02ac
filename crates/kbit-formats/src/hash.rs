//! SHA-256 and XXH64, as lower-case hexadecimal.

use crate::FormatError;
use sha2::Digest;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A running SHA-256.
#[derive(Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// The hash of nothing so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 64 hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A running XXH64 with seed 0, as llama-gguf-hash takes it. Fast, and no protection against intent.
///
/// Source: the XXH64 specification in the repository of xxHash (`doc/xxhash_spec.md`).
#[derive(Clone)]
pub struct Xxh64 {
    lanes: [u64; 4],
    /// Bytes that do not fill a stripe yet.
    rest: [u8; STRIPE],
    held: usize,
    total: u64,
}

/// Bytes of a stripe: one word a lane.
const STRIPE: usize = 32;
const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

impl Default for Xxh64 {
    fn default() -> Self {
        let lanes = [PRIME_1.wrapping_add(PRIME_2), PRIME_2, 0, PRIME_1.wrapping_neg()];
        Self { lanes, rest: [0; STRIPE], held: 0, total: 0 }
    }
}

const fn mixed(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

impl Xxh64 {
    /// The hash of nothing so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn stripe(&mut self, stripe: &[u8; STRIPE]) {
        for (lane, word) in self.lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = mixed(*lane, u64::from_le_bytes(*word));
        }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.held > 0 {
            let taken = bytes.len().min(STRIPE - self.held);
            self.rest[self.held..self.held + taken].copy_from_slice(&bytes[..taken]);
            self.held += taken;
            bytes = &bytes[taken..];
            if self.held < STRIPE {
                return;
            }
            let stripe = self.rest;
            self.stripe(&stripe);
            self.held = 0;
        }
        let (stripes, rest) = bytes.as_chunks::<STRIPE>();
        stripes.iter().for_each(|stripe| self.stripe(stripe));
        self.rest[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    /// 16 hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        let mut hash = if self.total < STRIPE as u64 {
            PRIME_5
        } else {
            let rotations = self.lanes.iter().zip([1, 7, 12, 18]);
            let sum = rotations.fold(0u64, |sum, (lane, by)| sum.wrapping_add(lane.rotate_left(by)));
            self.lanes
                .iter()
                .fold(sum, |hash, lane| (hash ^ mixed(0, *lane)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4))
        };
        hash = hash.wrapping_add(self.total);
        let (words, rest) = self.rest[..self.held].as_chunks::<8>();
        for word in words {
            hash ^= mixed(0, u64::from_le_bytes(*word));
            hash = hash.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME_1);
            hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
        }
        for byte in rest {
            hash ^= u64::from(*byte).wrapping_mul(PRIME_5);
            hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME_2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME_3);
        format!("{:016x}", hash ^ (hash >> 32))
    }
}

/// A running checksum of one of two kinds.
pub enum Checksum {
    /// For what others will check.
    Sha256(Sha256),
    /// Ten times as fast, for what only guards against accidents.
    Xxh64(Box<Xxh64>),
}

impl Checksum {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Xxh64(hash) => hash.update(bytes),
        }
    }

    /// Hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        match self {
            Self::Sha256(hash) => hash.hex(),
            Self::Xxh64(hash) => hash.hex(),
        }
    }
}

/// The hash of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hash.hex()
}

/// The hash of the file `path`.
///
/// # Errors
/// When it cannot be read.
pub fn file_hex(path: &Path) -> Result<String, FormatError> {
    let mut file = File::open(path).map_err(FormatError::io(path, "opening"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(FormatError::io(path, "reading"))? {
            0 => return Ok(hash.hex()),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    /// Known values of the xxHash project and of its Python package's documentation.
    #[test]
    fn xxh64_has_its_known_values_however_the_bytes_come() {
        for (text, expected) in [
            ("", "ef46db3751d8e999"),
            ("a", "d24ec4f1a98c6e5b"),
            ("abc", "44bc2cf5ad770999"),
            ("Nobody inspects the spammish repetition", "fbcea83c8a378bf1"),
        ] {
            for step in [1, 3, 32, 100] {
                let mut hash = super::Xxh64::new();
                text.as_bytes().chunks(step).for_each(|piece| hash.update(piece));
                assert_eq!(hash.hex(), expected, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn the_hash_of_abc_is_that_of_fips_180() {
        assert_eq!(super::hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
