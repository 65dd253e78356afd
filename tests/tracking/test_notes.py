"""Notes: the user's own text and hfexp's summary of the result, side by side in MLflow's description of a run."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from hfexp.commands import cli
from hfexp.tracking.delivery import Delivery
from hfexp.tracking.journal import Journal
from hfexp.tracking.notes import NOTE, SUMMARY, join_note, split_note, summarize
from hfexp.tracking.report.classes import ClassReport

CREATE: dict[str, Any] = {"experiment": "digits", "name": "a-run", "key": "k1", "time": 1_700_000_000_000, "tags": {}}


def report() -> ClassReport:
    names = {0: "cat", 1: "a|b", 2: "empty"}
    return ClassReport.of(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), names)


def test_a_summary_names_result_baseline_classes_and_command() -> None:
    metrics = {"final_eval_accuracy": 0.75, "test_accuracy": 0.5, "test_loss": 1.0}
    assert summarize("accuracy", metrics, report(), "hfexp seed=1").splitlines() == [
        "**Result**", "", "| | accuracy |", "|---|---|", "| validation | 0.7500 |", "| test | 0.5000 |",
        "| always the most frequent class | 0.5000 |", "",
        r"Highest recall: `cat` 1.00 (2 rows). Lowest: <code>a\|b</code> 0.50 (2 rows).", "", "`hfexp seed=1`", "",
        "The artifact `report.html` is the whole report.",
    ]  # fmt: skip
    short = summarize("perplexity", {"final_eval_perplexity": 4.0}, None, "hfexp")
    assert "| validation | 4.0000 |" in short
    assert "recall" not in short


@pytest.mark.parametrize("own", ["", "mine", "two\n\nlines", f"not the {SUMMARY}"])
@pytest.mark.parametrize("summary", ["", f"{SUMMARY}\n\nthe rest"])
def test_a_note_is_split_as_it_was_joined(own: str, summary: str) -> None:
    assert split_note(join_note(own, summary)) == (own, summary)


def test_what_the_user_wrote_meanwhile_is_kept(run_dir: Path, uri: str) -> None:
    journal = Journal(run_dir)
    journal.append("create", **CREATE)
    delivery = Delivery(run_dir, journal, uri, run_dir.parent.parent)
    delivery.deliver()
    client, run_id = mlflow.MlflowClient(uri), str(delivery.state.run_id)
    client.set_tag(run_id, NOTE, "watch this one")
    journal.append("tags", tags={NOTE: f"{SUMMARY}\n\nold"})
    delivery.deliver()
    journal.append("tags", tags={NOTE: f"{SUMMARY}\n\nnew"})
    delivery.deliver()
    assert client.get_run(run_id).data.tags[NOTE] == f"watch this one\n\n{SUMMARY}\n\nnew"


def test_a_finished_run_has_a_summary_beside_which_a_note_is_written(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copy(trained[0] / "outputs" / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def note() -> str:
        return mlflow.MlflowClient(uri).get_run(str(trained[1].run_id)).data.tags[NOTE]

    summary = note()
    assert summary.startswith(SUMMARY)
    assert f"| test | {trained[1].metrics['test_accuracy']:.4f} |" in summary
    assert cli.main(["note", "last", "the one for the paper", "--uri", uri]) == 0
    assert note() == f"the one for the paper\n\n{summary}"
    capsys.readouterr()
    assert cli.main(["note", "last", "--uri", uri]) == 0
    assert capsys.readouterr().out == "the one for the paper\n"
    assert cli.main(["runs", "--uri", uri, "--format", "csv"]) == 0
    assert "the one for the paper" in capsys.readouterr().out
    assert cli.main(["note", "last", "", "--uri", uri]) == 0
    assert note() == summary
