"""Streams: the same rows in the same order whoever reads them, resumed where they were, never all in memory."""

import gc
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from conftest import SMALL_MODEL, write_images
from datasets import ClassLabel, Features, Image
from faults import fault_at

from hfexp.commands import api
from hfexp.core.config import DatasetConfig, OnBadSample, TransformConfig
from hfexp.core.errors import ConfigError, DataError
from hfexp.core.identity import config_hash
from hfexp.data import streaming
from hfexp.data.splits import load_dataset
from hfexp.data.streaming import (
    SHARD_COUNTS,
    EvaluationStream,
    TrainingStream,
    stored_key,
    usable_workers,
    with_content,
)
from hfexp.data.transforms import build_transforms
from hfexp.tasks.image_classification import ImageClassification

TASK = ImageClassification()
PREPARE = [
    {"_target_": "hfexp.tasks.images.ToRGB"},
    {"_target_": "torchvision.transforms.v2.ToImage"},
    {"_target_": "hfexp.tasks.images.Fit"},
]
AUGMENT = [
    {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"},
    {"_target_": "hfexp.tasks.images.RandomAffine", "degrees": 20},
]
SHARDS = (9, 7, 5, 3)
STREAM = (
    "experiment=digits_vit", *SMALL_MODEL, "model.config.image_size=16", "model.config.patch_size=8",
    "metrics=accuracy", "dataset.streaming=true", "dataset.validation_size=6", "trainer.args.max_steps=9",
    "tracking.pictures=false",
    "trainer.args.per_device_train_batch_size=4", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=3",
    "trainer.args.save_strategy=steps", "trainer.args.save_steps=3",
)  # fmt: skip
"""18 training rows in batches of 4: not quite two epochs."""


def write_tables(root: Path, sizes: tuple[int, ...] = SHARDS) -> list[str]:
    """Parquet files with the images inside, of uneven sizes; the classes take turns."""
    write_images(root / "photos", count=sum(sizes) // 2)
    pairs = zip(sorted((root / "photos/cat").iterdir()), sorted((root / "photos/dog").iterdir()), strict=True)
    paths = [path for pair in pairs for path in pair]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["cat", "dog"])})
    files, start = [], 0
    for number, size in enumerate(sizes):
        chosen = paths[start : start + size]
        start += size
        rows = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in chosen],
                "label": [int(path.parent.name == "dog") for path in chosen],
            },
            features=features,
        )
        files.append(str(root / f"{number}.parquet"))
        rows.to_parquet(files[-1])
    return files


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """The source of a stream of four files."""
    files = write_tables(tmp_path)
    return {"_target_": "hfexp.data.sources.image_table", "format": "parquet", "data_files": files}


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, Any]:
    """The source of a stream that `datasets` can't divide."""
    return {
        "_target_": "hfexp.data.sources.image_folder",
        "data_dir": str(write_images(tmp_path / "folder")),
    }


def splits_of(source: dict[str, Any], augment: bool = False, **settings: Any) -> dict[str, Any]:
    """Streams and kept rows as the Trainer gets them."""
    config = DatasetConfig(source=source, streaming=True, **{"shuffle_buffer": 100, "validation_size": 4} | settings)
    processor: Any = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    transform = TransformConfig(prepare=PREPARE, augment=AUGMENT if augment else [])
    transforms = build_transforms(transform, processor, {0: "cat", 1: "dog"}, [])
    return streaming.process(load_dataset(config, TASK), TASK, processor, transforms, 7, config)


def batches(
    stream: TrainingStream, count: int, workers: int = 0, batch_size: int = 4, **place: int
) -> list[list[int]]:
    """What identifies the images of the first batches."""
    args: Any = SimpleNamespace(
        dataloader_num_workers=workers, dataloader_drop_last=False, dataloader_pin_memory=False,
        dataloader_prefetch_factor=None, dataloader_multiprocessing_context=None,
        process_index=place.get("rank", 0), world_size=place.get("world_size", 1),
    )  # fmt: skip
    stream.configure(args, batch_size, image_hashes)
    return list(islice(iter(stream), count))


def image_hashes(rows: list[dict[str, Any]]) -> list[int]:
    return [stored_key({"pixels": row["pixel_values"].numpy().tobytes()}) for row in rows]


