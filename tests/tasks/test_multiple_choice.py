"""Multiple choice: any number of choices per row, columns of several forms, answers as of a hand-written forward."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import trainings
import transformers
from conftest import trained_home

from hfexp import predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import place_of
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.multiple_choice import MultipleChoice
from hfexp.tasks.text import NestedCollator, Tokenize, byte_tokenizer

SMALL = (
    "task=multiple_choice", "model=tiny_bert", "trainer=scratch", "tracking.pictures=false", "dataset=table",
    "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "model.config.hidden_size=16",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=48", "trainer.args.num_train_epochs=2",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.learning_rate=0.01",
)  # fmt: skip
NUMBERS = ("one", "two", "three", "four", "five")


def made_rows(count: int = 60) -> list[dict[str, Any]]:
    """Rows with two to four choices."""
    rows = []
    for n in range(count):
        choices = [NUMBERS[(n + away) % 5] for away in range(2 + n % 3)]
        rows.append({"text": f"After {NUMBERS[n % 5]}", "choices": choices, "label": n % len(choices), "kind": n % 2})
    return rows


def write(rows: list[Any], name: str = "rows.jsonl") -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


# Labels and columns


@pytest.mark.parametrize(
    ("label", "names", "place"),
    [
        (1, None, 1), ("1", None, 1), ("B", None, 1), ("yes", None, 2), ("2", ["1", "2", "3"], 1), ("c", "abc", 2),
    ],
)  # fmt: skip
def test_a_label_names_a_choice_by_text_name_or_number(label: Any, names: Any, place: int) -> None:
    assert place_of(label, ["no", "may be", "yes"], names, "label") == place


def test_the_text_of_a_choice_counts_before_a_number() -> None:
    assert place_of("2", ["2", "1", "0"], None, "label") == 0


@pytest.mark.parametrize("label", [3, -1, "D", "3", "", None, 1.0, True, ["no"]])
def test_a_label_that_names_no_choice_is_refused(label: Any) -> None:
    with pytest.raises(DataError, match="column 'label' holds .* one of the 3 items, its letter or its number"):
        place_of(label, ["no", "may be", "yes"], None, "label")


def test_choices_with_names_and_a_second_text_are_read_as_the_hub_has_them() -> None:
    task = MultipleChoice()
    row = {"text": "c", "text_pair": "q", "choices": {"label": ["1", "2"], "text": ["a", "b"]}, "label": "2"}
    assert task.decode(row) == {"text": "c", "text_pair": ["q a", "q b"], "label": 1}
    assert task.shown_label(row) == "b"
    assert task.decode({**row, "text_pair": None})["text_pair"] == ["a", "b"]


def test_columns_of_single_choices_make_a_list_in_training_and_prediction(place: Path) -> None:
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sent1", "sent2", "ending0", "ending1", "ending2", "gold"])
        writer.writerows(
            [f"Number {n}.", "It is", n, n + 1, n + 2 if n % 2 else "", n if n % 3 else "A"] for n in range(40)
        )
    columns = {"text": "sent1", "text_pair": "sent2", "choices": ["ending0", "ending1", "ending2"]}
    words = [word for word in SMALL if "data_files" not in word]
    words += [f"dataset.columns.{name}={value}".replace("'", "") for name, value in columns.items()]
    result = train(*words, "dataset.columns.label=gold", "dataset.source.data_files=rows.csv", "tracking=none")
    assert 0 <= result.metrics["test_accuracy"] <= 1
    answers = predict("rows.csv", run=result.run_dir, columns=columns)
    assert [len(scores) for scores in answers["scores"]] == [2, 3] * 20
    assert answers["choice"][1] in ("1", "2", "3")
    assert list(answers["sent1"][:2]) == ["Number 0.", "Number 1."]
    asked = predict(run=result.run_dir, split="test")
    assert set(asked["true"]) <= set(map(str, range(42)))
    with pytest.raises(ConfigError, match="no column 'ending3' for the task's 'choices'"):
        train(*words, "dataset.source.data_files=rows.csv", "dataset.columns.choices=[ending0,ending3]")


# Batches


def batch_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    task, tokenizer = MultipleChoice(), byte_tokenizer(48)
    encode = Tokenize(tokenizer)
    return NestedCollator(tokenizer)(
        [task.preprocess(encode(task.decode({"text_pair": "", **row})), tokenizer) for row in rows]
    )


def tiny(architecture: str = "bert") -> Any:
    config = {**trainings.CONFIGS[architecture], "vocab_size": 261, "max_position_embeddings": 48}
    torch.manual_seed(0)
    return transformers.AutoModelForMultipleChoice.from_config(
        transformers.AutoConfig.for_model(architecture, **config)
    ).eval()


@pytest.mark.parametrize("architecture", ["bert", pytest.param("modernbert", marks=pytest.mark.slow)])
def test_a_choice_that_a_row_lacks_counts_in_no_score_and_no_loss(architecture: str) -> None:
    model, task, rows = tiny(architecture), MultipleChoice(), made_rows(6)
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def scored(batch: dict[str, Any]) -> tuple[Any, Any]:
        labels = batch.pop("labels")
        batch = batch if architecture == "bert" else {n: v for n, v in batch.items() if n != "token_type_ids"}
        logits = model(**batch).logits
        return task.loss(logits, {"labels": labels}), task.preprocess_logits(logits, labels)

    whole = batch_of(rows)
    assert whole["input_ids"].shape[:2] == (6, 4)
    assert (whole["labels"] == IGNORED).sum(1).tolist() == [2, 1, 0, 2, 1, 0]
    loss, found = scored(whole)
    alone = [scored(batch_of([row])) for row in rows]
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in alone) / 6, rel=1e-5)
    assert torch.equal(found, torch.cat([one for _, one in alone]))
    assert found[:, 1].tolist() == [row["label"] for row in rows]
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_loss_of_one_row_is_that_of_the_model_itself() -> None:
    model, batch = tiny(), batch_of(made_rows(1))
    own = model(**{**batch, "labels": batch["labels"].argmax(-1)}).loss
    labels = batch.pop("labels")
    assert MultipleChoice().loss(model(**batch).logits, {"labels": labels}).item() == pytest.approx(
        own.item(), rel=1e-6
    )


# From rows to answers


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A directory in which a model was trained, and the result; tests leave it as it is."""
    with trained_home(tmp_path_factory, "chooser", lambda: write(made_rows()), *SMALL) as made:
        yield made


