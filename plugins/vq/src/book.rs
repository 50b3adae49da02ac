//! Codebooks of vectors, and the nearest entry to a vector.
//!
//! The search is exact. Entries lie side by side in the lanes of registers, and large books of short vectors leave out sixteens whose
//! bounding box is farther than the nearest entry so far. The sum of each distance has one order, and of equal distances the first entry in
//! the order of the search is taken, so every instruction set finds the same one.

use kbit_plugin::Isa;
use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use pulp::Simd;

/// Entries of a block: a whole number of registers of every instruction set.
const BLOCK: usize = 16;
/// Blocks from which on bounding boxes are worth their time, and dimensions up to which they leave out enough.
const BOXED_BLOCKS: usize = 64;
const BOXED_DIM: usize = 4;
/// Blocks of the largest codebook: 2^12 entries.
const MAX_BLOCKS: usize = 256;

/// A codebook of vectors with `D` values.
pub struct Book<const D: usize> {
    /// By code.
    vectors: Vec<[f32; D]>,
    /// Codes in the order of the search, and each dimension of the entries in that order.
    codes: Vec<u16>,
    planes: [Vec<f32>; D],
    /// Of each dimension, the least and greatest values of each block; empty where all blocks are searched.
    boxes: [[Vec<f32>; 2]; D],
}

/// Sorts `codes` so that runs of [`BLOCK`] lie close together: halves along the widest dimension, again and again.
fn cluster<const D: usize>(vectors: &[[f32; D]], codes: &mut [u16]) {
    if codes.len() <= BLOCK {
        return;
    }
    let width = |k: usize| {
        let (mut least, mut greatest) = (f32::INFINITY, f32::NEG_INFINITY);
        for code in codes.iter() {
            let value = vectors[usize::from(*code)][k];
            least = least.min(value);
            greatest = greatest.max(value);
        }
        greatest - least
    };
    let widths: [f32; D] = std::array::from_fn(width);
    let widest = (0..D).fold(0, |widest, k| if widths[k] > widths[widest] { k } else { widest });
    let value = |code: u16| vectors[usize::from(code)][widest];
    codes.sort_unstable_by(|a, b| value(*a).total_cmp(&value(*b)).then(a.cmp(b)));
    let (low, high) = codes.split_at_mut((codes.len() / 2).next_multiple_of(BLOCK));
    cluster(vectors, low);
    cluster(vectors, high);
}

impl<const D: usize> Book<D> {
    /// A codebook of at most 2^12 finite vectors, a multiple of sixteen.
    pub fn new(vectors: Vec<[f32; D]>) -> Self {
        let count = u16::try_from(vectors.len()).unwrap_or(u16::MAX);
        let mut codes: Vec<u16> = (0..count).collect();
        let boxed = D <= BOXED_DIM && (BOXED_BLOCKS..=MAX_BLOCKS).contains(&(codes.len() / BLOCK));
        if boxed {
            cluster(&vectors, &mut codes);
        }
        let planes: [Vec<f32>; D] =
            std::array::from_fn(|k| codes.iter().map(|code| vectors[usize::from(*code)][k]).collect());
        let boxes = std::array::from_fn(|k| {
            let blocks = if boxed { planes[k].as_chunks::<BLOCK>().0 } else { &[] };
            let least = |block: &[f32; BLOCK]| block.iter().copied().fold(f32::INFINITY, f32::min);
            let greatest = |block: &[f32; BLOCK]| block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            [blocks.iter().map(least).collect(), blocks.iter().map(greatest).collect()]
        });
        Self { vectors, codes, planes, boxes }
    }

    /// The same codebook as it is stored, in half precision.
    pub fn rounded(&self) -> Self {
        Self::new(self.vectors.iter().map(|vector| vector.map(|x| f16_to_f32(f32_to_f16(x)))).collect())
    }

    /// The entries, by code.
    pub fn vectors(&self) -> &[[f32; D]] {
        &self.vectors
    }