def flat(lists: list[list[int]]) -> list[int]:
    return [value for part in lists for value in part]


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_an_epoch_is_every_row_once_in_an_order_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    stream = splits_of(request.getfixturevalue(kind))["train"]
    assert stream.rows.num_shards() == (1 if kind == "folder" else 4)
    found = batches(stream, 10)
    first, second = flat(found[:5]), flat(found[5:])
    assert [len(batch) for batch in found] == [4] * 10
    assert len(set(first)) == 20
    assert sorted(first) == sorted(second)
    assert first != second
    assert stream.batches_per_epoch == 5
    assert not hasattr(stream, "__len__")


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_workers_change_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    stream = splits_of(request.getfixturevalue(kind), augment=True)["train"]
    alone = batches(stream, 12, batch_size=3)
    assert batches(stream, 12, workers=2, batch_size=3) == alone
    assert {len(batch) for batch in alone} == {3, 2}
    stream.consumed = 9  # in the second epoch of 7 batches
    stream.batches_per_epoch = 7
    resumed = batches(stream, 12, workers=2, batch_size=3)
    assert resumed[:9] == [{}] * 9
    assert resumed[9:] == alone[9:]


def test_usable_workers() -> None:
    assert [usable_workers(n, 4, True) for n in (0, 1, 2, 3, 4, 5, 9)] == [0, 1, 2, 2, 4, 4, 8]
    assert usable_workers(8, 1, True) == 8
    assert usable_workers(8, 1, False) == 1
    assert SHARD_COUNTS[-1] == 1


def test_what_was_had_is_not_decoded(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = splits_of(table)["train"]
    expected = batches(stream, 14)
    decoded = []
    decode = ImageClassification.decode
    monkeypatch.setattr(ImageClassification, "decode", lambda self, row: decoded.append(1) or decode(self, row))
    stream.consumed = 12  # the third epoch of 5 batches
    assert batches(stream, 14)[12:] == expected[12:]
    assert len(decoded) <= 20  # of 56; the rows at the ends of the files are
    stream.batches_per_epoch = None  # a checkpoint in the first epoch does not know
    assert batches(stream, 14)[12:] == expected[12:]


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_processes_share_the_rows(kind: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    everything = sorted(flat(batches(splits_of(source)["train"], 5)))
    parts = []
    for rank in (0, 1):
        stream = splits_of(source)["train"]
        batches(stream, 20, rank=rank, world_size=2)
        per_epoch = stream.batches_per_epoch
        parts.append(flat(batches(stream, per_epoch, rank=rank, world_size=2)))
    assert not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == everything


def test_held_out_rows_are_left_out_of_training(table: dict[str, Any]) -> None:
    sizes = {"validation": 5, "test": 3}
    splits = splits_of(table, validation_size=5, test_size=3)
    kept = {split: image_hashes([splits[split][i] for i in range(size)]) for split, size in sizes.items()}
    train = flat(batches(splits["train"], 4))
    assert {split: len(splits[split]) for split in sizes} == sizes
    assert len(train) == 16
    assert len({*kept["validation"], *kept["test"], *train}) == 24
    again = splits_of(table, validation_size=5, test_size=3)
    assert image_hashes([again["test"][i] for i in range(3)]) == kept["test"]
    other = splits_of(table, validation_size=5, test_size=3, split_seed=1)
    assert image_hashes([other["test"][i] for i in range(3)]) != kept["test"]


def test_limits(table: dict[str, Any]) -> None:
    splits = splits_of(table, max_train_samples=10, max_validation_samples=2)
    found = batches(splits["train"], 6)
    assert len(splits["validation"]) == 2
    assert len(set(flat(found[:3]))) == 10
    assert set(flat(found[3:])) == set(flat(found[:3]))
    assert batches(splits["train"], 6, workers=2) == found
    assert sorted(flat([p for r in (0, 1) for p in batches(splits["train"], 2, rank=r, world_size=2)])) == sorted(
        flat(found[:3])
    )


def test_random_numbers_follow_from_the_row_and_the_epoch(folder: dict[str, Any]) -> None:
    stream = splits_of(folder, augment=True)["train"]
    in_fours = flat(batches(stream, 10))
    in_fives = flat(batches(stream, 8, workers=2, batch_size=5))
    assert sorted(in_fours[:20]) == sorted(in_fives[:20])
    assert not set(in_fours[:20]) & set(in_fours[20:])


def test_keys_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"picture")
    (tmp_path / "b").write_bytes(b"picture")
    a, b = ({"image": {"bytes": None, "path": str(tmp_path / name)}, "label": 0} for name in "ab")
    assert stored_key(with_content(a)) == stored_key(with_content(b))
    assert stored_key(a) != stored_key(b)
    assert stored_key(with_content(a)) != stored_key(with_content({**a, "label": 1}))
    assert stored_key({"image": {"bytes": b"picture", "path": "c"}, "label": 0}) == stored_key(with_content(a))
    gone = {"image": {"bytes": None, "path": "hf://datasets/x/y.jpg"}}
    assert stored_key(with_content(gone)) == stored_key(gone)


def test_evaluation_reads_all_rows_in_order(table: dict[str, Any]) -> None:
    files = table["data_files"]
    stream = splits_of({**table, "data_files": {"train": files[:1], "validation": files[1:]}})["validation"]
    assert isinstance(stream, EvaluationStream)
    stream.batch_size = 4
    loaded = datasets.load_dataset("parquet", data_files=files[1:], split="train")
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)
        rows = [row for batch in loader for row in batch]
        assert [row["labels"] for row in rows] == loaded["label"][:]  # pyright: ignore
        assert len(set(image_hashes(rows))) == 15


