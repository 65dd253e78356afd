"""Loading the model for prediction: from a run, the best run of a sweep, a directory, or the Hub."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfexp.core.compose import compose, conf_dir, spelling
from hfexp.core.config import Config, to_config
from hfexp.core.errors import ConfigError, RunError, one_of
from hfexp.core.machine import begin_collection
from hfexp.core.outside import read_yaml, why_foreign
from hfexp.core.targets import instantiate
from hfexp.data.transforms import build_transforms
from hfexp.inference.predictor import RECIPE_FILE, Predictor, load_predictor, load_recipe, trusting
from hfexp.tasks.base import CLASS, CLASSLESS, NUMBER, PROBLEMS, TEXT, Task
from hfexp.tracking.run_directory import STATE, read_state
from hfexp.tracking.runs import RunRecord, best_run_of_sweep, find_one, home_of, read_runs
from hfexp.tracking.store import tracking_uri
from hfexp.training.model import build_model, load_model_config
from hfexp.training.processor import fit_tokenizer, load_processor

CONFIG = "config.yaml"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
REMOTE_CODE = "model.trust_remote_code"
WEIGHT_DIRS = ("mlflow_model/model", "model", "")
"""Subdirectories with the weights in the directory of a run, of an MLflow model or of a saved model."""


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model, and the run that trained it."""

    predictor: Predictor
    name: str
    run_id: str | None = None
    uri: str | None = None
    directory: Path | None = None
    """Directory of the run, if it is on this machine."""
    is_mine: bool = False
    """Store and run directory show that this user trained it here; targets in the user's own code are then trusted."""
    dataset: str | None = None
    """The config option of its dataset, as recorded with its run."""
    overrides: tuple[str, ...] = ()
    """For a model that no run has trained: the overrides that compose it, `task=` among them."""


def load(
    run: str | None,
    sweep: str | None,
    composed: Sequence[str],
    *,
    output_dir: str,
    uri: str | None,
    device: str | None,
    config_dir: str | Path | None = None,
) -> LoadedModel:
    """Load a model for prediction.

    Args:
        run: id or name of a run, a directory, or a model id on the Hub.
        sweep: name of a sweep, whose best run is used in place of `run`.
        composed: Hydra overrides (`task=`, `model=`, ...) for a model that no run of ours has trained.

    Raises:
        ConfigError: there is no such model.
    """
    begin_collection()  # the slow imports are done by now
    directory = Path(run).expanduser() if run else None
    with trusting(remote_code=any(override.lstrip("+").lower() == f"{REMOTE_CODE}=true" for override in composed)):
        mine = _load_trained(run, sweep, directory, output_dir=output_dir, uri=uri, device=device)
    if mine is not None:
        other = [override for override in composed if not override.lstrip("+").startswith(("security.", REMOTE_CODE))]
        if other:
            raise ConfigError(f"{other[0]} can't be set: {mine.name} has its own model, task and transform")
        return mine
    if run:
        composed = ["model=local", f"model.path={spelling(run)}", *composed]
    if not any(override.startswith("model=") for override in composed):
        raise ConfigError("no model: give run=RUN, sweep=NAME, run=OWNER/NAME (on the Hub), or task=... model=...")
    overrides = _with_task(list(composed), config_dir)
    return LoadedModel(
        _load_pretrained(overrides, device, config_dir), run or " ".join(composed), overrides=tuple(overrides)
    )


