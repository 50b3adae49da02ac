//! Laws of quality against bits and size: fit, compare, bootstrap, Pareto, advise.