def test_unreadable_samples(folder: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    (Path(folder["data_dir"]) / "cat/3.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/3.jpg can't be read"):
        batches(splits_of(folder, validation_size=2)["train"], 6)
    splits = splits_of(folder, validation_size=2, split_seed=1, on_bad_sample=OnBadSample.skip)
    assert [len(batch) for batch in batches(splits["train"], 6)] == [4, 4, 4, 4, 4, 1]
    assert splits["train"].num_skipped == 1
    assert "cat/3.jpg can't be read" in caplog.text


# A CSV file that is not read to its end is left to the garbage collector by pandas.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_labels_are_checked_when_they_are_met(folder: dict[str, Any], tmp_path: Path) -> None:
    root = Path(folder["data_dir"])
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.jpg"))]
    (tmp_path / "rows.csv").write_text("\n".join(["image,label", *lines[:-1], "dog/9.jpg,cow"]) + "\n")
    source = {
        "_target_": "hfexp.data.sources.image_table", "format": "csv", "data_files": str(tmp_path / "rows.csv"),
        "image_dir": str(root),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"no class names.*dataset.labels=\[NAME"):
        splits_of(source)
    with pytest.raises(DataError, match=r"split has unknown label 'cow'.*Labels are: cat, dog"):
        batches(splits_of(source, labels=["dog", "cat"])["train"], 6)
    stream = splits_of(source, labels=["dog", "cat", "cow"])["train"]
    assert stream[0]["labels"] == 1
    assert len(set(flat(batches(stream, 5)))) == 20
    del stream
    gc.collect()


def folder_words(place: Path, *more: str) -> list[str]:
    return [*STREAM, "dataset=imagefolder", f"dataset.source.data_dir={write_images(place / 'photos')}", *more]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["dataset.validation_size=0.2"], ["validation_size=0.2.*the length of a stream is unknown.*number of rows"]),
        (["dataset.validation_size=0"], ["no validation split: set dataset.validation_size to a number of rows"]),
        (["dataset.validation_size=100"], ["validation_size=100: the training stream has only 24 different rows"]),
        (["dataset.validation_size=24"], ["the train split has no rows left"]),
        (["trainer.args.max_steps=-1"], ["dataset.streaming=true needs trainer.args.max_steps"]),
        (
            ["trainer.args.eval_strategy=epoch", "trainer.args.save_strategy=epoch"],
            ["trainer.args.eval_strategy=epoch: .*eval_steps=NUMBER", "save_strategy=epoch: .*save_steps=NUMBER"],
        ),
        (["dataset.shuffle_buffer=0"], ["dataset.shuffle_buffer=0 must be at least 1"]),
        (["trainer.args.train_sampling_strategy=sequential"], ["sequential: a stream can't be.*shuffle_buffer"]),
        (["dataset=digits"], ["hfexp.data.sources.digits can't stream.*image_folder, image_table or hub, datasets"]),
    ],
)
def test_wrong_settings_are_named(words: list[str], messages: list[str], place: Path) -> None:
    chosen = [word for word in folder_words(place, *words) if words[0] != "dataset=digits" or "photos" not in word]
    for message in messages:
        with pytest.raises(ConfigError, match=message):
            api.train(*chosen)
    assert not (place / "outputs").exists()