def _load_trained(
    run: str | None,
    sweep: str | None,
    directory: Path | None,
    *,
    output_dir: str,
    uri: str | None,
    device: str | None,
) -> LoadedModel | None:
    """Load the model of a run or of a directory that hfexp has written; return None for any other model."""
    if directory is not None and directory.is_dir():
        recipe_dir = _recipe_below(directory)
        if recipe_dir is not None:
            record, store = _find_record(directory, Path(output_dir), uri)
            home = directory if (directory / STATE).is_file() else None
            run_id, dataset = (
                (record.run_id, _dataset_of(record)) if record else (None, directory.resolve().parent.name)
            )
            return LoadedModel(
                load_predictor(recipe_dir, device=device), str(run), run_id, store, home, dataset=dataset
            )
    elif sweep or (run and not HUB_ID.fullmatch(run)):
        store = tracking_uri(uri, output_dir)
        record = best_run_of_sweep(store, sweep) if sweep else find_one(store, str(run))
        home = home_of(record, Path(output_dir))
        weights = _recipe_below(home) if home else None
        if home and weights:
            # This user trained the run here, and allowed its own-code targets then; so they are trusted now.
            with trusting(load_recipe(weights).foreign_targets(), _trusted_remote_code(home)):
                predictor = load_predictor(weights, device=device)
            return LoadedModel(predictor, record.name, record.run_id, store, home, True, _dataset_of(record))
        with _downloaded(record, store) as weights:
            predictor = load_predictor(weights, device=device)
            return LoadedModel(predictor, record.name, record.run_id, store, dataset=_dataset_of(record))
    return None


def _dataset_of(record: RunRecord) -> str | None:
    return record.tags.get("hfexp.dataset")


def _trusted_remote_code(home: Path) -> bool:
    """Tell whether the user's own run was trained with `model.trust_remote_code=true`."""
    model = _recorded_config(home).get("model")
    return isinstance(model, dict) and model.get("trust_remote_code") is True


def _find_record(directory: Path, output_dir: Path, uri: str | None) -> tuple[RunRecord | None, str | None]:
    """Find the run that wrote a directory and the store that holds it; (None, None) if it can't be found.

    The store that the directory names is contacted only if the directory is one of the user's own runs: a foreign
    directory could name a hostile server, which would receive the user's MLflow password.
    """
    state = read_state(directory)
    if state is None or state.run_id is None or (uri is None and why_foreign(directory, output_dir)):
        return None, None
    tracking = _recorded_config(directory).get("tracking")
    named = tracking.get("uri") if isinstance(tracking, dict) else None
    store = tracking_uri(uri or named, str(directory.absolute().parents[1]))
    try:
        runs = read_runs(store, run_ids=[state.run_id])
    except (ConfigError, RunError):
        return None, None
    return (runs[0], store) if runs else (None, None)


def _recorded_config(directory: Path) -> dict[str, Any]:
    """Read `config.yaml` of a run directory; return an empty dict if there is none."""
    try:
        content = read_yaml(directory / CONFIG)
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def recorded_file(loaded: LoadedModel, name: str) -> Any | None:
    """Read a YAML file recorded with the run, from its directory or from MLflow; None if there is none."""
    if loaded.directory is not None and (loaded.directory / name).is_file():
        return read_yaml(loaded.directory / name)
    if loaded.run_id is None:
        return None
    import tempfile

    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    address = f"runs:/{loaded.run_id}/{name}"
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(MlflowException, OSError):
        return read_yaml(Path(download_artifacts(address, dst_path=place, tracking_uri=loaded.uri)))
    return None


def _recipe_below(directory: Path) -> Path | None:
    return next((directory / place for place in WEIGHT_DIRS if (directory / place / RECIPE_FILE).is_file()), None)


