"""Token classification: tags aligned with tokens, entities counted as seqeval does, merged as the pipeline does."""

import json
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainings
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, List

from hfexp import evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.data import windows
from hfexp.data.labels import cast_labels, classes_of, label_counts, readable
from hfexp.data.sources import conll, python_names
from hfexp.inference.predictor import load_predictor
from hfexp.tasks.entities import EDGES, IGNORED, TagScheme, split_tags
from hfexp.tasks.metrics import EntityF1, MetricSet, TokenAccuracy
from hfexp.tasks.tagging import Aggregation, TokenizeWords, add_prefix_space, align
from hfexp.tasks.text import byte_tokenizer, subword_tokenizer
from hfexp.tasks.token_classification import TokenClassification
from hfexp.tracking.report.page import Marked, Report, Section

BIO = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
BIOES = ("O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("LOC", "PER", "x-y")))
SMALL = (
    "task=token_classification", "model=tiny_bert_subwords", "trainer=scratch",
    "tracking.pictures=false", "dataset=table", "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2",
    "model.config.hidden_size=16", "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=24", "model.config.vocab_size=320", "trainer.args.num_train_epochs=3",
    "trainer.args.per_device_train_batch_size=16", "trainer.args.learning_rate=0.02",
)  # fmt: skip
NAMES = {"PER": ("Ada Lovelace", "Grace", "Alan Turing"), "LOC": ("London", "New York", "Oslo")}
TEXTS = ["Ada Lovelace went to New York", "nothing at all", "", "Grace went to Oslo and " * 30]


def sentence(draw: random.Random) -> dict[str, list[str]]:
    """Somebody goes somewhere, in sentences of several lengths."""
    row: dict[str, list[str]] = {"words": [], "tags": []}
    parts = [("PER", draw.choice(NAMES["PER"])), ("", "went to"), ("LOC", draw.choice(NAMES["LOC"]))]
    for kind, text in [*parts, *[("", "and then")] * draw.randrange(4)]:
        words = text.split()
        row["words"] += words
        row["tags"] += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place, _ in enumerate(words)]
    return row


@pytest.fixture
def rows(place: Path) -> list[dict[str, list[str]]]:
    """A table of 100 sentences."""
    draw = random.Random(0)
    made = [sentence(draw) for _ in range(100)]
    write(made)
    return made


def write(rows: list[Any], name: str = "rows.jsonl") -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def dataset(**splits: list[dict[str, Any]]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})


# Entities and metrics


