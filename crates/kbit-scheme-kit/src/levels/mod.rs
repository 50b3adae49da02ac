//! The levels of the block-wise schemes that come with kbit. They live here and not in the plugins that export them, so that a
//! scheme made of other schemes (as `mixed`) can use them.

mod dynamic;
mod float;
mod int;
mod normal;
mod quantile;

pub use dynamic::Dynamic;
pub use float::Float;
pub use int::Int;
pub use quantile::Quantile;
