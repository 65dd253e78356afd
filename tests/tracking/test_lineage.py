"""What data and which model a run was made from, told apart as it matters."""

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS, write_images
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets

from hfexp.commands import api
from hfexp.data import fingerprint as content
from hfexp.data.fingerprint import digest
from hfexp.data.sources import image_folder
from hfexp.tracking import lineage
from hfexp.training.trainer import TimingMixin


def table(values: list[int], texts: list[str] | None = None) -> Dataset:
    features = Features({"number": Value("int64"), "text": Value("string")})
    return Dataset.from_dict({"number": values, "text": texts or ["same"] * len(values)}, features)


def test_every_row_counts_beyond_what_mlflow_looks_at() -> None:
    values = list(range(12_000))
    changed = [*values[:-1], -1]
    assert digest(table(values)) == digest(table(values))
    assert digest(table(values)) != digest(table(changed))
    assert digest(table(values)) != digest(table(values[:-1]))
    with warnings.catch_warnings():  # MLflow calls pandas in an old way
        warnings.simplefilter("ignore")
        ours, theirs = mlflow.data.from_huggingface(table(values)), mlflow.data.from_huggingface(table(changed))
    assert ours.digest == theirs.digest, "MLflow's digest has become better: ours may no longer be needed"


def test_order_and_selection_count_and_the_way_there_does_not() -> None:
    rows = table([3, 1, 2], ["c", "a", "b"])
    assert digest(rows) != digest(rows.select([1, 2, 0]))
    assert digest(rows.select([1, 2, 0])) == digest(table([1, 2, 3], ["a", "b", "c"]))


@pytest.mark.parametrize("block", [1, 2**26])
def test_shuffled_rows_of_many_chunks_are_those_of_a_table(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(content, "BLOCK_BYTES", block)
    parts = [table(list(range(size)), [f"{size} {i}" for i in range(size)]) for size in (9_000, 1, 14_000)]
    rows = concatenate_datasets(parts).shuffle(seed=1)
    for chosen in (rows, rows.select([7, 7, 22_999, 0]), rows.select([])):
        columns = chosen[:]
        assert digest(chosen) == digest(table(columns["number"], columns["text"]))


def test_label_names_count() -> None:
    def labelled(names: list[str]) -> Dataset:
        return Dataset.from_dict({"label": [0, 1]}, Features({"label": ClassLabel(names=names)}))

    assert digest(labelled(["cat", "dog"])) != digest(labelled(["dog", "cat"]))


def test_one_pixel_of_a_file_counts(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", count=4)

    def rows() -> Dataset:
        loaded = image_folder(str(root))["train"]
        return loaded.cast_column("image", Image(decode=False))

    before = digest(rows())
    assert digest(rows()) == before
    path = root / "cat" / "0.jpg"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    assert digest(rows()) != before


def test_beyond_the_limit_sizes_of_all_and_contents_of_some_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_BYTES_READ", 10)
    monkeypatch.setattr(content, "SAMPLED_ROWS", 2)

    def rows(*contents: bytes) -> Dataset:
        encoded = [{"bytes": content, "path": None} for content in contents]
        return Dataset.from_dict({"image": encoded}, Features({"image": Image(decode=False)}))

    base = digest(rows(b"first" * 3, b"middle", b"last"))
    assert digest(rows(b"other" * 3, b"middle", b"last")) != base
    assert digest(rows(b"first" * 3, b"mid", b"last")) != base
    assert digest(rows(b"first" * 3, b"MIDDLE", b"last")) == base


def test_the_record_of_data_and_model(place: Path) -> None:
    root = write_images(place / "photos", count=15)
    (root / "cat" / "broken.jpg").write_bytes(b"no image")
    words = ["dataset=imagefolder", f"dataset.source.data_dir={root}", "dataset.on_bad_sample=skip",
             "dataset.test_size=0.2", "trainer=scratch",
             "trainer.args.per_device_train_batch_size=8", "trainer.args.num_train_epochs=1",
             *(w for w in SMALL_DIGITS if w.startswith("model"))]  # fmt: skip
    first = api.train(*words)
    client = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    run = client.get_run(str(first.run_id))
    inputs = {item.tags[0].value if item.tags[0].key == "mlflow.data.context" else item.tags[1].value: item
              for item in run.inputs.dataset_inputs}  # fmt: skip
    assert set(inputs) == {"training", "validation", "test"}
    profiles = {context: json.loads(item.dataset.profile) for context, item in inputs.items()}
    assert sum(profile["num_rows"] for profile in profiles.values()) == 30
    assert sum(profile.get("unreadable_rows_left_out", 0) for profile in profiles.values()) == 1
    assert set(profiles["training"]["classes"]) == {"cat", "dog"}
    source = json.loads(inputs["training"].dataset.source)
    assert source["uri"] == root.as_uri()
    assert len({item.dataset.digest for item in inputs.values()}) == 3
    assert run.data.tags["hfexp.model_source"] == "random weights"

    moved = place / "moved"
    root.rename(moved)
    second = api.train(*[w.replace(str(root), str(moved)) for w in words])
    again: Any = client.get_run(str(second.run_id)).inputs.dataset_inputs
    assert {item.dataset.digest for item in again} == {item.dataset.digest for item in inputs.values()}

    model = next(first.run_dir.glob("model"))
    third = api.train(*[w for w in words if not w.startswith("model")], f"dataset.source.data_dir={moved}",
                      "model=local", f"model.path={model}")  # fmt: skip
    tags = client.get_run(str(third.run_id)).data.tags
    assert tags["hfexp.model_source"] == str(model)
    assert tags["hfexp.model_revision"].startswith("sha256:")
    assert tags["hfexp.transform_hash"] == run.data.tags["hfexp.transform_hash"]


def test_the_commit_of_a_hub_dataset_is_what_was_downloaded() -> None:
    rows = table([1])
    rows.info.download_checksums = {"hf://datasets/ylecun/mnist@0123abc/mnist/train.parquet": {"checksum": None}}
    assert lineage._resolved_revision(rows) == "0123abc"
    assert lineage._resolved_revision(table([2])) is None


def test_where_the_time_goes(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "trainer.args.logging_steps=1")
    metrics = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db").get_run(str(result.run_id)).data.metrics
    assert metrics["samples_per_second"] > 0
    assert 0 <= metrics["data_time_share"] <= 1
    assert "tokens_per_second" not in metrics
    parts = [metrics[f"train_{part}_seconds"] for part in ("data", "compute", "evaluate_and_save")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(metrics["train_runtime"], rel=0.5)
    assert metrics["peak_memory_mb"] > 100
    assert metrics["system/process_memory_megabytes"] > 100


def test_what_is_done_aside_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 6.0])
    monkeypatch.setattr("hfexp.training.trainer.time.perf_counter", lambda: next(times))
    timed = TimingMixin()
    with timed.aside(), timed.aside():
        pass
    assert timed._aside_seconds == 5.0
