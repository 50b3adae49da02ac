//! Training of residual codebooks on a sample of a matrix's vectors.
//!
//! Each stage is k-means (Lloyd 1982; for vectors Linde, Buzo and Gray 1980) on what the stages before it leave (Juang and Gray 1982),
//! seeded as k-means++ is (Arthur and Vassilvitskii 2007). Then all stages are trained once more in turn, each on what all others leave,
//! as in additive quantization (Babenko and Lempitsky 2014). Every dimension of every vector has a weight: means and distances are
//! weighted ones.
//!
//! Vectors are assigned on the host's threads, each for itself; sums run over the sample in its order.

use crate::book::Book;
use kbit_plugin::{Error, Host, Isa};
use kbit_scheme_kit::parallel_map;

/// Vectors that one piece of parallel work assigns.
const CHUNK: usize = 4096;
/// Vectors for each entry that seeds are drawn from.
const SEED_SHARE: usize = 4;
/// Vectors that seeds are drawn from at least.
const SEED_LEAST: usize = 4096;
/// Training ends where a round takes away less than this share of the error.
const LEAST_GAIN: f64 = 1e-4;

/// A sequence of numbers from a seed: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Copy)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let product = u128::from(self.bits()) * end as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// In [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Vectors of a matrix, over the scales of their blocks.
pub struct Sample<const D: usize> {
    pub vectors: Vec<[f32; D]>,
    /// What errors of each dimension count: importance times the squared scale; 0 for padding.
    pub weights: Vec<[f32; D]>,
    /// True where the weights of a vector differ.
    pub weighed: bool,
}

/// How codebooks are trained.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    pub host: &'a Host<'static>,
    pub isa: Isa,
    pub entries: usize,
    pub stages: usize,
    pub iterations: u32,
    pub seed: u64,
}

/// Codes of a sample and the weighted squared errors that they leave.
struct Assigned {
    codes: Vec<u16>,
    errors: Vec<f32>,
}

impl Assigned {
    fn total(&self) -> f64 {
        self.errors.iter().map(|error| f64::from(*error)).sum()
    }
}

