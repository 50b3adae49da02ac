"""Makes crates/kbit-eval/tests/data/scores.json: what sacrebleu, rouge-score and scikit-learn say of sentences of our own.

scores_golden.py OUT

Needs the PyPI packages sacrebleu, rouge-score, nltk (which rouge-score brings) and scikit-learn; the file names their versions.
Texts are sentences of this file and seeded mixtures of their words. The file holds: `corpora`, each with `hypotheses` and
`references` (a list a document); `bleu`, `chrf`, each with the number of a corpus, options, the corpus score, scores of single
documents and the signature; `rouge`, precision, recall and F1 of each document; `stems`; `exact`; `labels`.
"""

import json
import random
import sys
import warnings
from importlib.metadata import version

import numpy
import sklearn.metrics
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

OUT = sys.argv[1]
RANDOM = random.Random(5)

SENTENCES = [
    "The river rises in the hills above the town and runs south to the sea.",
    "Nobody had crossed the bridge since the flood of 1953; it cost $1,234.50 to mend.",
    "\"Wait,\" she said, \"the ferry doesn't leave until half-past nine (or so).\"",
    "Der Müller fährt über die Brücke – das kostet 3,50 €!",
    "Где находится ближайшая станция? Она закрыта с 12:00 до 13:30.",
    "川は町の上の丘から始まり、南へ流れて海に入る。",
    "L'été dernier, l'eau était à 18,5°C ; aujourd'hui elle est à 21°C...",
    "a a a a a b b b a a a",
    "Numbers: 1.000.000, 3.14, 10-20, 5%, -7, 2^8=256, x<y & y>z.",
    "She paid &quot;a lot&quot; &amp; left at 7 p.m., e-mail: anna@example.org/test_1.",
    "",
    "   ",
    "!!!",
    "One.",
    "The mill-wheel turned, and turned, and turned again; the miller slept.",
    "İstanbul'da ΑΝΔΡΑΣ straße naïve coöperate Å ﬁsh ½ ² ٣٤ ౩",
    "tabs\tand\u00a0hard spaces\u3000and\u2028line separators",
    "a line that ends in a hyphen-\nand goes on\nover three lines",
    "emoji 🙂🙂 and flags 🇳🇿, combining e\u0301 and n\u0303.",
    "The quick-witted children were happily running, hopping and generalizing about geology.",
]

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
MORE = (
    "relational conditional rational valenci digitizer conformabli radicalli differentli vileli analogousli vietnamization predication "
    "operator feudalism decisiveness hopefulness callousness formaliti sensitiviti sensibiliti triplicate formative formalize electriciti "
    "electrical hopeful goodness revival allowance inference airliner gyroscopic adjustable defensible irritant replacement adjustment "
    "dependent adoption homologou communism activate angulariti homologous effective bowdlerize probate rate cease controll roll sky skies "
    "dying lying tying news innings inning outings outing cannings canning howe proceed exceed succeed dies died ties tied spied flies fly "
    "flying enjoy enjoyment enjoyed happy happily say says saying yes yyyy syzygy toy boys ivy oats trees troubles private oaten orrery "
    "geology geologist archaeologi theologi logi apologies carefully fulli usefully usefulli bli abli nobli alli finalli totally ideally "
    "eed feed agreed need bleed fed red bed plastered motoring sing string conflated troubled sized hopping tanned falling hissing fizzed "
    "failing filing wills boxing playing snowed at be is a i x9 abc123ing 4th 1990s running runner runs ran using used user uses ss sss "
    "caresses ponies cats caress gas this was has its class business businesses ness ful ative ization ational ment ement ion tion sion"
).split()


def salad(length):
    return " ".join(RANDOM.choice(WORDS) for _ in range(length))


def near(sentence):
    """The sentence with some words dropped, doubled, moved or replaced."""
    words = sentence.split(" ")
    for _ in range(RANDOM.randrange(4)):
        place = RANDOM.randrange(len(words))
        match RANDOM.randrange(4):
            case 0:
                words[place] = RANDOM.choice(WORDS)
            case 1:
                words.insert(place, words[place])
            case 2:
                words[place] = words[place].upper()
            case _ if len(words) > 1:
                del words[place]
    return " ".join(words)


def corpora():
    found = [
        ([near(s) for s in SENTENCES], [[s] for s in SENTENCES]),
        (list(SENTENCES), [[s] for s in SENTENCES]),
        ([near(s) for s in SENTENCES], [[near(s), s, near(s)] for s in SENTENCES]),
        ([salad(RANDOM.randrange(12)) for _ in range(60)], [[salad(RANDOM.randrange(12)) for _ in range(1 + i % 3)] for i in range(60)]),
        (["", "", "x"], [["a b"], [""], ["y z"]]),
        (["cat"], [["the cat"]]),
    ]
    for _ in range(4):
        texts = [" ".join(salad(3) + RANDOM.choice([".", "!\n", ",", "\n", ""]) for _ in range(RANDOM.randrange(1, 6))) for _ in range(8)]
        found.append(([near(text) for text in texts], [[near(text), text] for text in texts]))
    return [{"hypotheses": h, "references": r} for h, r in found]


def streams(corpus):
    """References as sacrebleu wants them: the first of each document, the second of each, ..., with None where there is none."""
    most = max(len(references) for references in corpus["references"])
    return [[references[i] if i < len(references) else None for references in corpus["references"]] for i in range(most)]


