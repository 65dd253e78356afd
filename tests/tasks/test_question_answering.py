"""Question answering: windows, spans and scores as of Transformers' examples and SQuAD's evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import peers
import pytest
import torch
import trainings
import transformers
from conftest import trained_home
from datasets import Dataset

from hfexp import compose, predict
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.data import windows
from hfexp.data.sources import squad
from hfexp.experiment.fit import build_splits
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.answers import normalized, score
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.metrics import MetricSet, Squad
from hfexp.tasks.question_answering import QuestionAnswering
from hfexp.tasks.spans import CONTEXT, FIRST, LAST, SpanCollator, TokenizeQuestion, best_spans, merge_spans, span_loss
from hfexp.tasks.text import byte_tokenizer, subword_tokenizer

SMALL = (
    "task=question_answering", "model=tiny_bert", "trainer=scratch", "tracking.pictures=false", "dataset=table",
    "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "model.config.hidden_size=16",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=48", "trainer.args.num_train_epochs=2", "transform.prepare.0.stride=6",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.learning_rate=0.01",
    "trainer.args.train_sampling_strategy=group_by_length",
)  # fmt: skip
PLACES = ("Oslo", "Rome", "\u00c5rhus", "New York", "Z\u00fcrich")


def made_rows(count: int = 60, empty: int = 7) -> list[dict[str, Any]]:
    """Contexts of many lengths, some of several windows; every `empty`-th question has no answer."""
    rows = []
    for n in range(count):
        where = PLACES[n % len(PLACES)]
        before = "Then it rained. " * (n % 4)
        context = f"{before}Ada met Bob in {where}. {'They slept. ' * (n % 3)}"
        answers = {"text": [where], "answer_start": [context.index(where)]}
        answers = {"text": [], "answer_start": []} if n % empty == 0 else answers
        rows.append({"question": "Where?", "context": context, "answers": answers, "kind": "ab"[n % 2]})
    return rows


def write(rows: list[Any], name: str = "rows.jsonl") -> None:
    Path(name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


# Windows and places of answers


def word_tokenizer() -> Any:
    words = ("ada", "met", "bob", "in", "new", "york", "where", "?", ".", "os", "##lo")
    vocabulary = {name: number for number, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=64)


@pytest.mark.parametrize(("length", "stride"), [(16, 0), (16, 5), (20, 4), (40, 10)])
def test_windows_are_those_of_the_tokenizer(length: int, stride: int) -> None:
    tokenizer, context = word_tokenizer(), "ada met bob in new york . " * 5
    row = TokenizeQuestion(tokenizer, length, stride)({"question": "where ?", "context": context, "answer": (0, 0)})
    theirs = tokenizer(
        "where ?", context, truncation="only_second", max_length=length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    ours = windows.cut(row)
    assert [window["input_ids"] for window in ours] == theirs["input_ids"]
    assert [window["token_type_ids"] for window in ours] == theirs["token_type_ids"]
    for number, window in enumerate(ours):
        inside = [part == 1 for part in theirs.sequence_ids(number)]
        assert [mark & CONTEXT > 0 for mark in window["marks"]] == inside
        offsets = theirs["offset_mapping"][number]
        places = [place if inner else (0, 0) for place, inner in zip(offsets, inside, strict=True)]
        assert list(zip(window["starts"], window["ends"], strict=True)) == places


@pytest.mark.parametrize("answer", [(15, 23), (0, 7), (24, 25), (71, 75), (8, 40)])
def test_answers_have_the_places_of_run_qa(answer: tuple[int, int]) -> None:
    """The rule of `prepare_train_features`, for windows as the tokenizer makes them."""
    tokenizer, context = word_tokenizer(), "ada met bob in new york . " * 4
    encode = TokenizeQuestion(tokenizer, 18, 4)
    ours = windows.cut(encode({"question": "where ?", "context": context, "answer": answer}))
    theirs = tokenizer(
        "where ?", context, truncation="only_second", max_length=18, stride=4, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    for number, window in enumerate(ours):
        places, parts = theirs["offset_mapping"][number], theirs.sequence_ids(number)
        first = parts.index(1)
        last = len(parts) - 1 - parts[::-1].index(1)
        if not (places[first][0] <= answer[0] and places[last][1] >= answer[1]):
            expected = (0, 0)
        else:
            while first < len(places) and places[first][0] <= answer[0]:
                first += 1
            while places[last][1] >= answer[1]:
                last -= 1
            expected = (first - 1, last + 1)
        found = tuple(next(p for p, mark in enumerate(window["marks"]) if mark & bit) for bit in (FIRST, LAST))
        assert found == expected


@pytest.mark.parametrize("make", [byte_tokenizer, None])
def test_answers_with_letters_of_several_bytes_come_back_as_they_are(make: Any) -> None:
    texts = Dataset.from_dict({"text": ["Ada lives in \u00c5rhus \U0001f600 now"] * 3})
    tokenizer = make(64) if make else subword_tokenizer(texts, vocab_size=290, model_max_length=64)
    context = "\u00e9\u00e8 Ada lives in \u00c5rhus \U0001f600 now, \u00fc."
    for text in ("\u00c5rhus", "\U0001f600", "\u00c5rhus \U0001f600", "\u00e9\u00e8", "\u00fc"):
        start = context.index(text)
        row = TokenizeQuestion(tokenizer)({"question": "?", "context": context, "answer": (start, start + len(text))})
        first, last = (next(p for p, mark in enumerate(row["marks"]) if mark & bit) for bit in (FIRST, LAST))
        outputs = np.array([[-9.0, 1.0, first, last]], np.float32)
        (best,) = merge_spans(row, context, outputs, 1, None)
        assert (best["text"], best["start"], best["end"]) == (text, start, start + len(text))


def test_a_question_that_leaves_no_room_is_refused() -> None:
    encode = TokenizeQuestion(byte_tokenizer(64), stride=16)
    with pytest.raises(DataError, match="column 'question' holds 51 tokens, which leaves 12 of max_length=64"):
        encode({"question": "q" * 49, "context": "c", "answer": (0, 0)})


# Scores of spans


def random_windows(count: int, length: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.full((count, length), CONTEXT)
    labels[:, :4] = 0
    labels[:, -1] = 0
    labels[-1, -5:] = IGNORED
    labels[0, 0] = FIRST | LAST
    labels[1:, 6] |= FIRST
    labels[1:, 8] |= LAST
    return (torch.randn(count, length, generator=draw), torch.randn(count, length, generator=draw)), labels


def test_the_best_spans_are_those_of_a_loop() -> None:
    (start, end), labels = random_windows(3, 20)
    found = best_spans((start, end), labels, 5, 4).numpy()
    for row in range(3):
        inside = [place for place in range(20) if labels[row, place] >= CONTEXT]
        pairs = [(a, b) for a in inside for b in inside if a <= b < a + 4]
        ranked = sorted(pairs, key=lambda pair: -(start[row, pair[0]] + end[row, pair[1]]).item())[:5]
        assert found[row, 1:].reshape(5, 3)[:, 1:].astype(int).tolist() == [list(pair) for pair in ranked]
        assert found[row, 0] == pytest.approx((start[row, 0] + end[row, 0]).item())
    few = best_spans((start[:, :6], end[:, :6]), labels[:, :6], 5, 30).numpy().reshape(3, 16)[:, 1:].reshape(3, 5, 3)
    assert np.isfinite(few[:, :, 0]).sum(1).tolist() == [3, 3, 3]


def test_the_loss_is_that_of_the_model_without_padding() -> None:
    (start, end), labels = random_windows(3, 20)
    expected = []
    for row in range(3):
        real = labels[row] != IGNORED
        for scores, place in ((start, 0 if row == 0 else 6), (end, 0 if row == 0 else 8)):
            expected.append(-scores[row][real].log_softmax(-1)[place].item() / 2)
    assert span_loss((start, end), labels).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


# Metrics


TRUTHS = [
    ("the Eiffel Tower", ["Eiffel tower!"], 1, 1),
    ("a cat", ["cat dog"], 0, 2 / 3),
    ("cat cat", ["cat"], 0, 2 / 3),
    ("New York", ["Oslo", "in New York City", "york"], 0, 2 / 3),
    ("", [], 1, 1),
    ("something", [], 0, 0),
    ("", ["something"], 0, 0),
    ("the", [], 1, 1),
    ("1,000", ["1000"], 1, 1),
    ("Thean", ["an"], 0, 0),
]
"""Answer, truths, exact match and F1 by the definition; the best truth counts."""


@pytest.mark.parametrize(("answer", "truths", "exact", "f1"), TRUTHS)
def test_an_answer_is_scored_as_by_squad(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert score(answer, truths) == (exact, pytest.approx(f1))


def test_normalisation_is_that_of_squad() -> None:
    assert normalized("  The \u201cA-Team\u201d,  an\tEND. ") == "\u201cateam\u201d end"


def arrays(rows: list[Any]) -> dict[str, np.ndarray]:
    made = {"answers": np.empty(len(rows), object), "truths": np.empty(len(rows), object)}
    for place, row in enumerate(rows):
        made["answers"][place], made["truths"][place] = row[0], row[1]
    return made


def test_the_metric_is_the_mean_with_and_without_answers() -> None:
    found = MetricSet({"squad": Squad()}).scalars(arrays(TRUTHS))
    with_answer = [row for row in TRUTHS if row[1]]
    none = [row for row in TRUTHS if not row[1]]
    for prefix, rows in (("", TRUTHS), ("has_answer_", with_answer), ("no_answer_", none)):
        assert found[f"{prefix}exact_match"] == pytest.approx(np.mean([row[2] for row in rows]))
        assert found[f"{prefix}f1"] == pytest.approx(np.mean([row[3] for row in rows]))
    assert set(MetricSet({"squad": Squad()}).scalars(arrays(with_answer))) == {"exact_match", "f1"}
    counts = np.random.default_rng(0).integers(0, 3, (4, len(TRUTHS))).astype(float)
    drawn = MetricSet({"squad": Squad()}).resample(arrays(TRUTHS), counts)
    for number, row in enumerate(counts.astype(int)):
        alone = MetricSet({"squad": Squad()}).scalars(
            arrays([item for item, times in zip(TRUTHS, row, strict=True) for _ in range(times)])
        )
        assert {name: drawn[name][number] for name in alone} == pytest.approx(alone)


# SQuAD files and tables


def squad_file(**changes: Any) -> dict[str, Any]:
    possible = {"id": "1", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]}
    impossible = {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [{}]}
    paragraph = {"context": "In Oslo.", "qas": [possible, impossible], **changes}
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": [paragraph]}]}


def test_squad_files_are_read_as_the_hub_has_them(place: Path) -> None:
    Path("train.json").write_text(json.dumps(squad_file()))
    rows = squad("train.json")["train"]
    assert rows[:] == {
        "id": ["1", "2"], "title": ["T", "T"], "question": ["Where?", "When?"], "context": ["In Oslo."] * 2,
        "answers": [{"text": ["Oslo"], "answer_start": [3]}, {"text": [], "answer_start": []}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps({"rows": []}), "the file has no 'data' that is a list; expected SQuAD's form"),
        (json.dumps(squad_file(context=None)), r"data\[0\]\.paragraphs\[0\] has no 'context' that is a text"),
        (json.dumps(squad_file(qas=[3])), r"data\[0\]\.paragraphs\[0\]\.qas\[0\] is 3, not an object"),
        (json.dumps(squad_file(qas=[])), "has no questions"),
    ],
)
def test_what_is_no_squad_file_is_named(content: str, message: str, place: Path) -> None:
    Path("train.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        squad("train.json")


GOOD = {"question": "Where?", "context": "In Oslo.", "answers": {"text": ["Oslo"], "answer_start": [3]}}


def test_different_answers_are_named_before_anything_starts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write([*[GOOD] * 20, {**GOOD, "answers": {"text": ["Oslo", "In"], "answer_start": [3, 0]}}])
    words = [word for word in SMALL if "test_size" not in word]
    files = "dataset.source.data_files={train: rows.jsonl, validation: dev.jsonl}"
    write([GOOD] * 3, "dev.jsonl")
    assert cli.main([*words, files]) == 2
    error = capsys.readouterr().err
    assert "2 different answers, 'Oslo' and 'In': keep" in error
    assert "line 21 of rows.jsonl" in error
    assert not (place / "outputs").exists()


# From rows to answers


def splits_of(*words: str) -> dict[str, Any]:
    config = compose(*SMALL, *words)
    return build_splits(config, load_inputs(config))


def test_cached_windows_are_those_that_are_made_when_they_are_read(place: Path) -> None:
    write(made_rows())
    kept, made = (splits_of(f"transform.cache.enabled={on}") for on in ("true", "false"))
    assert kept["train"].prepared is not None
    assert len(kept["train"]) > len(kept["train"].rows)
    for split in kept:
        first = made[split][0]
        assert list(kept[split]) == list(made[split])
        assert kept[split][0] == first
        assert kept[split].lengths("input_ids") == made[split].lengths("input_ids")
        assert [len(row["input_ids"]) for row in kept[split]] == kept[split].lengths("input_ids")


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A directory in which a model was trained, and the result; tests leave it as it is."""
    with trained_home(
        tmp_path_factory, "answerer", lambda: write(made_rows()), *SMALL, "task.null_threshold=0.1"
    ) as made:
        yield made


