"""The demonstrations that need no download, through the real command, beside simple baselines on the same rows.

Baselines: of the classifier, always the most frequent class, and scikit-learn's TF-IDF of words with logistic
regression; of the tagger, always the most frequent tag of a word in training, and logistic regression on a word and
two neighbours on either side; of the answerer, the place in a line that most often has the answer to the question, and
logistic regression on a word and its neighbours for each question; of the filler of masks, the share of each token in
the training split; of the translator, the text itself, and the translation of the most similar training text; of the
search, the cosine of TF-IDF vectors of words, and the model before the training; of the language model, n-grams of
bytes, interpolated as by Witten and Bell ("The zero-frequency problem", IEEE Transactions on Information Theory 37,
1991).
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, child, parser, publish, scratch, table

CLASSIFIER, GENERATOR = "text_classification_demo", "text_generation_demo"
TAGGER, FILLER, ANSWERER = "token_classification_demo", "fill_mask_demo", "question_answering_demo"
TRANSLATOR, SEARCH = "translation_demo", "embedding_demo"
QUICK = ["trainer.args.max_steps=2", "dataset.max_train_samples=100", "model.config.hidden_size=16"]
VOCABULARY = 261
"""Of `hfexp.tasks.text.byte_tokenizer`."""
LONGEST = 3
"""Bytes of the longest n-gram."""


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Train each once."""
    report = Report("demos", (__doc__ or "").splitlines()[0].rstrip("."))
    words = QUICK if quick else []
    rows = []
    with scratch() as place:
        demos = (
            (CLASSIFIER, "accuracy", classes), (TAGGER, "f1", tags), (ANSWERER, "f1", answers),
            (FILLER, "perplexity", shares), (TRANSLATOR, "chrf", translations), (SEARCH, "ndcg_at_10", searches),
            (GENERATOR, "perplexity", n_grams),
        )  # fmt: skip
        for name, score, baselines in demos:
            own = [word for word in words if name != SEARCH or "hidden_size" not in word]  # its weights have a size
            seconds, found = train(name, own, place / name)
            compared = baselines([f"experiment={name}", *own])
            shown = ", ".join(f"{what} {value:.3f}" for what, value in compared.items())
            rows.append([name, f"{score} {found[f'test_{score}']:.3f}", shown, f"{seconds:.0f}"])
            report.data[name] = {"seconds": seconds, "metrics": found, "baselines": compared}
    report.blocks.append(table(["experiment", "test split", "baselines on it", "s in all"], rows))
    return report


def train(name: str, words: list[str], place: Path) -> tuple[float, dict[str, float]]:
    """Seconds of the whole command, and what it has measured."""
    place.mkdir()
    start = time.perf_counter()
    child(["-m", "hfexp", f"experiment={name}", *words, f"output_dir={place / 'outputs'}"], HFEXP_CACHE=str(place))
    seconds = time.perf_counter() - start
    (results,) = place.glob("outputs/*/*/artifacts/results.json")
    return seconds, json.loads(results.read_text())


def prepare(words: list[str]) -> Any:
    """The experiment's task, rows and transforms."""
    from hfexp.commands.api import compose
    from hfexp.experiment import preflight

    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        return compose(*words, "transform.cache.enabled=false"), preflight.load_inputs(compose(*words))


def classes(words: list[str]) -> dict[str, float]:
    """Accuracy on the test split."""
    from collections import Counter

    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    dataset = prepare(words)[1].dataset
    (train_texts, train_labels), (texts, labels) = (
        (dataset[split]["text"][:], dataset[split]["label"][:]) for split in ("train", "test")
    )
    most = Counter(train_labels).most_common(1)[0][0]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(train_texts, train_labels)
    return {
        "most frequent class": sum(label == most for label in labels) / len(labels),
        "TF-IDF + logistic regression": float(model.score(texts, labels)),
    }


