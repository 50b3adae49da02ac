//! Decoding super-blocks of 256 weights: Q2_K to Q6_K, in ggml's order of operations.
//!
//! Layouts: Q2_K `scales 16, q 64, d f16, dmin f16`; Q3_K `high 32, q 64, scales 12, d f16`; Q4_K `d, dmin, scales 12, q 128`;
//! Q5_K `d, dmin, scales 12, high 32, q 128`; Q6_K `low 128, high 64, scales 16, d f16`.

use half::f16;

fn get(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

pub fn decode_q2_k(bytes: &[u8], out: &mut [f32]) {
    let (scales, q) = (&bytes[..16], &bytes[16..80]);
    let (d, dmin) = (get(bytes, 80), get(bytes, 82));
    for (part, out) in out.chunks_mut(16).enumerate() {
        // 128 weights share 32 bytes; within, each pair of 16 takes the next two bits.
        let (half, inside) = (part / 8, part % 8);
        let scale = scales[part];
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let q = &q[half * 32 + inside % 2 * 16..];
        for (out, q) in out.iter_mut().zip(q) {
            *out = dl * f32::from(q >> (inside / 2 * 2) & 3) - ml;
        }
    }
}

pub fn decode_q3_k(bytes: &[u8], out: &mut [f32]) {
    let (high, q, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    let d = get(bytes, 108);
    for (part, out) in out.chunks_mut(16).enumerate() {
        let (half, inside) = (part / 8, part % 8);
        // Four low bits of scales 0..8 and 8..16 share bytes 0..8; two high bits of four scales share bytes 8..12.
        let low = packed[part % 8] >> (part / 8 * 4) & 15;
        let top = packed[8 + part % 4] >> (part / 4 * 2) & 3;
        let dl = d * (f32::from(low | top << 4) - 32.0);
        let mask = 1u8 << (half * 4 + inside / 2);
        for (l, out) in out.iter_mut().enumerate() {
            let at = inside % 2 * 16 + l;
            let level = q[half * 32 + at] >> (inside / 2 * 2) & 3;
            let below = if high[at] & mask == 0 { 4.0 } else { 0.0 };
            *out = dl * (f32::from(level) - below);
        }
    }
}

/// Scale and minimum `j` of the twelve packed bytes of Q4_K and Q5_K, six bits each.
fn scale_and_minimum(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

pub fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (get(bytes, 0), get(bytes, 2));
    let (packed, q) = (&bytes[4..16], &bytes[16..]);
    for (part, out) in out.chunks_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(part, packed);
        let (dl, ml) = (d * scale, dmin * minimum);
        for (out, q) in out.iter_mut().zip(&q[part / 2 * 32..]) {
            *out = dl * f32::from(q >> (part % 2 * 4) & 15) - ml;
        }
    }
}

pub fn decode_q5_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (get(bytes, 0), get(bytes, 2));
    let (packed, high, q) = (&bytes[4..16], &bytes[16..48], &bytes[48..]);
    for (part, out) in out.chunks_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(part, packed);
        let (dl, ml) = (d * scale, dmin * minimum);
        for ((out, q), high) in out.iter_mut().zip(&q[part / 2 * 32..]).zip(high) {
            let level = q >> (part % 2 * 4) & 15 | (high >> part & 1) << 4;
            *out = dl * f32::from(level) - ml;
        }
    }
}

pub fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    let d = get(bytes, 208);
    for (part, out) in out.chunks_mut(32).enumerate() {
        // 128 weights share 64 low bytes and 32 high ones: four runs of 32.
        let (half, run) = (part / 4, part % 4);
        for (l, out) in out.iter_mut().enumerate() {
            let nibble = low[half * 64 + run % 2 * 32 + l] >> (run / 2 * 4) & 15;
            let top = high[half * 32 + l] >> (run * 2) & 3;
            let scale = scales[half * 8 + l / 16 + run * 2].cast_signed();
            *out = d * f32::from(scale) * (f32::from(nibble | top << 4) - 32.0);
        }
    }
}
