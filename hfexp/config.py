"""The typed configuration: the schema of hfexp's own keys.

Free-form sections (`task`, `metrics`, `dataset.source`, the lists of `transform`, `trainer.args`, ...) are
dictionaries: their schema is the signature of what they build, checked where they are built.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.arguments import check_args, way_out
from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.habits import advise
from hfexp.secret_shapes import MASK
from hfexp.secrets import find_masked, learn_secrets, mask_values
from hfexp.sweep.settings import SearchConfig


class OnExisting(Enum):
    """What to do when the same experiment was started before."""

    resume = "resume"
    rerun = "rerun"
    error = "error"


class OnBadSample(Enum):
    """What to do with a sample that cannot be read."""

    error = "error"
    skip = "skip"


class Checkpoints(Enum):
    """Which models of a run MLflow gets; on the disk of the run directory there are those that the Trainer keeps."""

    none = "none"
    """None."""
    best = "best"
    """The final one (the best, if `load_best_model_at_end`); checkpoints are linked, not copied."""
    all = "all"
    """Every checkpoint as well."""


@dataclass
class ModelConfig:
    """A pretrained model (`path`), one built from sizes (`model_type`, `config`), or the user's own (`_target_`)."""

    path: str | None = None
    """Hub id, local directory, or `pkg://package/directory` of an installed package."""
    revision: str | None = None
    model_type: str | None = None
    """Architecture to build without weights, as in `AutoConfig.for_model`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration to set."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Fields of the processor to set, e.g. `size`, `image_mean`, `image_std`."""
    dtype: str = "float32"
    """Of the weights while training; `auto`: as in the checkpoint."""
    attn_implementation: str | None = None
    """`sdpa` (Transformers' default where a model has it), `eager`, `flash_attention_2`, ..."""
    channels_last: bool = False
    """Weights of convolutions in the order (H, W, C) in memory: faster for most convolutional networks."""
    freeze: list[str] = field(default_factory=list)
    """Regular expressions; parameters whose name matches one from its start are not trained."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Train an adapter in place of the weights: arguments of `peft.LoraConfig`, or of what its `_target_` names."""
    trust_remote_code: bool = False
    kind: str | None = None
    """`image`, `text` or `causal_lm`: which tasks it fits (`hfexp.choices`), known before it is loaded; null: any."""
    build: dict[str, Any] | None = None
    """`_target_` and arguments of the user's own model function; `task` and `id2label` are passed to it."""


@dataclass
class SplitsConfig:
    """Names that the source gives to its splits; null: the standard name if it is there; `none`: leave it out."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass
class DatasetConfig:
    source: dict[str, Any] = field(default_factory=dict)
    """`_target_` and arguments of a callable that returns a `Dataset` or `DatasetDict`."""
    kind: str | None = None
    """`image` or `text`: which tasks its rows fit; null: any."""
    columns: dict[str, str] = field(default_factory=dict)
    """Standard column name to the dataset's own, e.g. `{image: img, label: fine_label}`."""
    labels: list[str] | None = None
    """Label names in the order of their ids; null: the dataset's own, or sorted."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    validation_size: float = 0.2
    """Share of the training split (or number of rows, if over 1) set aside when the source has no validation split."""
    test_size: float | None = None
    """The same for a test split; null: none is made."""
    split_seed: int = 0
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None
    on_bad_sample: OnBadSample = OnBadSample.error
    streaming: bool = False
    """Read rows anew in every epoch instead of keeping them: for data larger than the disk or the memory.

    Needs `trainer.args.max_steps`. `validation_size` and `test_size` are numbers of rows then, drawn once and kept.
    """
    shuffle_buffer: int = 10_000
    """Of a stream: rows in memory from which the next one is drawn; an image in it is its file, or the path of one.

    Rows further apart than this are not mixed, beyond the order of the source's files. A folder of images is read
    class by class: give at least the number of images, which are paths there and take little room.
    """
    validate_on_train: bool = False
    """Use the training samples for validation too (only for `debug=overfit`)."""


@dataclass
class CacheConfig:
    """What is done with rows once they are prepared; nothing here changes a result."""

    enabled: bool = True
    """Keep them for the next epochs, runs and processes."""
    max_size: str = "20GB"
    """Of everything in `dir`; what was not used for the longest time makes room."""
    dir: str | None = None
    """null: `HFEXP_CACHE`, else `hfexp` in the user's cache directory."""


@dataclass
class TransformConfig:
    """Lists of operations, each a `_target_` node; one that takes `size`, `mean`, `std` gets the processor's."""

    prepare: list[Any] = field(default_factory=list)
    """Deterministic, on every split."""
    augment: list[Any] = field(default_factory=list)
    """Random, on the training split only."""
    evaluate: list[Any] = field(default_factory=list)
    """In place of `augment` on the other splits."""
    batch_augment: list[Any] = field(default_factory=list)
    """Random, on whole training batches (MixUp, CutMix): called with (images, labels)."""
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class TrainerConfig:
    _target_: str = "hfexp.training.Trainer"
    args: dict[str, Any] = field(default_factory=dict)
    """`transformers.TrainingArguments`, by its own names."""
    deterministic: bool = False
    early_stopping_patience: int | None = None
    """Stop after so many evaluations without improvement of `metric_for_best_model`."""
    early_stopping_threshold: float = 0.0
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name to `_target_` node of a `TrainerCallback`."""


@dataclass
class TrackingConfig:
    backend: str = "mlflow"
    """`mlflow` or `none`."""
    uri: str | None = None
    """MLflow tracking URI; null: `MLFLOW_TRACKING_URI`, else `<output_dir>/mlflow.db`."""
    experiment: str | None = None
    """MLflow experiment; null: `MLFLOW_EXPERIMENT_NAME`, else the name of the dataset option."""
    tags: dict[str, str] = field(default_factory=dict)
    checkpoints: Checkpoints = Checkpoints.best
    register: str | None = None
    """Name in MLflow's model registry for the final model (alias `best`); `NAME@best`: only that of a sweep's best."""
    system_metrics_interval: float | None = 10.0
    """Seconds between records of the load of this job's devices; null: none."""


