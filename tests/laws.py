"""What the laws in tests/invariants/test_laws.py need of each task: one entry, with a tiny model and tiny data.

A task joins by its entry in `ENTRIES`. `make laws` runs the whole table and writes docs/laws.md.
"""

import io
import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LAWS = {
    1: "A training that is resumed in mid-epoch equals an uninterrupted one, bit for bit, with and without LoRA.",
    2: "The best recorded model is the one that is evaluated and saved, and the saved one loaded anew.",
    3: "Two processes train and evaluate as one does with the same whole batch; last batches and tokens are uneven.",
    4: "A batch of 8 equals four accumulated batches of 2.",
    5: "Data that is cached, that is prepared when it is read, and that is streamed gives the same training.",
    6: "Any number of data loader workers and any order of the rows give the same samples and augmentation.",
    7: "`hfexp predict` answers as Transformers' pipeline does, as the MLflow model, and as that model when served.",
    8: "A point of a sweep equals the single run, also in replicates, and up to the step at which it is pruned.",
    9: "Metrics equal those of the field's own implementation, on random examples in batches.",
    10: "An evaluation keeps of each row nothing that grows with the row's tokens or pixels.",
    11: "Wrong data gives one message with its row and column, before any weights are loaded.",
    12: "The report shows what the task is about; `hfexp evaluate by=` scores a slice as it scores the slice's rows.",
}
SIZES = {"train": 54, "validation": 21, "test": 13}
"""Rows by split: in batches of 8, and of 4 in each of two processes, every last batch is shorter than the others."""
TRAINING = (
    "trainer=scratch", "tracking.pictures=false", "security.allowed_targets=[faults,laws]",
    "trainer.callbacks.fault={_target_: faults.Fault, at: 12}",
    "trainer.args.max_steps=21", "trainer.args.per_device_train_batch_size=8",
    "trainer.args.per_device_eval_batch_size=8", "trainer.args.learning_rate=0.01",
    "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=5",
    "trainer.args.save_strategy=steps", "trainer.args.save_steps=5", "trainer.args.logging_steps=3",
    # The highest loss is sought, which is that of the first evaluation: the best model is not the last one.
    "trainer.args.metric_for_best_model=loss", "trainer.args.greater_is_better=true",
)  # fmt: skip
"""Three epochs of 7 steps; an armed fault ends it in step 12, and the checkpoint of step 10 is in mid-epoch."""
PLAIN = ("trainer.args.optim=sgd", "trainer.args.learning_rate=0.1", "trainer.args.lr_scheduler_type=constant",
         "trainer.args.max_grad_norm=1e9", "trainer.args.weight_decay=0", "trainer.args.logging_steps=1")  # fmt: skip
"""Stochastic gradient descent, whose steps are proportional to the gradients: Adam would blow up rounding errors."""
BERT = (
    "model=tiny_bert", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=48",
)  # fmt: skip
SUBWORDS = ("model=tiny_bert_subwords", *BERT[1:], "model.config.vocab_size=300")
GPT = (
    "model=tiny_gpt", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.num_key_value_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=96", "++model.config.attention_dropout=0.1",
    "task.generation.max_new_tokens=4",
)  # fmt: skip
T5 = (
    "model=tiny_t5", "model.processor._target_=laws.word_tokenizer", "model.config.vocab_size=8",
    "model.config.eos_token_id=2",
    "model.config.d_model=16", "model.config.d_kv=8", "model.config.d_ff=16", "model.config.num_layers=1",
    "model.config.num_decoder_layers=1", "model.config.num_heads=2", "task.generation.max_new_tokens=8",
)  # fmt: skip
VIT = (
    "model=vit_digits", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "++model.config.hidden_dropout_prob=0.1",
)  # fmt: skip
NO_DROPOUT = ("model.config.hidden_dropout_prob=0", "++model.config.attention_probs_dropout_prob=0")
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


