//! Packing codes of 1 to 8 bits, or in wide form of 1 to 16: code `i` takes the bits `[i * bits, (i + 1) * bits)` of the bytes, least
//! significant first.

/// Bytes that `count` codes of `bits` bits take.
#[must_use]
pub const fn packed_bytes(bits: u32, count: usize) -> usize {
    (count / 8) * bits as usize + (count % 8 * bits as usize).div_ceil(8)
}

/// Packs `codes` (each below `1 << bits`) into `out`; unused bits of the last byte are zero.
///
/// # Panics
/// If `bits` is not 1 to 8, or `out` is not [`packed_bytes`] long.
pub fn pack_codes(bits: u32, codes: &[u8], out: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits");
    assert_eq!(out.len(), packed_bytes(bits, codes.len()), "a buffer of the wrong size");
    match bits {
        1 => pack::<1>(codes, out),
        2 => pack::<2>(codes, out),
        3 => pack::<3>(codes, out),
        4 => pack::<4>(codes, out),
        5 => pack::<5>(codes, out),
        6 => pack::<6>(codes, out),
        7 => pack::<7>(codes, out),
        _ => out.copy_from_slice(codes),
    }
}

/// Unpacks `codes.len()` codes from `bytes`.
///
/// # Panics
/// If `bits` is not 1 to 8, or `bytes` is not [`packed_bytes`] long.
pub fn unpack_codes(bits: u32, bytes: &[u8], codes: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits");
    assert_eq!(bytes.len(), packed_bytes(bits, codes.len()), "a buffer of the wrong size");
    match bits {
        1 => unpack::<1>(bytes, codes),
        2 => unpack::<2>(bytes, codes),
        3 => unpack::<3>(bytes, codes),
        4 => unpack::<4>(bytes, codes),
        5 => unpack::<5>(bytes, codes),
        6 => unpack::<6>(bytes, codes),
        7 => unpack::<7>(bytes, codes),
        _ => codes.copy_from_slice(bytes),
    }
}

/// As [`pack_codes`], of codes of 1 to 16 bits: indices of codebooks with more than 256 entries.
///
/// # Panics
/// If `bits` is not 1 to 16, or `out` is not [`packed_bytes`] long.
pub fn pack_wide_codes(bits: u32, codes: &[u16], out: &mut [u8]) {
    assert!((1..=16).contains(&bits), "wide codes have 1 to 16 bits");
    assert_eq!(out.len(), packed_bytes(bits, codes.len()), "a buffer of the wrong size");
    for (eight, bytes) in codes.chunks(8).zip(out.chunks_mut(bits as usize)) {
        let word = eight.iter().rev().fold(0u128, |word, code| word << bits | u128::from(*code));
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// As [`unpack_codes`], of codes of 1 to 16 bits.
///
/// # Panics
/// If `bits` is not 1 to 16, or `bytes` is not [`packed_bytes`] long.
pub fn unpack_wide_codes(bits: u32, bytes: &[u8], codes: &mut [u16]) {
    assert!((1..=16).contains(&bits), "wide codes have 1 to 16 bits");
    assert_eq!(bytes.len(), packed_bytes(bits, codes.len()), "a buffer of the wrong size");
    let mask = u16::MAX >> (16 - bits);
    for (eight, bytes) in codes.chunks_mut(8).zip(bytes.chunks(bits as usize)) {
        let mut word = [0; 16];
        word[..bytes.len()].copy_from_slice(bytes);
        let mut word = u128::from_le_bytes(word);
        for code in eight {
            #[expect(clippy::cast_possible_truncation, reason = "masked to at most 16 bits")]
            {
                *code = word as u16 & mask;
            }
            word >>= bits;
        }
    }
}

/// Eight codes make exactly `BITS` bytes, so they are gathered in one word.
fn pack<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    let word = |eight: &[u8]| {
        eight.iter().enumerate().fold(0u64, |word, (i, code)| word | u64::from(*code) << (i * BITS))
    };
    let (eights, rest) = codes.as_chunks::<8>();
    let (whole, last) = out.split_at_mut(eights.len() * BITS);
    for (eight, bytes) in eights.iter().zip(whole.chunks_exact_mut(BITS)) {
        bytes.copy_from_slice(&word(eight).to_le_bytes()[..BITS]);
    }
    last.copy_from_slice(&word(rest).to_le_bytes()[..last.len()]);
}

fn unpack<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    let mask = (1u64 << BITS) - 1;
    let word = |bytes: &[u8]| {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(eight)
    };
    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 8 bits")]
    let code = |word: u64, i: usize| (word >> (i * BITS) & mask) as u8;
    let (eights, rest) = codes.as_chunks_mut::<8>();
    let (whole, last) = bytes.split_at(eights.len() * BITS);
    for (eight, bytes) in eights.iter_mut().zip(whole.chunks_exact(BITS)) {
        let word = word(bytes);
        *eight = std::array::from_fn(|i| code(word, i));
    }
    let word = word(last);
    for (i, out) in rest.iter_mut().enumerate() {
        *out = code(word, i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_one_another_from_the_least_significant_bit() {
        let mut out = [0; 2];
        pack_codes(3, &[1, 2, 3, 4, 5], &mut out);
        assert_eq!(u16::from_le_bytes(out), 1 | 2 << 3 | 3 << 6 | 4 << 9 | 5 << 12);
    }

    #[test]
    fn unpacking_gives_back_what_was_packed() {
        let mut state = 1u32;
        for bits in 1..=8 {
            for count in 0..40 {
                let codes: Vec<u8> = (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 24) as u8 >> (8 - bits)
                    })
                    .collect();
                let mut bytes = vec![0xff; packed_bytes(bits, count)];
                pack_codes(bits, &codes, &mut bytes);
                let mut back = vec![0xff; count];
                unpack_codes(bits, &bytes, &mut back);
                assert_eq!(back, codes, "{bits} bits");
                let used = bits as usize * count;
                if !used.is_multiple_of(8) {
                    assert_eq!(bytes[used / 8] >> (used % 8), 0, "unused bits are zero");
                }
            }
        }
    }

    #[test]
    fn wide_codes_are_packed_as_narrow_ones_and_come_back() {
        let mut state = 7u32;
        for bits in 1..=16 {
            for count in 0..40 {
                let codes: Vec<u16> = (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 16) as u16 >> (16 - bits)
                    })
                    .collect();
                let mut bytes = vec![0xff; packed_bytes(bits, count)];
                pack_wide_codes(bits, &codes, &mut bytes);
                let mut back = vec![0xffff; count];
                unpack_wide_codes(bits, &bytes, &mut back);
                assert_eq!(back, codes, "{bits} bits");
                if bits <= 8 {
                    let narrow: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                    let mut other = vec![0xff; bytes.len()];
                    pack_codes(bits, &narrow, &mut other);
                    assert_eq!(other, bytes, "{bits} bits");
                }
            }
        }
    }
}
