"""Two steps of training through the whole pipeline, and a prediction; run it after every change."""

from pathlib import Path

import pytest
from hfexp import predict, train


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write results to a directory that is thrown away; stay here, where hfexp finds the options."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HFEXP_CACHE", str(tmp_path / "cache"))


def test_the_experiment_runs(tmp_path: Path) -> None:
    result = train("debug=fast", f"output_dir={tmp_path}")
    assert 0 <= result.metrics["test_accuracy"] <= 1
    answers = predict(run="last", output_dir=tmp_path, split="test")
    assert set(answers["true"]) == {"circle", "square", "triangle"}
    assert set(answers["corners"]) <= {0, 3, 4}