@contextlib.contextmanager
def _downloaded(record: RunRecord, uri: str) -> Iterator[Path]:
    """Download the weights of a run from its tracking store; they are untrusted."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hfexp-model-") as place:
        weights = _recipe_below(_download(record, uri, place))
        if weights is None:
            raise ConfigError(f"the run {record.name} has no model to predict with (tracking.checkpoints=none?)")
        yield weights


def _download(record: RunRecord, uri: str, place: str) -> Path:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from hfexp.tracking.models import fetch_final

    try:
        return fetch_final(MlflowClient(uri), record.run_id, uri, place)
    except (MlflowException, OSError) as error:
        raise RunError(f"the model of {record.name} can't be downloaded from {uri}: {error}") from error


def _with_task(overrides: list[str], config_dir: str | Path | None) -> list[str]:
    """Return the overrides, with `task=` of the model's checkpoint added if they don't contain it."""
    if any(override.partition("=")[0] == "task" for override in overrides):
        return overrides
    config = to_config(compose(*overrides, config_dir=config_dir)[0])
    return [*overrides, f"task={_infer_task(config)}"]


def _load_pretrained(overrides: list[str], device: str | None, config_dir: str | Path | None) -> Predictor:
    """Build a predictor from a pretrained model as it is, with the transform that its `task` option selects."""
    import torch

    config = to_config(compose(*overrides, config_dir=config_dir)[0])
    allowed = config.security.allowed_targets
    task: Task = instantiate(config.task, "task", allowed)
    processor = load_processor(config.model, task, allowed)
    model, summary = build_model(config.model, task, None, allowed)
    if summary.new_tensors or config.model.path is None:
        tensors = one_of(summary.new_tensors, 3) or "all weights"
        raise ConfigError(f"{_name(config)} was not trained for {type(task).__name__}: {tensors} would be random")
    has_classes = task.label_column is not None and task.label_kind not in CLASSLESS
    names = getattr(model.config, "id2label", None) if has_classes else None
    id2label = {int(key): str(name) for key, name in names.items()} if names else None
    fit_tokenizer(processor, model, task)
    transforms = build_transforms(config.transform, processor, id2label, allowed)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model, processor, task, transforms, id2label)


def _name(config: Config) -> str:
    return f"model.path={config.model.path}" if config.model.path else f"model.model_type={config.model.model_type}"


def _infer_task(config: Config) -> str:
    """Return the `task` option that fits the checkpoint's model class, kind of labels and processor.

    If several fit, the one that reads the fewest columns is chosen: a text rather than a pair. An encoder-decoder
    writes texts, although Transformers also lists BART and its relatives among the models for masked words.

    Raises:
        ConfigError: no task fits.
    """
    import transformers

    tasks: dict[str, Task] = {}
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        other = to_config(compose(f"task={path.stem}")[0])
        tasks[path.stem] = instantiate(other.task, "task", other.security.allowed_targets)
    first = next(iter(tasks.values()))
    stored = load_model_config(config.model, first, config.security.allowed_targets)
    saved_from = set(getattr(stored, "architectures", None) or [])
    processors: dict[str, Any] = {}
    writes = bool(getattr(stored, "is_encoder_decoder", False))

    def order(pair: tuple[str, Task]) -> tuple[bool, int]:
        return writes and pair[1].label_kind != TEXT, len(pair[1].columns)

    for name, task in sorted(tasks.items(), key=order):
        if task.label_column is not None and task.label_kind in PROBLEMS and task.label_kind != _label_kind(stored):
            continue
        mapping = getattr(transformers, task.model_class)._model_mapping
        known = mapping.get(type(stored), None)
        classes = known if isinstance(known, tuple) else (known,)
        if {cls.__name__ for cls in classes if cls is not None} & saved_from:
            if task.processor_class not in processors:
                allowed = config.security.allowed_targets
                processors[task.processor_class] = load_processor(config.model, task, allowed)
            if task.suits(processors[task.processor_class]):
                return name
    raise ConfigError(
        f"{_name(config)} is a {one_of(saved_from) or type(stored).__name__}, which fits no task: choose one with "
        f"task=... ({one_of(tasks)})"
    )


def _label_kind(stored: Any) -> str:
    """Return a checkpoint's kind of labels: by `problem_type`, else by Transformers' rule (one output: NUMBER)."""
    recorded = {problem: kind for kind, problem in PROBLEMS.items()}.get(str(getattr(stored, "problem_type", None)))
    return recorded or (NUMBER if getattr(stored, "num_labels", None) == 1 else CLASS)
