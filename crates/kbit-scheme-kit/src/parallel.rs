//! Work on the host's threads whose results do not depend on their number.

use kbit_plugin::{Error, Host};
use std::sync::OnceLock;

/// `map(i)` for every `i` below `count`, in that order, by the host's threads. In `begin` and `prepare` alone, as
/// [`Host::parallel_for`].
///
/// # Errors
/// That of the lowest `i` that has one.
pub fn parallel_map<R: Send + Sync>(
    host: &Host<'_>,
    count: usize,
    map: impl Fn(usize) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let places: Vec<OnceLock<R>> = (0..count).map(|_| OnceLock::new()).collect();
    host.parallel_for(count as u64, 0, |index, _| {
        let place = usize::try_from(index).ok().and_then(|index| Some((index, places.get(index)?)));
        let Some((index, place)) = place else {
            return Err(Error::internal(format!("the host asks for piece {index} of {count}; update kbit")));
        };
        // A piece that the host asks for twice has the same result twice.
        let _ = place.set(map(index)?);
        Ok(())
    })?;
    let missing = || Error::internal("the host left out a piece of the work; update kbit");
    places.into_iter().map(|place| place.into_inner().ok_or_else(missing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_the_first_error_is_told() {
        assert_eq!(parallel_map(&Host::none(), 5, |i| Ok(i * i)).unwrap(), [0, 1, 4, 9, 16]);
        assert!(parallel_map(&Host::none(), 0, |_| Ok(())).unwrap().is_empty());
        let failing =
            |i: usize| if i < 3 { Ok(i) } else { Err(Error::numeric(format!("piece {i} is wrong"))) };
        assert_eq!(parallel_map(&Host::none(), 6, failing).unwrap_err().message, "piece 3 is wrong");
    }
}
