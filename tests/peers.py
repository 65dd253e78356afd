"""Answers and metrics as the field computes them, by pipelines, packages and plain loops, which the laws compare."""

import io
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = ("cold", "hot", "mild")
"""Classes of the rows."""
COUNTED = ("one", "two", "three", "four", "five")
"""Words of the texts that a model writes."""
ANSWERS = ("text", "answer_start")
"""Fields of the answers to a question."""
IGNORED = -100
Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """What a model computes for some rows, and their labels."""

    logits: np.ndarray | tuple[np.ndarray, ...]
    labels: np.ndarray
    written: np.ndarray | None = None
    """Tokens that `generate` returns, where metrics compare texts."""
    cut: tuple[Row, Row] | None = None
    """A stored row and the same after `transform`, where the batch has its windows."""


# Answers of Transformers' pipelines, or by hand for what it has none


def pipeline(name: str, model: str, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(name, model, **options)  # pyright: ignore


def class_answer(scores: list[Row], names: tuple[str, ...] = NAMES) -> Row:
    found = {score["label"]: score["score"] for score in scores}
    best = max(found, key=lambda name: found[name])
    return {"label": best, "score": found[best], "probabilities": [found[name] for name in names]}


def classify(model: str, asks: list[Any]) -> list[Row]:
    ask = pipeline("text-classification", model, top_k=None)
    return [class_answer(ask([one])[0]) for one in asks]


def classify_images(model: str, asks: list[bytes]) -> list[Row]:
    import PIL.Image

    ask = pipeline("image-classification", model, top_k=len(NAMES))
    return [class_answer(ask(PIL.Image.open(io.BytesIO(one)))) for one in asks]


def find_classes(model: str, asks: list[str]) -> list[Row]:
    answers = [class_answer(scores) for scores in pipeline("text-classification", model, top_k=None)(asks)]
    result = []
    for answer in answers:
        scores = dict(zip(NAMES, answer["probabilities"], strict=True))
        labels = sorted((name for name in NAMES if scores[name] >= 0.5), key=lambda name: -scores[name])
        result.append({"labels": labels, "probabilities": answer["probabilities"]})
    return result


def regress(model: str, asks: list[Any]) -> list[Row]:
    ask = pipeline("text-classification", model, function_to_apply="none")
    answers = [ask([one]) for one in asks]
    return [{"value": (answer[0][0] if isinstance(answer[0], list) else answer[0])["score"]} for answer in answers]


def find_entities(model: str, asks: list[str]) -> list[Row]:
    ask = pipeline("token-classification", model, aggregation_strategy="first")
    return [
        {
            "entities": [
                {
                    "type": found["entity_group"], "score": float(found["score"]), "start": found["start"],
                    "end": found["end"], "text": text[found["start"] : found["end"]],
                }
                for found in ask(text)
            ]
        }
        for text in asks
    ]  # fmt: skip


def fill_masks(model: str, asks: list[str]) -> list[Row]:
    ask = pipeline("fill-mask", model)
    return [
        {
            "text": fillers[0]["sequence"],
            "fillers": [{"mask": 1, "token": one["token_str"], "score": one["score"]} for one in fillers],
        }
        for fillers in (ask(text) for text in asks)
    ]


def generate(model: str, asks: list[str]) -> list[Row]:
    ask = pipeline("text-generation", model)
    settings = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    return [{"text": ask(text, **settings)[0]["generated_text"]} for text in asks]


def reply(model: str, asks: list[str]) -> list[Row]:
    ask = pipeline("text-generation", model)
    talks = [[{"role": "user", "content": text}] for text in asks]
    replies = [ask(talk, max_new_tokens=4, do_sample=False)[0]["generated_text"] for talk in talks]
    return [{"text": messages[-1]["content"]} for messages in replies]


def loaded(kind: str, model: str) -> tuple[Any, Any]:
    """A model of a directory, and its tokenizer."""
    import transformers

    return getattr(transformers, kind).from_pretrained(model).eval(), transformers.AutoTokenizer.from_pretrained(model)


def rewrite(model: str, asks: list[str]) -> list[Row]:
    writer, tokenizer = loaded("AutoModelForSeq2SeqLM", model)
    written = []
    for ask in asks:
        tokens = writer.generate(**tokenizer(ask, return_tensors="pt"), max_new_tokens=8, do_sample=False, num_beams=1)
        written.append({"text": tokenizer.decode(tokens[0], skip_special_tokens=True)})
    return written


def choose(model: str, asks: list[Row]) -> list[Row]:
    chooser, tokenizer = loaded("AutoModelForMultipleChoice", model)
    result = []
    for ask in asks:
        choices = ask["choices"]
        seconds = [f"{ask['text_pair']} {choice}".strip() for choice in choices]
        inputs = tokenizer([ask["text"]] * len(choices), seconds, padding=True, return_tensors="pt")
        logits = chooser(**{name: values[None] for name, values in inputs.items()}).logits[0].detach().numpy()
        scores = softmax(logits).tolist()
        best = int(np.argmax(scores))
        result.append({"choice": choices[best], "score": scores[best], "scores": scores})
    return result


def find_answers(model: str, asks: list[Row]) -> list[Row]:
    reader, tokenizer = loaded("AutoModelForQuestionAnswering", model)
    result = []
    for ask in asks:
        tokens, places = tokenizer_windows(tokenizer, ask)
        tokens = {name: values for name, values in tokens.items() if name in tokenizer.model_input_names}
        output = reader(**tokens)
        logits = [scores.detach().numpy() for scores in (output.start_logits, output.end_logits)]
        ranked = best_answers(ask["context"], places, *logits, threshold=NULL_THRESHOLD)
        result.append({**ranked[0], "candidates": ranked[:3]})
    return result


def embed(model: str, asks: list[str]) -> list[Row]:
    """By sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return [{"vector": vector.tolist()} for vector in SentenceTransformer(model, device="cpu").encode(asks)]


def reward(model: str, asks: list[str]) -> list[Row]:
    return [{"score": answer["value"]} for answer in regress(model, asks)]


STRIDE, BEST, NULL_THRESHOLD = 6, 5, 0.1
"""Tokens that two windows share, answers whose scores are compared, and by how much none must be better."""


def tokenizer_windows(tokenizer: Any, row: Row) -> tuple[Any, list[list[tuple[int, int] | None]]]:
    """The tokenizer's own windows (W, T), and the places of their tokens in the context; None outside of it."""
    tokens = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=48, stride=STRIDE,
        return_overflowing_tokens=True, return_offsets_mapping=True, padding=True, return_tensors="pt",
    )  # fmt: skip
    places = [
        [tuple(place) if part == 1 else None for place, part in zip(offsets, tokens.sequence_ids(number), strict=True)]
        for number, offsets in enumerate(tokens["offset_mapping"].tolist())
    ]
    return tokens, places