@dataclass(frozen=True)
class Entry:
    """What the laws ask of a task, by the name of its option in conf/task."""

    overrides: tuple[str, ...]
    """A tiny model, and what else differs from `TRAINING`."""
    row: Callable[[int], Row]
    """Writes a row of data by its number; rows differ in length."""
    still: tuple[str, ...]
    """Switches off all that is random, dropout and augmentation; also what else differs from `PLAIN`."""
    asks: list[Any]
    """Raw inputs of a prediction."""
    peer: Callable[[str, list[Any]], list[Row]]
    """Answers by Transformers' pipeline (or by hand) with the model of a directory, in the form of `Task.answer`."""
    reference: Callable[[Any, np.random.Generator], tuple[list[Batch], dict[str, float]]]
    """Random batches, and their metrics by the field's own implementation; it gets the task and the processor."""
    longer: tuple[str, ...] = ()
    """Makes the inputs of the model longer, beside the rows that are written `LONGER` times as long."""
    brief: tuple[str, ...] = ()
    """Leaves out of an evaluation what has to be kept whole."""
    as_rows: tuple[str, ...] = ()
    """Makes each row of the data a row of the model, where it is not."""
    streams: tuple[str, ...] | None = ()
    """What a stream needs; None: the task's labels can't be streamed."""
    apart: bool = True
    """Whether the metrics of a row depend on that row alone."""
    content: Callable[[Row], Any] = lambda row: row
    """Undoes what is drawn at random for a row of model inputs."""
    wrong: Mapping[str, tuple[Callable[[Row], Row], str]] = field(default_factory=dict)
    """Ways to spoil one row, and what the message has to match."""
    shown: tuple[str, ...] = ()
    """Patterns that the page of the report has to match: what the people of this task look at."""
    does_not_apply: Mapping[int, str] = field(default_factory=dict)
    """Laws that make no sense for this task, and why."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """What a law means for this task, where that is less than it says."""


# Rows


NAMES = ("cold", "hot", "mild")
WORDS = {"cold": ("ice", "snow"), "hot": ("sun", "fire"), "mild": ("rain", "cloud")}
LONGER = 3


def sentence(number: int, word: str) -> str:
    return " ".join([word] * (1 + number % 4))


def text_row(number: int) -> Row:
    name = NAMES[number % 3]
    return {"text": sentence(number, WORDS[name][number // 3 % 2]), "label": name}


def pair_row(number: int) -> Row:
    return {**text_row(number), "text_pair": "or not"[: number % 5 + 2]}


def classes_row(number: int) -> Row:
    names = [name for bit, name in enumerate(NAMES) if number >> bit & 1]
    return {"text": " ".join(WORDS[name][0] for name in names) or "nothing", "label": names}


def number_row(number: int) -> Row:
    """No two texts are equal: ranks of equal numbers would depend on the last bit."""
    return {"text": f"{'abcde'[number % 5] * (1 + number % 4)} {number}", "label": number % 5 / 2}


def number_pair_row(number: int) -> Row:
    return {**number_row(number), "text_pair": "x" * (1 + number % 3)}


def tagged_row(number: int) -> Row:
    words = ["Ada", "Lovelace", "went", "to", "Oslo", "and", "back"][: 4 + number % 4]
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC", "O", "O"][: len(words)]
    return {"words": words[number % 2 :], "tags": ["B-PER", *tags[2:]] if number % 2 else tags}


def line_row(number: int) -> Row:
    return {"text": f"{number} is before {number + 1}. " * (1 + number % 2)}


def chat_row(number: int) -> Row:
    return {
        "messages": [
            {"role": "user", "content": "Count" + "!" * (number % 3)},
            {"role": "assistant", "content": "12345"[: 1 + number % 5]},
        ]
    }


def image_row(number: int) -> Row:
    """A noisy image, bright at its left, in the middle or at its right."""
    import PIL.Image

    pixels = np.random.default_rng(number).integers(0, 120, (8, 8, 3), dtype=np.uint8)
    pixels[:, number % 3 * 3 : number % 3 * 3 + 2] += 130
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return {"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": NAMES[number % 3]}


COUNTED = ("one", "two", "three", "four", "five")


def rewritten_row(number: int) -> Row:
    """A text, and one that says some of its words backwards."""
    words = [COUNTED[(number + place) % 5] for place in range(1 + number % 4)]
    return {"text": " ".join(words), "target": " ".join(words[: 1 + number % 3][::-1])}


def choice_row(number: int) -> Row:
    choices = [COUNTED[(number + away) % 5] for away in range(2 + number % 3)]
    text_pair = "It is"[: number % 6]
    return {
        "text": f"After {COUNTED[number % 5]}",
        "text_pair": text_pair,
        "choices": choices,
        "label": number % len(choices),
    }


def question_row(number: int) -> Row:
    """A question; every fifth context is cut into windows, and every seventh has no answer."""
    where = ("Oslo", "Rome", "\u00c5rhus", "New York")[number % 4]
    context = f"{'It rained. ' * (3 if number % 5 == 0 else number % 2)}Ada is in {where}."
    found = ([], []) if number % 7 == 3 else ([where], [context.index(where)])
    return {"question": "Where?"[number % 3 :], "context": context, "answers": dict(zip(ANSWERS, found, strict=True))}


def search_row(number: int) -> Row:
    """A question and what belongs to it; some questions have one document in common."""
    return {"anchor": f"what is {number} + {number}", "positive": f"{number // 2 * 4} " * (1 + number % 4)}


def alike_row(number: int) -> Row:
    return {
        "text": f"{number} and {number + 1}",
        "text_pair": f"{number + 1} " * (1 + number % 4),
        "label": number % 7 / 6,
    }


def preferred_row(number: int) -> Row:
    prompt = f"{number} and 1 is" + " more" * (number % 3)
    return {"prompt": prompt, "chosen": f" {number + 1}" + "!" * (number % 4), "rejected": " not known"}


ANSWERS = ("text", "answer_start")
TEXT_COLUMNS = ("text", "text_pair", "target", "context", "anchor", "positive", "prompt", "chosen", "rejected")
LISTS = ("words", "tags", "messages")


def prolonged(row: Row) -> Row:
    """The same row with `LONGER` times as many words."""
    text = {name: " ".join([value] * LONGER) for name, value in row.items() if name in TEXT_COLUMNS}
    lists = {name: value * LONGER for name, value in row.items() if name in LISTS}
    texts = {name: [" ".join([one] * LONGER) for one in value] for name, value in row.items() if name == "choices"}
    return {**row, **text, **lists, **texts}


def write_rows(rows: list[Row], path: Path) -> None:
    """Write JSON lines or, with images inside, Parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    import datasets

    made = datasets.Dataset.from_list(rows)
    image = datasets.Image(decode=False)
    (made.cast_column("image", image) if "image" in made.column_names else made).to_parquet(path)


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


