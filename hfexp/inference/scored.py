"""The data of `hfexp evaluate`: the run's own dataset, split as in training, or another dataset as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from hfexp.core.compose import compose, recorded_options
from hfexp.core.config import Config, flatten, to_config
from hfexp.core.console import say
from hfexp.core.errors import ConfigError, one_of
from hfexp.core.provenance import file_name
from hfexp.core.targets import targets_in
from hfexp.data.sources import name_of
from hfexp.data.splits import drop_bad_samples, load_dataset
from hfexp.inference.load import Asked, recorded_file

ALL = "all"
SHIPPED = {"dataset": ("hfexp.data.sources.", "hfexp.data.docstrings."), "metrics": ("hfexp.tasks.metrics.",)}
"""Target prefixes that an untrusted record may instantiate, by section."""


@dataclass(frozen=True)
class Scored:
    """The data and metrics with which a model is scored."""

    config: Config
    """Only its sections `dataset`, `metrics` and `security` are used."""
    name: str
    """Default name of the evaluation, from dataset and split."""
    split: str
    is_own: bool
    """True if this is the dataset of the model's own run."""


def compose_scored(asked: Asked, words: Sequence[str], split: str | None, config_dir: str | Path | None) -> Scored:
    """Compose the run's recorded dataset and metrics with the overrides of this command.

    Args:
        words: Hydra overrides; `dataset=...` replaces the recorded dataset.
        split: None: the test split of the run's own dataset, or all splits of another one.

    Raises:
        ConfigError: no dataset is given or recorded, the overrides don't fit, or an untrusted record names a target.
    """
    is_own = not any(_key(word) == "dataset" for word in words)
    sections = _recorded_sections(asked, is_own, {_key(word) for word in words})
    with recorded_options(sections) as chosen:
        cfg, choices = compose(*asked.words, *chosen, *words, config_dir=config_dir)
    config = to_config(cfg)
    if asked.is_mine:
        config.security.allowed_targets += _recorded_targets(asked)
    elif not asked.words:
        _require_shipped(config, asked, {_key(word) for word in words}, is_own)
    split = split or ("test" if is_own else ALL)
    option = (asked.dataset if is_own else None) or choices.get("dataset") or "dataset"
    source = "" if is_own else file_name(Path(name_of(config.dataset.source)).stem)
    parts = [option, split] if source in ("", option) else [option, source, split]
    return Scored(config, "-".join(parts), split, is_own)


def _recorded_sections(asked: Asked, is_own: bool, said: set[str]) -> dict[str, dict[str, Any]]:
    """Read the run's recorded metrics, and its dataset if it is scored on that, from the resolved config.

    Raises:
        ConfigError: the run's own dataset is needed and not recorded.
    """
    if asked.words:
        return {}
    recorded = recorded_file(asked, "config.yaml")
    found = {name: recorded.get(name) for name in ("dataset", "metrics")} if isinstance(recorded, dict) else {}
    sections = {name: content for name, content in found.items() if isinstance(content, dict)}
    if is_own and "dataset" not in sections:
        raise ConfigError(f"{asked.name} has no record that says its dataset: give dataset=...")
    kept = {"dataset"} if is_own else set()
    kept |= {"metrics"} - said
    return {name: content for name, content in sections.items() if name in kept}


def _recorded_targets(asked: Asked) -> list[str]:
    """Read `security.allowed_targets` of the user's own run."""
    recorded = recorded_file(asked, "config.yaml")
    security = recorded.get("security") if isinstance(recorded, dict) else None
    allowed = security.get("allowed_targets") if isinstance(security, dict) else None
    return [str(target) for target in allowed] if isinstance(allowed, list) else []


def _require_shipped(config: Config, asked: Asked, said: set[str], is_own: bool) -> None:
    """Check that a record which is not known to be the user's instantiates only targets that hfexp ships.

    Args:
        said: keys of the current overrides; a section that they replace is the user's own and is not checked.

    Raises:
        ConfigError: the record names another target, or a URL for the dataset.
    """
    begun_anew = {key if is_own else key.partition(".")[0] for key in said}
    for section, node in (("dataset", config.dataset.source), ("metrics", config.metrics)):
        for target in [] if section in begun_anew else targets_in(node):
            if not target.startswith(SHIPPED[section]):
                raise ConfigError(
                    f"{asked.name} is not known to be yours, and its {section} would be built by {target}: if you "
                    f"trust that, say so with {section}=..."
                )
    for key, value in flatten(config.dataset.source, "dataset.source").items():
        if is_own and "://" in str(value) and key not in said:
            raise ConfigError(
                f"{asked.name} is not known to be yours, and its dataset would be fetched from {key}={value}: if you "
                f"trust that, say so with {key}=..."
            )


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def load_rows(scored: Scored, asked: Asked, keep: Sequence[str]) -> Dataset:
    """Load the rows to be scored, with labels numbered by the model's classes.

    Args:
        keep: further columns of the source to load.

    Raises:
        ConfigError: there is no such split, it has classes that the model does not know, or the dataset is streamed.
    """
    config, split, task = scored.config, scored.split, asked.predictor.task
    if task.label_column is not None and asked.predictor.id2label:
        config.dataset.labels = class_names(asked.predictor.id2label, asked.name)
    if config.dataset.streaming:
        raise ConfigError("dataset.streaming=true: streams are not scored; give a split that fits the disk")
    further = tuple(name for name in keep if name not in task.columns)
    needed = None if scored.is_own else () if split == ALL else (split,)
    found = load_dataset(config.dataset, task, config.security.allowed_targets, further, needed)
    dataset, dropped = drop_bad_samples(found, config.dataset, task)
    if split != ALL and split not in dataset:
        raise ConfigError(f"split={split}: the dataset has no such split; there are {one_of([*dataset, ALL])}")
    parts = list(dataset.values()) if split == ALL else [dataset[split]]
    skipped = sum(count for name, count in dropped.items() if split in (ALL, name))
    if skipped:
        say(f"  {skipped} unreadable rows left out")
    return concatenate_datasets(parts)


def class_names(id2label: Mapping[int, str], model: str) -> list[str]:
    """Return the class names in order of their ids; a checkpoint's file may list them as 0, 1, 10, 11, 2, ...

    Raises:
        ConfigError: an id is missing, or two classes share a name, so that a dataset's labels would be ambiguous.
    """
    names = [id2label[number] for number in sorted(id2label)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{model} has several classes of one name ({one_of(twice)}): which is meant can't be told")
    if sorted(id2label) != list(range(len(names))):
        raise ConfigError(f"{model}: its classes are not numbered from 0 on ({one_of(id2label)})")
    return names