impl Training<'_> {
    /// The codebooks of the stages, in half precision.
    ///
    /// # Errors
    /// The host's, as when the user cancels.
    pub fn train<const D: usize>(&self, sample: &Sample<D>) -> Result<Vec<Book<D>>, Error> {
        let mut books = Vec::with_capacity(self.stages);
        let mut codes = Vec::with_capacity(self.stages);
        let mut rest = sample.vectors.clone();
        for stage in 0..self.stages {
            let book = self.stage(&rest, sample, Random::new(self.seed ^ stage as u64))?;
            let assigned = self.assign(&book, &rest, sample)?;
            for (rest, code) in rest.iter_mut().zip(&assigned.codes) {
                subtract(rest, book.vector(*code));
            }
            books.push(book);
            codes.push(assigned.codes);
        }
        if self.stages > 1 {
            self.train_jointly(sample, &mut books, &mut codes, rest)?;
        }
        Ok(books.iter().map(Book::rounded).collect())
    }

    /// The codebook of one stage for `vectors`.
    fn stage<const D: usize>(
        &self,
        vectors: &[[f32; D]],
        sample: &Sample<D>,
        random: Random,
    ) -> Result<Book<D>, Error> {
        let mut book = Book::new(seeds(vectors, &sample.weights, self.entries, random));
        let mut before = f64::INFINITY;
        for _ in 0..self.iterations {
            let assigned = self.assign(&book, vectors, sample)?;
            let error = assigned.total();
            if error == 0.0 || error > before * (1.0 - LEAST_GAIN) {
                break;
            }
            before = error;
            book = Book::new(means(vectors, &sample.weights, &assigned, book.vectors()));
        }
        Ok(book)
    }

    /// Trains each stage on what all others leave, in turn. `rest`: what all of them leave.
    fn train_jointly<const D: usize>(
        &self,
        sample: &Sample<D>,
        books: &mut [Book<D>],
        codes: &mut [Vec<u16>],
        mut rest: Vec<[f32; D]>,
    ) -> Result<(), Error> {
        let mut before = f64::INFINITY;
        for _ in 0..self.iterations.div_ceil(2) {
            let mut error = 0.0;
            for (book, codes) in books.iter_mut().zip(codes.iter_mut()) {
                for (rest, code) in rest.iter_mut().zip(codes.iter()) {
                    add(rest, book.vector(*code));
                }
                let assigned = self.assign(book, &rest, sample)?;
                error = assigned.total();
                *book = Book::new(means(&rest, &sample.weights, &assigned, book.vectors()));
                *codes = assigned.codes;
                for (rest, code) in rest.iter_mut().zip(codes.iter()) {
                    subtract(rest, book.vector(*code));
                }
            }
            if error == 0.0 || error > before * (1.0 - LEAST_GAIN) {
                break;
            }
            before = error;
        }
        Ok(())
    }

    fn assign<const D: usize>(
        &self,
        book: &Book<D>,
        vectors: &[[f32; D]],
        sample: &Sample<D>,
    ) -> Result<Assigned, Error> {
        let chunks = parallel_map(self.host, vectors.len().div_ceil(CHUNK), |chunk| {
            let first = chunk * CHUNK;
            let end = (first + CHUNK).min(vectors.len());
            let weights = &sample.weights[first..end];
            let (mut codes, mut errors) = (vec![0; end - first], vec![0.0; end - first]);
            let given = sample.weighed.then_some(weights);
            book.nearest(self.isa, &vectors[first..end], given, &mut codes, &mut errors);
            if !sample.weighed {
                errors.iter_mut().zip(weights).for_each(|(error, weights)| *error *= weights[0]);
            }
            Ok((codes, errors))
        })?;
        let mut assigned =
            Assigned { codes: Vec::with_capacity(vectors.len()), errors: Vec::with_capacity(vectors.len()) };
        for (codes, errors) in chunks {
            assigned.codes.extend(codes);
            assigned.errors.extend(errors);
        }
        Ok(assigned)
    }
}

pub fn add<const D: usize>(sum: &mut [f32; D], vector: &[f32; D]) {
    sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
}

pub fn subtract<const D: usize>(rest: &mut [f32; D], vector: &[f32; D]) {
    rest.iter_mut().zip(vector).for_each(|(rest, value)| *rest -= value);
}

