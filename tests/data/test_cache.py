"""Prepared rows: the same as unprepared ones, built once, shared, whole or not there, and within their bounds."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import SMALL_DIGITS, SMALL_MODEL, write_images
from torchvision import tv_tensors

from hfexp.commands import api, cli
from hfexp.core.config import Config
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.data.arrays import ArrayReader, ArrayWriter
from hfexp.data.cache import Cache, NoRoomError, parse_size, show_size
from hfexp.data.dataset import Collator, process
from hfexp.data.prepare import PreparedCache, _code, settings_of
from hfexp.data.row_arrays import NotWholeNumbersError, from_array, to_arrays
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.text import byte_tokenizer


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    path = tmp_path / "own-cache"
    monkeypatch.setenv("HFEXP_CACHE", str(path))
    return path


def entries(path: Path) -> list[Path]:
    return sorted(found.parent for found in path.glob("*/meta.json"))


def write_rows(writer: ArrayWriter, count: int = 4, value: int = 7) -> dict[str, Any]:
    for index in range(count):
        writer.append({"image": np.full((3, 4, 4), value, np.uint8), "label": np.asarray(index)})
    return {"about": "made up"}


@pytest.mark.parametrize("ragged", [False, True])
def test_rows_come_back_in_any_order(tmp_path: Path, ragged: bool) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "image": generator.integers(0, 255, (3, 5 + index * ragged, 4), dtype=np.uint8),
            "label": np.asarray(index, np.int64),
            "tokens": generator.integers(0, 9, index * ragged + 1, dtype=np.int32),
        }
        for index in range(9)
    ]
    with ArrayWriter(tmp_path) as writer:
        for row in rows:
            writer.append(row)
        writer.finish({})
    reader = ArrayReader(tmp_path)
    assert reader.is_uniform("image") is not ragged
    for indices in ([0], [3, 1, 8, 1], list(range(9)), [4, 5, 6], []):
        for found in (reader.read(indices), ArrayReader(*reader.__reduce__()[1]).read(indices)):
            for name in rows[0]:
                assert len(found[name]) == len(indices)
                assert all(np.array_equal(a, rows[i][name]) for a, i in zip(found[name], indices, strict=True))


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path) as writer:
        writer.append({"x": np.zeros(3, np.uint8)})
        for wrong in ({"x": np.zeros(3, np.int64)}, {"x": np.zeros((3, 1), np.uint8)}, {"y": np.zeros(3, np.uint8)}):
            with pytest.raises(ValueError, match="a row has"):
                writer.append(wrong)


def splits(config: Config, cached: bool) -> tuple[dict[str, Any], Any]:
    inputs = load_inputs(config)
    prepared_cache = PreparedCache(config, inputs.task, inputs.processor) if cached else None
    made = process(inputs.dataset, inputs.task, inputs.processor, inputs.transforms, config.seed, prepared_cache)
    return made, Collator(inputs.task, inputs.processor, inputs.transforms.batch, config.seed)


@pytest.mark.parametrize(
    ("transform", "whole"),
    [
        ("eval", ["train", "validation"]),
        ("jitter", ["train", "validation"]),
        ("augment", ["validation"]),
        ("augment_mix", ["validation"]),
        ("notebook", []),
    ],
)
def test_prepared_rows_are_exactly_the_unprepared_ones(
    transform: str, whole: list[str], place: Path, own: Path
) -> None:
    """`whole`: splits that are read as stacked columns, as nothing is left to do to single rows."""
    root = write_images(place / "photos", count=10, size=20)
    PIL.Image.new("LA", (9, 30), (200, 90)).save(root / "cat" / "transparent.png")
    config = api.compose("dataset=imagefolder", f"dataset.source.data_dir={root}", *SMALL_MODEL, "trainer=scratch",
                         f"transform={transform}", "trainer.args.per_device_train_batch_size=4")  # fmt: skip
    plain, collate = splits(config, cached=False)
    made, _ = splits(config, cached=True)
    again, _ = splits(config, cached=True)
    assert len(entries(own)) == 2
    for split in ("train", "validation"):
        assert made[split].prepared is not None
        assert made[split].reads_columns is (split in whole)
        size = len(plain[split])
        for keys in ([size + 2, 0, 2 * size - 1], list(range(4))):
            expected = collate(plain[split].__getitems__(keys))
            for dataset in (made[split], again[split]):
                found = collate(dataset.__getitems__(keys))
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_an_entry_is_found_by_everything_that_decides_it(place: Path, own: Path) -> None:
    root = write_images(place / "photos", count=5)
    base = ["dataset=imagefolder", f"dataset.source.data_dir={root}", "model=vit_digits", "trainer=scratch",
            "trainer.args.per_device_train_batch_size=4"]  # fmt: skip

    def built(*more: str) -> int:
        before = set(entries(own))
        splits(api.compose(*base, *more), cached=True)
        return len(set(entries(own)) - before)

    assert built() == 2
    assert built("seed=5", "transform=jitter", "trainer.args.learning_rate=1") == 0
    assert built("model.config.image_size=12") == 2
    assert built("dataset.split_seed=3") == 2
    PIL.Image.new("RGB", (16, 16), "red").save(root / "cat" / "0.jpg")
    assert built() >= 1
    assert built("transform.cache.enabled=false", "model.config.image_size=10") == 0


def test_cache_settings_are_no_part_of_the_identity() -> None:
    changed = api.compose("transform.cache.enabled=false", "transform.cache.max_size=1MB", "transform.cache.dir=/x")
    assert config_hash(api.compose()) == config_hash(changed)


def test_what_does_not_fit_is_prepared_as_it_is_read(
    place: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = api.train(*SMALL_DIGITS, "tracking=none", "transform.cache.max_size=5kB")
    said = capsys.readouterr().err
    assert "its transform runs every epoch: its rows would take" in said
    assert "transform.cache.max_size" in said
    kept = api.train(*SMALL_DIGITS, "tracking=none")
    assert len(entries(own)) == 3
    for a, b in zip(result.model.parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_cache_that_cannot_be_written_costs_only_time(
    place: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.write_text("a file where the directory should be")
    api.train(*SMALL_DIGITS, "tracking=none", "trainer.args.max_steps=2")
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.parametrize(("operation", "more"), [("RandomCrop", ", size: 8, padding: 4"), ("RandomVerticalFlip", "")])
def test_what_draws_random_numbers_is_no_preparation(operation: str, more: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{operation} draws random numbers.*: move it to transform\.augment"):
        load_inputs(
            api.compose(*SMALL_MODEL, "dataset=digits", "transform=eval",
                        "transform.prepare=[{_target_: hfexp.tasks.images.ToRGB}, "
                        "{_target_: torchvision.transforms.v2.ToImage},"
                        f"{{_target_: torchvision.transforms.v2.{operation}{more}}}]")
        )  # fmt: skip


def test_the_longest_unused_makes_room_and_what_is_used_stays(tmp_path: Path) -> None:
    cache_of_two = Cache(tmp_path, 2 * 4 * (48 + 8))
    size = 4 * (48 + 8)
    for number, key in enumerate("ab"):
        cache_of_two.find_or_build(key, size, write_rows)
        os.utime(tmp_path / key / "used", (number, number))
    held = cache_of_two.find("a")
    os.utime(tmp_path / "a" / "used", (0, 0))
    cache_of_two.find_or_build("c", size, write_rows)
    assert [path.name for path in entries(tmp_path)] == ["a", "c"]
    del held
    cache_of_two.find_or_build("d", size, write_rows)
    assert [path.name for path in entries(tmp_path)] == ["c", "d"]
    with pytest.raises(NoRoomError, match="more than"):
        cache_of_two.find_or_build("e", 10 * size, write_rows)


def test_a_damaged_entry_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Cache(tmp_path, 10**6)
    small.find_or_build("a", 300, write_rows)
    os.truncate(tmp_path / "a" / "image.bin", 100)
    reader, built = small.find_or_build("a", 300, write_rows)
    assert built
    assert reader.read([3])["image"][0].min() == 7
    assert "is damaged" in capsys.readouterr().err


def test_damaged_entries_count_and_go_first(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared, size = Cache(own, 500), 4 * (3 * 4 * 4 + 8)
    for name in ("a", "b"):
        shared.find_or_build(name * 32, size, write_rows)
    os.truncate(own / ("b" * 32) / "image.bin", 100)
    (own / "else").mkdir()
    (own / "else" / "meta.json").write_text("{}")
    assert cli.main(["cache"]) == 0
    assert "damaged" in capsys.readouterr().out
    shared.find_or_build("c" * 32, 250, write_rows)
    assert [path.name[0] for path in entries(own)] == ["a", "c", "e"]
    (own / ("c" * 32) / "used").unlink()
    os.truncate(own / ("c" * 32) / "image.bin", 100)
    assert cli.main(["cache", "clear"]) == 0
    assert [path.name for path in entries(own)] == ["else"]


def test_room_that_another_builder_needs_is_not_given_away(tmp_path: Path) -> None:
    small = Cache(tmp_path, 500)

    def build_another(writer: ArrayWriter) -> dict[str, Any]:
        with pytest.raises(NoRoomError, match="running jobs use 300 B of"):
            small.find_or_build("b", 300, write_rows)
        return write_rows(writer)

    assert small.find_or_build("a", 300, build_another)[1]
    assert not (tmp_path / "a" / "needed").exists()


def test_the_source_of_what_a_class_makes_decides_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "operations_of_mine.py"
    module.write_text("class Scale:\n    @classmethod\n    def by(cls):\n        return cls()\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("operations_of_mine")
    nodes = [{"_target_": "operations_of_mine.Scale.by"}]
    before = _code(nodes)
    assert before["operations_of_mine"]
    module.write_text(module.read_text() + "# other\n")
    assert _code(nodes)["operations_of_mine"] != before["operations_of_mine"]


def test_what_a_tokenizer_is_set_to_later_decides_an_entry() -> None:
    tokenizer = byte_tokenizer()
    before = settings_of(tokenizer)
    for name, value in (("truncation_side", "left"), ("chat_template", "{{ messages }}"), ("model_max_length", 7)):
        setattr(tokenizer, name, value)
        assert settings_of(tokenizer) != before
        before = settings_of(tokenizer)


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    small = Cache(tmp_path, 10**6)

    def fail(writer: ArrayWriter) -> dict[str, Any]:
        write_rows(writer)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        small.find_or_build("a", 300, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


SLOW_BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from hfexp.data.cache import Cache

def build(writer):
    for index in range(4):
        writer.append({"image": np.full((3, 4, 4), 7, np.uint8)})
        for file in writer.files.values():
            file.flush()
        print("row", flush=True)
        time.sleep(float(sys.argv[2]))
    return {}

reader, built = Cache(Path(sys.argv[1]), 10**6).find_or_build("a", 300, build)
print("built" if built else "found", len(reader), flush=True)
"""


