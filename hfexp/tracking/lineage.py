"""Lineage of a run: its data, split by split, and the model that it started from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from hfexp.core.config import Config, to_dict
from hfexp.core.hub import PACKAGE, local_model
from hfexp.core.secrets import mask_values
from hfexp.data.dataset import num_rows
from hfexp.data.fingerprint import digest
from hfexp.data.labels import label_counts
from hfexp.data.prepare import settings_of
from hfexp.data.sources import name_of
from hfexp.tasks.base import Task

CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
# Limits of MLflow 3.17, in characters (`mlflow/utils/validation.py`).
MAX_SCHEMA = 2**20 - 1
MAX_SOURCE = 2**16 - 1


def dataset_inputs(
    config: Config, task: Task, splits: dict[str, Any], dropped: dict[str, int], transform: str
) -> list[dict[str, Any]]:
    """Describe each split as MLflow's `DatasetInput`, in plain values.

    Args:
        dropped: numbers of unreadable rows that were left out, by split.
        transform: hash of the processing of the rows, from `transform_hash`.
    """
    return [
        {
            "dataset": {
                "name": f"{name_of(config.dataset.source)[:200]}-{split}",
                "digest": _digest(rows),
                "source_type": _source_type(config),
                "source": json.dumps(mask_values(_source(config, rows)))[:MAX_SOURCE],
                "schema": _schema(rows),
                "profile": json.dumps(_profile(rows, task, dropped.get(split, 0))),
            },
            "tags": {"mlflow.data.context": CONTEXTS[split], "hfexp.transform_hash": transform},
        }
        for split, rows in splits.items()
    ]


def split_digests(splits: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """Return digest and row count (None for a stream) of each split: a resumed run checks its data by them."""
    return {str(split): {"digest": _digest(rows), "rows": num_rows(rows)} for split, rows in splits.items()}


def _digest(rows: Any) -> str:
    return rows.digest if num_rows(rows) is None else digest(rows)


def evaluated_input(config: Config, task: Task, rows: Dataset) -> dict[str, Any]:
    """Describe the rows that a trained model was evaluated on, as `dataset_inputs` does."""
    (item,) = dataset_inputs(config, task, {"test": rows}, {}, "")
    item["tags"] = {"mlflow.data.context": "evaluation"}
    return item


def class_counts(rows: Dataset, task: Task) -> dict[str, int] | None:
    """Count the rows of each class, by name; None if the labels are not single classes."""
    is_class = isinstance(rows.features.get(task.label_column or ""), ClassLabel)
    return label_counts(rows, task) if is_class else None


def transform_hash(config: Config, processor: Any) -> str:
    """Hash everything that is done to a row before the model sees it (16 hex digits)."""
    transform = to_dict(config)["transform"]
    transform.pop("cache")
    facts = [transform, settings_of(processor)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_source(config: Config, model: Any) -> dict[str, str]:
    """Return tags for what the model started from: a Hub id with its commit, a directory with its hash, or neither."""
    if config.model.path is None:
        return {"hfexp.model_source": "own code" if config.model.build else "random weights"}
    path = Path(local_model(config.model.path)).expanduser()
    if path.is_dir():
        name = config.model.path if config.model.path.startswith(PACKAGE) else str(path.absolute())
        return {"hfexp.model_source": name, "hfexp.model_revision": f"sha256:{_directory_hash(path)}"}
    revision = getattr(getattr(model, "config", None), "_commit_hash", None) or config.model.revision or "unknown"
    return {"hfexp.model_source": config.model.path, "hfexp.model_revision": str(revision)}


def _directory_hash(directory: Path) -> str:
    """Hash the names and contents of a model's `.safetensors` and `.json` files."""
    state = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".json")):
        state.update(path.name.encode())
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:32]


def _source_type(config: Config) -> str:
    if config.dataset.source.get("_target_") == "datasets.load_dataset":
        return "hugging_face"
    return "local" if any(key in config.dataset.source for key in ("data_dir", "data_files", "path")) else "code"


def _source(config: Config, rows: Any) -> dict[str, Any]:
    """Return the arguments that load the dataset, and the commit that they were resolved to."""
    source = dict(config.dataset.source)
    if isinstance(source.get("data_dir"), str):
        source["uri"] = Path(source["data_dir"]).expanduser().absolute().as_uri()
    revision = _resolved_revision(rows)
    return source | ({"revision": revision} if revision else {})


def _resolved_revision(rows: Any) -> str | None:
    """Find the commit of a Hub dataset in the URLs of its files, `hf://datasets/<id>@<commit>/<file>`."""
    for url in rows.files if num_rows(rows) is None else rows.info.download_checksums or {}:
        if url.startswith("hf://datasets/") and "@" in url:
            return url.partition("@")[2].partition("/")[0]
    return None


def _schema(rows: Any) -> str:
    """Return the schema in the form that MLflow's UI shows as a table; an oversized one is left empty."""
    columns = [{"name": name, "type": str(feature)[:200]} for name, feature in rows.features.items()]
    text = json.dumps({"mlflow_colspec": columns})
    return text if len(text) <= MAX_SCHEMA else json.dumps({"mlflow_colspec": []})


def _profile(rows: Any, task: Task, dropped: int) -> dict[str, Any]:
    if num_rows(rows) is None:
        return {"streamed": True, "num_rows": None, "num_files": len(rows.files)}
    profile: dict[str, Any] = {"num_rows": len(rows), "fingerprint": rows._fingerprint}
    if dropped:
        profile["unreadable_rows_left_out"] = dropped
    counts = class_counts(rows, task)
    return profile | ({"classes": counts} if counts else {})
