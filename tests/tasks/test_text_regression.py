"""Texts, and pairs of them, to numbers: trained, scored, kept, recorded and asked again."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
import transformers

from hfexp import evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.text_classification import TextRegression

SMALL = (
    "tracking.pictures=false",
    "model=tiny_bert", "trainer=scratch", "dataset=table", "dataset.source.data_files=rows.jsonl",
    "model.config.hidden_size=32", "model.config.num_attention_heads=2", "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1", "model.config.max_position_embeddings=60", "dataset.test_size=0.2",
    "trainer.args.per_device_train_batch_size=16",
)  # fmt: skip
TEXTS = ["b", "ccccc", "hi " * 9]


@pytest.fixture
def rows(place: Path) -> None:
    """Texts of one letter, and its place; some numbers are whole."""
    lines = [{"text": "abcdefghi"[n % 9] * 5, "text_pair": "x" * (n % 4), "label": n % 9 / 2} for n in range(120)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.usefixtures("rows")
def test_numbers_are_learnt_scored_and_asked_as_a_pipeline_does() -> None:
    words = ("trainer.args.num_train_epochs=12", "trainer.args.learning_rate=1e-2")
    result = train("task=text_regression", *SMALL, *words)
    assert result.metrics["test_r2"] > 0.5  # 0: always the mean
    assert result.metric_name == "rmse"
    config = transformers.AutoConfig.from_pretrained(result.run_dir / "model")
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    pipeline: Any = transformers.pipeline("text-classification", str(result.run_dir / "model"))
    expected = [answer["score"] for answer in pipeline(TEXTS, function_to_apply="none")]
    asked = predict(run=result.run_dir, inputs=TEXTS)
    np.testing.assert_allclose(asked["value"], expected, atol=1e-5)
    served = mlflow.pyfunc.load_model(str(result.run_dir / "mlflow_model")).predict(pandas.DataFrame({"text": TEXTS}))
    np.testing.assert_allclose(served["value"], expected, atol=1e-5)
    table = evaluate(run=result.run_dir, resamples=20, record=False)
    scores = table.set_index("metric").loc["rmse"]
    assert scores["value"] == pytest.approx(result.metrics["test_rmse"], rel=1e-5)
    assert scores["low"] < scores["value"] < scores["high"]


@pytest.mark.usefixtures("rows")
def test_pairs_and_kept_rows_give_what_fresh_ones_give(place: Path) -> None:
    words = ("task=text_pair_regression", *SMALL, "tracking=none", "trainer.args.num_train_epochs=1")
    kept = train(*words, "transform.cache.dir=cache")
    fresh = train(*words, "transform.cache.enabled=false")
    assert kept.metrics["test_loss"] == fresh.metrics["test_loss"]
    assert kept.metrics["test_rmse"] == pytest.approx(kept.metrics["test_loss"] ** 0.5)
    assert len(list(Path(place, "cache").rglob("label.bin"))) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("rows")
def test_a_search_minimises_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=text_regression", *SMALL, "trainer.args.max_steps=3", "trainer.args.eval_strategy=steps"]
    words += ["trainer.args.eval_steps=3", "trainer.args.save_steps=3", "trainer.args.save_strategy=steps"]
    rate = "trainer.args.learning_rate"
    assert cli.main(["-m", *words, f"{rate}=1e-9,1e-2", "hydra/launcher=basic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (float(row[2]) for row in map(str.split, lines) if row[:1] in (["0"], ["1"]))
    assert first < second


@pytest.mark.parametrize("label", [None, "much", float("nan"), True])
def test_what_is_no_number_is_named(label: object) -> None:
    with pytest.raises(DataError, match="column 'label' holds .*, expected a number"):
        TextRegression().decode({"text": "a", "label": label})


@pytest.mark.usefixtures("rows")
def test_scores_of_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="Accuracy is for one class per row, not for numbers"):
        train("task=text_regression", *SMALL, "metrics=accuracy")


def test_classes_are_no_numbers(place: Path) -> None:
    with pytest.raises(ConfigError, match="column 'label' holds class ids, expected numbers"):
        train("task=text_regression", "dataset=docstrings", "model=tiny_bert", "trainer=scratch")
