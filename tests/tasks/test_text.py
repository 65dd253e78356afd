"""Texts: tables of them, tokens, batches, and a classifier trained, saved and asked again."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict

from hfexp import evaluate, predict, train
from hfexp.core.errors import ConfigError, DataError
from hfexp.data.sampling import EpochSampler
from hfexp.data.sources import MASK, docstrings, table
from hfexp.tasks.text import TextCollator, Tokenize, byte_tokenizer, subword_tokenizer
from hfexp.tasks.text_classification import TextClassification, TextPairClassification

SMALL = (
    "tracking.pictures=false",
    "model=tiny_bert", "trainer=scratch", "dataset=table", "metrics=accuracy",
    "model.config.hidden_size=16", "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.num_hidden_layers=1", "model.config.max_position_embeddings=40",
    "trainer.args.num_train_epochs=2", "trainer.args.per_device_train_batch_size=16", "dataset.test_size=0.2",
)  # fmt: skip
WORDS = {"warm": ("sun", "fire", "summer"), "cold": ("ice", "snow", "winter")}


@pytest.fixture
def rows(place: Path) -> str:
    """A table with two classes of texts, of many lengths."""
    lines = [
        {"text": " ".join([words[n % 3]] * (1 + n % 7)), "text_pair": words[(n + 1) % 3], "label": label}
        for n in range(50)
        for label, words in WORDS.items()
    ]
    path = place / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"dataset.source.data_files={path.name}"


@pytest.mark.slow
def test_streamed_texts_are_evaluated_by_two_processes_as_by_one(rows: str, place: Path) -> None:
    """Of many lengths, so that the processes' batches can't be joined; nothing is learnt, so that scores are equal."""
    words = [
        *SMALL, "task=text_classification", "dataset.source.data_files={train: rows.jsonl, validation: rows.jsonl}",
        "dataset.labels=[cold,warm]", "dataset.streaming=true", "dataset.test_size=null", "trainer.args.max_steps=1",
        "trainer.args.learning_rate=0", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1",
        "trainer.args.save_strategy=no", "trainer.args.load_best_model_at_end=false", "tracking=none",
        "trainer.args.per_device_eval_batch_size=7", "trainer.args.weight_decay=0",
    ]  # fmt: skip
    one = train(*words, "output_dir=one")
    two = train(
        *words, "output_dir=two", "launch=ddp", "launch.num_processes=2", "launch.num_threads=1",
        "trainer.args.per_device_train_batch_size=8",
    )  # fmt: skip
    for name in ("final_eval_accuracy", "final_eval_loss"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], abs=1e-5)


def test_bytes_are_tokens_and_come_back(tmp_path: Path) -> None:
    made = byte_tokenizer(64)
    made.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Grüße, 世界\n\t!", "", "a" * 10):
        tokens = loaded(text)["input_ids"]
        assert len(tokens) == len(text.encode()) + 2
        assert loaded.decode(tokens, skip_special_tokens=True) == text
    assert max(loaded.get_vocab().values()) == 260
    assert loaded("ab", "c")["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert loaded.model_max_length == 64


def test_pieces_of_words_are_learnt_from_texts_and_come_back(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["the warm sun", "the warm fire", "the cold snow"] * 9, "label": [0, 0, 1] * 9})
    made = subword_tokenizer(rows, vocab_size=300, model_max_length=32)
    again = subword_tokenizer(DatasetDict({"train": rows}), vocab_size=300, model_max_length=32)
    assert made.get_vocab() == again.get_vocab()
    made.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = loaded("The WARM sun")["input_ids"]
    assert len(tokens) == 5  # a token a word, and two ends
    assert loaded.decode(tokens, skip_special_tokens=True).strip() == "the warm sun"
    assert loaded.unk_token_id not in loaded("世界")["input_ids"]
    with pytest.raises(ConfigError, match=r"model\.processor\.column=texts: the source has only text, label"):
        subword_tokenizer(rows, column="texts")


def test_texts_are_cut_to_the_longest_that_the_model_takes() -> None:
    row = {"text": "abcdef", "label": 1}
    assert len(Tokenize(byte_tokenizer(5))(row)["input_ids"]) == 5
    assert Tokenize(byte_tokenizer(64), max_length=4)(row)["label"] == 1
    pair = Tokenize(byte_tokenizer(64))({"text": "a", "text_pair": "b", "label": 0})
    assert sorted(pair) == ["input_ids", "label", "token_type_ids"]
    with pytest.raises(ConfigError, match="set max_length"):
        Tokenize(byte_tokenizer(10**30))
    with pytest.raises(ConfigError, match="from 1 to 64"):
        Tokenize(byte_tokenizer(64), max_length=65)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_as_long_as_their_longest_row(side: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = side
    rows = [{"input_ids": [7, 8, 9], "labels": 0}, {"input_ids": [5], "labels": 1}]
    theirs = transformers.DataCollatorWithPadding(tokenizer)([{"input_ids": row["input_ids"]} for row in rows])
    ours = TextCollator(tokenizer, multiple=1)(rows)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    assert ours["labels"].tolist() == [0, 1]
    assert TextCollator(tokenizer, multiple=8)(rows)["input_ids"].shape == (2, 8)


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="column 'text' holds None"):
        TextClassification().decode({"text": None, "label": 0})
    with pytest.raises(DataError, match="expected a mapping with text and text_pair, got 'alone'"):
        TextPairClassification().inference_row("alone")


def test_tables_are_read_by_the_ending_of_their_name(place: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"text": ["a, b", "c"], "label": ["x", "y"]})
    frame.to_csv("t.csv", index=False)
    frame.to_csv("t.tsv", index=False, sep="\t")
    frame.to_json("t.jsonl", orient="records", lines=True)
    frame.to_parquet("t.parquet")
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet"):
        assert list(table(name)["train"]["text"]) == ["a, b", "c"], name
    Path("t.txt").write_text("one\ntwo\n")
    assert list(table({"test": "t.txt"})["test"]["text"]) == ["one", "two"]
    with pytest.raises(ConfigError, match="dataset.source.format"):
        table(str(Path("t.csv").rename("t.dat")))
    with pytest.raises(ConfigError, match="does not exist"):
        table("nothing.csv")


@pytest.mark.slow
def test_docstrings_are_the_same_each_time_and_do_not_name_their_class() -> None:
    first, second = docstrings(num_classes=3, most=20), docstrings(num_classes=3, most=20)
    assert first[:] == second[:]
    names = first.features["label"].names
    assert len(first) == 60
    assert all(names[row["label"]].lower() not in row["text"].lower() for row in map(dict, first))
    assert any(MASK in row["text"] for row in map(dict, first))


def test_a_classifier_of_texts_is_trained_and_asked_as_a_pipeline_does(rows: str, place: Path) -> None:
    result = train("task=text_classification", *SMALL, rows)
    assert result.report is not None
    texts = ["sun sun", "snow", "x" * 100]
    pipeline: Any = transformers.pipeline("text-classification", str(result.run_dir / "model"), top_k=None)
    theirs = pipeline(texts, truncation=True)
    import mlflow.pyfunc
    import pandas
    from mlflow.models import Model

    path = next(place.glob("outputs/**/MLmodel")).parent
    assert set(Model.load(path).flavors) == {"python_function", "transformers"}
    ours = mlflow.pyfunc.load_model(str(path)).predict(pandas.DataFrame({"text": texts}))
    for row, answers in zip(ours.to_dict("records"), theirs, strict=True):
        assert row["label"] == max(answers, key=lambda answer: answer["score"])["label"]
        assert row["score"] == pytest.approx(max(answer["score"] for answer in answers), abs=1e-5)
    assert "[" in (next(place.glob("outputs/**/samples.txt"))).read_text()

    lines = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    Path("new.jsonl").write_text("\n".join(json.dumps({**line, "place": n % 2}) for n, line in enumerate(lines)))
    words = ("dataset=table", "dataset.source.data_files=new.jsonl")
    table = evaluate(*words, run=result.run_dir, by="place", resamples=0, record=False)
    assert dict(zip(table["slice"], table["rows"], strict=True)) == {"all": 100, "place=0": 50, "place=1": 50}
    Path("new.jsonl").write_text("\n".join(json.dumps({**line, "place": ["a"]}) for line in lines))
    with pytest.raises(ConfigError, match="by=place: the column holds List, expected one value per row"):
        evaluate(*words, run=result.run_dir, by="place", record=False)


def test_batches_of_rows_that_are_about_as_long_follow_from_seed_and_epoch() -> None:
    lengths = [index % 50 + 1 for index in range(400)]
    sampler = EpochSampler(400, 3, lengths=lengths, group=8)
    first = list(sampler)
    assert first == list(EpochSampler(400, 3, lengths=lengths, group=8))
    assert sorted(first) == list(range(400))
    batches = [[lengths[index] for index in first[start : start + 8]] for start in range(8, 400, 8)]
    spread = [max(batch) - min(batch) for batch in batches]
    assert sum(spread) / len(spread) < 8  # about 44 at random
    sampler.set_epoch(1)
    assert [key - 400 for key in sampler] != first


def test_rows_that_have_no_lengths_are_not_grouped_by_them(place: Path) -> None:
    with pytest.raises(ConfigError, match="train_sampling_strategy=group_by_length"):
        train("experiment=digits_vit", "trainer.args.train_sampling_strategy=group_by_length")


def test_pairs_are_classified(rows: str, place: Path) -> None:
    import mlflow.pyfunc

    words = ("trainer.args.train_sampling_strategy=group_by_length",)
    result = train("task=text_pair_classification", *SMALL, rows, *words)
    assert 0 <= result.metrics["test_accuracy"] <= 1
    pairs = [{"text": "sun", "text_pair": "fire"}, {"text": "ice", "text_pair": "snow"}]
    asked: Any = predict(run=result.run_dir, inputs=pairs)
    assert list(asked["label"]) == [predict(run=result.run_dir, inputs=pair)["label"][0] for pair in pairs]
    rows_of_report = pandas.read_csv(next(place.glob("outputs/**/predictions_test.csv")))
    of_split: Any = predict(run=result.run_dir, split="test")
    for name, own in (("true", "true"), ("predicted", "label")):  # in the order of the rows
        assert list(rows_of_report[name]) == list(of_split[own])
    loaded = mlflow.pyfunc.load_model(str(next(place.glob("outputs/**/MLmodel")).parent))
    served: Any = loaded.predict(pandas.DataFrame(pairs))
    assert served["score"].tolist() == pytest.approx(asked["score"].tolist(), abs=1e-6)
    assert json.loads(loaded.metadata.signature.inputs.to_json())[1]["name"] == "text_pair"


def test_a_row_without_text_is_named_before_anything_starts(place: Path) -> None:
    Path("rows.csv").write_text("text,label\n" + "good,a\n" * 9 + ",b\n" * 9)
    words = ("dataset.source.data_files=rows.csv", "trainer.args.per_device_train_batch_size=2")
    with pytest.raises(ConfigError, match=r"9 rows have no value in column 'text' \(lines 11, 12, .* of rows\.csv"):
        train("task=text_classification", *SMALL, *words)