def scored(metric, corpus):
    result = metric.corpus_score(corpus["hypotheses"], streams(corpus))
    signature = str(metric.get_signature())
    single = [metric.sentence_score(h, r).score for h, r in zip(corpus["hypotheses"], corpus["references"])]
    return result, {"score": result.score, "sentences": single, "signature": signature}


def bleu(all_corpora):
    options = [{"tokenize": tokenizer} for tokenizer in ("13a", "intl", "char", "none")]
    options += [
        {"smooth_method": "none"}, {"smooth_method": "floor"}, {"smooth_method": "floor", "smooth_value": 0.02},
        {"smooth_method": "add-k"}, {"smooth_method": "add-k", "smooth_value": 0.5}, {"effective_order": True},
        {"lowercase": True}, {"max_ngram_order": 2}, {"effective_order": True, "smooth_method": "floor", "lowercase": True, "tokenize": "intl"},
    ]
    found = []
    for number, corpus in enumerate(all_corpora):
        for option in options:
            result, line = scored(BLEU(**option), corpus)
            line |= {"corpus": number, "options": option, "precisions": result.precisions, "brevity_penalty": result.bp}
            line |= {"hypothesis_length": result.sys_len, "reference_length": result.ref_len}
            found.append(line)
    return found


def chrf(all_corpora):
    options = [{}, {"word_order": 2}, {"lowercase": True}, {"whitespace": True, "word_order": 1}, {"eps_smoothing": True, "word_order": 2}, {"beta": 1, "char_order": 4}]
    return [
        scored(CHRF(**option), corpus)[1] | {"corpus": number, "options": option}
        for number, corpus in enumerate(all_corpora)
        for option in options
    ]


def rouge(all_corpora):
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    found = []
    for stemming in (False, True):
        scorer = RougeScorer(names, use_stemmer=stemming)
        for number, corpus in enumerate(all_corpora):
            scores = [scorer.score_multi(r, h) for h, r in zip(corpus["hypotheses"], corpus["references"])]
            found.append({"corpus": number, "stemming": stemming, "documents": [{n: list(s[n]) for n in names} for s in scores]})
    return found


def exact():
    from lm_eval.api.metrics import exact_match_hf_evaluate

    predictions = ["Paris", "paris.", "PARIS!", "Paris 1", "The answer is 42.", "42", "4 2", "", "ÉTÉ", "a-b_c", "  x "]
    references = ["Paris", "Paris", "paris", "Paris", "42", "The answer is 42", "42", ".", "été", "abc", "x"]
    found = []
    for patterns in (None, [r"^The answer is ", r"\.$"], [r"\s"]):
        for bits in range(8):
            option = {"ignore_case": bool(bits & 1), "ignore_punctuation": bool(bits & 2), "ignore_numbers": bool(bits & 4)}
            one = [float(exact_match_hf_evaluate([p], [r], regexes_to_ignore=patterns, **option)["exact_match"]) for p, r in zip(predictions, references)]
            found.append(option | {"patterns": patterns or [], "scores": one})
    return {"predictions": predictions, "references": references, "cases": found}


def labels():
    found = []
    for case in range(40):
        count = RANDOM.choice([2, 2, 3, 5, 9])
        items = RANDOM.choice([1, 2, 5, 40, 300])
        used = RANDOM.randrange(1, count + 1)
        truth = [RANDOM.randrange(used) for _ in range(items)]
        predicted = [t if RANDOM.random() < 0.6 else RANDOM.randrange(count) for t in truth]
        line = {"labels": count, "truth": truth, "predicted": predicted}
        line["accuracy"] = float(sklearn.metrics.accuracy_score(truth, predicted))
        line["matthews"] = float(sklearn.metrics.matthews_corrcoef(truth, predicted))
        line["confusion"] = sklearn.metrics.confusion_matrix(truth, predicted, labels=list(range(count))).tolist()
        for name, zero in (("zero", 0.0), ("one", 1.0), ("nan", numpy.nan)):
            line[name] = {
                average or "each": [
                    numpy.where(numpy.isnan(x), None, x).tolist()
                    for x in map(numpy.asarray, sklearn.metrics.precision_recall_fscore_support(
                        truth, predicted, average=average, zero_division=zero, labels=None if average else list(range(count)))[:3])
                ]
                for average in (None, "macro", "weighted")
            }
        found.append(line)
    return found


def main():
    warnings.filterwarnings("ignore")
    all_corpora = corpora()
    words = sorted({word.lower() for word in WORDS + MORE if word.isascii() and word.isalnum()})
    words += sorted({"".join(RANDOM.choice("aeiouylstnd") for _ in range(RANDOM.randrange(1, 6))) + RANDOM.choice(MORE) for _ in range(1500)})
    stemmer = PorterStemmer()
    document = {
        "versions": {name: version(name) for name in ("sacrebleu", "rouge-score", "nltk", "scikit-learn", "lm-eval")},
        "corpora": all_corpora,
        "bleu": bleu(all_corpora),
        "chrf": chrf(all_corpora),
        "rouge": rouge(all_corpora),
        "stems": [[word, stemmer.stem(word)] for word in words],
        "exact": exact(),
        "labels": labels(),
    }
    with open(OUT, "w", encoding="utf-8") as file:
        json.dump(document, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


main()
