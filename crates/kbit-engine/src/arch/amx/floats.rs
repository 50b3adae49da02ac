//! Products of bf16.
//!
//! The instruction adds up products of even columns, and of odd ones, in the order of the columns, 16 each from zero; then both sums;
//! then that to the sum so far. Numbers that are subnormal count as zero. No vector instruction does the same at any speed, so these
//! products are the only ones that differ (in the last bits) from those of other instruction sets.

use super::{AMX_TOKENS, Amx, Lines, ROW, ROW_UNITS, TILE, Tiles};
use crate::packed::{Groups, PANEL, PanelProduct, Units};
use kbit_types::{STREAM_AHEAD, streams};
use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};

/// Asks for a line of four rows from `next` on, and goes on to the next four.
macro_rules! ask_four_rows {
    () => {
        "prefetcht1 [{next}]
         prefetcht1 [{next} + {stride}]
         prefetcht1 [{next} + {stride} * 2]
         prefetcht1 [{next} + {three}]
         lea {next}, [{next} + {stride} * 4]"
    };
}

impl Amx {
    /// How it wants activations of bf16 to be packed.
    pub(crate) const BF16_GROUPS: Groups = Groups { tokens: AMX_TOKENS, run: ROW_UNITS };

    /// See [`Kernels::multiply_bf16`](crate::Kernels::multiply_bf16).
    pub(crate) fn multiply_bf16(self, product: &mut PanelProduct<'_, '_>) {
        let (tokens, rows) = (product.out().rows(), product.out().cols());
        let mut tiles = Tiles::new(self);
        for first in (0..tokens).step_by(AMX_TOKENS) {
            let count = AMX_TOKENS.min(tokens - first);
            tiles.set(count, rows);
            multiply_group(&tiles, product, first, count);
        }
    }

    /// See [`Kernels::line`](crate::Kernels::line): rows of weights are the first operand, 16 of them as they lie in memory, and the
    /// activation `x`, filled up with zeros to whole rows of tiles, is the second. What is to be read of each row is asked for meanwhile.
    pub(crate) fn line_bf16(self, weights: Units<'_>, x: &[u32], out: &mut [f32]) {
        let bytes = weights.bytes();
        let (steps, rest) = (bytes / ROW, bytes % ROW);
        assert_eq!(x.len(), bytes.div_ceil(ROW) * ROW_UNITS, "an activation as tiles want it");
        assert_eq!(out.len(), weights.rows(), "a product for each row");
        let mut tiles = Tiles::new(self);
        for (first, apart) in streams(weights.rows(), TILE) {
            let weights = weights.spread(first, apart, TILE.min(weights.rows()));
            let (rows, stride) = (weights.rows(), weights.stride());
            tiles.set_line(rows);
            let mut last = Lines([[0_u8; ROW]; TILE]);
            for (row, last) in last.0.iter_mut().take(rows).enumerate() {
                last[..rest].copy_from_slice(&weights.data()[row * stride + bytes - rest..][..rest]);
            }
            let mut sums = [0_f32; TILE];
            // SAFETY: tile 0 has one column and as many rows as there are of weights, tile 4 as many rows of 64 bytes, tile 6 16 rows of
            // one unit; rows of weights have `steps` times 64 bytes, and what is left of them is in `last`; `x` has 16 units for each.
            // What is asked for is a hint, wherever it lies.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "test {left}, {left}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm4, [{w} + {stride}]",
                    "tileloadd tmm6, [{x} + {four}]",
                    "lea {next}, [{w} + {ahead}]",
                    ask_four_rows!(),
                    ask_four_rows!(),
                    ask_four_rows!(),
                    ask_four_rows!(),
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "add {w}, 64",
                    "add {x}, 64",
                    "dec {left}",
                    "jnz 2b",
                    "3:",
                    "test {rest}, {rest}",
                    "jz 4f",
                    "tileloadd tmm4, [{last} + {row}]",
                    "tileloadd tmm6, [{x} + {four}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "4:",
                    "tilestored [{out} + {four}], tmm0",
                    w = inout(reg) weights.data().as_ptr() => _,
                    x = inout(reg) x.as_ptr() => _,
                    next = out(reg) _,
                    left = inout(reg) steps => _,
                    last = in(reg) last.0.as_ptr(),
                    rest = in(reg) rest,
                    stride = in(reg) stride,
                    three = in(reg) 3 * stride,
                    ahead = const STREAM_AHEAD,
                    four = in(reg) 4_usize,
                    row = in(reg) ROW,
                    out = in(reg) sums.as_mut_ptr(),
                    out("tmm0") _, out("tmm4") _, out("tmm6") _,
                    options(nostack),
                );
            }
            for (row, sum) in sums[..rows].iter().enumerate() {
                out[first + row * apart] = *sum;
            }
        }
    }
}