    /// The entry of a code.
    pub fn vector(&self, code: u16) -> &[f32; D] {
        &self.vectors[usize::from(code)]
    }

    /// Codes of the nearest entries to `vectors`, and squared distances. `weights`: of each vector's dimensions, where they are not
    /// all alike.
    pub fn nearest(
        &self,
        isa: Isa,
        vectors: &[[f32; D]],
        weights: Option<&[[f32; D]]>,
        codes: &mut [u16],
        squares: &mut [f32],
    ) {
        let search = Search { book: self, vectors, weights, codes, squares };
        if isa == Isa::Best {
            pulp::Arch::new().dispatch(search);
        } else {
            pulp::WithSimd::with_simd(search, pulp::Scalar);
        }
    }
}

/// The nearest so far of what each lane has seen.
struct Nearest<S: Simd> {
    square: S::f32s,
    register: S::u32s,
}

impl<S: Simd> Nearest<S> {
    #[inline(always)]
    fn nothing(simd: S) -> Self {
        Self { square: simd.splat_f32s(f32::INFINITY), register: simd.splat_u32s(0) }
    }

    #[inline(always)]
    fn see(&mut self, simd: S, squares: S::f32s, register: u32) {
        let nearer = simd.less_than_f32s(squares, self.square);
        self.square = simd.select_f32s(nearer, squares, self.square);
        self.register = simd.select_u32s(nearer, simd.splat_u32s(register), self.register);
    }

    /// Squared distance, and place in the order of what was seen: of equal ones, the first.
    #[inline(always)]
    fn least(&self) -> (f32, usize) {
        let squares: &[f32] = pulp::bytemuck::cast_slice(std::slice::from_ref(&self.square));
        let registers: &[u32] = pulp::bytemuck::cast_slice(std::slice::from_ref(&self.register));
        let (mut least, mut found) = (f32::INFINITY, usize::MAX);
        for (lane, (square, register)) in squares.iter().zip(registers).enumerate() {
            let place = *register as usize * squares.len() + lane;
            if *square < least || *square == least && place < found {
                (least, found) = (*square, place);
            }
        }
        (least, found)
    }
}

/// Vectors that look for their nearest entries; compiled for each instruction set.
struct Search<'a, const D: usize> {
    book: &'a Book<D>,
    vectors: &'a [[f32; D]],
    weights: Option<&'a [[f32; D]]>,
    codes: &'a mut [u16],
    squares: &'a mut [f32],
}

impl<const D: usize> pulp::WithSimd for Search<'_, D> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lookup = Lookup::new(simd, self.book);
        let places = self.codes.iter_mut().zip(self.squares);
        match self.weights {
            None => {
                for (x, (code, square)) in self.vectors.iter().zip(places) {
                    (*code, *square) = lookup.nearest::<false>(x, &[1.0; D]);
                }
            }
            Some(weights) => {
                for ((x, weights), (code, square)) in self.vectors.iter().zip(weights).zip(places) {
                    (*code, *square) = lookup.nearest::<true>(x, weights);
                }
            }
        }
    }
}