@pytest.mark.parametrize("threshold", [None, -0.5])
def test_answers_are_those_of_the_examples_loop(answerer: tuple[Path, Any], threshold: float | None) -> None:
    """Of all spans; the laws compare the best ones, with another threshold."""
    model, tokenizer = peers.loaded("AutoModelForQuestionAnswering", str(answerer[1].run_dir / "model"))
    encode, task = TokenizeQuestion(tokenizer, stride=peers.STRIDE), QuestionAnswering(threshold, n_best=2000)
    for row in made_rows(4):
        tokens, places = peers.tokenizer_windows(tokenizer, row)
        output = model(**{name: tokens[name] for name in tokenizer.model_input_names})
        logits = [scores.detach().numpy() for scores in (output.start_logits, output.end_logits)]
        theirs = peers.best_answers(row["context"], places, *logits, threshold=threshold, best=2000)[0]
        inputs = encode({"question": row["question"], "context": row["context"], "answer": (0, 0)})
        batch = SpanCollator(tokenizer)([task.preprocess(window, tokenizer) for window in windows.cut(inputs)])
        labels = batch.pop("labels")
        ours = model(**batch)
        spans = task.preprocess_logits((ours.start_logits, ours.end_logits), labels).detach().numpy()
        found = task.merge(row, inputs, spans, {})
        assert found["text"] == theirs["text"] == row["context"][found["start"] : found["end"]]
        assert found["score"] == pytest.approx(theirs["score"], rel=1e-4)