def random_tags(names: tuple[str, ...], count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of true and predicted tags, some of them empty, with many tags in common."""
    draw = random.Random(3)
    for _ in range(count):
        true = [draw.randrange(len(names)) for _ in range(draw.randrange(12))]
        yield true, [draw.choice((tag, draw.randrange(len(names)))) for tag in true]


def counts_of(names: tuple[str, ...], pairs: list[tuple[list[int], list[int]]]) -> Any:
    """Counts of rows that are padded as in a batch."""
    longest = max(len(true) for true, _ in pairs) + 2
    labels, predictions = np.full((2, len(pairs), longest), IGNORED)
    for number, (true, predicted) in enumerate(pairs):
        labels[number, 1 : len(true) + 1] = true
        predictions[number] = 1
        predictions[number, 1 : len(true) + 1] = predicted
    task = TokenClassification()
    task.set_classes(dict(enumerate(names)))
    return task.metric_inputs(task.scheme.count(predictions, labels), np.zeros(len(pairs)))


@pytest.mark.parametrize("names", [BIO, BIOES], ids=["BIO", "BIOES"])
def test_entities_are_scored_as_seqeval_does(names: tuple[str, ...]) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    pairs = list(random_tags(names, 300))
    true, predicted = ([[names[tag] for tag in pair[side]] for pair in pairs] for side in (0, 1))
    found = MetricSet({"f1": EntityF1(), "accuracy": TokenAccuracy()}).scalars(counts_of(names, pairs))
    for name in ("precision", "recall", "f1"):
        assert found[name] == pytest.approx(getattr(metrics, f"{name}_score")(true, predicted), abs=1e-12)
    assert found["token_accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    report: Any = metrics.classification_report(true, predicted, output_dict=True)
    for kind in {name[2:] for name in names[1:]}:
        assert found[f"f1_{kind}"] == pytest.approx(report[kind]["f1-score"])


def test_entities_of_bioes_that_are_well_formed_are_scored_as_strictly() -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme").IOBES
    true = [["B-A", "I-A", "E-A", "O", "S-B"], ["S-A", "S-A"], ["O"]]
    predicted = [["B-A", "E-A", "O", "O", "S-B"], ["S-A", "S-B"], ["S-A"]]
    names = ("O", *sorted({tag for row in true + predicted for tag in row} - {"O"}))
    pairs = [
        ([names.index(tag) for tag in a], [names.index(tag) for tag in b])
        for a, b in zip(true, predicted, strict=True)
    ]
    found = EntityF1().compute(**{"entities": counts_of(names, pairs)["entities"]}) or {}
    assert found["f1"] == pytest.approx(metrics.f1_score(true, predicted, mode="strict", scheme=scheme))


def test_plain_tags_are_types_and_a_run_of_them_is_one_entity() -> None:
    assert split_tags(["O", "NOUN", "B-x"]) == [("O", ""), ("I", "NOUN"), ("I", "B-x")]
    assert split_tags(["U-A", "L-A", "O"]) == [("S", "A"), ("E", "A"), ("O", "")]
    scheme = TagScheme(["NOUN", "O", "VERB"])
    first, last, kinds = scheme.spans(np.array([0, 0, 2, 1, 2, 0]))
    assert [scheme.types[kind] for kind in kinds] == ["NOUN", "VERB", "VERB", "NOUN"]
    assert list(zip(first, last, strict=True)) == [(0, 1), (2, 2), (4, 4), (5, 5)]


def test_resampled_scores_are_those_of_the_rows_drawn() -> None:
    pairs, metrics = list(random_tags(BIO, 30)), MetricSet({"f1": EntityF1(), "accuracy": TokenAccuracy()})
    drawn = np.random.default_rng(0).integers(0, 30, (5, 30))
    counts = np.stack([np.bincount(row, minlength=30) for row in drawn]).astype(float)
    found = metrics.resample(counts_of(BIO, pairs), counts)
    for number, row in enumerate(drawn):
        alone = metrics.scalars(counts_of(BIO, [pairs[index] for index in row]))
        assert {name: values[number] for name, values in found.items()} == pytest.approx(alone)


def test_logits_are_reduced_to_counts_for_each_row() -> None:
    task = TokenClassification()
    task.set_classes(dict(enumerate(BIO)))
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED], [IGNORED, 0, IGNORED, IGNORED]])
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), 5).float()
    edges = [1, 1, 2, 2, 1, 1, 1, 1]  # from B-LOC to I-LOC, all of it one entity that is found
    assert task.preprocess_logits((logits, None), labels).tolist() == [
        [2, 2, 1, 1, 1, 0, 0, 0, *edges], [1, 1] + [0] * (6 + EDGES),
    ]  # fmt: skip


def test_found_and_missed_entities_are_marked_in_the_text() -> None:
    task = TokenClassification()
    task.set_classes(dict(enumerate(BIO)))
    row = {"words": ["<Ada>", "L.", "saw", "Rome", "."], "tags": [3, 4, 0, 1, 0]}
    found = [{"start": 0, "end": 8, "type": "PER"}, {"start": 9, "end": 12, "type": "LOC"}]
    pieces = task.marked(row, found)
    assert pieces == [
        ("<Ada> L.", "PER", "right"), (" ", "", ""), ("saw", "LOC", "wrong"), (" ", "", ""),
        ("Rome", "LOC", "missed"), (" .", "", ""),
    ]  # fmt: skip
    report = Report("", "", [Section("s", [Marked(pieces)])])
    assert '<mark class="right">&lt;Ada&gt; L.<small>PER</small></mark>' in report.html({})
    assert "**&lt;Ada&gt; L.** (PER) **saw** (LOC wrong) **Rome** (LOC missed) ." in report.markdown()
    other = [{"start": 0, "end": 5, "type": "PER"}]
    assert [piece.verdict for piece in task.marked(row, other)] == ["wrong", "", "missed", ""]


def test_an_evaluation_keeps_counts_of_rows_and_no_tokens(tmp_path: Path) -> None:
    task = TokenClassification()
    task.set_classes(dict(enumerate(BIO[: trainings.CLASSES])))
    trainer = trainings.make_trainer("bert", "tags", 8, tmp_path)
    trainer.preprocess_logits_for_metrics = task.preprocess_logits
    output = trainer.predict(trainer.eval_dataset)  # pyright: ignore[reportArgumentType]
    assert np.shape(output.predictions) == (trainings.ROWS, 5 + EDGES)
    assert np.shape(output.label_ids) == (trainings.ROWS,)
    assert trainer.preprocess_logits_for_metrics == task.preprocess_logits


# Words, tags and tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = subword_tokenizer(
        Dataset.from_dict({"text": ["ada went to oslo"] * 3}), vocab_size=275, model_max_length=24
    )
    add_prefix_space(made)
    return made


def test_the_first_token_of_a_word_has_its_label_or_every_one_has(tokenizer: Any) -> None:
    words, tags = ["Ada", "Xyz", "to"], [3, 4, 0]
    row = TokenizeWords(tokenizer)({"words": words, "tags": tags})
    theirs = tokenizer(words, is_split_into_words=True)
    assert row["input_ids"] == theirs["input_ids"]
    names = dict(enumerate(BIO))
    for label_all in (False, True):
        labels = align(row["tags"], row["word_ids"], names, label_all)
        for place, word in enumerate(theirs.word_ids()):
            is_first = word != (theirs.word_ids()[place - 1] if place else None)
            assert labels[place] == (IGNORED if word is None or not (is_first or label_all) else tags[word]), place
    assert row["windows"] == [len(row["input_ids"])]
    token_tags = [IGNORED, 3, 3, 0, 0, IGNORED]
    assert align(token_tags, [-1, 0, 0, 1, 1, -1], names, True) == [IGNORED, 3, 4, 0, 0, IGNORED]  # B-PER, then I-PER


def test_a_byte_level_tokenizer_sees_where_words_begin(tmp_path: Path) -> None:
    made = byte_tokenizer(64)
    joined = made(["ab", "c"], is_split_into_words=True)["input_ids"]
    assert joined == made("abc")["input_ids"]
    TokenClassification().fit_processor(made)
    made.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (made, loaded):
        assert tokenizer.decode(tokenizer(["ab", "c"], is_split_into_words=True)["input_ids"][1:-1]) == " ab c"


def test_a_long_row_is_cut_into_windows_of_whole_words(tokenizer: Any) -> None:
    """Each word has its tag once, in the window that shows most tokens on both sides of it."""
    draw, names = random.Random(0), tokenizer.get_vocab()
    for stride, length in ((0, 24), (5, 12), (40, 20), (3, 6)):
        words = [draw.choice(("ada", "went", "oslo", "xyzxyz", "to", "w" * 30)) for _ in range(draw.randrange(30, 60))]
        row = TokenizeWords(tokenizer, length, stride=stride)({"words": words, "tags": [*range(len(words))]})
        tags: list[int] = []
        before = 0
        for window in (found := windows.cut(row)):
            inner = [word for word in window["word_ids"] if word >= 0]
            assert len(window["input_ids"]) <= length
            assert [window["input_ids"][place] for place in (0, -1)] == [names["[CLS]"], names["[SEP]"]]
            assert {tag for tag, word in zip(window["tags"], window["word_ids"], strict=True) if word < 0} == {IGNORED}
            assert inner[-1] >= before, "no word is left out, and each window has more than the one before"
            shared = [word for word in inner if word < before]
            assert len(shared) <= min(stride, (length - 2) // 2)
            before = inner[-1] + 1
            tags += dict.fromkeys(tag for tag in window["tags"] if tag != IGNORED)
        assert tags == [*range(len(words))]
        for word in range(len(words)):
            sizes = {}
            for number, window in enumerate(found):
                places = [place for place, other in enumerate(window["word_ids"]) if other == word]
                if places:
                    sizes[number] = min(places[0], len(window["tags"]) - 1 - places[-1])
            (owner,) = (number for number, window in enumerate(found) if word in window["tags"])
            assert sizes[owner] == max(sizes.values())


def test_a_row_of_one_window_is_as_the_tokenizer_makes_it(tokenizer: Any) -> None:
    words = ["ada", "went", "to", "xyz"]
    row = TokenizeWords(tokenizer)({"words": words, "tags": [0] * 4})
    assert row["input_ids"] == tokenizer(words, is_split_into_words=True)["input_ids"]
    cut = TokenizeWords(tokenizer, max_length=12, truncation=True)({"words": ["ada"] * 30, "tags": [0] * 30})
    assert (cut["windows"], max(cut["word_ids"])) == ([12], 9)
    assert TokenizeWords(tokenizer)({"words": [], "tags": []})["word_ids"] == [-1, -1]
    with pytest.raises(ConfigError, match="max_length=2 and stride=32 must leave room"):
        TokenizeWords(tokenizer, max_length=2)


@pytest.mark.parametrize("names", [BIOES, ("O", "A", "B")], ids=["BIOES", "plain"])
def test_counts_of_windows_are_joined_to_those_of_their_row(names: tuple[str, ...]) -> None:
    scheme, draw = TagScheme(names), random.Random(1)
    for true, found in random_tags(names, 300):
        cuts = sorted({0, len(true), *(draw.randrange(len(true) + 1) for _ in range(3))})
        parts = [slice(*pair) for pair in pairwise(cuts)] or [slice(0, 0)]
        labels, predictions = np.full((len(parts), 15), IGNORED), np.zeros((len(parts), 15), int)
        for number, part in enumerate(parts):
            labels[number, 1 : 1 + len(true[part])] = true[part]
            predictions[number, 1 : 1 + len(true[part])] = found[part]
        whole = scheme.count(np.array([found], int), np.array([true], int))[0, :-EDGES]
        assert scheme.join(scheme.count(predictions, labels)).tolist() == whole.tolist()


@pytest.mark.parametrize(
    "row", [{"words": "ada", "tags": [0]}, {"words": ["a", None], "tags": [0, 0]}, {"words": ["a"], "tags": [0, 0]}]
)
def test_rows_that_are_no_words_with_tags_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected a list of words|2 tags for 1 words"):
        TokenClassification().decode(row)


def test_the_tags_are_those_of_the_training_rows_with_o_first() -> None:
    made = dataset(
        train=[{"words": ["a", "b", "c"], "tags": ["I-X", "O", "B-X"]}], validation=[{"words": ["a"], "tags": ["O"]}]
    )
    cast = cast_labels(made, TokenClassification(), None)
    feature = cast["train"].features["tags"]
    assert feature == List(ClassLabel(names=["O", "B-X", "I-X"]))
    assert cast["train"][0]["tags"] == [2, 0, 1]
    assert cast["validation"].features["tags"] == feature
    assert classes_of(cast["validation"], TokenClassification()) == {"O"}
    assert readable(feature, [1, 2]) == ["B-X", "I-X"]
    other = cast_labels(cast, TokenClassification(), ["B-X", "I-X", "O"])
    assert other["train"][0]["tags"] == [1, 2, 0]
    numbers = cast_labels(dataset(train=[{"words": ["a", "b"], "tags": [10, 2]}]), TokenClassification(), None)
    assert TokenClassification().id2label(numbers) == {0: "2", 1: "10"}


GOOD = {"words": ["a", "b"], "tags": ["O", "B-X"]}
WRONG = [
    ([GOOD, {"words": ["a"], "tags": ["O", "O"]}], "1 row has no usable label: 2 tags for 1 words (line 2 of rows.js"),
    ([GOOD, {"words": ["a"], "tags": [None]}], "has a missing tag in column 'tags' (line 2 of rows.jsonl)"),
    ([GOOD, {"words": None, "tags": ["O"]}], "1 row has no value in column 'words' (line 2 of rows.jsonl"),
    ([GOOD, {"words": ["a"], "tags": None}], "0 tags for 1 words (line 2 of rows.jsonl"),
    ([{"words": "a b", "tags": "O B"}], "column 'tags' of the train split holds Value('string'), expected a list"),
    ([{"words": ["a"]}], "the train split has no column 'tags' for the task's 'tags'"),
    ([{"words": "a", "tags": ["O", "B-X"]}], "column 'words' holds 'a', expected a list of words"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_wrong_rows_are_one_message(
    rows: list[Any], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(rows * 30 if len(rows) == 1 else [*rows, *[GOOD] * 20])
    assert cli.main(list(SMALL)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (place / "outputs").exists()


def test_a_tag_that_only_other_splits_have_is_named_with_its_row(place: Path) -> None:
    write([GOOD] * 20)
    write([GOOD, {"words": ["a"], "tags": ["B-Y"]}], "dev.jsonl")
    files = "dataset.source.data_files={train: rows.jsonl, validation: dev.jsonl}"
    with pytest.raises(ConfigError, match=r"validation split has the unknown tag 'B-Y' .* \(line 2 of dev\.jsonl\)"):
        train(*SMALL, files, "tracking=none")


def test_a_loss_of_the_users_own_gets_the_labelled_tokens_as_rows(rows: list[Any]) -> None:
    words = [*SMALL, "tracking=none", "trainer.args.num_train_epochs=1"]
    plain = train(*words)
    own = train(*words, "trainer.loss._target_=torch.nn.CrossEntropyLoss")
    equal = train(*words, "trainer.class_weights={O: 1, B-PER: 1}")
    for result in (own, equal):
        assert result.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], rel=1e-5)
    balanced = train(*words, "trainer.class_weights=balanced")
    assert balanced.metrics["test_loss"] != pytest.approx(plain.metrics["test_loss"], rel=1e-3)
    with pytest.raises(ConfigError, match="there is no class 'B-ORG'"):
        train(*words, "trainer.class_weights={B-ORG: 2}")


def test_tags_are_counted_for_the_weights() -> None:
    made = cast_labels(dataset(train=[{"words": ["a", "b"], "tags": ["O", "O"]}, GOOD]), TokenClassification(), None)
    assert label_counts(made["train"], TokenClassification()) == {"O": 3, "B-X": 1}


def test_long_rows_are_trained_in_windows_and_a_table_of_texts_is_asked(rows: list[Any], capsys: Any) -> None:
    write([*rows, *({name: row[name] * 9 for name in row} for row in rows[:10])])
    assert cli.main([*SMALL, "tracking=none"]) == 0
    said = capsys.readouterr().err
    found = re.search(r"cut into windows: (\d+) train rows are (\d+) windows, .*\d+ validation rows are", said)
    assert found, said
    assert int(found[1]) < int(found[2])
    Path("new.csv").write_text("id,text\n1,Grace went to Oslo\n", encoding="utf-8")
    (run,) = Path("outputs").glob("*/*/run.json")
    assert cli.main(["predict", f"run={run.parent}", "new.csv", "output=a.jsonl", "record=false"]) == 0
    (answer,) = map(json.loads, Path("a.jsonl").read_text(encoding="utf-8").splitlines())
    assert (answer["id"], answer["text"]) == ("1", "Grace went to Oslo")
    for entity in answer["entities"]:
        assert entity["text"] == entity["text"].strip() == answer["text"][entity["start"] : entity["end"]]


def test_an_unknown_way_to_merge_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.aggregation_strategy=frist is unknown\. Did you mean 'first'"):
        TokenClassification(aggregation_strategy="frist")


# CoNLL files


def test_sentences_of_conll_files_are_rows(place: Path) -> None:
    text = "-DOCSTART- -X- O\n\nAda NNP B-PER\nwent VBD O\n\n\nOslo NNP B-LOC\n"
    Path("train.conll").write_text(text, encoding="utf-8")
    read = conll("train.conll")["train"]
    assert read[:] == {"words": [["Ada", "went"], ["Oslo"]], "tags": [["B-PER", "O"], ["B-LOC"]]}
    assert conll("train.conll", tag_column=1)["train"][1]["tags"] == ["NNP"]
    Path("test.txt").write_text("# text = A b\n1\tA b\tDET\n\n# x\n1\tc\tX", encoding="utf-8")
    other = conll({"test": "test.txt"}, word_column=1, tag_column=2, sep="\t", comment="#")["test"]
    assert other[:] == {"words": [["A b"], ["c"]], "tags": [["DET"], ["X"]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\n\nb X O\n", r"line 3 of .*train\.conll has 3 columns, but line 1 has 2: 'b X O'"),
        ("a\nb\n", r"line 1 of .*train\.conll: dataset\.source\.word_column and tag_column name the same column"),
        ("\n\n", "has no sentences"),
        ("", "is empty"),
    ],
)
def test_a_line_that_is_no_word_with_a_tag_is_named(text: str, message: str, place: Path) -> None:
    Path("train.conll").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        conll("train.conll")


def test_a_file_that_a_tokenizer_is_to_learn_from_is_one_message_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train.conll").write_text("a O\n\nb X O\n", encoding="utf-8")
    words = [word for word in SMALL if not word.startswith("dataset")]
    assert cli.main([*words, "dataset=conll", "dataset.source.data_files=train.conll"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 3 of train.conll has 3 columns, but line 1 has 2" in line


def test_a_column_that_a_line_lacks_is_named(place: Path) -> None:
    Path("train.conll").write_text("a O\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 1 of .* has 2 columns: dataset\.source\.tag_column=3 is none"):
        conll("train.conll", tag_column=3)


def test_wrong_tags_of_a_conll_file_are_found_by_their_line(place: Path) -> None:
    Path("train.conll").write_text("a O\n\nb B-X\n\n" * 10, encoding="utf-8")
    Path("dev.conll").write_text("-DOCSTART- O\n\na O\n\nb B-Z\n", encoding="utf-8")
    made = conll({"train": "train.conll", "validation": "dev.conll"})
    with pytest.raises(ConfigError, match=r"unknown tag 'B-Z' in column 'tags' \(line 5 of .*dev\.conll\)"):
        cast_labels(made, TokenClassification(), None)


@pytest.mark.slow
def test_names_in_source_code_are_the_same_each_time_and_no_package_is_in_two_splits() -> None:
    first = python_names(most=40)
    assert {split: len(rows) for split, rows in first.items()} == {"train": 40, "validation": 5, "test": 10}
    kinds = {tag[2:] for row in python_names()["train"]["tags"] for tag in row}
    assert kinds >= {"function", "parameter", "attribute", "method", "call", "keyword", "class", "module"}


# From rows to answers


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_a_tagger_is_trained_evaluated_and_asked_as_a_pipeline_does(rows: list[Any], place: Path) -> None:
    result = train(*SMALL)
    assert result.metrics["test_f1"] > 0.5
    assert result.metrics["final_eval_f1"] == result.metrics["best_eval_f1"]
    scores = evaluate(run=result.run_dir, resamples=20, record=False)
    found = dict(zip(scores["metric"], scores["value"], strict=True))
    for name in ("f1", "f1_PER", "token_accuracy"):
        assert found[name] == pytest.approx(result.metrics[f"test_{name}"])
    assert "/B-PER" in next(place.glob("outputs/**/samples.txt")).read_text()
    page = next(place.glob("outputs/**/report.html")).read_text()
    assert re.search(r'<mark class="right">\w[\w ]*<small>(PER|LOC)</small></mark> went to', page)
    assert "<h2>Types</h2>" in page
    assert re.search(
        r"^\*\*\w[\w ]*\*\* \((PER|LOC)\) went to", next(place.glob("outputs/**/report.md")).read_text(), re.M
    )

    import mlflow.pyfunc
    import pandas

    path = next(place.glob("outputs/**/MLmodel")).parent
    served = mlflow.pyfunc.load_model(str(path)).predict(pandas.DataFrame({"text": TEXTS}))
    ours: Any = predict(run=result.run_dir, inputs=TEXTS)
    for strategy in ("first", "simple"):
        pipeline: Any = transformers.pipeline(
            "token-classification", str(result.run_dir / "model"), aggregation_strategy=strategy
        )
        predictor = load_predictor(result.run_dir / "model")
        predictor.task.aggregation_strategy = strategy  # pyright: ignore[reportAttributeAccessIssue]
        answers: Any = predictor.predict(TEXTS)["entities"]
        stride = predictor.operations[0].stride
        for text, entities in zip(TEXTS, answers, strict=True):
            assert_alike(entities, pipeline(text, stride=stride) if text else [])
        words = rows[0]["words"]
        assert_alike(predictor.predict([words])["entities"].tolist()[0], pipeline(words, is_split_into_words=True)[0])
        if strategy == "first":
            for others in (ours["entities"], served["entities"]):
                for mine, other in zip(answers, others, strict=True):
                    assert [entity | {"score": 0} for entity in mine] == [entity | {"score": 0} for entity in other]


@pytest.fixture
def checkpoint(place: Path) -> Path:
    """A model with random weights and a tokenizer of subwords, as on the Hub."""
    words = ("ada", "love", "##lace", "went", "to", "new", "york", "oslo", ",", ".")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(place / "ner")
    config = transformers.BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, initializer_range=1.0, id2label=dict(enumerate(BIO)),
        label2id={name: number for number, name in enumerate(BIO)},
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.BertForTokenClassification(config).save_pretrained(place / "ner")
    return place / "ner"


@pytest.mark.parametrize("strategy", ["first", "simple", "average", "max"])
def test_a_checkpoint_is_asked_as_by_a_pipeline_and_its_task_is_inferred(checkpoint: Path, strategy: str) -> None:
    pipeline: Any = transformers.pipeline("token-classification", str(checkpoint), aggregation_strategy=strategy)
    texts = ["Ada Lovelace, went to New York.", "Lovelace lovelace OSLO?", "went to Oslo " * 20, ""]
    chosen = ["task=token_classification", f"task.aggregation_strategy={strategy}"] if strategy != "first" else []
    answers: Any = predict("model=local", f"model.path={checkpoint}", *chosen, inputs=texts)["entities"]
    for text, entities in zip(texts, answers, strict=True):
        assert_alike(entities, pipeline(text, stride=7) if text else [])


def test_marks_of_bioes_are_merged_as_those_of_bio() -> None:
    tokens = [
        {"entity": name, "score": 0.5, "word": "", "start": place, "end": place + 1}
        for place, name in enumerate(["B-A", "E-A", "S-B", "S-B", "O", "I-A", "E-A"])
    ]
    names = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in "AB")]
    merge = Aggregation(dict(enumerate(names)), byte_tokenizer())
    canonical = dict(zip(names, merge.model.config.id2label.values(), strict=True))
    groups = merge.group_entities([{**token, "entity": canonical[token["entity"]]} for token in tokens])
    found = [(group["entity_group"], group["start"], group["end"]) for group in groups]
    assert found == [("A", 0, 2), ("B", 2, 3), ("B", 3, 4), ("O", 4, 5), ("A", 5, 7)]


def assert_alike(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [(entity["type"], entity["start"], entity["end"]) for entity in ours] == [
        (entity["entity_group"], entity["start"], entity["end"]) for entity in theirs
    ]
    assert [entity["score"] for entity in ours] == pytest.approx([entity["score"] for entity in theirs], abs=1e-5)


def test_answers_are_written_whole(rows: list[Any], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(*SMALL, "tracking=none")
    write(rows[:2], "new.jsonl")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert cli.main(["predict", f"run={result.run_dir}", "new.jsonl", f"output={name}", "record=false"]) == 0
    import pandas

    answers = [json.loads(line)["entities"] for line in Path("a.jsonl").read_text().splitlines()]
    assert len(answers) == 2
    assert list(map(json.loads, pandas.read_csv("a.csv")["entities"].fillna("[]").replace("", "[]"))) == answers
    assert cli.main(["predict", f"run={result.run_dir}", "split=test", "show=1", "record=false"]) == 0
    assert "B-PER" in capsys.readouterr().out