class Strategy(Enum):
    """How a run is spread over processes."""

    single = "single"
    """One process, one device."""
    ddp = "ddp"
    """A copy of the model in each process, gradients averaged (torch's `DistributedDataParallel`)."""


@dataclass
class LaunchConfig:
    """How a run is started; of it, only the number of processes matters to the result (by the size of a batch)."""

    strategy: Strategy = Strategy.single
    num_processes: int | str = 1
    """Training processes on this machine; `auto`: one per visible accelerator."""
    num_threads: int | None = None
    """Threads with which torch computes on the CPU, per process; null: the processors there are for it.

    The last bits of a result depend on it.
    """
    max_restarts: int = 0
    """Of `ddp`: how often all processes start again from the newest checkpoint after one has died."""
    timeout: int = 1800
    """Of `ddp`: seconds that a process waits for the others in one exchange before it gives up."""
    grace_seconds: int = 60
    """Of `ddp`: for the processes to write a checkpoint and end, when the run is stopped."""


@dataclass
class SecurityConfig:
    allowed_targets: list[str] = field(default_factory=list)


@dataclass
class Config:
    """One experiment."""

    task: dict[str, Any] = MISSING
    model: Any = field(default_factory=dict)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    metrics: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    seed: int = 42
    name: str | None = None
    output_dir: str = "outputs"
    on_existing: OnExisting = OnExisting.resume
    point: str | None = None
    """Set by a sweep for each of its jobs (`hfexp.sweep.membership`)."""


SWEEP_KEYS = ("search", "point")
"""What says something of a sweep, and nothing of the run itself."""


def to_config(cfg: Any) -> Config:
    """Turn the composed `DictConfig` into the typed object: resolved, complete, with the model section checked."""
    try:
        learn_secrets(OmegaConf.to_container(cfg, resolve=False))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(f"{missing[0]} has no value: give one with {missing[0]}=...")
        config = OmegaConf.to_object(cfg)
        if not isinstance(config, Config):
            raise TypeError(f"expected the hfexp schema, got {type(config).__name__}")
        config.model = _to_model_config(config.model)
        config.trainer.args = check_args(config.trainer.args)
        values = to_dict(config)
        _refuse_masked(values)
        learn_secrets(values)
    except OmegaConfBaseException as error:  # e.g. an interpolation that leads nowhere
        raise ConfigError(explain_key_error(error)) from error
    return config


def _refuse_masked(values: dict[str, Any]) -> None:
    """Refuse what is recorded in the place of a secret, e.g. in a command that was copied from a record."""
    key = find_masked(values)
    if key is not None:
        raise ConfigError(
            f"{key}: {MASK} stands for a secret, which is not recorded; give it again, e.g. {key}='${{oc.env:NAME}}'"
        )


def _to_model_config(node: Any) -> ModelConfig:
    """Type the model section; `model._target_` is the short form of `model.build`."""
    if not isinstance(node, dict):
        raise ConfigError(f"model must be a mapping, got {node!r}")
    own = set(ModelConfig.__dataclass_fields__) - {"build", "kind"}  # `kind` may be an argument of the user's function
    if "_target_" in node:
        build = {k: v for k, v in node.items() if k not in own}
        node = {k: v for k, v in node.items() if k in own} | {"build": build}
    wrapped = OmegaConf.structured(_ModelRoot())
    try:
        return OmegaConf.to_object(OmegaConf.merge(wrapped, {"model": node})).model  # pyright: ignore
    except OmegaConfBaseException as error:
        raise ConfigError(explain_key_error(error)) from error


@dataclass
class _ModelRoot:
    """Gives `model` its full key in messages."""

    model: ModelConfig = field(default_factory=ModelConfig)


def explain_key_error(error: OmegaConfBaseException) -> str:
    """A misspelt key or a value of the wrong type, with what is allowed there."""
    parent, key, full_key = getattr(error, "parent_node", None), getattr(error, "key", None), error.full_key
    message = str(error.msg).splitlines()[0] if error.msg else str(error)
    if "not in" in message and parent is not None:
        allowed = [k for k in parent if k != "hydra"]
        advice = advise("hydra/sweeper" if str(full_key).startswith("hydra.sweeper.") else str(full_key))
        if advice is not None:
            return f"unknown key {full_key!r}: {way_out(advice, 'in hfexp write')}"
        return f"unknown key {full_key!r}.{did_you_mean(str(key), allowed)} Allowed here: {one_of(allowed)}"
    if "is not a ListConfig" in message:
        message = f"a list is needed: {full_key}=[A,B]"
    return f"{full_key}: {message}" if full_key else message


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON types."""
    return json.loads(json.dumps(asdict(config), default=lambda value: value.value))


def recorded_values(config: Config) -> dict[str, Any]:
    """Give the configuration of a run by itself, without what is a sweep's, and without secrets."""
    return mask_values({key: value for key, value in to_dict(config).items() if key not in SWEEP_KEYS})


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted key; lists of plain values stay whole, others are numbered."""
    if isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
