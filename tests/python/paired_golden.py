"""Makes crates/kbit-laws/tests/data/paired.json: what scipy says of paired differences of seeded random numbers.

paired_golden.py OUT

Needs numpy and scipy. Each case has `a`, `b` and `weights` of items; `difference`; `stderr` and `interval` of scipy's bootstrap over
items (SciPy draws other resamples, so they agree to the error of resampling); `p`, scipy's permutation test over all signs (exact, up
to 14 items) or over random ones. `holm` holds p values and what the definition gives for them, written out as in Holm, 1979.
"""

import json
import sys

import numpy
import scipy
import scipy.stats


def case(random, items, shift, weighted):
    weights = random.integers(20, 60, items).astype(float) if weighted else numpy.ones(items)
    b = random.gamma(3, 0.8, items) * weights
    a = b + random.normal(shift, 0.05, items) * weights

    def mean(difference, weight, axis=-1):
        return difference.sum(axis=axis) / weight.sum(axis=axis)

    boot = scipy.stats.bootstrap(
        (a - b, weights), mean, paired=True, n_resamples=40_000, method="percentile", random_state=random, vectorized=True
    )
    test = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis=-1: (x - y).sum(axis=axis), permutation_type="samples", n_resamples=40_000, vectorized=True,
        rng=numpy.random.default_rng(7),
    )
    return {
        "a": a.tolist(), "b": b.tolist(), "weights": weights.tolist() if weighted else None,
        "difference": float(mean(a - b, weights)), "stderr": float(boot.standard_error),
        "interval": list(map(float, boot.confidence_interval)), "p": float(test.pvalue), "exact": items <= 14,
    }


def holm(p):
    """Step down: the smallest p times the number of tests, the next times one less, never below the one before."""
    order, corrected, least = sorted(range(len(p)), key=p.__getitem__), [None] * len(p), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = least
    return corrected


def main():
    random = numpy.random.default_rng(5)
    settings = [(6, 0.0, False), (10, 0.03, False), (12, 0.05, True), (14, 0.01, True), (40, 0.012, True), (200, 0.004, False), (60, 0.0, True)]
    p_values = [[0.01, 0.04, 0.03, 0.005], [0.5, 0.6, 0.02], [0.2], [0.001, 0.001, 0.9, 0.3, 0.02]]
    document = {
        "versions": {"numpy": numpy.__version__, "scipy": scipy.__version__},
        "cases": [case(random, *setting) for setting in settings],
        "holm": [{"p": p, "corrected": holm(p)} for p in p_values],
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, separators=(",", ":"))
        file.write("\n")


main()
