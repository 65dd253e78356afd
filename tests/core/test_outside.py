"""What comes from outside is data: records, journals, manifests and tags of other people, versions and crashes."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from hfexp.commands import cli
from hfexp.core import outside
from hfexp.core.checkpoint import find_problem, newest_whole, write_manifest
from hfexp.core.compose import compose, recorded_options
from hfexp.core.errors import ConfigError
from hfexp.core.outside import DamagedRecord
from hfexp.core.process import ProcessId
from hfexp.tracking.delivery import Delivery
from hfexp.tracking.journal import DeliveryState, Journal, parse_entry, read_delivered
from hfexp.tracking.recovery import DAMAGED, close_gone_runs, deliver_rest
from hfexp.tracking.run_directory import RunState, read_state, save_state
from hfexp.tracking.runs import RunRecord, home_of

CREATE: dict[str, Any] = {"tags": {}, "time": 1, "experiment": "digits", "name": "a-run", "key": "k" * 32}
NOT_RECORDS = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"config_hash": 3}']


def gone() -> ProcessId:
    """A process that has ended: this one, as of another start."""
    own = ProcessId.own()
    return ProcessId(own.host, own.pid, own.started.rsplit("/", 1)[0] + "/1")


def another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("content", NOT_RECORDS)
def test_a_damaged_state_is_passed_over(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert read_state(tmp_path) is None
    assert "run.json" in caplog.text


def test_a_state_of_a_newer_version_is_read_and_kept(tmp_path: Path) -> None:
    newer = {**asdict(RunState("a" * 64, status="killed")), "priority": {"level": 3}}
    (tmp_path / "run.json").write_text(json.dumps(newer))
    state = read_state(tmp_path)
    assert state is not None
    state.status = "finished"
    save_state(tmp_path, state)
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["priority"], content["status"]) == ({"level": 3}, "finished")
    assert "others" not in content


def test_pipes_and_large_files_are_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DamagedRecord, match="not a regular file"):
        outside.read_bytes(tmp_path / "pipe.json")
    monkeypatch.setattr(outside, "MAX_BYTES", 2**20)
    (tmp_path / "large.json").write_bytes(bytes(2**20 + 1))
    with pytest.raises(DamagedRecord, match="larger than 1 MiB"):
        outside.read_bytes(tmp_path / "large.json")
    levels = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 20)}]\n" for before, name in pairwise("abcdef"))
    (tmp_path / "laughs.yaml").write_text(f"a: &a [x]\n{levels}")
    with pytest.raises(ConfigError, match="aliases"):
        outside.read_yaml(tmp_path / "laughs.yaml")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "link/x", "a\0b"])
def test_paths_stay_inside(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "run"
    (directory / "a").mkdir(parents=True)
    (directory / "link").symlink_to(tmp_path)
    with pytest.raises(DamagedRecord, match="is not inside"):
        outside.inside(directory, name)
    assert outside.inside(directory, "a/b.txt") == directory / "a" / "b.txt"


def test_whose_a_directory_is(tmp_path: Path) -> None:
    output_dir, run = tmp_path / "outputs", tmp_path / "outputs" / "digits" / "run"
    run.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (output_dir / "digits" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "alias").symlink_to(output_dir)  # which the user made
    assert outside.why_foreign(run, output_dir) is outside.why_foreign(run, tmp_path / "alias") is None
    for place in (tmp_path / "elsewhere", output_dir, output_dir / "digits" / "link", output_dir / ".." / "elsewhere"):
        assert "is not in" in str(outside.why_foreign(place, output_dir))
    another_user(run)
    assert "another user" in str(outside.why_foreign(run, output_dir))
    another_user(output_dir)  # e.g. a disk on which all files are of one owner
    assert outside.why_foreign(run, output_dir) is None


def test_what_leads_out_of_a_directory_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    (run / "a" / "own").symlink_to(run)
    assert outside.why_not_contained(run, run) is None
    (run / "a" / "leads").symlink_to(tmp_path)
    assert "points outside" in str(outside.why_not_contained(run, run))
    (run / "a" / "leads").unlink()
    os.mkfifo(run / "a" / "pipe")
    assert "neither a file nor a directory" in str(outside.why_not_contained(run, run))


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "of a newer version"},
        {"kind": "metrics", "metrics": {"loss": "low"}, "step": 1, "time": 1},
        {"kind": "metrics", "metrics": [1], "step": 1, "time": 1},
        {"kind": "artifacts", "path": 3, "name": None},
        {"kind": "model"},
        {"kind": ["create"]},
        {"kind": "end", "status": "running", "reason": "", "time": 1},
    ],
)
def test_unknown_entries_of_a_journal_are_passed_over(run_dir: Path, uri: str, entry: dict[str, Any]) -> None:
    assert parse_entry(json.dumps(entry).encode()) is None
    journal = Journal(run_dir)
    journal.append("create", **CREATE)
    journal.append(**entry)
    journal.append("metrics", metrics={"loss": 2.0}, step=1, time=2)
    delivery = Delivery(run_dir, journal, uri, run_dir.parents[1])
    delivery.deliver()
    assert not delivery.pending
    run = mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id))
    assert run.data.metrics == {"loss": 2.0}


def test_a_journal_uploads_and_removes_nothing_outside(run_dir: Path, uri: str, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    (run_dir / "artifacts").mkdir()
    (run_dir / "artifacts" / "a.txt").write_text("fine")
    (run_dir / "leads").symlink_to(thesis)
    (run_dir / "model").mkdir()
    journal = Journal(run_dir)
    journal.append("create", **CREATE)
    model = {"name": "m", "key": "k2", "step": 0, "metrics": {}, "register": None, "temporary": True}
    for path in (str(thesis), "../../thesis", "leads", "."):
        journal.append("artifacts", path=path, name="loot")
        journal.append("model", directory=path, **model)
    journal.append("model", directory="model", **model)  # only what is made of checkpoints is removed
    journal.append("register", run_dir=str(thesis), name="x")
    journal.append("artifacts", path="artifacts", name=None)
    delivery = deliver_rest(run_dir, RunState("0" * 64, status="finished"), uri, run_dir.parent)
    assert (thesis / "thesis.tex").read_text() == "years of work"
    assert (run_dir / "model").is_dir()
    uploaded = mlflow.MlflowClient(uri).list_artifacts(str(delivery.state.run_id))
    assert [item.path for item in uploaded] == ["a.txt"]
    assert not delivery.pending


def test_a_damaged_note_of_a_delivery_is_as_none(run_dir: Path) -> None:
    (run_dir / "tracking").mkdir()
    file = run_dir / "tracking" / "delivered.json"
    for content in ("[]", "{}", '{"uri": 3}', '{"uri": "u", "offset": -4}', '{"uri": "u", "deferred": ["x"]}'):
        file.write_text(content)
        assert read_delivered(run_dir) is None
        assert DeliveryState.load(run_dir, "u", 10) == DeliveryState("u", creating=True)
    file.write_text('{"uri": "u", "offset": 4, "pace": "new"}')
    assert DeliveryState.load(run_dir, "u", 10) == DeliveryState("u", offset=4)


def checkpoint(directory: Path, step: int, state: Any) -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(path, resumable=True)
    return path


def test_a_checkpoint_that_the_trainer_could_not_read_is_passed_over(tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 2, {"global_step": 2, "log_history": []})
    states = [{}, [], {"global_step": "8", "log_history": []}, {"global_step": 3, "log_history": [1]}]
    states += [{"global_step": 2, "log_history": []}, {"global_step": 7, "log_history": [], "of_a_newer_version": 1}]
    for step, state in enumerate(states, 3):
        assert "trainer_state.json" in str(find_problem(checkpoint(tmp_path, step, state)))
    for number, manifest in enumerate(
        [{}, [], {"files": []}, {"files": {"../x": {"size": 1, "sha256": ""}}, "resumable": True}], 20
    ):
        path = checkpoint(tmp_path, number, {"global_step": number, "log_history": []})
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert find_problem(path)
    assert newest_whole(tmp_path) == good


def left_behind(output_dir: Path, uri: str) -> tuple[Path, str]:
    """A run directory whose process is gone, and the id of its run in the store."""
    run_dir = output_dir / "digits" / "a-run"
    run_dir.mkdir(parents=True)
    journal = Journal(run_dir)
    process = gone()
    tags = {"hfexp.host": process.host, "hfexp.pid": str(process.pid), "hfexp.process": process.started}
    journal.append("create", **{**CREATE, "tags": {**tags, "hfexp.run_dir": str(run_dir)}})
    delivery = Delivery(run_dir, journal, uri, output_dir)
    delivery.deliver()
    run_id = str(delivery.state.run_id)
    save_state(run_dir, RunState("0" * 64, "running", run_id, process.host, process.pid, process.started))
    return run_dir, run_id


def status(uri: str, run_id: str) -> str:
    return str(mlflow.MlflowClient(uri).get_run(run_id).info.status)


def test_only_runs_of_the_own_output_directory_are_delivered(uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(uri)
    mine, run_id = left_behind(tmp_path / "outputs", uri)
    assert close_gone_runs(client, uri, tmp_path / "other") == []
    (mine / "leads").symlink_to("/etc")
    shutil.chown(mine, 65534) if os.geteuid() == 0 else (mine / "run.json").write_text("{}")
    assert close_gone_runs(client, uri, tmp_path / "outputs") == ([] if os.geteuid() == 0 else [run_id])


def test_a_run_with_a_damaged_state_does_not_stay_running(uri: str, tmp_path: Path) -> None:
    run_dir, run_id = left_behind(tmp_path / "outputs", uri)
    (run_dir / "run.json").write_text("{}")
    assert close_gone_runs(mlflow.MlflowClient(uri), uri, tmp_path / "outputs") == [run_id]
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.data.tags["hfexp.status_reason"]) == ("KILLED", DAMAGED)


def test_a_foreign_directory_chooses_no_store(
    place: Path, uri: str, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, run_id = left_behind(place / "unpacked", uri)
    assert cli.main(["sync", str(run_dir)]) == 1
    assert f"to deliver it there, give --uri={uri}" in capsys.readouterr().out
    assert status(uri, run_id) == "RUNNING"
    assert cli.main(["sync", str(run_dir), "--uri", uri]) == 0
    assert status(uri, run_id) == "KILLED"
    (run_dir / "leads").symlink_to("/etc")
    assert cli.main(["sync", str(run_dir), "--uri", uri]) == 1
    assert "points outside" in capsys.readouterr().out


def test_a_tag_names_only_the_own_run(uri: str, tmp_path: Path) -> None:
    run_dir, run_id = left_behind(tmp_path / "outputs", uri)
    record = RunRecord(run_id, "a-run", "1", "digits", "RUNNING", 1, None, tags={"hfexp.run_dir": str(run_dir)})
    assert home_of(record, tmp_path / "outputs") == run_dir
    assert home_of(record, tmp_path / "other") is None
    record.run_id = "f" * 32  # another run's
    assert home_of(record, tmp_path / "outputs") is None
    record.tags = {}
    assert home_of(record, tmp_path / "outputs") is None


@pytest.mark.parametrize(
    "section",
    [
        {"source": {"_target_": "hfexp.data.sources.digits", "token": "${oc.env:HOME}"}},
        {"source": {"_target_": "hfexp.data.sources.digits", "${oc.env:HOME}": 1}},
        {"source": {"nested": [{"x": "a ${seed}"}]}},
        {"source": {"_target_": "???"}},
        {"defaults": ["/../../evil@_global_"]},
    ],
)
def test_a_recorded_section_is_values_alone(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the record has"), recorded_options({"dataset": section}):
        pass


def test_recorded_sections_are_composed_as_they_are() -> None:
    recorded = {"source": {"_target_": "hfexp.data.sources.digits", "note": "a, b: {c} [d] 'e' @x"}, "test_size": 0.3}
    with recorded_options({"dataset": recorded, "metrics": {"accuracy": {"_target_": "x"}}}) as words:
        config, _ = compose(*words, "dataset.max_test_samples=7", "++dataset.source.more=2")
    assert config.dataset.source == {**recorded["source"], "more": 2}
    assert (config.dataset.test_size, config.dataset.max_test_samples, config.dataset.kind) == (0.3, 7, None)
    assert config.metrics == {"accuracy": {"_target_": "x"}}
    with pytest.raises(ConfigError, match="there is no metrics=_recorded"):
        compose(*words)


@pytest.fixture
def copied(trained: tuple[Path, Any], place: Path) -> Callable[[dict[str, Any]], Path]:
    """A run directory from elsewhere, with sections of its configuration replaced."""

    def copy(changed: dict[str, Any]) -> Path:
        target = place / "unpacked" / "run"
        shutil.copytree(trained[1].run_dir, target)
        config = yaml.safe_load((target / "config.yaml").read_text())
        (target / "config.yaml").write_text(yaml.safe_dump({**config, **changed}))
        return target

    return copy


def test_a_foreign_run_is_not_believed(
    copied: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"_target_": "hfexp.data.sources.table", "data_files": "http://127.0.0.1:9/x.csv"}
    run = copied({"dataset": {"source": source}, "tracking": {"uri": "http://127.0.0.1:9"}})
    assert cli.main(["evaluate", f"run={run}"]) == 2
    assert "would be fetched from dataset.source.data_files=http://127.0.0.1:9/x.csv" in capsys.readouterr().err
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["source"] = {"_target_": "hfexp.data.sources.digits", "x": "${oc.env:HOME}"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["evaluate", f"run={run}"]) == 2
    assert "plain values, no interpolations" in capsys.readouterr().err