/// A codebook in registers of an instruction set.
struct Lookup<'a, S: Simd, const D: usize> {
    simd: S,
    codes: &'a [u16],
    planes: [&'a [S::f32s]; D],
    boxes: [[&'a [S::f32s]; 2]; D],
}

impl<'a, S: Simd, const D: usize> Lookup<'a, S, D> {
    #[inline(always)]
    fn new(simd: S, book: &'a Book<D>) -> Self {
        Self {
            simd,
            codes: &book.codes,
            planes: std::array::from_fn(|k| S::as_simd_f32s(&book.planes[k]).0),
            boxes: std::array::from_fn(|k| {
                [S::as_simd_f32s(&book.boxes[k][0]).0, S::as_simd_f32s(&book.boxes[k][1]).0]
            }),
        }
    }

    /// Adds what dimension `k` adds to squared distances.
    #[inline(always)]
    fn add_square<const WEIGHED: bool>(&self, sum: S::f32s, off: S::f32s, weight: S::f32s) -> S::f32s {
        let simd = self.simd;
        let part = if WEIGHED { simd.mul_f32s(weight, off) } else { off };
        simd.add_f32s(sum, simd.mul_f32s(part, off))
    }

    /// Looks at the entries of some registers.
    #[inline(always)]
    fn scan<const WEIGHED: bool>(
        &self,
        registers: std::ops::Range<usize>,
        x: &[S::f32s; D],
        weights: &[S::f32s; D],
        nearest: &mut Nearest<S>,
    ) {
        let simd = self.simd;
        let planes: [&[S::f32s]; D] = std::array::from_fn(|k| &self.planes[k][registers.clone()]);
        for (index, register) in registers.enumerate() {
            let mut squares = simd.splat_f32s(0.0);
            for k in 0..D {
                let off = simd.sub_f32s(x[k], planes[k][index]);
                squares = self.add_square::<WEIGHED>(squares, off, weights[k]);
            }
            nearest.see(simd, squares, register as u32);
        }
    }

    #[inline(always)]
    fn nearest<const WEIGHED: bool>(&self, x: &[f32; D], weights: &[f32; D]) -> (u16, f32) {
        let simd = self.simd;
        let x: [S::f32s; D] = std::array::from_fn(|k| simd.splat_f32s(x[k]));
        let weights: [S::f32s; D] = std::array::from_fn(|k| simd.splat_f32s(weights[k]));
        let mut nearest = Nearest::nothing(simd);
        if self.boxes[0][0].is_empty() {
            self.scan::<WEIGHED>(0..self.planes[0].len(), &x, &weights, &mut nearest);
            let (square, place) = nearest.least();
            return (self.code(place), square);
        }
        let lanes = S::F32_LANES;
        let of_block = |block: usize| block * BLOCK / lanes..(block + 1) * BLOCK / lanes;
        let mut bounds = [0f32; MAX_BLOCKS];
        let bounds = S::as_mut_simd_f32s(&mut bounds).0;
        let groups = self.boxes[0][0].len();
        for (group, bound) in bounds.iter_mut().enumerate().take(groups) {
            for k in 0..D {
                let [least, greatest] = self.boxes[k];
                let below = simd.sub_f32s(least[group], x[k]);
                let above = simd.sub_f32s(x[k], greatest[group]);
                let off = simd.max_f32s(simd.max_f32s(below, above), simd.splat_f32s(0.0));
                *bound = self.add_square::<WEIGHED>(*bound, off, weights[k]);
            }
            nearest.see(simd, *bound, group as u32);
        }
        // What the nearest box holds is a limit for all others. Then blocks are searched in their order, so that of equal entries the
        // first is found, however many lanes there are. No entry is nearer than its box: rounding keeps order.
        let first = nearest.least().1.min(groups * lanes - 1);
        nearest = Nearest::nothing(simd);
        self.scan::<WEIGHED>(of_block(first), &x, &weights, &mut nearest);
        let mut limit = nearest.least().0;
        nearest = Nearest::nothing(simd);
        for (group, bound) in bounds.iter().enumerate().take(groups) {
            let near = simd.less_than_or_equal_f32s(*bound, simd.splat_f32s(limit));
            if simd.first_true_m32s(near) >= lanes {
                continue;
            }
            let bounds: &[f32] = pulp::bytemuck::cast_slice(std::slice::from_ref(bound));
            for (lane, bound) in bounds.iter().enumerate() {
                if *bound <= limit {
                    self.scan::<WEIGHED>(of_block(group * lanes + lane), &x, &weights, &mut nearest);
                    limit = nearest.least().0.min(limit);
                }
            }
        }
        let (square, place) = nearest.least();
        (self.code(place), square)
    }

    /// The code at a place; the first one where nothing was nearer than infinity.
    #[inline(always)]
    fn code(&self, place: usize) -> u16 {
        self.codes.get(place).or(self.codes.first()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    fn vectors<const D: usize>(count: usize, skip: usize) -> Vec<[f32; D]> {
        gaussian((count + skip) * D).as_chunks::<D>().0[skip..].to_vec()
    }

    /// The least squared distance by plain arithmetic in double precision, and that of the entry `code`.
    fn squares<const D: usize>(book: &Book<D>, x: &[f32; D], weights: &[f32; D], code: u16) -> (f64, f64) {
        let square = |vector: &[f32; D]| -> f64 {
            (0..D).map(|k| f64::from(weights[k]) * (f64::from(x[k]) - f64::from(vector[k])).powi(2)).sum()
        };
        (book.vectors().iter().map(square).fold(f64::INFINITY, f64::min), square(book.vector(code)))
    }

    fn finds_the_nearest<const D: usize>(entries: usize) {
        let book = Book::new(vectors::<D>(entries, 0));
        let xs = vectors::<D>(200, entries);
        let weights: Vec<[f32; D]> =
            vectors::<D>(200, entries + 200).iter().map(|w| w.map(|w| w * w)).collect();
        for given in [None, Some(weights.as_slice())] {
            let found: Vec<(Vec<u16>, Vec<f32>)> = [Isa::Best, Isa::Portable]
                .map(|isa| {
                    let (mut codes, mut squares) = (vec![u16::MAX; 200], vec![f32::NAN; 200]);
                    book.nearest(isa, &xs, given, &mut codes, &mut squares);
                    (codes, squares)
                })
                .to_vec();
            assert_eq!(found[0], found[1], "instruction sets differ");
            for (i, x) in xs.iter().enumerate() {
                let weights = given.map_or([1.0; D], |given| given[i]);
                let (least, own) = squares(&book, x, &weights, found[0].0[i]);
                // Sums of up to eight products in single precision: a few units in the last place.
                assert!(own <= least * (1.0 + 1e-5) + 1e-12, "{D} x {entries}: {own} {least}");
                assert!((f64::from(found[0].1[i]) - own).abs() <= own * 1e-5 + 1e-12);
            }
        }
    }

    #[test]
    fn the_nearest_entry_is_found_with_and_without_boxes() {
        for entries in [16, 256, 1024, 4096] {
            finds_the_nearest::<2>(entries);
            finds_the_nearest::<4>(entries);
        }
        finds_the_nearest::<8>(16);
        finds_the_nearest::<8>(1024);
    }

    #[test]
    fn of_equal_entries_every_instruction_set_finds_the_same() {
        // Small whole numbers: most vectors have several nearest entries.
        let whole = |x: f32| (x * 2.0).round();
        let book = Book::new(vectors::<2>(2048, 0).iter().map(|vector| vector.map(whole)).collect());
        let xs: Vec<[f32; 2]> = vectors::<2>(500, 9).iter().map(|x| x.map(|x| whole(x) + 0.5)).collect();
        let [best, portable] = [Isa::Best, Isa::Portable].map(|isa| {
            let (mut codes, mut squares) = (vec![0; 500], vec![0.0; 500]);
            book.nearest(isa, &xs, None, &mut codes, &mut squares);
            codes
        });
        assert_eq!(best, portable);
    }

    #[test]
    fn equal_entries_and_far_vectors_do_no_harm() {
        let book = Book::new(vec![[0.5f32; 4]; 2048]);
        let (mut codes, mut squares) = ([0; 2], [0.0; 2]);
        book.nearest(Isa::Best, &[[0.5; 4], [3e38; 4]], None, &mut codes, &mut squares);
        assert!(codes.iter().all(|code| *code < 2048));
        assert_eq!(squares, [0.0, f32::INFINITY]);
    }

    #[test]
    fn stored_entries_are_in_half_precision() {
        let book = Book::new(vectors::<2>(16, 0)).rounded();
        for value in book.vectors().iter().flatten() {
            assert_eq!(f16_to_f32(f32_to_f16(*value)), *value);
        }
    }
}