def start(directory: Path, pause: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(directory), str(pause)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_killed_build_looks_like_nothing_and_is_done_again(tmp_path: Path) -> None:
    process_ = start(tmp_path, 60)
    assert process_.stdout is not None
    assert process_.stdout.readline() == "row\n"
    process_.send_signal(signal.SIGKILL)
    process_.wait()
    process_.communicate()
    assert (tmp_path / ".building-a" / "image.bin").is_file()
    small = Cache(tmp_path, 10**6)
    assert small.find("a") is None
    reader, built = small.find_or_build("a", 300, write_rows)
    assert (built, len(reader), reader.read([2])["label"].tolist()) == (True, 4, [2])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "a"]


def test_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    processes = [start(tmp_path, 0.5) for _ in range(3)]
    said = [process_.communicate(timeout=120) for process_ in processes]
    assert sorted(out.splitlines()[-1] for out, _ in said) == ["built 4", "found 4", "found 4"]
    assert sum("waiting for another process" in err for _, err in said) == 2
    assert [path.name for path in entries(tmp_path)] == ["a"]


def test_listing_and_clearing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = Cache(own, 10**6)
    shared.find_or_build("abc", 300, write_rows)
    shared.find_or_build("xyz", 300, write_rows)
    held = shared.find("xyz")
    assert cli.main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "abc" in shown
    assert "made up" in shown
    assert "2 entries" in shown
    assert cli.main(["cache", "clear", "q"]) == 2
    assert "starts with 'q'" in capsys.readouterr().err
    assert cli.main(["cache", "clear"]) == 0
    assert "1 entries removed" in capsys.readouterr().out
    assert [path.name for path in entries(own)] == ["xyz"]
    assert held is not None