def test_a_served_model_needs_no_second_text(chooser: tuple[Path, Any]) -> None:
    import mlflow.pyfunc

    home, result = chooser
    rows = [{name: row[name] for name in ("text", "choices")} for row in made_rows(7)]
    ours: Any = predict(run=result.run_dir, inputs=rows)
    loaded = mlflow.pyfunc.load_model(str(next(home.glob("outputs/**/MLmodel")).parent))
    served: Any = loaded.predict(pandas.DataFrame(rows))
    assert list(served["choice"]) == list(ours["choice"])


def test_an_input_may_be_written_as_json(chooser: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", f"run={chooser[1].run_dir}", "record=false"]
    assert cli.main([*words, 'text={"text": "After", "choices": ["one", "two"]}', 'text={"text": "After"}']) == 1
    said = capsys.readouterr()
    assert "one" in said.out
    assert "expected a mapping with text and choices" in said.err


def test_a_checkpoint_is_asked_and_its_task_is_inferred(place: Path) -> None:
    byte_tokenizer(48).save_pretrained("checkpoint")
    model = tiny()
    model.save_pretrained("checkpoint")
    (row,) = made_rows(1)
    batch = batch_of([row])
    batch.pop("labels")
    (scores,) = predict("model=local", "model.path=checkpoint", inputs=row)["scores"]
    assert scores == pytest.approx(model(**batch).logits[0].softmax(-1).tolist(), abs=1e-6)


# Wrong inputs


GOOD = {"text": "a", "choices": ["b", "c"], "label": 0}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.loss._target_=torch.nn.CrossEntropyLoss", "trainer.loss can't replace the loss of MultipleChoice"),
        ("trainer.args.label_smoothing_factor=0.1", "label_smoothing_factor has no effect on MultipleChoice"),
        ("model=tiny_gpt", "model=tiny_gpt generates text, but task=multiple_choice reads text"),
    ],
)
def test_a_wrong_setting_is_one_message(
    word: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write([GOOD] * 20)
    given = [one for one in SMALL if not (word == "model=tiny_gpt" and one.startswith("model"))]
    assert cli.main([*given, word]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_column_is_told_from_those_of_the_file(
    chooser: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    home, result = chooser
    (home / "other.csv").write_text("body,summary\na,b\n")
    assert cli.main(["predict", f"run={result.run_dir}", str(home / "other.csv")]) == 2
    assert "has no column 'text'. It has: body, summary; name one with columns.text=NAME" in capsys.readouterr().err
