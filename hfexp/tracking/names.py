"""Names of runs and experiments, from what was chosen and what was changed."""

import re
from pathlib import PurePath
from typing import Any

from hfexp.core.config import ARGS, Config
from hfexp.core.identity import IRRELEVANT_ARGS
from hfexp.core.options import GROUPS, find_option
from hfexp.core.provenance import Origin
from hfexp.core.secrets import MASK

SHORT = {
    "learning_rate": "lr",
    "per_device_train_batch_size": "bs",
    "gradient_accumulation_steps": "acc",
    "num_train_epochs": "ep",
    "max_steps": "steps",
    "max_train_samples": "n",
    "weight_decay": "wd",
}
"""Abbreviations of keys in names."""
UNTOLD = re.compile(
    r"(experiment|model|dataset|metrics|search|launch|name|seed|point|output_dir|on_existing)$"
    r"|(tracking|search|launch|security|hydra|dataset\.source|dataset\.splits|dataset\.columns|transform\.cache)\b"
    r"|dataset\.max_(validation|test)_samples$"
)
"""Matches keys that a name does not tell: it has model, data and seed already, and the others change no result."""
MOST_CHANGES = 4
"""Changes that a name tells, the last ones; further ones would not be read."""
LONGEST_VALUE = 12
"""Characters of a value in a name; a change of a longer one is left out."""
SOURCES = ("data_dir", "data_files", "path")
"""Arguments of a source that say where the data is."""
COMMON = ("all", "data", "dataset", "images", "train", "training")
"""Names that many files and folders have: data in them is called by the folder above."""


def experiment_name(config: Config, origin: Origin) -> str:
    """Return `tracking.experiment`, or the name of the data."""
    return config.tracking.experiment or data_name(config, origin)


def run_name(config: Config, origin: Origin) -> str:
    """Return the name of a run without its seed: `name`, or the model, the data and what was changed."""
    if config.name:
        return config.name
    parts = [origin.choices.get("model", "model"), data_name(config, origin), *_changes(origin.overrides)]
    return "-".join(parts)


def data_name(config: Config, origin: Origin) -> str:
    """Return the dataset option, or the data's own name if the option reads whatever the user names."""
    choice = origin.choices.get("dataset", "")
    option = find_option("dataset", choice) if choice else None
    source = option.content.get("source") if option else None
    if isinstance(source, dict):
        for key in SOURCES:
            name = _place(config.dataset.source.get(key)) if source.get(key) == "???" else ""
            if name:
                return name
    return choice or "default"


def _place(value: Any) -> str:
    """Return the name of a file, a folder or a dataset of the Hub; of several files, of the folder of the first."""
    if isinstance(value, dict) and value:
        return _place(list(value.values()))
    if isinstance(value, list) and value:
        return _place(value[0]) if len(value) == 1 else _place(str(PurePath(_first(value)).parent))
    if not isinstance(value, str):
        return ""
    path = PurePath(re.sub(r"^\w+://|[?#].*", "", value))
    names = [re.sub(r"[*?\[\]{}]+", "", part.partition(".")[0]) for part in reversed(path.parts)]
    names = [name for name in names if name]
    telling = [name for name in names if name.lower() not in COMMON]
    return (telling or names or [""])[0]


def _first(values: list[Any]) -> str:
    while isinstance(values, list) and values:
        values = values[0]
    return str(values)


def _changes(overrides: list[str]) -> list[str]:
    """Return the last changes among the overrides in short, e.g. `lr3e-4`."""
    parts = [override.lstrip("+").partition("=") for override in overrides if not override.startswith("~")]
    told = {key: _value(value) for key, _, value in parts if _changes_result(key)}
    short = [_change(key.partition("@")[0], value) for key, value in told.items() if value]
    return short[-MOST_CHANGES:]


def _changes_result(key: str) -> bool:
    """Tell whether a key is worth a place in the name: it is not told already, and belongs to the identity."""
    return not UNTOLD.match(key) and key.removeprefix(ARGS) not in IRRELEVANT_ARGS


def _change(key: str, value: str) -> str:
    name = key.rpartition(".")[2]
    name = SHORT.get(name, name)
    if key in GROUPS:
        return f"{key}_{value}" if key == "debug" else value
    if value.lower() in ("true", "false"):
        return name if value.lower() == "true" else f"no_{name}"
    return f"{name}{value}" if value[0].isdigit() else f"{name}_{value}"


def _value(text: str) -> str:
    """Return a value as a name can hold it; empty if it would not be read."""
    text = text.strip("'\"")
    if len(text) > LONGEST_VALUE // 2 and re.fullmatch(r"-?\d*\.?\d+(e[-+]?\d+)?", text, re.IGNORECASE):
        text = f"{float(text):.3g}"
    is_plain = re.fullmatch(r"[\w.+-]+", text) and len(text) <= LONGEST_VALUE and MASK not in text
    return text if is_plain else ""