@pytest.mark.parametrize(("text", "size"), [("20GB", 20 * 10**9), ("1.5 MiB", 1572864), ("7", 7), ("3kb", 3000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_sizes_as_people_read_them() -> None:
    assert [show_size(n) for n in (12, 1500, 250_000, 3.2e9, 5e12)] == ["12 B", "1.5 kB", "250 kB", "3.2 GB", "5.0 TB"]
    with pytest.raises(ConfigError, match=r"transform\.cache\.max_size=much"):
        parse_size("much")


def test_a_row_comes_back_as_it_was() -> None:
    row = {
        "scalar": torch.tensor(3),
        "image": tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)),
        "picture": PIL.Image.new("RGB", (2, 3), "red"),
        "label": 4,
        "tokens": [1, 2, 3],
    }
    arrays, kinds = to_arrays(row)
    back = {name: from_array(arrays[name][()], kind) for name, kind in kinds.items()}
    assert {name: type(value) for name, value in back.items()} == {
        name: PIL.Image.Image if name == "picture" else type(value) for name, value in row.items()
    }
    assert np.array_equal(np.asarray(back["picture"]), np.asarray(row["picture"]))
    assert (back["scalar"], back["label"], back["tokens"]) == (3, 4, [1, 2, 3])
    for other in (True, tv_tensors.Mask(torch.zeros(2, 2, dtype=torch.uint8)), torch.zeros(2), "word", None):
        with pytest.raises(NotWholeNumbersError):
            to_arrays({"x": other})


def test_an_unreadable_list_of_shapes_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ragged(writer: ArrayWriter) -> dict[str, Any]:
        for size in (1, 2):
            writer.append({"x": np.zeros(size, np.uint8)})
        return {}

    small = Cache(tmp_path, 10**6)
    small.find_or_build("a", 300, ragged)
    (tmp_path / "a" / "x.shapes.npy").write_bytes(b"")
    assert small.entries() == []
    assert small.find_or_build("a", 300, ragged)[1]
    assert "is damaged" in capsys.readouterr().err