def test_predict_and_a_served_model_give_these_answers(answerer: tuple[Path, Any]) -> None:
    import mlflow.pyfunc

    home, result = answerer
    rows = [{name: row[name] for name in ("question", "context")} for row in made_rows(9)]
    ours: Any = predict(run=result.run_dir, inputs=rows, generation={"top_k": 2})
    single = [predict(run=result.run_dir, inputs=row, batch_size=1)["text"][0] for row in rows[:3]]
    assert list(ours["text"][:3]) == single
    assert all(len(candidates) == 2 for candidates in ours["candidates"])
    assert all(best[0]["text"] == text for best, text in zip(ours["candidates"], ours["text"], strict=True))
    loaded = mlflow.pyfunc.load_model(str(next(home.glob("outputs/**/MLmodel")).parent))
    served: Any = loaded.predict(pandas.DataFrame(rows), params={"top_k": 2})
    for name in ("text", "start", "end"):
        assert list(served[name]) == list(ours[name])
    assert served["score"].tolist() == pytest.approx(ours["score"].tolist(), abs=1e-6)
    asked: Any = predict(run=result.run_dir, split="test")
    assert [row["true"] for _, row in asked.iterrows() if row["true"]]


def test_flat_columns_and_squad_files_give_the_same_rows(place: Path) -> None:
    import csv

    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["q", "context", "answer", "answer_start"])
        writer.writerows([["Where?", "In Oslo.", "Oslo", 3], ["When?", "In Oslo.", "", ""]] * 20)
    paragraphs = squad_file()["data"][0]["paragraphs"] * 20
    Path("rows.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    base = [word for word in SMALL if not word.startswith("dataset=") and "data_files" not in word]
    flat = [
        *base, "dataset=table", "dataset.source.data_files=rows.csv", "dataset.columns.question=q",
        "dataset.columns.answers={text: answer, answer_start: answer_start}",
    ]  # fmt: skip
    made = []
    for words in (flat, [*base, "dataset=squad", "dataset.source.data_files=rows.json"]):
        config = compose(*words)
        made.append(build_splits(config, load_inputs(config)))
    for split in ("train", "validation", "test"):
        assert list(made[0][split]) == list(made[1][split])


@pytest.mark.parametrize(
    "architecture",
    ["distilbert", pytest.param("bert", marks=pytest.mark.slow), pytest.param("modernbert", marks=pytest.mark.slow)],
)
def test_a_checkpoint_is_asked_and_its_task_is_inferred(architecture: str, place: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained("checkpoint")
    size = {"vocab_size": len(tokenizer), "pad_token_id": 0, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(architecture, **{**trainings.CONFIGS[architecture], **size})
    torch.manual_seed(0)
    model = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    model.save_pretrained("checkpoint")
    row = {"question": "where ?", "context": "ada met bob in new york ."}
    answers: Any = predict("model=local", "model.path=checkpoint", inputs=row)
    tokens = tokenizer(*row.values(), return_tensors="pt", return_offsets_mapping=True)
    inside = [place for place, part in enumerate(tokens.sequence_ids(0)) if part == 1]
    offsets = tokens.pop("offset_mapping")[0].tolist()
    if architecture != "bert":
        tokens.pop("token_type_ids")
    output = model(**tokens)
    start, end = output.start_logits[0], output.end_logits[0]
    first, last = max(
        ((a, b) for a in inside for b in inside if a <= b), key=lambda pair: (start[pair[0]] + end[pair[1]]).item()
    )
    assert (answers["start"][0], answers["end"][0]) == (offsets[first][0], offsets[last][1])


def test_rows_that_can_not_be_learnt_from_are_skipped_in_training_only(place: Path) -> None:
    several = {**GOOD, "answers": {"text": ["Oslo", "In"], "answer_start": [3, 0]}}
    write([GOOD] * 9 + [several])
    write([GOOD, several], "dev.jsonl")
    inputs = load_inputs(
        compose(
            *(word for word in SMALL if "test_size" not in word), "dataset.on_bad_sample=skip",
            "dataset.source.data_files={train: rows.jsonl, validation: dev.jsonl}",
        )
    )  # fmt: skip
    assert inputs.dropped == {"train": 1, "validation": 0}
