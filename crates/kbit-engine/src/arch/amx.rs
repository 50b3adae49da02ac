//! AMX: registers of 16 rows of 64 bytes, and one instruction that multiplies two of them.
//!
//! Such a *tile* holds 16 activations, or 16 rows of weights, or the products of both. Rust knows nothing of tiles: all that
//! touches them is assembly, each block from empty tiles to stored ones; only their [`Shapes`] are set before.
//!
//! Invariants of the `unsafe` code: an [`Amx`] exists only where the CPU has AMX and AVX-512 and Linux lets the process use
//! the registers of the former, which other systems are not asked for; tiles are loaded and stored only where their shapes,
//! which [`Shapes`] has set before, lie inside of memory that is there.
#![expect(unsafe_code, reason = "instructions that Rust has no functions for")]

use std::arch::asm;
use std::marker::PhantomData;

mod floats;
mod integers;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Activations that are multiplied at a time: two tiles.
pub(crate) const AMX_TOKENS: usize = 2 * TILE;
/// Bytes of a tile's row, and units.
const ROW: usize = 64;
const ROW_UNITS: usize = ROW / 4;

/// Proof that the CPU has AMX for bytes and bf16, that Linux lets this process use it, and of
/// [`Avx512`](super::avx512::Avx512) with VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// The proof, if CPU and system can give it; where the former can, the process asks the latter, once. `avx512`: whether the CPU
    /// has AVX-512 with VNNI and BW.
    pub(crate) fn new(avx512: bool) -> Option<Self> {
        static GRANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        (avx512 && *GRANTED.get_or_init(|| cpu_has_tiles() && system_grants_tiles())).then_some(Self(()))
    }
}

/// Multiply-adds of whole tiles, four at a time, with operands that do not change.
macro_rules! busy {
    ($name:ident, $instruction:literal, $multiply_adds:expr) => {
        impl Amx {
            /// See [`Kernels::busy`](crate::Kernels::busy).
            pub(crate) fn $name(self, rounds: u64, factor: f32) -> (u64, f32) {
                let operand = Lines([[factor; ROW_UNITS]; TILE]);
                let mut sums = Lines([[0_f32; ROW_UNITS]; TILE]);
                let mut tiles = Tiles::new(self);
                tiles.set(AMX_TOKENS, 2 * TILE);
                if rounds > 0 {
                    // SAFETY: tiles 0 to 7 have 16 rows of 64 bytes, as the memory has.
                    unsafe {
                        asm!(
                            "tilezero tmm0",
                            "tilezero tmm1",
                            "tilezero tmm2",
                            "tilezero tmm3",
                            "tileloadd tmm4, [{operand} + {row}]",
                            "tileloadd tmm5, [{operand} + {row}]",
                            "tileloadd tmm6, [{operand} + {row}]",
                            "tileloadd tmm7, [{operand} + {row}]",
                            "2:",
                            concat!($instruction, " tmm0, tmm4, tmm6"),
                            concat!($instruction, " tmm1, tmm4, tmm7"),
                            concat!($instruction, " tmm2, tmm5, tmm6"),
                            concat!($instruction, " tmm3, tmm5, tmm7"),
                            "dec {rounds}",
                            "jnz 2b",
                            "tilestored [{sums} + {row}], tmm0",
                            operand = in(reg) operand.0.as_ptr(),
                            sums = in(reg) sums.0.as_mut_ptr(),
                            row = in(reg) ROW,
                            rounds = inout(reg) rounds => _,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack),
                        );
                    }
                }
                (4 * rounds * $multiply_adds, sums.0.as_flattened().iter().sum())
            }
        }
    };
}

busy!(busy_bf16, "tdpbf16ps", (TILE * TILE * ROW / 2) as u64);
busy!(busy_int8, "tdpbssd", (TILE * TILE * ROW) as u64);

/// True where CPUID names AMX with products of bytes and of bf16, and the system saves tiles between threads.
fn cpu_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    // AMX-BF16, AMX-TILE and AMX-INT8 in leaf 7; leaf 1 has OSXSAVE, without which XCR0 cannot be read.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    /// State of tiles, and of their shapes.
    const SAVED: u64 = 3 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & TILES != TILES {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: the system has switched the instruction on.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE says that the CPU has the feature.
    unsafe { saved() & SAVED == SAVED }
}

/// Asks Linux for the registers, which it gives to no process that has not asked.
#[cfg(target_os = "linux")]
fn system_grants_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call reads two numbers; a kernel that does not know it says so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn system_grants_tiles() -> bool {
    false
}

/// Shapes of the tiles, as the instruction `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Each tile's number of rows, and of units in them; one that has none cannot be used.
    fn new(shapes: [(usize, usize); 8]) -> Self {
        let mut all = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, (rows, units)) in shapes.into_iter().enumerate() {
            assert!(rows <= TILE && 4 * units <= ROW, "a tile of {rows} x {units}");
            if rows > 0 && units > 0 {
                (all.rows[tile], all.row_bytes[tile]) = (rows as u8, 4 * units as u16);
            }
        }
        all
    }

    /// For activations and rows of a panel: products of the first 16 activations with the first 16 rows and the others in tiles 0 and 1, of
    /// the other activations in 2 and 3; activations in 4 and 5, rows in 6 and 7.
    fn of_panel(tokens: usize, rows: usize) -> Self {
        assert!((1..=AMX_TOKENS).contains(&tokens) && (1..=2 * TILE).contains(&rows), "{tokens} x {rows}");
        let halves = |count: usize| [count.min(TILE), count.saturating_sub(TILE)];
        let ([a, b], [c, d]) = (halves(tokens), halves(rows));
        Self::new([(a, c), (a, d), (b, c), (b, d), (a, TILE), (b, TILE), (TILE, c), (TILE, d)])
    }

    /// For rows of weights and one activation: products in tile 0, weights in 4, the activation in 6.
    fn of_line(rows: usize) -> Self {
        let none = (0, 0);
        Self::new([(rows, 1), none, none, none, (rows, TILE), none, (TILE, 1), none])
    }
}

/// Tiles that have shapes; they are given back when it is dropped. Of one thread.
struct Tiles {
    tokens: usize,
    rows: usize,
    of_this_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// No tile can be used yet.
    fn new(_: Amx) -> Self {
        Self { tokens: 0, rows: 0, of_this_thread: PhantomData }
    }

    /// See [`Shapes::of_panel`].
    fn set(&mut self, tokens: usize, rows: usize) {
        if (self.tokens, self.rows) != (tokens, rows) {
            load(&Shapes::of_panel(tokens, rows));
            (self.tokens, self.rows) = (tokens, rows);
        }
    }

    /// See [`Shapes::of_line`].
    fn set_line(&mut self, rows: usize) {
        if (self.tokens, self.rows) != (0, rows) {
            load(&Shapes::of_line(rows));
            (self.tokens, self.rows) = (0, rows);
        }
    }
}

/// Only for a [`Tiles`], which an [`Amx`] allows.
fn load(shapes: &Shapes) {
    // SAFETY: the CPU has the instruction, and the shapes are ones that it can have.
    unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly)) };
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the CPU has the instruction; no tile is in use any more.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Memory that tiles are stored to and loaded from: whole cache lines.
#[repr(C, align(64))]
struct Lines<T>(T);
