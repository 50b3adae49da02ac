//! F32, F16 and BF16: rounding to nearest even.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub fn encode_f32(values: &[f32], out: &mut [u8]) {
    for (value, bytes) in values.iter().zip(out.as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
}

pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// `half` converts slices with F16C where the CPU has it; the results are those of the portable conversion.
pub fn encode_f16(values: &[f32], out: &mut [u8]) {
    let mut halves = [f16::ZERO; super::RUN];
    let halves = &mut halves[..values.len()];
    halves.convert_from_f32_slice(values);
    for (half, bytes) in halves.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = half.to_le_bytes();
    }
}

pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; super::RUN];
    let halves = &mut halves[..out.len()];
    for (bytes, half) in bytes.as_chunks::<2>().0.iter().zip(halves.iter_mut()) {
        *half = f16::from_le_bytes(*bytes);
    }
    halves.convert_to_f32_slice(out);
}

pub fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (value, bytes) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        // Not NaN (checked before), so rounding cannot carry into the sign.
        let bits = value.to_bits();
        *bytes = ((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes();
    }
}

pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *value = bf16::from_le_bytes(*bytes).to_f32();
    }
}
