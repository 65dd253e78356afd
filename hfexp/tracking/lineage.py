"""What a run was made from: its data, split by split, and the model that it started from.

MLflow's own digest of a Hugging Face dataset covers the first 10,000 rows and ignores images
(`mlflow/data/digest_utils.py`), so that two datasets can share one. Ours covers every row.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hfexp.config import Config, to_dict
from hfexp.origin import mask_secrets
from hfexp.tasks.base import Task

CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
MAX_BYTES_READ = 2**28
SAMPLED_ROWS = 2000
ROWS_AT_ONCE = 10_000
MAX_SCHEMA = 2**20 - 1
MAX_SOURCE = 2**16 - 1


def dataset_inputs(
    config: Config, task: Task, splits: dict[str, Dataset], dropped: dict[str, int], transform: str
) -> list[dict[str, Any]]:
    """Each split as MLflow's `DatasetInput`, in plain values.

    Args:
        dropped: unreadable rows left out, by split.
        transform: hash of what is done to the rows, see `transform_hash`.
    """
    return [
        {
            "dataset": {
                "name": f"{_name(config)}-{split}",
                "digest": digest(rows),
                "source_type": _source_type(config),
                "source": mask_secrets(json.dumps(_source(config, rows)))[:MAX_SOURCE],
                "schema": _schema(rows),
                "profile": json.dumps(_profile(rows, task, dropped.get(split, 0))),
            },
            "tags": {"mlflow.data.context": CONTEXTS[split], "hfexp.transform_hash": transform},
        }
        for split, rows in splits.items()
    ]


def digest(rows: Dataset) -> str:
    """Hash of a split's content: the same rows give the same digest on every machine (32 hex digits).

    Every value counts. Only images and other binary values beyond 256 MB in total count by their size, and by the
    content of 2,000 rows spread over the split.
    """
    state = hashlib.sha256(json.dumps([len(rows), str(rows.features)]).encode())
    for name in rows.column_names:
        state.update(name.encode())
        for part in _binary_parts(rows, name) or _plain_parts(rows, name):
            state.update(part)
    return state.hexdigest()[:32]


def class_counts(rows: Dataset, task: Task) -> dict[str, int] | None:
    """Rows of each class, by name."""
    column = task.label_column or ""
    feature = rows.features.get(column)
    if not isinstance(feature, ClassLabel):
        return None
    counts = np.bincount(np.asarray(rows[column][:]), minlength=len(feature.names))
    return dict(zip(feature.names, map(int, counts), strict=True))


def transform_hash(config: Config, processor: Any) -> str:
    """Hash of everything that is done to a row before the model sees it (16 hex digits)."""
    settings = {**processor.to_dict(), "processor": type(processor).__name__} if processor is not None else {}
    facts = [to_dict(config)["transform"], settings]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_source(config: Config, model: Any) -> dict[str, str]:
    """What the model started from: an id on the Hub with its commit, a directory with its hash, or nothing."""
    if config.model.path is None:
        return {"hfexp.model_source": "own code" if config.model.build else "random weights"}
    path = Path(config.model.path).expanduser()
    if path.is_dir():
        return {"hfexp.model_source": str(path.absolute()), "hfexp.model_revision": f"sha256:{_directory_hash(path)}"}
    revision = getattr(getattr(model, "config", None), "_commit_hash", None) or config.model.revision or "unknown"
    return {"hfexp.model_source": config.model.path, "hfexp.model_revision": str(revision)}


def _directory_hash(directory: Path) -> str:
    """Of the names and contents of a model's files."""
    state = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".json")):
        state.update(path.name.encode())
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:32]


def _name(config: Config) -> str:
    source = config.dataset.source
    for key in ("path", "data_dir", "data_files"):
        if source.get(key):
            return mask_secrets(str(source[key]))[:200]
    return str(source.get("_target_", "dataset")).rpartition(".")[2]


def _source_type(config: Config) -> str:
    if config.dataset.source.get("_target_") == "datasets.load_dataset":
        return "hugging_face"
    return "local" if any(key in config.dataset.source for key in ("data_dir", "data_files", "path")) else "code"


def _source(config: Config, rows: Dataset) -> dict[str, Any]:
    """The arguments that load it, and the commit they were resolved to."""
    source = dict(config.dataset.source)
    if isinstance(source.get("data_dir"), str):
        source["uri"] = Path(source["data_dir"]).expanduser().absolute().as_uri()
    revision = _resolved_revision(rows)
    return source | ({"revision": revision} if revision else {})


def _resolved_revision(rows: Dataset) -> str | None:
    """Commit of a dataset from the Hub: `hf://datasets/<id>@<commit>/<file>` in what its builder downloaded."""
    for url in rows.info.download_checksums or {}:
        if url.startswith("hf://datasets/") and "@" in url:
            return url.partition("@")[2].partition("/")[0]
    return None


def _schema(rows: Dataset) -> str:
    """In the form that MLflow's pages show as a table."""
    columns = [{"name": name, "type": str(feature)[:200]} for name, feature in rows.features.items()]
    text = json.dumps({"mlflow_colspec": columns})
    return text if len(text) <= MAX_SCHEMA else json.dumps({"mlflow_colspec": []})


def _profile(rows: Dataset, task: Task, dropped: int) -> dict[str, Any]:
    profile: dict[str, Any] = {"num_rows": len(rows), "fingerprint": rows._fingerprint}
    if dropped:
        profile["unreadable_rows_left_out"] = dropped
    counts = class_counts(rows, task)
    return profile | ({"classes": counts} if counts else {})


def _column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """A column as it is stored, rows in order (undecoded)."""
    column = rows.data.column(name)
    return column if rows._indices is None else column.take(rows._indices.column(0).combine_chunks())


def _plain_parts(rows: Dataset, name: str) -> Iterator[bytes]:
    """All values of a column of numbers, words, or nested ones; some at a time, as Python's take much memory."""
    column = _column(rows, name)
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield json.dumps(column.slice(start, ROWS_AT_ONCE).to_pylist(), default=str).encode()


def _binary_parts(rows: Dataset, name: str) -> list[bytes] | None:
    """Sizes and contents of a column of files (`bytes` and `path`); None for other columns."""
    kind = rows.data.schema.field(name).type
    if not (pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}):
        return None
    column = rows.data.column(name)
    content, paths = (
        pa.chunked_array([chunk.field(part) for chunk in column.chunks], kind.field(part).type)
        for part in ("bytes", "path")
    )
    embedded = np.asarray(pc.fill_null(pc.binary_length(content), -1))  # pyright: ignore
    # Row by row through the indices: a column of all images, reordered, might not fit into memory.
    order = np.arange(len(column)) if rows._indices is None else np.asarray(rows._indices.column(0))
    sizes = [int(embedded[i]) if embedded[i] >= 0 else _file_size(paths[int(i)].as_py()) for i in order]
    chosen = order
    if sum(sizes) > MAX_BYTES_READ and len(order) > SAMPLED_ROWS:
        chosen = order[np.linspace(0, len(order) - 1, SAMPLED_ROWS, dtype=int)]
    parts = [np.asarray(sizes, dtype=np.int64).tobytes()]
    for index in map(int, chosen):
        data = content[index].as_py() if embedded[index] >= 0 else _file_content(paths[index].as_py())
        parts.append(hashlib.sha256(data).digest())
    return parts


def _file_size(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else -1
    except OSError:
        return -1


def _file_content(path: str | None) -> bytes:
    try:
        return Path(path or "").read_bytes()
    except OSError:  # named when it is read for training
        return b""