def chat_tokenizer(model_max_length: int = 512, generates: bool = True) -> Any:
    """A tokenizer of bytes with a chat template."""
    from hfexp.tasks.text import byte_tokenizer

    tokenizer = byte_tokenizer(model_max_length, generates)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    return tokenizer


def word_tokenizer(model_max_length: int = 64, ends: bool = True) -> Any:
    """A tokenizer of so few words that a model which has hardly been trained writes some of them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[SEP]", *COUNTED))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]" if ends else "$A", special_tokens=[("[SEP]", vocabulary["[SEP]"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=model_max_length, pad_token="[PAD]", unk_token="[UNK]",
        eos_token="[SEP]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


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


def score_entities(inputs: Any, draw: np.random.Generator) -> Any:
    """seqeval."""
    from seqeval import metrics

    task = inputs.task
    batches = random_tokens(draw, len(task.class_names))
    true: list[list[str]] = []
    found: list[list[str]] = []
    for batch in batches:
        for tags, row in zip(batch.logits.argmax(-1), batch.labels, strict=True):
            true.append([task.class_names[int(tag)] for tag in row[row != IGNORED]])
            found.append([task.class_names[int(tag)] for tag in tags[row != IGNORED]])
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


def score_answers(inputs: Any, draw: np.random.Generator) -> Any:
    """The loops of Transformers' example utils_qa.py and of SQuAD's evaluate-v2.0.py, which no package has."""
    from hfexp.data import windows
    from hfexp.tasks.spans import TokenizeQuestion

    encode, batches, scores = TokenizeQuestion(inputs.processor, 48, STRIDE), [], []
    for number in range(24):
        words = [str(word) for word in draw.choice(("the", "cat", "Cat,", "sat", "on", "a", "mat."), 4 + number)]
        first, last = sorted(draw.integers(0, len(words), 2))
        text = " ".join(words[first : last + 1])
        start = len(" ".join([*words[:first], ""]))
        found = ([], []) if number % 4 == 0 else ([text], [start])
        row = {"question": "Who?", "context": " ".join(words), "answers": dict(zip(ANSWERS, found, strict=True))}
        _, places = tokenizer_windows(inputs.processor, row)
        shape = (len(places), len(places[0]))
        logits = tuple(draw.normal(size=shape).astype(np.float32) for _ in range(2))
        for window, tokens in enumerate(places):
            for place, token in enumerate(tokens):
                if token is not None and found[0]:  # the true answer is often nearly the best one
                    logits[0][window, place] += 4 * (token[0] == start)
                    logits[1][window, place] += 4 * (token[1] == start + len(text))
        cut = encode(inputs.task.decode(row))
        labels = np.full(shape, IGNORED)
        for window, one in enumerate(windows.cut(cut)):
            labels[window, : len(one["marks"])] = one["marks"]
        batches.append(Batch(logits, labels, cut=(row, cut)))
        scores.append(
            (
                *squad_scores(best_answers(row["context"], places, *logits, NULL_THRESHOLD)[0]["text"], found[0]),
                bool(found[0]),
            )
        )
    names, table = ("exact_match", "f1"), np.array(scores)
    parts = {"": table, "has_answer_": table[table[:, 2] == 1], "no_answer_": table[table[:, 2] == 0]}
    means = {prefix: part.mean(0) for prefix, part in parts.items()}
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


# Entries


def without(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: value for name, value in row.items() if name not in names}


def having(**values: Any) -> Callable[[Row], Row]:
    return lambda row: {**row, **values}


def unmasked(row: Row) -> Row:
    """The tokens before some were masked."""
    tokens = [
        token if label == IGNORED else label for token, label in zip(row["input_ids"], row["labels"], strict=True)
    ]
    return {"input_ids": tokens}


NO_TEXTS = "Without written texts: metrics of texts need those and the true ones, whole."
IN_BATCH = "The other rows of a batch are a row's wrong answers, so smaller batches are another loss."
OF_ALL_ROWS = "The documents of all rows compete, so the rows of a slice score otherwise alone. "
VECTORS = "The vectors of each row's texts are kept, as ranks need them; nothing of their tokens is."
NO_REFERENCE = (
    "The model from before the training is not saved; without it, an evaluation of a saved model is refused."
)
NOT_STREAMED = "Not streamed: labels of the task's own form are checked in all rows before."
BY_HAND = "Transformers has no pipeline for this task; its model is asked by hand."
WINDOWS = "The best spans of each window are kept, 3 numbers each; no scores of tokens are."
NO_VIEW = "The report shows the metrics and the rows as the model sees them; it has no view of single mistakes."
PER_ROW = "The probabilities of each row are kept, as ranking metrics and the report need them; no token is."
MASKED_STREAMS = "Rows of a stream have other masks: these follow from the row, which has no number."
MASKED_SLICES = (
    "The masks of a row follow from its number, so the rows of a slice have other masks alone; the scores of all rows "
    "lie between those of the slices."
)
CLASS_LABELS = f"dataset.labels=[{','.join(NAMES)}]"
TEXTS: dict[str, Any] = {
    "still": NO_DROPOUT, "asks": ["ice ice", "sun", "rain and snow on the hills"], "peer": classify,
    "reference": score_classes, "streams": (CLASS_LABELS,), "shown": ("Classes</h2>", "Mistakes</h2>", "accuracy"),
    "notes": {10: PER_ROW},
}  # fmt: skip
PAIRS = [{"text": "ice ice", "text_pair": "or"}, {"text": "sun", "text_pair": "or not, as you like"}]
SPREAD = "model.config.initializer_range=0.3"
"""Lets the answers of a model differ: the correlation of nearly equal numbers is mostly rounding error."""
NUMBERS: dict[str, Any] = {
    "still": (*NO_DROPOUT, "trainer.args.learning_rate=0.01"), "asks": ["a", "ccc c", "eeee"],
    "peer": regress, "reference": score_numbers,
    "shown": ("rmse", "spearman", "r2"), "notes": {12: NO_VIEW},
    "wrong": {"a text in place of a number": (having(label="much"), "column 'label' holds 'much', expected a number")},
}  # fmt: skip

REWRITTEN: dict[str, Any] = {
    "row": rewritten_row, "still": ("model.config.dropout_rate=0",),
    "asks": ["one two three", "five", "four one", "three two five one"], "peer": rewrite,
    "brief": ("task.predict_with_generate=false", "metrics=language", "task.metric=perplexity"),
    "notes": {7: BY_HAND, 10: NO_TEXTS},
    "wrong": {
        "an empty text": (having(text=" "), "column 'text' holds an empty text"),
        "an empty target": (having(target=" "), "no usable target: the text is empty"),
        "too long": (having(text="? " * 300), "tokens, more than max_length=256"),
    },
}  # fmt: skip

NO_CHOICE: dict[str, Any] = {
    "equal answers": (having(rejected="a", chosen="a"), "the chosen and the rejected answer are equal"),
    "an empty answer": (having(chosen=""), "column 'chosen' holds an empty answer"),
}

ENTRIES: dict[str, Entry] = {
    "image_classification": Entry(
        (*VIT, "transform=jitter"), image_row, ("transform=eval", "++model.config.hidden_dropout_prob=0"),
        [image_row(number)["image"]["bytes"] for number in (100, 101, 102)], classify_images, score_classes,
        longer=("model.config.image_size=16",), streams=(CLASS_LABELS,), notes={10: PER_ROW},
        shown=("Classes</h2>", "Mistakes</h2>", "accuracy"),
    ),
    "text_classification": Entry((*BERT,), text_row, **TEXTS),
    "text_pair_classification": Entry(
        (*BERT,), pair_row, **{**TEXTS, "asks": PAIRS}
    ),
    "multi_label_text_classification": Entry(
        (*BERT,), classes_row, NO_DROPOUT, TEXTS["asks"], find_classes, score_several, streams=None,
        shown=("f1_micro", "mean_average_precision"),
        notes={5: "Not streamed: labels of several classes are read whole.", 10: PER_ROW, 12: NO_VIEW},
    ),
    "text_regression": Entry((*BERT, SPREAD), number_row, **NUMBERS),
    "text_pair_regression": Entry(
        (*BERT, SPREAD), number_pair_row, **{**NUMBERS, "asks": PAIRS}
    ),
    "token_classification": Entry(
        (*SUBWORDS, "model.processor.column=words", "model.config.vocab_size=320", "task.label_all_tokens=true",
         "trainer.args.train_sampling_strategy=group_by_length"),
        tagged_row, NO_DROPOUT,
        ["Ada Lovelace went to Oslo", "Ada went to Oslo and back", "nothing"], find_entities, score_entities,
        streams=None,
        wrong={
            "tags of another length": (having(tags=["O"]), "1 tags for 6 words"),
            "too many words": (having(words=["a"] * 60, tags=["O"] * 60), "of 60 words only .* fit into"),
        },
        shown=("Types</h2>", "Marked texts</h2>", "<mark class=", "f1_PER"),
        notes={5: "Not streamed: the tags are read whole."},
    ),
    "fill_mask": Entry(
        (*SUBWORDS, "task.whole_words=true"), line_row, NO_DROPOUT,
        ["[MASK] is before 4.", "3 is [MASK] 4. 3 is before 4."], fill_masks, score_tokens(0), content=unmasked,
        apart=False, shown=("perplexity", r"\[MASK\]"),
        notes={5: MASKED_STREAMS, 12: MASKED_SLICES},
        wrong={"an empty text": (having(text=" "), "column 'text' holds an empty text")},
    ),
    "text_generation": Entry(
        (*GPT, SPREAD, "task.block_size=24"), line_row, ("++model.config.attention_dropout=0",),
        ["1 is", "12 is before"],
        generate, score_tokens(1), longer=("task.block_size=48",), as_rows=("task.block_size=null",),
        shown=("perplexity", "is before"),
        notes={5: "Streamed without blocks.", 12: f"Sliced without blocks. {NO_VIEW}"},
    ),
    "chat": Entry(
        (*GPT, SPREAD, "model.processor._target_=laws.chat_tokenizer"), chat_row,
        ("++model.config.attention_dropout=0",), ["Count", "Count!!"], reply, score_tokens(1),
        shown=("perplexity", "Count"), notes={12: NO_VIEW},
        wrong={
            "no reply": (having(messages=[{"role": "user", "content": "a"}]), "has no message of the assistant"),
            "unknown role": (having(messages=[{"role": "boss", "content": "a"}]), "the unknown role 'boss'"),
        },
    ),
    "summarization": Entry(
        (*T5,), reference=score_texts(score_summaries), shown=("Written texts</h2>", "rougeL"), **REWRITTEN
    ),
    "translation": Entry(
        (*T5,), reference=score_texts(score_translations), shown=("Written texts</h2>", "chrf"), **REWRITTEN
    ),
    "multiple_choice": Entry(
        (*BERT,), choice_row, NO_DROPOUT,
        [{"text": "After", "text_pair": "It is", "choices": ["one", "two"]},
         {"text": "After four", "text_pair": "", "choices": ["five", "one", "three"]}],
        choose, score_choices, streams=None, shown=("accuracy", "After"),
        notes={5: NOT_STREAMED, 7: BY_HAND, 12: NO_VIEW},
        wrong={
            "one choice": (having(choices=["b"]), "column 'choices' holds .*, expected a list of two texts or more"),
            "no such choice": (having(label=7), "column 'label' holds 7, expected one of"),
        },
    ),
    "question_answering": Entry(
        (*BERT, f"transform.prepare.0.stride={STRIDE}", f"task.n_best={BEST}",
         f"task.null_threshold={NULL_THRESHOLD}", "trainer.args.train_sampling_strategy=group_by_length"),
        question_row, NO_DROPOUT, [without("answers")(question_row(number)) for number in (0, 1, 2, 5)],
        find_answers, score_answers, streams=None,
        shown=("Marked texts</h2>", "<mark class=", "no_answer_f1"), notes={5: NOT_STREAMED, 7: BY_HAND, 10: WINDOWS},
        wrong={
            "an empty context": (having(context=" "), "column 'context' holds ' ', expected a text"),
            "a wrong place": (having(answers={"text": ["zzz"], "answer_start": [2]}), "at character 2 the context"),
            "no place": (having(answers={"text": ["zzz"], "answer_start": []}), "holds 1 texts and 0 places"),
            "too long a question": (having(question="q" * 49), "column 'question' holds 51 tokens, which leaves"),
        },
    ),
    "embedding": Entry(
        (*BERT, "model.config.hidden_size=8"), search_row, NO_DROPOUT, ["what is 3", "ten", "a longer one"], embed,
        score_search, apart=False, shown=("ndcg_at_10", "what is"), does_not_apply={4: IN_BATCH},
        notes={10: VECTORS, 12: OF_ALL_ROWS + NO_VIEW},
        wrong={"an empty text": (having(positive=" "), "column 'positive' holds an empty text")},
    ),
    "embedding_similarity": Entry(
        (*BERT, "model.config.hidden_size=8"), alike_row, NUMBERS["still"], ["3 and 4", "ten", "a longer one"], embed,
        score_likeness, shown=("spearman", "and"), notes={10: VECTORS, 12: NO_VIEW},
        wrong={"no cosine": (having(label=5), "column 'label' holds 5, but a cosine is from -1 to 1")},
    ),
    "reward": Entry(
        (*BERT,), preferred_row, NO_DROPOUT, ["3 and 1 is 4", "ten", "5 and 1 is more not known"], reward,
        score_rewards, shown=("margin", "and 1 is"), notes={12: NO_VIEW}, wrong=NO_CHOICE,
    ),
    "preference": Entry(
        (*GPT,), preferred_row, (), ["3 and 1 is", "12", "and"], generate, score_preferences,
        shown=("margin", "and 1 is"), notes={2: NO_REFERENCE, 12: f"{NO_REFERENCE} {NO_VIEW}"}, wrong=NO_CHOICE,
    ),
}  # fmt: skip