def tags(words: list[str]) -> dict[str, float]:
    """F1 of entities on the test split."""
    from collections import Counter, defaultdict

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split][:] for split in ("train", "test"))
    counts = defaultdict(Counter)
    for row, truth in zip(learnt["words"], learnt["tags"], strict=True):
        for word, tag in zip(row, truth, strict=True):
            counts[word][tag] += 1
    most = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    model = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=300))
    model.fit([place for row in learnt["words"] for place in neighbours(row)], sum(learnt["tags"], []))
    answers = {
        "most frequent tag of the word": [[most.get(word, 0) for word in row] for row in asked["words"]],
        "neighbours + logistic regression": [model.predict(neighbours(row)).tolist() for row in asked["words"]],
    }
    return {name: entity_f1(inputs, found, asked["tags"]) for name, found in answers.items()}


def neighbours(row: list[str]) -> list[dict[str, str]]:
    """Each word of a row, with two on either side."""
    padded = ["", "", *row, "", ""]
    return [{str(away): padded[place + away] for away in range(5)} for place in range(len(row))]


def entity_f1(inputs: Any, predictions: list[list[int]], truth: list[list[int]]) -> float:
    """F1 of all rows, each counted by itself."""
    import numpy as np

    rows = zip(predictions, truth, strict=True)
    counts = np.concatenate([inputs.task.scheme.count(*(np.array([tags]) for tags in pair)) for pair in rows])
    return inputs.metrics.scalars(dict(inputs.task.metric_inputs(counts, counts)))["f1"]


def answers(words: list[str]) -> dict[str, float]:
    """F1 of the answers to the questions of the test split."""
    from collections import Counter, defaultdict

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split] for split in ("train", "test"))
    places = defaultdict(Counter)
    for row in learnt:
        places[row["question"]][answer_place(row)] += 1
    most = {question: counts.most_common(1)[0][0] for question, counts in places.items()}
    model = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=300))
    truth = [place == answer_place(row) for row in learnt for place in range(len(row["context"].split(" ")))]
    model.fit([features for row in learnt for features in asked_neighbours(row)], truth)
    found: dict[str, list[str]] = {"most frequent place": [], "neighbours + logistic regression": []}
    for row in asked:
        line, scores = row["context"].split(" "), model.predict_proba(asked_neighbours(row))[:, 1]
        place = most[row["question"]]
        found["most frequent place"].append(line[place] if 0 <= place < len(line) else "")
        best = int(scores.argmax())
        found["neighbours + logistic regression"].append(line[best] if scores[best] > 0.5 else "")
    return {name: answers_f1(inputs, texts, asked) for name, texts in found.items()}


def answer_place(row: dict[str, Any]) -> int:
    """Number of the word at which the answer begins; -1 if there is none."""
    starts = row["answers"]["answer_start"]
    return row["context"][: starts[0]].count(" ") if starts else -1


def asked_neighbours(row: dict[str, Any]) -> list[dict[str, str]]:
    """Each word of a line, with two on either side, seen by the question."""
    question = row["question"]
    return [
        {f"{question} {away}": word for away, word in found.items()} for found in neighbours(row["context"].split(" "))
    ]


def answers_f1(inputs: Any, texts: list[str], rows: Any) -> float:
    """F1 of answers."""
    from hfexp.tasks.answers import objects

    truths = objects(answers["text"] for answers in rows["answers"])
    return inputs.metrics.scalars({"answers": objects(texts), "truths": truths})["f1"]


def shares(words: list[str]) -> dict[str, float]:
    """Perplexity of the same masked tokens of the test split by the tokens' shares in training; one is added to each.

    The accuracy is that of the most frequent token.
    """
    import numpy as np

    from hfexp.experiment.fit import build_splits
    from hfexp.tasks.entities import IGNORED

    config, inputs = prepare(words)
    splits, processor = build_splits(config, inputs), inputs.processor
    encode = inputs.transforms.train.fixed[0]
    learnt = np.concatenate([encode(row)["input_ids"] for row in inputs.dataset["train"]])
    asked = np.concatenate([row["labels"] for row in splits["test"]])
    asked = asked[asked != IGNORED]
    counts = np.bincount(learnt, minlength=len(processor))
    counts[processor.all_special_ids] = 0
    found = (counts + 1) / (counts + 1).sum()
    return {
        "token shares": float(np.exp(-np.log(found[asked]).mean())),
        "accuracy of the most frequent token": float((asked == counts.argmax()).mean()),
    }