def best_answers(
    context: str,
    places: list[Any],
    starts: np.ndarray,
    ends: np.ndarray,
    threshold: float | None,
    longest: int = 30,
    best: int = BEST,
) -> list[Row]:
    """The answers of the loop of `postprocess_qa_predictions` in Transformers' example utils_qa.py, best first.

    Unlike there, spaces around an answer are left out, and a span that two windows share counts once.
    """
    found: dict[tuple[int, int], float] = {}
    for inside, start, end in zip(places, starts.tolist(), ends.tolist(), strict=True):
        known = [place for place, token in enumerate(inside) if token is not None]
        pairs = [(start[a] + end[b], a, b) for a in known for b in known if a <= b < a + longest]
        for score, a, b in sorted(pairs, reverse=True)[:best]:
            text = context[inside[a][0] : inside[b][1]]
            span = inside[b][1] - len(text.lstrip()), inside[a][0] + len(text.rstrip())
            if text.strip():
                found[span] = max(score, found.get(span, -math.inf))
    ranked = sorted(((score, span) for span, score in found.items()), reverse=True)[:best]
    null = float((starts[:, 0] + ends[:, 0]).min())
    if threshold is not None or not ranked:
        is_best = not ranked or null - ranked[0][0] > (threshold or 0)
        ranked = [(null, (0, 0)), *ranked] if is_best else [*ranked, (null, (0, 0))]
    shares = softmax(np.array([score for score, _ in ranked])).tolist()
    return [
        {"text": context[start:end], "score": share, "start": start, "end": end}
        for share, (_, (start, end)) in zip(shares, ranked, strict=True)
    ]


