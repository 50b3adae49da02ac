"""Makes crates/kbit-eval/tests/data/information.json: cross-entropies of sentences of our own under uniform, unigram and bigram
baselines, and what a made-up model takes away from them.

information_golden.py OUT

Needs numpy. Tokens are the UTF-8 bytes of the sentences, so the vocabulary is 256. Everything is computed over dense tables, not as
kbit does: `unigram` is a vector and `bigram` a matrix of all 65,536 probabilities, smoothed by Witten and Bell's method. The model's
likelihoods are seeded random numbers. The file holds `baseline` and `text` (tokens), `windows` (scored tokens of each), and for each
`case` the likelihoods of the model and all figures, with standard errors over windows.
"""

import json
import sys

import numpy

VOCABULARY = 256
BASELINE = (
    "The miller weighs the grain before the sun is up. Two carts wait at the gate, and the dog sleeps under the first of them. "
    "Whoever comes late pays a coin more. In autumn the river is low, the wheel turns slowly, and the miller sings to it."
)
TEXT = (
    "The baker buys flour from the miller. She carries it over the bridge before the town wakes, and by six the first loaves "
    "stand on the sill. Ça suffit, says the cat, and sleeps on."
)


def baselines(tokens):
    counts = numpy.bincount(tokens, minlength=VOCABULARY).astype(float)
    kinds = numpy.count_nonzero(counts)
    unigram = (counts + kinds / VOCABULARY) / (counts.sum() + kinds)
    pairs = numpy.zeros((VOCABULARY, VOCABULARY))
    numpy.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    kinds = numpy.count_nonzero(pairs, axis=1)[:, None]
    total = pairs.sum(axis=1)[:, None]
    with numpy.errstate(invalid="ignore"):
        bigram = numpy.where(total > 0, (pairs + kinds * unigram) / (total + kinds), unigram)
    assert numpy.allclose(unigram.sum(), 1) and numpy.allclose(bigram.sum(axis=1), 1)
    return unigram, bigram


def over_windows(values, scored):
    """Mean, and the standard error of the mean of windows, all as long as each other."""
    means = values.reshape(-1, scored).mean(axis=1)
    return float(values.mean()), float(means.std(ddof=1) / numpy.sqrt(len(means))) if len(means) > 1 else None


def case(seed, scored, windows, unigram, bigram, text):
    random = numpy.random.default_rng(seed)
    before, after = text[: scored * windows], text[1 : scored * windows + 1]
    nlls = random.gamma(2.0, 0.9, scored * windows)
    bytes_per_token = float(random.uniform(1.0, 5.0))
    line = {"scored": scored, "nlls": nlls.tolist(), "bytes_per_token": bytes_per_token}
    line["bits_per_token"], line["stderr"] = over_windows(nlls / numpy.log(2), scored)
    for name, p in (("uniform", numpy.full(len(after), 1 / VOCABULARY)), ("unigram", unigram[after]), ("bigram", bigram[before, after])):
        bits = -numpy.log2(p)
        reduction, error = over_windows(bits - nlls / numpy.log(2), scored)
        line[name] = {"bits_per_token": float(bits.mean()), "reduction": reduction, "stderr": error}
        line[name] |= {"reduction_per_byte": reduction / bytes_per_token, "share": reduction / float(bits.mean())}
    return line


def main():
    baseline, text = (numpy.frombuffer(t.encode(), dtype=numpy.uint8).astype(int) for t in (BASELINE, TEXT))
    unigram, bigram = baselines(baseline)
    document = {
        "numpy": numpy.__version__,
        "vocabulary": VOCABULARY,
        "baseline": baseline.tolist(),
        "text": text.tolist(),
        "cases": [case(seed, scored, windows, unigram, bigram, text) for seed, (scored, windows) in enumerate([(10, 15), (7, 20), (60, 2), (100, 1), (1, 90)])],
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, separators=(",", ":"))
        file.write("\n")


main()
