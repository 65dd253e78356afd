"""Identity of an experiment (a hash that ignores settings that cannot change the result) and of its local files."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfexp.core.config import Config, Strategy, to_dict
from hfexp.core.secrets import without_secrets

SCIENTIFIC = ("task", "model", "dataset", "transform", "trainer", "metrics", "seed")
"""Sections of the config that decide the result of an experiment, and so its identity."""

IRRELEVANT_ARGS = frozenset(
    {
        "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_backend", "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "disable_tqdm",
        "eval_accumulation_steps", "log_level", "log_level_replica", "logging_first_step", "logging_steps",
        "logging_strategy", "per_device_eval_batch_size", "restore_callback_states_from_checkpoint",
        "save_total_limit", "skip_memory_metrics",
    }
)  # fmt: skip
"""`trainer.args` that cannot change the result."""

OPTIONAL = (
    "loss", "class_weights", "options", "balanced_sampling", "r_drop", "ema", "lr_factors", "layer_decay", "thaw_at",
    "soup",
)  # fmt: skip
"""Keys of `trainer` that change nothing while they have no value."""


def config_hash(config: Config) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of all settings that decide the result.

    Secrets are left out: they only give access to the data, and must not be guessable from the hash.
    """
    plain = without_secrets({key: value for key, value in to_dict(config).items() if key in SCIENTIFIC})
    args = plain["trainer"]["args"]
    # Without eval_steps, Transformers evaluates every logging_steps, so that these become relevant.
    relevant = {"logging_steps"} if args.get("eval_strategy") == "steps" and not args.get("eval_steps") else set()
    plain["trainer"]["args"] = {k: v for k, v in args.items() if k not in IRRELEVANT_ARGS - relevant}
    if config.launch.strategy is not Strategy.single and config.dataset.streaming:
        plain["num_processes"] = int(config.launch.num_processes)  # a stream is divided among the processes
    elif config.launch.strategy is not Strategy.single:
        # Two processes with 8 samples each train as one with 16 does, and can continue where it stopped.
        size = args.get("per_device_train_batch_size", 8)  # the default of TrainingArguments
        plain["trainer"]["args"]["per_device_train_batch_size"] = size * int(config.launch.num_processes)
    rules = [rule for rule, applies in _changed_rules(args).items() if applies]
    if rules:
        plain["rules"] = rules
    plain["transform"].pop("cache")
    plain["trainer"].pop("auto_batch")
    del plain["model"]["kind"], plain["dataset"]["kind"]
    if plain["trainer"]["ema"]["decay"] is None:
        plain["trainer"]["ema"] = {}
    plain["trainer"] = {key: value for key, value in plain["trainer"].items() if value or key not in OPTIONAL}
    for key in ("channels_last", "quantization"):
        if not plain["model"][key]:
            del plain["model"][key]
    if not plain["dataset"]["streaming"]:
        del plain["dataset"]["streaming"], plain["dataset"]["shuffle_buffer"]
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _changed_rules(args: dict[str, Any]) -> dict[str, bool]:
    """Return the training rules that earlier versions did differently, and whether each applies to these settings.

    A rule that applies changes the hash: a run that began under the former rule is neither continued nor reused.
    """
    return {
        "loss weighted by items": int(args.get("gradient_accumulation_steps") or 1) > 1,
        "length groups of all processes": args.get("train_sampling_strategy") == "group_by_length",
    }


# A fingerprint of the local files that data comes from, computed without reading them.


_NAMES_FILES = re.compile(r"(dir|file|path|root)s?$")
"""Keys of `dataset.source` whose values name files or folders."""


def local_files_fingerprint(source: dict[str, Any]) -> str:
    """Hash path, size and modification time of each local file that `dataset.source` names, itself or by its folder.

    Data on the Hub, data made by code, and files named only inside a file (the images of a CSV) do not count.
    """
    state = hashlib.sha256()
    paths = [value for key, value in source.items() if _NAMES_FILES.search(key)]
    for path in sorted(set(_files(paths))):
        stat = path.stat()
        state.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()[:32]


def _files(node: Any) -> Iterator[Path]:
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _files(item)
        return
    if not isinstance(node, str) or "://" in node or len(node) > 4096:
        return
    pattern = os.path.expanduser(node)
    for name in [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True):
        path = Path(name).absolute()
        yield from _files_below(path) if path.is_dir() else (path,)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, following links; visit each folder once, as links can form a cycle."""
    seen = {os.path.realpath(folder)}
    for directory, subdirs, names in os.walk(folder, followlinks=True):
        real_paths = {name: os.path.realpath(os.path.join(directory, name)) for name in subdirs}
        subdirs[:] = [name for name in subdirs if real_paths[name] not in seen]
        seen.update(real_paths.values())
        yield from (path for path in (Path(directory, name) for name in names) if path.is_file())