# Metrics of the field


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def in_batches(logits: np.ndarray, labels: np.ndarray) -> list[Batch]:
    return [Batch(logits[start : start + 8], labels[start : start + 8]) for start in range(0, len(labels), 8)]


def score_classes(inputs: Any, draw: np.random.Generator) -> Any:
    """scikit-learn, and for the calibration error of 15 bins a plain loop (C. Guo et al., ICML 2017)."""
    from sklearn import metrics as sk

    logits, labels = draw.normal(size=(90, 3)).astype(np.float32), draw.integers(0, 3, 90)
    scores = softmax(logits)
    found = scores.argmax(1)
    expected = {"accuracy": sk.accuracy_score(labels, found), "top5_accuracy": 1.0}
    for kind in ("macro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            expected[f"{name}_{kind}"] = score(labels, found, average=kind)
    expected["roc_auc"] = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    bins = np.minimum((scores.max(1) * 15).astype(int), 14)
    gaps = [abs((scores.max(1) - (found == labels))[bins == place].sum()) for place in range(15)]
    expected["ece"] = sum(gaps) / len(labels)
    expected["brier"] = ((scores - np.eye(3)[labels]) ** 2).sum(1).mean()
    return in_batches(logits, labels), expected


def score_several(inputs: Any, draw: np.random.Generator) -> Any:
    """scikit-learn."""
    from sklearn import metrics as sk

    logits, labels = draw.normal(size=(90, 3)).astype(np.float32), draw.integers(0, 2, (90, 3))
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = (scores >= 0.5).astype(int)
    expected = {"exact_match": sk.accuracy_score(labels, found)}
    for kind in ("micro", "macro"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            expected[f"{name}_{kind}"] = score(labels, found, average=kind)
    expected["mean_average_precision"] = sk.average_precision_score(labels, scores, average="macro")
    expected["roc_auc"] = sk.roc_auc_score(labels, scores, average="macro")
    return in_batches(logits, labels.astype(np.float32)), expected


def score_numbers(inputs: Any, draw: np.random.Generator) -> Any:
    """scikit-learn and SciPy."""
    import scipy.stats
    from sklearn import metrics as sk

    labels = draw.normal(size=90).astype(np.float32)
    found = (labels + draw.normal(size=90) / 2).astype(np.float32)
    expected = {
        "rmse": sk.root_mean_squared_error(labels, found), "mae": sk.mean_absolute_error(labels, found),
        "r2": sk.r2_score(labels, found), "pearson": scipy.stats.pearsonr(labels, found)[0],
        "spearman": scipy.stats.spearmanr(labels, found)[0],
    }  # fmt: skip
    return in_batches(found[:, None], labels), expected


def random_tokens(draw: np.random.Generator, classes: int) -> list[Batch]:
    """Batches of several lengths; some tokens, and all of one row, do not count."""
    batches = []
    for length in (9, 4, 12):
        labels = draw.integers(0, classes, (8, length))
        labels[draw.random(labels.shape) < 0.3] = IGNORED
        labels[2] = IGNORED
        batches.append(Batch(draw.normal(size=(*labels.shape, classes)).astype(np.float32), labels))
    return batches


def tagged_windows(inputs: Any, draw: np.random.Generator, number: int) -> Batch:
    """The windows of random words with random tags, some of which the logits guess."""
    from hfexp.data import windows
    from hfexp.tasks.tagging import TokenizeWords

    task, size = inputs.task, 3 * number
    row = {
        "words": [str(word) for word in draw.choice(("Ada", "Lovelace", "went", "unbelievably", "to"), size)],
        "tags": draw.integers(0, len(task.class_names), size).tolist(),
    }
    cut = TokenizeWords(inputs.processor, 24, stride=7)(row)
    parts = [task.preprocess(window, inputs.processor)["labels"] for window in windows.cut(cut)]
    labels = np.full((len(parts), max(map(len, parts)) + 1), IGNORED)
    for place, part in enumerate(parts):
        labels[place, : len(part)] = part
    logits = draw.normal(size=(*labels.shape, len(task.class_names))).astype(np.float32)
    for places in zip(*np.nonzero(labels != IGNORED), strict=True):
        logits[(*places, labels[places])] += 2
    return Batch(logits, labels, cut=(row, cut))


def tags_by_hand(batch: Batch, names: Any) -> tuple[list[str], list[str]]:
    """True and found tag of each token, in the window that shows most tokens on both sides of its word."""
    from hfexp.data import windows

    row, cut = batch.cut or ({}, {})
    seen: dict[int, list[tuple[int, int, list[int]]]] = {}
    for number, window in enumerate(windows.cut(cut)):
        inner = [place for place, word in enumerate(window["word_ids"]) if word >= 0]
        for word in {window["word_ids"][place] for place in inner}:
            places = [place for place in inner if window["word_ids"][place] == word]
            seen.setdefault(word, []).append((min(places[0] - inner[0], inner[-1] - places[-1]), -number, places))
    true, found = [], []
    for word, tag in enumerate(row["tags"]):
        _, number, places = max(seen[word])
        goes_on = f"I-{names[tag][2:]}" if f"I-{names[tag][2:]}" in names.values() else names[tag]
        true += [names[tag], *[goes_on] * (len(places) - 1)]
        found += [names[int(batch.logits[-number, place].argmax())] for place in places]
    return true, found


def score_entities(inputs: Any, draw: np.random.Generator) -> Any:
    """seqeval."""
    from seqeval import metrics

    batches = [tagged_windows(inputs, draw, number) for number in range(20)]
    true, found = map(list, zip(*(tags_by_hand(batch, inputs.task.class_names) for batch in batches), strict=True))
    report: Any = metrics.classification_report(true, found, output_dict=True, zero_division=0)
    expected = {"token_accuracy": metrics.accuracy_score(true, found)}
    expected |= {name: getattr(metrics, f"{name}_score")(true, found) for name in ("precision", "recall", "f1")}
    return batches, expected | {f"f1_{kind}": report[kind]["f1-score"] for kind in ("LOC", "PER")}


def score_tokens(shift: int) -> Callable[[Any, np.random.Generator], Any]:
    """A causal model guesses the next token, `shift` places on."""

    def score(inputs: Any, draw: np.random.Generator) -> Any:
        batches = random_tokens(draw, 11)
        return batches, guessed(batches, shift)

    return score


def guessed(batches: list[Batch], shift: int) -> dict[str, float]:
    """Perplexity and accuracy by a plain loop over the tokens."""
    losses, right = [], []
    for batch in batches:
        for row_logits, row_labels in zip(batch.logits, batch.labels, strict=True):
            for place in range(shift, len(row_labels)):
                if row_labels[place] != IGNORED:
                    scores = softmax(row_logits[place - shift])
                    losses.append(-math.log(scores[row_labels[place]]))
                    right.append(scores.argmax() == row_labels[place])
    return {"perplexity": math.exp(sum(losses) / len(losses)), "token_accuracy": float(np.mean(right))}


def random_sentences(draw: np.random.Generator, count: int) -> list[str]:
    return [" ".join(draw.choice(COUNTED, size=draw.integers(1, 7))) for _ in range(count)]


def score_texts(of_texts: Callable[[list[str], list[str]], dict[str, float]]) -> Any:
    """A plain loop over the tokens of the labels; `of_texts` compares the written texts with the true ones."""

    def score(inputs: Any, draw: np.random.Generator) -> Any:
        batches, written, true = [], random_sentences(draw, 19), random_sentences(draw, 19)
        written[3:6] = true[3:6]
        tokenize = inputs.processor
        for start in range(0, 19, 8):
            texts, truths = written[start : start + 8], true[start : start + 8]
            tokens = tokenize(truths, padding=True, return_tensors="np")
            labels = np.where(tokens["attention_mask"] == 1, tokens["input_ids"], IGNORED)
            logits = draw.normal(size=(*labels.shape, len(tokenize))).astype(np.float32)
            batches.append(Batch(logits, labels, tokenize(texts, padding=True, return_tensors="np")["input_ids"]))
        return batches, of_texts(written, true) | {"perplexity": guessed(batches, 0)["perplexity"]}

    return score


def score_summaries(written: list[str], true: list[str]) -> dict[str, float]:
    """rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(names)
    scores = [scorer.score(truth, text) for truth, text in zip(true, written, strict=True)]
    return {name: float(np.mean([row[name].fmeasure for row in scores])) for name in names}


def score_translations(written: list[str], true: list[str]) -> dict[str, float]:
    """sacrebleu."""
    import sacrebleu

    kinds = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}
    return {name: kind().corpus_score(written, [true]).score for name, kind in kinds.items()}


def score_choices(inputs: Any, draw: np.random.Generator) -> Any:
    """scikit-learn; rows have two choices to four, and a batch as many as its longest row."""
    from sklearn import metrics as sk

    batches, found, true = [], [], []
    for most in (4, 2, 3):
        sizes = draw.integers(2, most + 1, 8)
        sizes[0] = most
        logits, labels = draw.normal(size=(8, most)).astype(np.float32), np.full((8, most), IGNORED)
        for row, size in enumerate(sizes):
            true.append(int(draw.integers(size)))
            found.append(int(logits[row, :size].argmax()))
            labels[row, :size] = np.arange(size) == true[-1]
        batches.append(Batch(logits, labels))
    return batches, {"accuracy": sk.accuracy_score(true, found)}


def random_question(draw: np.random.Generator, number: int) -> Row:
    """A question; every fourth has no answer."""
    words = [str(word) for word in draw.choice(("the", "cat", "Cat,", "sat", "on", "a", "mat."), 4 + number)]
    first, last = sorted(draw.integers(0, len(words), 2))
    found = ([" ".join(words[first : last + 1])], [len(" ".join([*words[:first], ""]))])
    found = ([], []) if number % 4 == 0 else found
    return {"question": "Who?", "context": " ".join(words), "answers": dict(zip(ANSWERS, found, strict=True))}


def random_spans(draw: np.random.Generator, places: list[Any], answers: Row, none: bool) -> tuple[np.ndarray, ...]:
    """Logits of the first and the last token of an answer, (W, T) each, in which the true one is often nearly best."""
    logits = tuple(draw.normal(size=(len(places), len(places[0]))).astype(np.float32) for _ in range(2))
    for scores in logits:
        scores[:, 0] += 2 * none
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        for window, tokens in enumerate(places):
            for place, token in enumerate(tokens):
                logits[0][window, place] += 4 * (token is not None and token[0] == start)
                logits[1][window, place] += 4 * (token is not None and token[1] == start + len(text))
    return logits


def score_answers(inputs: Any, draw: np.random.Generator) -> Any:
    """The loops of Transformers' example utils_qa.py and of SQuAD's evaluate-v2.0.py, which no package has."""
    from hfexp.data import windows
    from hfexp.tasks.spans import TokenizeQuestion

    encode, batches, scores = TokenizeQuestion(inputs.processor, 48, STRIDE), [], []
    for number in range(24):
        row = random_question(draw, number)
        places = tokenizer_windows(inputs.processor, row)[1]
        starts, ends = random_spans(draw, places, row["answers"], none=number % 8 == 0)
        cut = encode(inputs.task.decode(row))
        labels = np.full(starts.shape, IGNORED)
        for window, one in enumerate(windows.cut(cut)):
            labels[window, : len(one["marks"])] = one["marks"]
        batches.append(Batch((starts, ends), labels, cut=(row, cut)))
        best, truths = best_answers(row["context"], places, starts, ends, NULL_THRESHOLD)[0], row["answers"]["text"]
        scores.append((*squad_scores(best["text"], truths), bool(truths)))
    table = np.array(scores)
    parts = {"": table, "has_answer_": table[table[:, 2] == 1], "no_answer_": table[table[:, 2] == 0]}
    means = {prefix: part.mean(0) for prefix, part in parts.items()}
    names = ("exact_match", "f1")
    return batches, {
        f"{prefix}{name}": float(mean[at]) for prefix, mean in means.items() for at, name in enumerate(names)
    }


def random_vectors(draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, 2, 6), of which the second is near the first, and its direction cosine, (N,)."""
    vectors = draw.normal(size=(count, 2, 6)).astype(np.float32)
    vectors[:, 1] += vectors[:, 0] / 2
    return vectors, vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def score_search(inputs: Any, draw: np.random.Generator) -> Any:
    """scikit-learn; the reciprocal rank by a plain loop."""
    from sklearn import metrics as sk

    vectors, unit = random_vectors(draw, 30)
    vectors[7, 1], unit[7, 1] = vectors[3, 1], unit[3, 1]  # two rows have one document
    ids = np.where(np.arange(30) == 7, 3, np.arange(30))
    documents = [row for row in range(30) if row != 7]
    scores, own = unit[:, 0] @ unit[documents, 1].T, np.array([documents.index(number) for number in ids])
    reciprocal = []
    for row, place in zip(scores, own, strict=True):
        rank = 1 + sorted(range(len(row)), key=lambda document, row=row: -row[document]).index(place)
        reciprocal.append(1 / rank if rank <= 10 else 0)
    expected = {"mrr_at_10": float(np.mean(reciprocal)), "ndcg_at_10": sk.ndcg_score(np.eye(29)[own], scores, k=10)}
    for k in (1, 10):
        expected[f"recall_at_{k}"] = sk.top_k_accuracy_score(own, scores, k=k, labels=range(29))
    return in_batches(vectors, ids[:, None]), expected


def score_likeness(inputs: Any, draw: np.random.Generator) -> Any:
    """SciPy, on the cosines of scikit-learn."""
    import scipy.stats
    from sklearn.metrics.pairwise import paired_cosine_distances

    vectors, _ = random_vectors(draw, 30)
    labels = draw.normal(size=30).astype(np.float32)
    found = 1 - paired_cosine_distances(vectors[:, 0], vectors[:, 1])
    correlations = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}
    return in_batches(vectors, labels), {name: of(labels, found)[0] for name, of in correlations.items()}


def preferences(scores: np.ndarray) -> dict[str, float]:
    """What TRL's trainers log of the scores of the chosen and the rejected answers, (N, 2)."""
    chosen, rejected = scores.astype(np.float64).T
    return {
        "accuracy": (chosen > rejected).mean(), "margin": (chosen - rejected).mean(), "chosen_score": chosen.mean(),
        "rejected_score": rejected.mean(),
    }  # fmt: skip


def score_rewards(inputs: Any, draw: np.random.Generator) -> Any:
    """Plain means."""
    rewards = draw.normal(size=(30, 2)).astype(np.float32)
    return in_batches(rewards, np.zeros(30, np.int64)), preferences(rewards)


def score_preferences(inputs: Any, draw: np.random.Generator) -> Any:
    """Plain means of the rewards that are implicit in the log-probabilities of the model and its reference."""
    own, before, lengths = draw.normal(size=(3, 30, 2)).astype(np.float32)
    rewards = inputs.task.beta * (own - before)
    return in_batches(np.stack([own, before, lengths], -1), np.zeros(30, np.int64)), preferences(rewards)


def squad_scores(answer: str, truths: list[str]) -> tuple[float, float]:
    """Exact match and F1 by the functions of SQuAD's evaluate-v2.0.py, written out."""

    def tokens(text: str) -> list[str]:
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def f1(true: list[str], found: list[str]) -> float:
        if not true or not found:
            return float(true == found)
        same = sum((Counter(true) & Counter(found)).values())
        precision, recall = same / len(found), same / len(true)
        return 2 * precision * recall / (precision + recall) if same else 0.0

    known = [truth for truth in truths if tokens(truth)] or [""]
    exact = max(float(tokens(truth) == tokens(answer)) for truth in known)
    return exact, max(f1(tokens(truth), tokens(answer)) for truth in known)