/// Products of up to 32 activations, from the one of number `first` on, with a panel.
fn multiply_group(tiles: &Tiles, product: &mut PanelProduct<'_, '_>, first: usize, count: usize) {
    let steps = product.units() / ROW_UNITS;
    assert!(steps > 0 && product.units().is_multiple_of(ROW_UNITS), "whole rows of tiles");
    let (x, w) = (product.x(first, count), product.w());
    assert_eq!((x.len(), w.len()), (steps * ROW_UNITS * count, steps * ROW_UNITS * PANEL), "operands");
    let (add, rows) = (product.add(), product.out().cols());
    assert_eq!((tiles.tokens, tiles.rows), (count, rows), "shapes of tiles");
    let (out, stride) = product.out().tile(first, count, 0, rows).parts();
    let (second, wide) = (usize::from(count > TILE), usize::from(rows > TILE));
    for m in 0..count {
        for half in 0..=wide {
            // Where sums go is seldom near, and tiles would wait for it.
            // SAFETY: a hint.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(m * stride + half * TILE).cast()) };
        }
    }
    // SAFETY: `steps` times there are 16 units of each activation one after another, and 16 units of 32 rows of weights. Tiles 0, 1 and 4
    // have as many rows as there are activations, at most 16, and 2, 3 and 5 the others, if any; 0, 2 and 6 have as many columns as the
    // window, at most 16, and 1, 3 and 7 the others, if any. Tiles without rows or columns are passed over.
    unsafe {
        asm!(
            "test {add}, {add}",
            "jz 2f",
            "tileloadd tmm0, [{out} + {stride}]",
            "test {wide}, {wide}",
            "jz 6f",
            "tileloadd tmm1, [{out} + {stride} + 64]",
            "6:",
            "test {second}, {second}",
            "jz 3f",
            "tileloadd tmm2, [{others} + {stride}]",
            "test {wide}, {wide}",
            "jz 3f",
            "tileloadd tmm3, [{others} + {stride} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "test {wide}, {wide}",
            "jz 6f",
            "tilezero tmm1",
            "6:",
            "test {second}, {second}",
            "jz 3f",
            "tilezero tmm2",
            "test {wide}, {wide}",
            "jz 3f",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{x} + {row}]",
            "tileloadd tmm6, [{w} + {row} * 2]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "test {wide}, {wide}",
            "jz 4f",
            "tileloadd tmm7, [{w} + {row} * 2 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "4:",
            "test {second}, {second}",
            "jz 5f",
            "tileloadd tmm5, [{x} + {row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "test {wide}, {wide}",
            "jz 5f",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "5:",
            "add {x}, {step}",
            "add {w}, 2048",
            "dec {left}",
            "jnz 3b",
            "tilestored [{out} + {stride}], tmm0",
            "test {wide}, {wide}",
            "jz 6f",
            "tilestored [{out} + {stride} + 64], tmm1",
            "6:",
            "test {second}, {second}",
            "jz 7f",
            "tilestored [{others} + {stride}], tmm2",
            "test {wide}, {wide}",
            "jz 7f",
            "tilestored [{others} + {stride} + 64], tmm3",
            "7:",
            add = in(reg) usize::from(add),
            wide = in(reg) wide,
            second = in(reg) second,
            out = in(reg) out,
            others = in(reg) out.wrapping_add(TILE * stride),
            stride = in(reg) 4 * stride,
            x = inout(reg) x.as_ptr() => _,
            w = inout(reg) w.as_ptr() => _,
            left = inout(reg) steps => _,
            row = in(reg) ROW,
            step = in(reg) ROW * count,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
