"""`hfexp remove` and `hfexp clean`: what is deleted, what stays, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from recorded import Store
from sweeps import make_study

from hfexp.commands import cli
from hfexp.tracking.membership import SweepInfo, write_sweep_info
from hfexp.tracking.run_directory import RunState, held_run, save_state
from hfexp.tracking.runs import deleted_runs, read_runs


@pytest.fixture
def store(place: Path) -> Store:
    (place / "outputs").mkdir()
    return Store(place / "outputs" / "mlflow.db")


def names(store: Store) -> list[str]:
    return sorted(run.name for run in read_runs(store.uri))


def artifacts_of(store: Store, run_id: str) -> Path:
    return Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def log_model(store: Store, experiment: str, run_id: str) -> Path:
    model = store.client.create_logged_model(experiment, name="final", source_run_id=run_id)
    place = Path(model.artifact_location.removeprefix("file://"))
    place.mkdir(parents=True)
    (place / "weights").write_bytes(b"0" * 1000)
    return place


def test_a_run_is_removed_from_the_disk_and_from_the_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    photos = store.experiment("photos")
    doomed, kept = store.run(photos, "vit-a"), store.run(photos, "vit-b")
    home, other = store.place(doomed), store.place(kept)
    model = log_model(store, photos, doomed)
    assert cli.main(["remove", "vit-a", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "vit-a" in shown
    assert "1 run deleted" in shown
    assert not home.exists()
    assert not model.parent.exists()
    assert not artifacts_of(store, doomed).parent.exists()
    assert names(store) == ["vit-b"]
    assert (other / "model" / "file").exists()
    assert artifacts_of(store, kept).exists()
    assert [run.name for run in deleted_runs(store.uri)] == ["vit-a"]


def test_without_an_answer_nothing_is_removed(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.place(store.run(store.experiment("photos"), "vit-a"))
    for command in (["remove", "vit-a"], ["clean"]):
        assert cli.main(command) == 2
        assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert cli.main(["remove", "vit-a"]) == 1
    assert cli.main(["clean"]) == 1
    assert (home / "checkpoints").exists()
    assert names(store) == ["vit-a"]
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert cli.main(["remove", "vit-a"]) == 0
    assert names(store) == []


def test_a_store_can_not_have_other_directories_removed(store: Store, place: Path) -> None:
    photos = store.client.create_experiment("photos", artifact_location=(place / "thesis").as_uri())
    run_id = store.run(photos, "vit-a")
    home = store.place(run_id)
    moved = place / "elsewhere"
    home.rename(moved)
    store.client.set_tag(run_id, "hfexp.run_dir", str(moved))
    model = log_model(store, photos, run_id)
    assert cli.main(["remove", "vit-a", "--yes"]) == 0
    assert names(store) == []
    assert (moved / "run.json").exists()
    assert (model / "weights").exists()
    assert artifacts_of(store, run_id).exists()


def test_the_output_directory_may_have_been_moved(store: Store, place: Path) -> None:
    photos = store.client.create_experiment(
        "photos", artifact_location=(place / "outputs" / "artifacts" / "photos").as_uri()
    )
    store.place(store.run(photos, "vit-a"))
    (place / "outputs").rename(place / "archive")
    (place / "outputs").mkdir()
    assert cli.main(["remove", "vit-a", "--yes", "--output-dir", "archive"]) == 0
    assert not (place / "archive" / "photos" / "vit-a").exists()
    assert not list((place / "archive" / "artifacts" / "photos").iterdir())


def test_a_run_at_work_is_not_removed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    photos = store.experiment("photos")
    home = store.place(store.run(photos, "vit-a"))
    with held_run(home):
        assert cli.main(["remove", "photos", "--yes"]) == 1
        assert "vit-a is running" in capsys.readouterr().err
        assert cli.main(["clean", "--yes"]) == 1
    assert (home / "checkpoints").exists()
    far = store.run(photos, "vit-far", tags={"hfexp.host": "node7"}, status=None)
    assert cli.main(["remove", "photos", "--yes"]) == 1
    assert "vit-far is recorded as running on node7" in capsys.readouterr().err
    shared = store.place(far, status="running")
    save_state(shared, RunState("x", host="node7", run_id=far))
    assert cli.main(["remove", "vit-far", "--yes"]) == 1
    assert "vit-far may still be running on node7" in capsys.readouterr().err
    assert names(store) == ["vit-a", "vit-far"]
    assert cli.main(["remove", "photos", "--yes", "--force"]) == 0
    assert names(store) == []


def test_a_registered_model_keeps_its_run(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = store.run(store.experiment("photos"), "vit-a")
    home = store.place(run_id)
    store.client.create_registered_model("classifier")
    store.client.create_model_version("classifier", home.as_uri(), run_id)
    assert cli.main(["remove", "vit-a", "--yes"]) == 2
    assert "version 1 of the registered model classifier" in capsys.readouterr().err
    assert home.exists()


def sweep_of_two(store: Store, **info: Any) -> tuple[Path, list[Path]]:
    photos = store.experiment("photos")
    parent = store.run(photos, "lr", tags={"hfexp.kind": "sweep"})
    home = store.place(parent, kind="sweep")
    known = {"study": "lr", "storage": f"sqlite:///{home / 'study.db'}", "parent_run_id": parent}
    write_sweep_info(home, SweepInfo(name="lr", **{**known, **info}))
    tags = {"hfexp.sweep": "lr", "mlflow.parentRunId": parent}
    return home, [store.place(store.run(photos, f"vit-{number}", tags=tags)) for number in range(2)]


@pytest.mark.parametrize("name", ["sweep=lr", "lr", "photos"])
def test_a_sweep_is_removed_with_its_jobs(store: Store, name: str) -> None:
    home, jobs = sweep_of_two(store)
    assert cli.main(["remove", name, "--yes"]) == 0
    assert names(store) == []
    assert not any(path.exists() for path in (home, *jobs))


@pytest.mark.parametrize("args", [["vit-1"], ["sweep=lr", "--where", "attributes.run_name = 'vit-1'"]])
def test_a_sweep_is_not_removed_in_part(args: list[str], store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_of_two(store)
    assert cli.main(["remove", *args, "--yes"]) == 2
    assert "is a job of the sweep lr, which is removed as a whole: sweep=lr" in capsys.readouterr().err
    assert names(store) == ["lr", "vit-0", "vit-1"]


def test_the_study_of_a_sweep_goes_from_a_shared_database(store: Store, place: Path) -> None:
    import optuna

    (place / "lr").mkdir()
    make_study(place / "lr", (1,))
    storage = f"sqlite:///{place / 'lr' / 'study.db'}"
    sweep_of_two(store, storage=storage)
    assert cli.main(["remove", "sweep=lr", "--yes"]) == 0
    assert optuna.get_all_study_names(storage) == []


def test_clean_frees_what_is_no_longer_needed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    photos = store.experiment("photos")
    finished = store.place(store.run(photos, "vit-a"))
    failed = store.place(store.run(photos, "vit-failed", status="FAILED"), status="failed")
    debug = store.place(store.run(photos, "vit-debug", tags={"hfexp.debug": "fast"}))
    thrown = store.run(photos, "vit-thrown")
    thrown_home = store.place(thrown)
    store.client.delete_run(thrown)
    left = finished.with_name(".removing-vit-z")
    left.mkdir()
    assert cli.main(["clean", "--yes"]) == 0
    shown = capsys.readouterr().out
    for kind, name in (("checkpoints", "vit-a"), ("debug", "vit-debug"), ("deleted", "vit-thrown")):
        assert [kind, name] in [line.split()[:2] for line in shown.splitlines()]
    assert shown.count("vit-debug") == 1, "its checkpoints go with it"
    assert not (finished / "checkpoints").exists()
    assert (finished / "model" / "file").exists()
    assert (failed / "checkpoints" / "checkpoint-1").exists()
    assert not any(path.exists() for path in (debug, thrown_home, left))
    assert names(store) == ["vit-a", "vit-failed"]
    assert cli.main(["clean", "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to clean (checkpoints, debug, deleted, leftovers)\n"
    assert cli.main(["clean", "models"]) == 2
    assert "has no kind 'models'" in capsys.readouterr().err


def test_clean_tells_runs_of_one_name_apart_and_keeps_what_is_registered(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = [store.place(store.run(store.experiment(name), "vit-a")) for name in ("photos", "texts")]
    kept = store.run(store.experiment("debug"), "vit-debug", tags={"hfexp.debug": "fast"})
    home = store.place(kept)
    store.client.create_registered_model("classifier")
    store.client.create_model_version("classifier", home.as_uri(), kept)
    assert cli.main(["clean", "--yes"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:3]] == [["checkpoints", "vit-a"]] * 2
    assert not any((path / "checkpoints").exists() for path in homes)
    assert home.exists()


def test_a_removal_that_was_interrupted_is_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home = store.place(store.run(store.experiment("photos"), "vit-a"))
    import hfexp.tracking.removal as removal

    def die(path: Path, **settings: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal.shutil, "rmtree", die)
        assert cli.main(["remove", "vit-a", "--yes"]) == 130
    assert not home.exists()
    assert cli.main(["remove", "vit-a", "--yes"]) == 0
    assert cli.main(["clean", "--yes"]) == 0
    assert names(store) == []
    assert not list(home.parent.glob(".removing-*"))
