"""Simple baselines of the demonstrations, on the same rows and by the same metrics, by their names in tables.

Every function takes the words of a command and returns the scores on the test split. None of them looks at it before.
"""

import contextlib
import os
from typing import Any

VOCABULARY = 261
"""Of `hfexp.tasks.text.byte_tokenizer`."""
LONGEST = 3
"""Bytes of the longest n-gram."""
BY_NEIGHBOURS = "logistic regression on a word and its neighbours"


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
        "logistic regression on TF-IDF": float(model.score(texts, labels)),
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
        BY_NEIGHBOURS: [model.predict(neighbours(row)).tolist() for row in asked["words"]],
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
    """F1 of the answers to the questions of the test split.

    The logistic regression sees, for each question by itself, a word, two on either side, and how far the word is from
    both ends of the line. It answers with the most probable word and those beside it, as far as they are part of an
    answer rather than not.
    """
    from collections import Counter, defaultdict

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split] for split in ("train", "test"))
    places = defaultdict(Counter)
    for row in learnt:
        places[row["question"]][tuple(answer_words(row))] += 1
    most = {question: counts.most_common(1)[0][0] for question, counts in places.items()}
    model = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=300))
    truth = [place in answer_words(row) for row in learnt for place in range(len(row["context"].split(" ")))]
    model.fit([features for row in learnt for features in asked_words(row)], truth)
    found: dict[str, list[str]] = {"most frequent place of the answer": [], BY_NEIGHBOURS: []}
    for row in asked:
        line, scores = row["context"].split(" "), model.predict_proba(asked_words(row))[:, 1]
        usual = most.get(row["question"], ())
        found["most frequent place of the answer"].append(" ".join(line[n] for n in usual if n < len(line)))
        found[BY_NEIGHBOURS].append(" ".join(likely_run(line, scores)))
    return {name: answers_f1(inputs, texts, asked) for name, texts in found.items()}


def answer_words(row: dict[str, Any]) -> range:
    """Numbers of the words of the answer; none if there is no answer."""
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    first = row["context"][: starts[0]].count(" ") if starts else 0
    return range(first, first + len(texts[0].split(" ")) if texts else first)


def likely_run(line: list[str], scores: Any) -> list[str]:
    """The most probable word, and those beside it with a probability above a half; none if it has none itself."""
    first = last = int(scores.argmax())
    if scores[first] <= 0.5:
        return []
    while first > 0 and scores[first - 1] > 0.5:
        first -= 1
    while last + 1 < len(line) and scores[last + 1] > 0.5:
        last += 1
    return line[first : last + 1]


def asked_words(row: dict[str, Any]) -> list[dict[str, str | float]]:
    """What is seen of each word of a line."""
    line, question = row["context"].split(" "), row["question"]
    ends = ({"before": place / 10, "behind": (len(line) - 1 - place) / 10} for place in range(len(line)))
    seen = ({**near, **far} for near, far in zip(neighbours(line), ends, strict=True))
    return [{f"{question} {what}": value for what, value in features.items()} for features in seen]


def answers_f1(inputs: Any, texts: list[str], rows: Any) -> float:
    """F1 of answers."""
    from hfexp.tasks.answers import objects

    truths = objects(answers["text"] for answers in rows["answers"])
    return inputs.metrics.scalars({"answers": objects(texts), "truths": truths})["f1"]


def shares(words: list[str]) -> dict[str, float]:
    """Perplexity of the same masked tokens of the test split by the tokens' shares in training, plus one of each."""
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
    return {"shares of the tokens": float(np.exp(-np.log(found[asked]).mean()))}


def translations(words: list[str]) -> dict[str, float]:
    """Score the texts themselves, and the targets of the most similar training texts, on the test split.

    Texts are as similar as the angle of their TF-IDF vectors of one to four characters is small.
    """
    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split][:] for split in ("train", "test"))
    nearest = of_nearest(learnt, asked["text"], analyzer="char", ngram_range=(1, 4))
    answers = {"the text itself": asked["text"], "most similar training text": nearest}
    return {name: score(inputs, "chrf", "chrf", texts, asked["target"]) for name, texts in answers.items()}


def summaries(words: list[str]) -> dict[str, float]:
    """Score the most frequent training summary, and those of the most similar training texts, on the test split.

    Texts are as similar as the angle of their TF-IDF vectors of up to three words in a row is small.
    """
    from collections import Counter

    inputs = prepare(words)[1]
    learnt, asked = (inputs.dataset[split][:] for split in ("train", "test"))
    answers = {
        "most frequent summary": [Counter(learnt["target"]).most_common(1)[0][0]] * len(asked["text"]),
        "most similar training text": of_nearest(
            learnt, asked["text"], token_pattern=r"\S+", ngram_range=(1, 3), sublinear_tf=True
        ),
    }
    return {name: score(inputs, "rouge", "rougeL", texts, asked["target"]) for name, texts in answers.items()}


