"""Fixtures: a clean place to run in, small images and small checkpoints made on the spot."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("HYDRA_FULL_ERROR", None)

TESTS = Path(__file__).parent
_frozen = 0
"""Number of modules when the garbage collector was last told to pass over what exists."""
ROOT = TESTS.parent

SMALL_MODEL = (
    "model=vit_digits",
    "model.config.hidden_size=16",
    "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=16",
)
"""A ViT of a few thousand parameters."""

SMALL_TABLES = (
    "model=local", "model.path=start", "dataset=table",
    "dataset.source.data_files={train: train.jsonl, validation: validation.jsonl, test: test.jsonl}",
    "tracking.pictures=false", "trainer.args.logging_steps=1", "trainer.args.num_train_epochs=3",
    "trainer.args.gradient_accumulation_steps=1", "trainer.args.learning_rate=0.01",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.per_device_eval_batch_size=5",
)  # fmt: skip
"""A training that starts from the model in `start`, on three files of rows."""

SMALL_DIGITS = (
    "experiment=digits_vit",
    *SMALL_MODEL,
    "metrics=accuracy",
    "dataset.max_train_samples=96",
    "dataset.max_validation_samples=40",
    "dataset.max_test_samples=40",
    "trainer.args.num_train_epochs=2",
    "tracking.pictures=false",
)
"""The main job, in a second: 2 epochs of 3 steps, and no pictures."""
SMALL_GPT = (
    "model=tiny_gpt", "trainer=scratch", "dataset=table",
    "model.config.hidden_size=16", "model.config.num_attention_heads=2", "model.config.num_key_value_heads=2",
    "model.config.intermediate_size=16", "model.config.num_hidden_layers=1", "dataset.test_size=0.2",
    "trainer.args.num_train_epochs=2", "trainer.args.per_device_train_batch_size=4", "tracking.pictures=false",
)  # fmt: skip
"""A tiny causal language model and a short training; `dataset.source.data_files` is missing."""


@contextlib.contextmanager
def trained_home(
    factory: pytest.TempPathFactory, name: str, write: Callable[[], object], *words: str
) -> Iterator[tuple[Path, Any]]:
    """A directory of its own, in which a model is trained on what `write` writes, and the result of the training."""
    from hfexp import train

    home = factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write()
        yield home, train(*words)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of the tests, apart from the user's."""
    os.environ["HFEXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def imports_are_not_scanned() -> None:
    """A `Trainer` collects garbage when it starts, which takes half a second among all imported libraries."""
    global _frozen
    if len(sys.modules) > _frozen + 100:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def own_import_path() -> Iterator[None]:
    """A model that MLflow loads puts its copy of the code in front, where later processes would find it."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Hydra's own test suites set up the root logger, and leave it so."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def recording() -> list[threading.Thread]:
    """Threads that deliver the records of runs."""
    return [thread for thread in threading.enumerate() if thread.name == "hfexp-record"]


def end_recording() -> None:
    """End those threads, as the end of a process that is killed would."""
    for thread in recording():
        thread._target.__self__.close()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def no_record_is_written_after_its_test() -> Iterator[None]:
    """A thread that is left over would write to what the next test looks at."""
    before = recording()
    yield
    assert not [thread for thread in recording() if thread not in before]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, with no trace of the user's settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory in which a small model of digits was trained, and the result; tests leave it as it is."""
    words = (*SMALL_DIGITS, "metrics=classification", "tracking.pictures=true")
    with trained_home(tmp_path_factory, "home", lambda: None, *words) as made:
        return made


def encoded_digits(count: int) -> list[bytes]:
    """The first digits as PNG files."""
    import datasets

    from hfexp.data.sources import digits

    rows: Any = digits().cast_column("image", datasets.Image(decode=False)).select(range(count))
    return [row["image"]["bytes"] for row in rows]


@pytest.fixture
def all_runs() -> Callable[[], list[Any]]:
    """All runs of the store in the current directory."""

    def read() -> list[Any]:
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))

    return read


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12, size: int = 16) -> Path:
    """Folders of JPEGs named by their class; the classes differ in colour."""
    import numpy as np
    import PIL.Image

    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = generator.integers(0, 80, (size, size + index % 3, 3), dtype=np.uint8)
            pixels[..., number % 3] += 150
            PIL.Image.fromarray(pixels).save(root / name / f"{index}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def make_template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function that makes a fresh store, which takes two seconds, at its first call only."""
    from hfexp.tracking import store

    path, make = tmp_path_factory.mktemp("template") / "mlflow.db", store._create_database
    lock = threading.Lock()

    def made() -> Path:
        with lock:
            make(path)
        return path

    return made


@pytest.fixture(scope="session")
def template(make_template: Callable[[], Path]) -> Path:
    """A fresh store."""
    return make_template()


@pytest.fixture(autouse=True)
def copied_stores(make_template: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """New stores of this process are copies of one that hfexp made; those of other processes are their own."""
    from hfexp.tracking import store

    def copy(database: Path) -> None:
        if not database.exists() or not database.stat().st_size:
            new = database.with_name(f".{database.name}.new")
            shutil.copy(make_template(), new)
            new.rename(database)

    monkeypatch.setattr(store, "_create_database", copy)


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(template.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "digits" / "a-run"
    path.mkdir(parents=True)
    return path