/// First entries of a codebook: vectors of the sample, each drawn with a probability in proportion to its weighted squared distance
/// from those before. Entries for which no vector is left are zero.
fn seeds<const D: usize>(
    vectors: &[[f32; D]],
    weights: &[[f32; D]],
    entries: usize,
    mut random: Random,
) -> Vec<[f32; D]> {
    const LANES: usize = 16;
    let mut found = Vec::with_capacity(entries);
    let candidates = vectors.len().min((entries * SEED_SHARE).max(SEED_LEAST));
    // Spread over the sample; sixteen side by side, so that their distances are computed together.
    let at = |index: usize| index * vectors.len() / candidates;
    let blocks = candidates.div_ceil(LANES);
    let mut planes = vec![[[[0f32; LANES]; 2]; D]; blocks];
    let mut squares = vec![[0f32; LANES]; blocks];
    let mut sums = vec![0f64; blocks];
    for index in 0..candidates {
        let (block, lane) = (index / LANES, index % LANES);
        for k in 0..D {
            planes[block][k][0][lane] = vectors[at(index)][k];
            planes[block][k][1][lane] = weights[at(index)][k];
        }
        squares[block][lane] = f32::INFINITY;
    }
    if candidates > 0 {
        found.push(vectors[at(random.below(candidates))]);
    }
    while found.len() < entries && candidates > 0 {
        let last = found[found.len() - 1];
        let mut total = 0f64;
        for ((squares, sum), planes) in squares.iter_mut().zip(&mut sums).zip(&planes) {
            let mut distances = [0f32; LANES];
            for (plane, value) in planes.iter().zip(&last) {
                let [values, weights] = plane;
                for lane in 0..LANES {
                    let off = values[lane] - value;
                    distances[lane] += weights[lane] * off * off;
                }
            }
            for lane in 0..LANES {
                let nearer = distances[lane] < squares[lane];
                squares[lane] = if nearer { distances[lane] } else { squares[lane] };
            }
            *sum = f64::from(squares.iter().sum::<f32>());
            total += *sum;
        }
        if total == 0.0 {
            break;
        }
        let mut target = random.unit() * total;
        let mut drawn = None;
        'blocks: for (block, (squares, sum)) in squares.iter().zip(&sums).enumerate() {
            if target >= *sum {
                target -= sum;
                continue;
            }
            for (lane, square) in squares.iter().enumerate().filter(|(_, square)| **square > 0.0) {
                drawn = Some(block * LANES + lane);
                if target < f64::from(*square) {
                    break 'blocks;
                }
                target -= f64::from(*square);
            }
            break;
        }
        // Rounding may carry the target past the end: then the farthest vector is taken.
        let drawn = drawn.unwrap_or_else(|| farthest(&squares));
        found.push(vectors[at(drawn)]);
    }
    found.resize(entries, [0.0; D]);
    found
}

/// Place of the greatest of the squares; of equal ones, the first.
fn farthest(squares: &[[f32; 16]]) -> usize {
    let all = squares.as_flattened();
    (0..all.len()).fold(0, |farthest, index| if all[index] > all[farthest] { index } else { farthest })
}