def score(inputs: Any, metric: str, name: str, texts: list[str], truth: list[str]) -> float:
    """Score texts by one of the experiment's metrics."""
    import numpy as np

    predictions, references = (np.array(part, dtype=object) for part in (texts, truth))
    return float(inputs.metrics.metrics[metric].compute(predictions=predictions, references=references)[name])


def of_nearest(learnt: dict[str, list[str]], texts: list[str], **options: Any) -> list[str]:
    """The targets of the most similar training texts; `options` are those of the TF-IDF vectors."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**options).fit(learnt["text"])
    similar = vectorizer.transform(texts) @ vectorizer.transform(learnt["text"]).T
    return [learnt["target"][place] for place in np.asarray(similar.argmax(axis=1)).ravel()]


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


def endings(words: list[str]) -> dict[str, float]:
    """Accuracy on the test split of the ending that is most probable by its beginning.

    Either the cosine of the TF-IDF vectors of both decides, or a logistic regression on two words on either side of
    the cut, each by itself and the inner ones together.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    dataset = prepare(words)[1].dataset
    learnt, asked = dataset["train"], dataset["test"]
    texts = [text for row in learnt for text in (row["text"], row["choices"][row["label"]])]
    vectorizer = TfidfVectorizer(token_pattern=r"\S+").fit(texts)
    model = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=300))
    truth = [place == row["label"] for row in learnt for place in range(len(row["choices"]))]
    model.fit([features for row in learnt for features in cuts(row)], truth)
    right = {"TF-IDF": 0, "logistic regression on the words at the cut": 0}
    for row in asked:
        cosines = vectorizer.transform(row["choices"]) @ vectorizer.transform([row["text"]]).T
        found = (cosines.toarray()[:, 0], model.predict_proba(cuts(row))[:, 1])
        for name, scores in zip(right, found, strict=True):
            right[name] += int(scores.argmax()) == row["label"]
    return {name: count / len(asked) for name, count in right.items()}


def cuts(row: dict[str, Any]) -> list[dict[str, str]]:
    """What is seen of each choice."""
    before, inner = row["text"].split(" ")[-2:]
    seen = []
    for choice in row["choices"]:
        first, behind = choice.split(" ")[:2]
        seen.append({"-2": before, "-1": inner, "1": first, "2": behind, "both": f"{inner} {first}"})
    return seen


def pairs(words: list[str]) -> dict[str, float]:
    """Accuracy on the test split: the most frequent class, and logistic regression on the cosine of TF-IDF vectors."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    learnt, asked = (prepare(words)[1].dataset[split][:] for split in ("train", "test"))
    vectorizer = TfidfVectorizer(token_pattern=r"[A-Za-z]+").fit([*learnt["text"], *learnt["text_pair"]])

    def cosines(rows: dict[str, list[str]]) -> Any:
        first, second = (vectorizer.transform(rows[column]) for column in ("text", "text_pair"))
        return np.asarray(first.multiply(second).sum(1))

    model = LogisticRegression(C=1e6).fit(cosines(learnt), learnt["label"])
    most = max(set(learnt["label"]), key=learnt["label"].count)
    return {
        "most frequent class": float(np.mean(np.array(asked["label"]) == most)),
        "logistic regression on the cosine of TF-IDF vectors": float(model.score(cosines(asked), asked["label"])),
    }


def choices(words: list[str]) -> dict[str, float]:
    """Accuracy on the test split of the longer answer, and of a linear model of words and lengths.

    The model is a logistic regression on the differences between both answers, each with its prompt: of the TF-IDF
    vectors of up to three words in a row, with marks of the ends, and of the number of words. How much it is
    regularised is chosen on the validation split.
    """
    import numpy as np
    from scipy.sparse import csr_matrix, hstack, vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    dataset = prepare(words)[1].dataset
    vectorizer = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 3))

    def whole(split: str, answer: str) -> list[str]:
        return [f"<s> {row['prompt']}{row[answer]} </s>" for row in dataset[split]]

    def longer(split: str) -> Any:
        chosen, rejected = ([len(text.split()) for text in whole(split, name)] for name in ("chosen", "rejected"))
        return np.subtract(chosen, rejected)[:, None]

    def features(split: str) -> Any:
        chosen, rejected = (vectorizer.transform(whole(split, name)) for name in ("chosen", "rejected"))
        return hstack([chosen - rejected, csr_matrix(longer(split) / 10)]).tocsr()

    vectorizer.fit(whole("train", "chosen") + whole("train", "rejected"))
    learnt, chosen, asked = (features(split) for split in ("train", "validation", "test"))
    both, truth = vstack([learnt, -learnt]), np.repeat([1, 0], learnt.shape[0])
    models = [LogisticRegression(C=c, fit_intercept=False, max_iter=300).fit(both, truth) for c in (1, 10, 100)]
    best = max(models, key=lambda model: np.mean(model.decision_function(chosen) > 0))
    return {
        "the longer answer": float(np.mean(longer("test") > 0)),
        "logistic regression on words and lengths": float(np.mean(best.decision_function(asked) > 0)),
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
