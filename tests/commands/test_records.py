"""`hfexp runs`, `hfexp note` and `hfexp tag`: recorded runs, listed and marked."""

import csv
import io
import json
from pathlib import Path

import pytest
from recorded import Store

from hfexp.commands import cli
from hfexp.tracking.run_directory import RunState, save_state
from hfexp.tracking.runs import read_runs

TAGS = {"hfexp.metric": "final_eval_accuracy", "hfexp.metric_direction": "max"}


@pytest.fixture
def store(place: Path) -> Store:
    """Two experiments below `outputs`, as training would write them."""
    (place / "outputs").mkdir()
    store = Store(place / "outputs" / "mlflow.db")
    photos, texts = store.experiment("photos"), store.experiment("texts")
    store.run(photos, "vit-a", metrics={"final_eval_accuracy": 0.8}, tags=TAGS)
    store.run(photos, "vit-b", metrics={"final_eval_accuracy": 0.9}, tags=TAGS)
    store.run(texts, "bert", status="FAILED")
    store.run(texts, "lr", tags={"hfexp.kind": "sweep"})
    return store


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(list(args)) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_runs_are_listed_newest_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    lines = shown(capsys, "runs").splitlines()
    assert lines[0].split() == ["started", "experiment", "name", "status", "objective", "time"]
    assert [line.split()[3] for line in lines[1:]] == ["lr", "bert", "vit-b", "vit-a"]
    assert "lr (sweep)" in lines[1]
    assert "FAILED" in lines[2]
    assert "eval_accuracy 0.9" in lines[3]
    assert "30.5 s" in lines[3]
    assert shown(capsys, "runs", "photos", "--top", "1").splitlines()[-1] == "(1 more runs: --top 2 shows them)"
    assert shown(capsys, "runs", "--where", "params.x = '1'") == "no run matches\n"


@pytest.mark.usefixtures("store")
def test_runs_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(shown(capsys, "runs", "photos", "--format", "json"))
    assert [(row["name"], row["objective"]) for row in rows] == [
        ("vit-b", "eval_accuracy 0.9"),
        ("vit-a", "eval_accuracy 0.8"),
    ]
    assert list(csv.DictReader(io.StringIO(shown(capsys, "runs", "photos", "--format", "csv")))) == rows


def test_flags_may_be_typed_as_keys(store: Store, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "outputs").rename(place / "elsewhere")
    by_flags = shown(capsys, "runs", "photos", "--output-dir", "elsewhere", "--top", "1", "--format", "csv")
    assert by_flags.splitlines()[1].split(",")[2] == "vit-b"
    assert shown(capsys, "runs", "output_dir=elsewhere", "photos", "top=1", "format=csv") == by_flags
    uri = f"tracking.uri=sqlite:///{place}/elsewhere/mlflow.db"
    assert shown(capsys, "compare", uri, "photos", "top=1").count("vit-") == 1
    assert shown(capsys, "sync", "output_dir=elsewhere") == "0 delivered, 0 already complete\n"
    assert cli.main(["runs", "output_dir=elsewhere", "yes=true"]) == 2  # no flag of this command
    assert "matches 'yes=true'" in capsys.readouterr().err


def test_the_size_of_a_run_counts_linked_files_once(
    place: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = read_runs(store.uri, experiment="texts", where="attributes.status = 'FAILED'")
    home = place / "outputs" / "texts" / "bert"
    (home / "model").mkdir(parents=True)
    save_state(home, RunState(config_hash="0", status="failed", run_id=run.run_id))
    (home / "model" / "weights").write_bytes(b"0" * 3_000_000)
    (home / "weights").hardlink_to(home / "model" / "weights")
    store.client.set_tag(run.run_id, "hfexp.run_dir", str(home))
    (row,) = json.loads(shown(capsys, "runs", "bert", "--format", "json"))
    assert row["size"] == "3.0 MB"


def test_a_note_is_what_mlflow_shows(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "note", "best:photos", "the one for the paper") == "vit-b: note written\n"
    (run,) = read_runs(store.uri, experiment="photos", where="attributes.run_name = 'vit-b'")
    assert run.tags["mlflow.note.content"] == "the one for the paper"
    assert shown(capsys, "note", "vit-b") == "the one for the paper\n"
    assert "the one for the paper" in shown(capsys, "runs", "photos", "--format", "csv")
    assert shown(capsys, "note", "vit-b", "") == "vit-b: note removed\n"
    assert shown(capsys, "note", "vit-b") == "\n"


def test_tags_are_set_shown_and_removed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "tag", "vit-a", "paper=yes", "note=a=b") == "note=a=b\npaper=yes\n"
    assert [run.name for run in read_runs(store.uri, where="tags.paper = 'yes'")] == ["vit-a"]
    assert shown(capsys, "tag", "vit-a", "note=") == "paper=yes\n"
    assert shown(capsys, "tag", "vit-a") == "paper=yes\n"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tag", "vit-a", "paper"], "'paper' is not KEY=VALUE"),
        (["tag", "vit-a", "hfexp.kind=sweep"], "belong to hfexp and MLflow"),
        (["tag", "vit", "a=b"], "'vit' matches 2 runs"),
        (["note", "nobody", "x"], "matches 'nobody'"),
        (["runs", "--top", "0"], "--top 0: must be at least 1"),
        (["runs", "phots"], "Did you mean 'photos'?"),
    ],
)
def test_what_can_not_be_marked_is_one_message(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_no_secret_becomes_a_tag(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz0123")
    shown(capsys, "note", "vit-a", "used hf_abcdefghijklmnopqrstuvwxyz0123")
    assert shown(capsys, "tag", "vit-a", "password=hunter2hunter2") == "password=***\n"
    (run,) = read_runs(store.uri, experiment="photos", where="attributes.run_name = 'vit-a'")
    assert run.tags["mlflow.note.content"] == "used ***"
    assert run.tags["password"] == "***"


def test_a_note_is_no_formula(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = read_runs(store.uri, experiment="photos", where="attributes.run_name = 'vit-a'")
    store.client.set_tag(run.run_id, "mlflow.note.content", "=HYPERLINK(1)")
    assert "'=HYPERLINK(1)" in shown(capsys, "runs", "vit-a", "--format", "csv")