def translations(words: list[str]) -> dict[str, float]:
    """Score the texts themselves, and the targets of the most similar training texts, on the test split.

    Texts are as similar as the angle of their TF-IDF vectors of one to four characters is small.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split][:] for split in ("train", "test"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4)).fit(learnt["text"])
    similar = vectorizer.transform(asked["text"]) @ vectorizer.transform(learnt["text"]).T
    nearest = [learnt["target"][place] for place in np.asarray(similar.argmax(axis=1)).ravel()]
    answers = {"the text itself": asked["text"], "most similar training text": nearest}
    chrf, truth = inputs.metrics.metrics["chrf"], np.array(asked["target"], dtype=object)
    scored = {name: np.array(texts, dtype=object) for name, texts in answers.items()}
    return {name: chrf.compute(predictions=texts, references=truth)["chrf"] for name, texts in scored.items()}


def searches(words: list[str]) -> dict[str, float]:
    """NDCG of the test split: words of descriptions and signatures, and the model before the training."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    from hfexp import predict
    from hfexp.tasks.metrics import Retrieval
    from hfexp.tasks.vectors import ranks

    dataset = prepare(words)[1].dataset
    texts = [[row[name] for name in ("anchor", "positive")] for row in dataset["test"]]
    asked = sum(texts, [])
    known = [text for row in dataset["train"] for text in (row["anchor"], row["positive"])]
    vectorizer = TfidfVectorizer(token_pattern=r"[A-Za-z]+").fit(known + asked)
    before = predict("model=minilm_packaged", "task=embedding", "task.max_length=48", inputs=asked)["vector"]
    vectors = {"TF-IDF": vectorizer.transform(asked).toarray(), "before the training": np.array(list(before))}
    ids = np.array([[number] for number in range(len(texts))])
    return {
        name: Retrieval().compute(ranks=ranks(found.reshape(len(texts), 2, -1).astype(np.float32), ids))["ndcg_at_10"]
        for name, found in vectors.items()
    }


def n_grams(words: list[str]) -> dict[str, float]:
    """Perplexity of the blocks of the test split, whose first bytes are given as they are to the model."""
    import numpy as np

    from hfexp.experiment.fit import build_splits

    config, inputs = prepare(words)
    splits = build_splits(config, inputs)
    learnt, asked = (np.array([row["input_ids"] for row in splits[split]]) for split in ("train", "test"))
    found = np.full((len(asked), asked.shape[1] - 1), 1 / VOCABULARY)
    perplexities = {}
    for length in range(LONGEST):
        found = interpolated(learnt.reshape(-1), asked, length, found)
        perplexities[f"{length + 1}-grams"] = float(np.exp(-np.log(found).mean()))
    return perplexities


def interpolated(learnt: Any, asked: Any, length: int, shorter: Any) -> Any:
    """Probability of each byte of blocks but the first, given the `length` bytes before it.

    Args:
        learnt: (N,) bytes; `asked`: (B, T).
        shorter: the same, (B, T - 1), of one byte less before it; kept where a block has too few bytes.
    """
    import numpy as np

    def context(bytes_: Any) -> Any:
        """Number of the context of each byte from place `length` on."""
        size = bytes_.shape[-1]
        number = np.zeros((*bytes_.shape[:-1], size - length), np.int64)
        for offset in range(length):
            number = number * VOCABULARY + bytes_[..., offset : size - length + offset]
        return number

    counts = np.zeros((VOCABULARY**length, VOCABULARY), np.int32)
    np.add.at(counts, (context(learnt), learnt[length:]), 1)
    totals, kinds = counts.sum(1), (counts > 0).sum(1)
    first = max(length, 1)
    where, what = context(asked)[..., first - length :], asked[..., first:]
    total, kind = totals[where], kinds[where]
    known = shorter[:, first - 1 :]
    mixed = (counts[where, what] + kind * known) / np.maximum(total + kind, 1)
    found = shorter.copy()
    found[:, first - 1 :] = np.where(total > 0, mixed, known)
    return found


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