/// Weighted means of the vectors that have each code. An entry without vectors moves to the vector whose error is greatest, the next
/// such entry to the next such vector. A dimension whose vectors all have weight 0 stays as it was `before`.
fn means<const D: usize>(
    vectors: &[[f32; D]],
    weights: &[[f32; D]],
    assigned: &Assigned,
    before: &[[f32; D]],
) -> Vec<[f32; D]> {
    let mut sums = vec![[[0f64; 2]; D]; before.len()];
    for ((vector, weights), code) in vectors.iter().zip(weights).zip(&assigned.codes) {
        for (sum, (value, weight)) in sums[usize::from(*code)].iter_mut().zip(vector.iter().zip(weights)) {
            sum[0] += f64::from(*weight) * f64::from(*value);
            sum[1] += f64::from(*weight);
        }
    }
    let mut means: Vec<[f32; D]> = sums
        .iter()
        .zip(before)
        .map(|(sums, before)| {
            std::array::from_fn(|k| {
                let [sum, weight] = sums[k];
                if weight == 0.0 {
                    return before[k];
                }
                #[expect(clippy::cast_possible_truncation, reason = "a mean in single precision")]
                {
                    (sum / weight) as f32
                }
            })
        })
        .collect();
    let unused: Vec<usize> =
        (0..sums.len()).filter(|code| sums[*code].iter().all(|[_, weight]| *weight == 0.0)).collect();
    if !unused.is_empty() {
        let error = |index: usize| assigned.errors[index];
        let mut order: Vec<usize> = (0..vectors.len()).filter(|index| error(*index) > 0.0).collect();
        order.sort_unstable_by(|a, b| error(*b).total_cmp(&error(*a)).then(a.cmp(b)));
        for (code, index) in unused.into_iter().zip(order) {
            means[code] = vectors[index];
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    fn sample<const D: usize>(vectors: Vec<[f32; D]>) -> Sample<D> {
        let weights = vec![[1.0; D]; vectors.len()];
        Sample { vectors, weights, weighed: false }
    }

    const HOST: &Host<'static> = &Host::none();

    const fn training(entries: usize, stages: usize, iterations: u32) -> Training<'static> {
        Training { host: HOST, isa: Isa::Best, entries, stages, iterations, seed: 5 }
    }

    /// Mean squared error a value, each stage's entry chosen after the other.
    fn error<const D: usize>(training: &Training<'_>, sample: &Sample<D>) -> f64 {
        let mut rest = sample.vectors.clone();
        for book in training.train(sample).unwrap() {
            let assigned = training.assign(&book, &rest, sample).unwrap();
            for (rest, code) in rest.iter_mut().zip(&assigned.codes) {
                subtract(rest, book.vector(*code));
            }
        }
        rest.as_flattened().iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / (rest.len() * D) as f64
    }

    #[test]
    fn random_numbers_are_those_of_the_published_generator() {
        // The first outputs for the seed 1234567, as published test vectors have them.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
        assert!((0..1000).all(|_| random.below(7) < 7));
    }

    #[test]
    fn as_many_vectors_as_entries_are_kept_exactly() {
        // Multiples of 1/8 are exact in half precision.
        let vectors: Vec<[f32; 2]> = (0..16u8).map(|i| [f32::from(i) / 8.0, f32::from(i % 4)]).collect();
        let sample = sample(vectors.iter().cycle().take(160).copied().collect());
        assert_eq!(error(&training(16, 1, 20), &sample), 0.0);
        // Fewer distinct ones leave entries over.
        let few = Sample { vectors: vec![[0.25, -1.0]; 50], weights: vec![[1.0; 2]; 50], weighed: false };
        assert_eq!(error(&training(64, 2, 20), &few), 0.0);
    }

    #[test]
    fn entries_without_vectors_move_to_the_greatest_errors() {
        let vectors = [[0.0f32, 0.0], [1.0, 0.0], [8.0, 9.0]];
        let assigned = Assigned { codes: vec![0; 3], errors: vec![0.0, 1.0, 145.0] };
        let before = [[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]];
        let found = means(&vectors, &[[1.0; 2]; 3], &assigned, &before);
        // The last has no error left to move to.
        assert_eq!(found, [[3.0, 3.0], [8.0, 9.0], [1.0, 0.0], [70.0, 70.0]]);
    }

    #[test]
    fn an_empty_sample_has_codebooks() {
        let books = training(16, 2, 5).train(&sample::<4>(Vec::new())).unwrap();
        assert!(books.iter().all(|book| book.vectors() == [[0.0; 4]; 16]));
    }

    #[test]
    fn iterations_stages_and_joint_training_lose_less() {
        let sample = sample(gaussian(4096 * 2).as_chunks::<2>().0.to_vec());
        let seeded = error(&training(16, 1, 0), &sample);
        let trained = error(&training(16, 1, 20), &sample);
        assert!(trained < seeded * 0.9, "{trained} {seeded}");
        // 2 bits a value: the optimal scalar quantizer of a normal distribution leaves 0.1175 (Max 1960), two dimensions less.
        assert!((0.09..0.1175).contains(&trained), "{trained}");
        let apart = error(&training(16, 2, 0), &sample);
        let jointly = error(&training(16, 2, 20), &sample);
        assert!(jointly < apart && jointly < trained / 6.0, "{jointly} {apart}");
    }

    #[test]
    fn weights_draw_entries_to_what_counts() {
        let vectors = gaussian(2048 * 2).as_chunks::<2>().0.to_vec();
        let weights = vec![[10.0, 0.1]; vectors.len()];
        let weighed = Sample { vectors: vectors.clone(), weights, weighed: true };
        let of = |sample: &Sample<2>| {
            let training = training(16, 1, 20);
            let books = training.train(sample).unwrap();
            training.assign(&books[0], &vectors, &weighed).unwrap().total()
        };
        let (own, plain) = (of(&weighed), of(&sample(vectors.clone())));
        assert!(own < plain * 0.7, "{own} {plain}");
    }
}