def test_a_limited_stream_ends_without_a_pause(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert len(list(splits_of(table, max_train_samples=8, shuffle_buffer=4)["train"].rows)) == 8
    assert [pause for pause in pauses if pause > 0] == []


def test_limited_rows_are_of_all_files(table: dict[str, Any]) -> None:
    limited = splits_of(table, max_train_samples=8, shuffle_buffer=4)["train"]
    everything = splits_of(table)["train"]
    files = [{stored_key(row) for row in datasets.load_dataset("parquet", data_files=name, split="train").cast_column(
        "image", datasets.Image(decode=False))} for name in table["data_files"]]  # fmt: skip
    chosen = [stored_key(row) for row in limited.rows]
    assert len(set(chosen)) == 8
    assert [len(set(chosen) & names) for names in files] == [2, 2, 2, 2]
    assert limited.rows.files == everything.rows.files


def test_a_stream_by_other_processes_is_another_experiment(place: Path) -> None:
    words = folder_words(place)
    batch = "trainer.args.per_device_train_batch_size"
    size = int(next(word for word in words if word.startswith(batch)).partition("=")[2])
    two = ("launch=ddp", "launch.num_processes=2", f"{batch}={size // 2}")
    assert config_hash(api.compose(*words, *two)) != config_hash(api.compose(*words))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return transformers.AutoModelForImageClassification.from_pretrained(run_dir / "model").state_dict()


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(0, 0, marks=pytest.mark.slow), (2, 2), pytest.param(2, 0, marks=pytest.mark.slow)],
)
def test_resumed_equals_uninterrupted(before: int, after: int, place: Path) -> None:
    words = folder_words(place, "tracking=none", *fault_at(8))  # in the second epoch
    workers = "trainer.args.dataloader_num_workers"
    whole = api.train(*words, f"{workers}=0", "output_dir=whole")
    (place / "fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        api.train(*words, f"{workers}={before}")
    checkpoint = next(place.glob("outputs/*/*/checkpoints/checkpoint-6"))
    assert json.loads((checkpoint / "stream_0.json").read_text()) == {"batches_per_epoch": 5}
    resumed = api.train(*words, f"{workers}={after}")
    assert resumed.run_dir.name == whole.run_dir.name
    first, second = weights(whole.run_dir), weights(resumed.run_dir)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert whole.metrics["final_eval_loss"] == resumed.metrics["final_eval_loss"]


def test_a_run_on_streamed_splits(place: Path, all_runs: Callable[[], list[Any]], capsys: Any) -> None:
    files = write_tables(place / "data")
    splits = f"{{train: [{files[0]}, {files[1]}], validation: [{files[2]}], test: [{files[3]}]}}"
    words = [*STREAM, "dataset=parquet", f"dataset.source.data_files={splits}", "trainer.args.max_steps=6"]
    words += ["trainer.args.gradient_accumulation_steps=2", "dataset.validation_size=0.2", "tracking.pictures=true"]
    result = api.train(*words)
    assert "data: streamed train, streamed validation, streamed test, 2 classes" in capsys.readouterr().out
    assert result.metrics["final_eval_loss"] == result.metrics["best_eval_loss"]
    run = all_runs()[0]
    assert "dataset.num_train_samples" not in run.data.params
    inputs = {tag.value: item.dataset for item in run.inputs.dataset_inputs for tag in item.tags}
    inputs = {context: inputs[context] for context in ("training", "validation", "test")}
    assert len({item.digest for item in inputs.values()}) == 3
    assert json.loads(inputs["training"].profile) == {"streamed": True, "num_rows": None, "num_files": 2}
    artifacts = result.run_dir / "artifacts"
    assert (artifacts / "samples.png").is_file()
    assert "streamed" in (artifacts / "report.md").read_text()
    assert len((artifacts / "predictions_test.csv").read_text().splitlines()) == 1 + 3
    assert run.data.tags["hfexp.model_verified"] == "true"
    assert "| train | streamed |" in (result.run_dir / "model" / "README.md").read_text()


def test_the_loss_of_a_stream_is_the_mean_over_its_rows(place: Path) -> None:
    """The last batch is smaller than the others."""
    files = write_tables(place / "data")
    splits = f"{{train: [{files[0]}], validation: [{files[1]}]}}"
    words = [*STREAM, "dataset=parquet", f"dataset.source.data_files={splits}", "tracking=none",
             "trainer.args.max_steps=1", "trainer.args.per_device_eval_batch_size=4", "trainer.args.eval_steps=1",
             "trainer.args.save_steps=1"]  # fmt: skip
    in_fours = api.train(*words).metrics["final_eval_loss"]
    at_once = api.train(*words, "trainer.args.per_device_eval_batch_size=7", "output_dir=other")
    assert in_fours == pytest.approx(at_once.metrics["final_eval_loss"], rel=1e-5)
