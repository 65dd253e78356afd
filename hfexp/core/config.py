"""The typed config: the schema of hfexp's own keys.

Free-form sections (`task`, `metrics`, `dataset.source`, the lists of `transform`, `trainer.args`, ...) are
dictionaries: their schema is the signature of what they build, and they are checked when it is built.
"""

import functools
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.core.errors import ConfigError, unknown_key
from hfexp.core.secrets import MASK, find_masked, learn_secrets, mask_values
from hfexp.core.training_args import OWNED, REFUSED, RENAMED, SHORT, ZERO, check_args, training_argument_types, way_out

# Keys and options that users know from scripts, templates and other tools, and what hfexp takes instead.


ARGS = "trainer.args."
AUTOMATIC_DEVICE = "nothing: an accelerator is used when there is one; trainer.args.use_cpu=true selects the CPU"
CONTINUES = "nothing: the same command continues the run; on_existing=rerun starts it anew"
MODEL, DATA = "model.path=OWNER/NAME (on the Hub) or model=NAME", "dataset=NAME dataset.source.KEY=..."
HABITS = {
    "accelerator": AUTOMATIC_DEVICE,
    "ckpt_path": CONTINUES,
    "data": DATA,
    "data_dir": "dataset=imagefolder dataset.source.data_dir=DIR",
    "data_files": "dataset=table dataset.source.data_files=FILE",
    "dataset_config_name": "dataset.source.name=NAME",
    "dataset_name": "dataset=hub dataset.source.path=OWNER/NAME",
    "datamodule": DATA,
    "deepspeed": ZERO,
    "device": AUTOMATIC_DEVICE,
    "devices": "launch=ddp launch.num_processes=N",
    "gpus": "launch=ddp launch.num_processes=N",
    "early_stopping": "trainer.early_stopping_patience=N",
    "experiment_name": "tracking.experiment=NAME",
    "hparams_search": "hfexp -m search=tpe search.trials=N and a range for each key, e.g. "
    "'trainer.args.learning_rate=interval(1e-5,1e-3)'",
    "logger": "tracking=mlflow or tracking=none; tracking.also=[wandb] for another one as well",
    "max_length": "transform.prepare (conf/transform/tokenize.yaml), which truncates texts",
    "max_seq_length": "transform.prepare (conf/transform/tokenize.yaml), which truncates texts",
    "max_time": "launch.time_limit=11h50m",
    "model_name": MODEL,
    "model_name_or_path": MODEL,
    "n_trials": "search.trials=N",
    "optimizer": "trainer.args.optim=NAME",
    "optimized_metric": "search.metrics=[NAME]",
    "paths": "output_dir=DIR",
    "precision": "trainer.args.bf16=true, or nothing for float32",
    "pretrained_model_name_or_path": MODEL,
    "project": "tracking.experiment=NAME",
    "project_name": "tracking.experiment=NAME",
    "report_to": "tracking.also=[NAME], with tensorboard, trackio or wandb; MLflow has every run",
    "resume": CONTINUES,
    "resume_from_checkpoint": CONTINUES,
    "scheduler": "trainer.args.lr_scheduler_type=NAME",
    "strategy": "launch=ddp",
    "train_file": "dataset=table dataset.source.data_files=FILE",
    "launch=deepspeed": ZERO,
    "trainer=cpu": "trainer.args.use_cpu=true",
    "trainer=ddp": "launch=ddp",
    "trainer=deepspeed": ZERO,
    "trainer=fsdp": "launch=fsdp",
    "trainer=gpu": "nothing: an accelerator is used when there is one",
    "validation_file": "dataset=table 'dataset.source.data_files={train: FILE, validation: FILE}'",
    "tensorboard": "tracking.also=[tensorboard]",
    "wandb": "tracking.also=[wandb]",
    "hydra/sweeper": "search=tpe search.trials=N (hfexp has its own sweeper: random, tpe, gp, cmaes, nsga2, grid)",
}
"""Advice by `key=value`, by key, or by the last part of a key."""


# The `search` section: settings of a sweep (`-m`). None of them changes the result of a single run.


class Method(Enum):
    """Method that chooses the points of a sweep."""

    grid = "grid"
    """All combinations of the given values."""
    random = "random"
    """Independent draws."""
    tpe = "tpe"
    """Tree-structured Parzen estimator."""
    gp = "gp"
    """Gaussian process."""
    cmaes = "cmaes"
    """CMA-ES."""
    nsga2 = "nsga2"
    """NSGA-II, for several metrics."""


class Pruner(Enum):
    """Optuna's pruner, which ends unpromising trials early."""

    none = "none"
    """No trial ends early."""
    median = "median"
    """A trial below the median of the others at the same step ends."""
    asha = "asha"
    """Asynchronous successive halving."""
    hyperband = "hyperband"
    """Hyperband."""
    wilcoxon = "wilcoxon"
    """Compares replicates instead of evaluations, and skips the remaining seeds of an unpromising point."""


class Optimise(Enum):
    """What the search optimises if a point has several replicates."""

    mean = "mean"
    """Their mean."""
    bound = "bound"
    """The worse end of the mean's 95 % interval."""


@dataclass
class SearchConfig:
    """Settings of a sweep: its search space, sampler and pruner, and its numbers of points, runs and retries."""

    method: Method = Method.grid
    trials: int | None = None
    """Number of points, over all starts of the sweep. Samplers need it; a grid without it has all combinations."""
    name: str | None = None
    """Name under which the same command continues the sweep; null: the method and a hash of the definition."""
    seed: int = 0
    """Seed of the sampler and of `shuffle(...)`."""
    space: dict[str, Any] = field(default_factory=dict)
    """Values by key, as on the command line: `interval(1, 3)`, `choice(a, b)`, `tag(log, ...)`.

    A mapping `{values: ..., when: {key: value}}` searches a key only under some values of another. The `_target_` of a
    function of your own is also possible.
    """
    metrics: list[str] = field(default_factory=list)
    """Names of the run's metrics to optimise; empty: the metric that chooses the best model."""
    directions: list[str] = field(default_factory=list)
    """`minimize` or `maximize` for each of `metrics`; empty: as the name of the metric implies."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's sampler."""
    pruner: Pruner = Pruner.none
    pruner_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's pruner."""
    replicates: int = 1
    """Runs per point, with consecutive seeds from `seed` on; `optimise` turns their values into one."""
    optimise: Optimise = Optimise.mean
    retries: int = 1
    """Number of times that a failed point is tried again, once per further start of the sweep."""
    max_failures: int | None = None
    """Start no further job once this many points have failed; null: no limit."""
    storage: str | None = None
    """SQLAlchemy URL of the study's database, which machines can share; null: a file in the sweep's directory."""


class OnExisting(Enum):
    """What happens if this experiment has been started before."""

    resume = "resume"
    """An unfinished run continues; after a finished one, a new run starts."""
    rerun = "rerun"
    """A new run starts."""
    error = "error"
    """Nothing starts."""


class OnBadSample(Enum):
    """What happens to a row that can't be read."""

    error = "error"
    """The run stops and names the row."""
    skip = "skip"
    """The row is left out and counted."""


class Checkpoints(Enum):
    """Models that MLflow stores; the run's directory has those that the Trainer keeps."""

    none = "none"
    """No model."""
    best = "best"
    """The final model (the best one with `load_best_model_at_end`); checkpoints are linked, not copied."""
    all = "all"
    """The final model and every checkpoint."""


@dataclass
class ModelConfig:
    """A pretrained model (`path`), a new one (`model_type`, `config`), or your own (`_target_`)."""

    path: str | None = None
    """Hub id, local directory, `run:NAME` (a run's model), or `pkg://package/directory` of an installed package."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub; null: the main branch."""
    model_type: str | None = None
    """Architecture to build without pretrained weights, as in `AutoConfig.for_model`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields to set in the model's own config."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Fields to set in the processor, e.g. `size`, `image_mean`, `image_std`."""
    dtype: str = "float32"
    """Dtype of the weights in training; `auto` takes that of the checkpoint."""
    attn_implementation: str | None = None
    """`sdpa` (Transformers' default where a model has it), `eager`, `flash_attention_2`, ..."""
    channels_last: bool = False
    """Keep the weights of convolutions in the order (H, W, C), which is faster for most convolutional networks."""
    freeze: list[str] = field(default_factory=list)
    """Regular expressions: a parameter is frozen if one of them matches the beginning of its name."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Train an adapter instead of the weights: arguments of `peft.LoraConfig`, or of the class in `_target_`."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """Quantise the pretrained weights below an adapter: fields of a Transformers config, e.g. `load_in_4bit: true`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only an override may set it, no config file."""
    kind: str | None = None
    """`image`, `text`, `causal_lm` or `seq2seq`: the tasks that the model fits; null: any."""
    build: dict[str, Any] | None = None
    """`_target_` and arguments of a function of your own that builds the model; it also gets `task` and `id2label`."""


@dataclass
class SplitsConfig:
    """The source's names for the splits; null: the standard name if it exists; `none`: leave the split out."""

    train: str | None = None
    """Name of the training split."""
    validation: str | None = None
    """Name of the validation split, which chooses the best model."""
    test: str | None = None
    """Name of the test split, which only the saved model is evaluated on."""


@dataclass
class DatasetConfig:
    """The rows to train and evaluate on: where they come from, their columns, labels and splits."""

    source: dict[str, Any] = field(default_factory=dict)
    """`_target_` and arguments of a callable that returns a `Dataset` or `DatasetDict`."""
    kind: str | None = None
    """`image` or `text`: what the rows hold; null: anything."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Maps standard column names to the dataset's own, e.g. `{image: img, label: fine_label}`.

    A column is made of several by a list of their names, or by a mapping of names.
    """
    labels: list[str] | None = None
    """Label names in the order of their ids; null: the dataset's own names, or else the sorted labels."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    validation_size: float = 0.2
    """Share of the training rows (1 or more: their number) to validate on if the source has no validation split."""
    test_size: float | None = None
    """Share of the training rows (1 or more: their number) to test on if the source has no test split; null: none."""
    split_seed: int = 0
    """Seed by which rows are drawn for `validation_size` and `test_size`."""
    max_train_samples: int | None = None
    """Train on this many rows only; null: all."""
    max_validation_samples: int | None = None
    """Validate on this many rows only; null: all."""
    max_test_samples: int | None = None
    """Test on this many rows only; null: all."""
    on_bad_sample: OnBadSample = OnBadSample.error
    streaming: bool = False
    """Read rows anew in every epoch instead of keeping them: for data larger than the disk or the memory.

    It needs `trainer.args.max_steps`. `validation_size` and `test_size` are then numbers of rows, drawn once and kept.
    """
    shuffle_buffer: int = 10_000
    """Rows of a stream in memory from which the next one is drawn; an image in it is its file, or the path of one.

    Rows further apart than this are not mixed, except by the order of the source's files. A folder of images is read
    class by class: set at least the number of images, which are paths there and take little memory.
    """
    validate_on_train: bool = False
    """Validate on the training samples (only for `debug=overfit`)."""


@dataclass
class CacheConfig:
    """The cache of prepared rows; none of its settings changes a result."""

    enabled: bool = True
    """Keep prepared rows for later epochs, runs and processes."""
    max_size: str = "20GB"
    """Size limit for everything in `dir`; the least recently used entries make room."""
    dir: str | None = None
    """The cache directory; null: `HFEXP_CACHE`, else `hfexp` in the user's cache directory."""


@dataclass
class TransformConfig:
    """Lists of operations, each a `_target_` node; one that takes `size`, `mean` or `std` gets the processor's."""

    prepare: list[Any] = field(default_factory=list)
    """Deterministic operations on every split."""
    augment: list[Any] = field(default_factory=list)
    """Random operations on the training split only."""
    evaluate: list[Any] = field(default_factory=list)
    """Operations on the other splits, in place of `augment`."""
    batch_augment: list[Any] = field(default_factory=list)
    """Random operations on whole training batches (MixUp, CutMix), called with (images, labels)."""
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class EmaConfig:
    """The exponential moving average of the weights, which is evaluated and saved in their place."""

    decay: float | None = None
    """Share of the average that each step keeps, e.g. 0.999; null: no average."""
    warmup: bool = True
    """Begin with a smaller share, 1 - step^(-2/3), so that the first weights are soon forgotten."""


@dataclass
class TrainerConfig:
    """The training: the Trainer, its arguments, early stopping and callbacks."""

    _target_: str = "hfexp.training.trainer.Trainer"
    """The Trainer's class: `hfexp.training.trainer.Trainer` or a subclass of it."""
    args: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.TrainingArguments`, under their own names."""
    deterministic: bool = False
    """Use deterministic algorithms only, as `transformers.set_seed(deterministic=True)` does: slower on a GPU."""
    early_stopping_patience: int | None = None
    """Number of evaluations without improvement of `metric_for_best_model` after which training stops; null: never."""
    early_stopping_threshold: float = 0.0
    """Smallest difference that counts as an improvement."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Loss in place of the model's own: the `_target_` of a function of logits and labels, and its arguments."""
    class_weights: Any = None
    """Weights of the classes in the loss: `balanced`, or numbers by name, e.g. `{cat: 2}`; null: all count alike."""
    balanced_sampling: bool = False
    """Draw the rows of each epoch such that all classes occur equally often."""
    r_drop: float | None = None
    """Weight of the difference between the answers of two passes with other dropout (R-Drop), e.g. 1; null: 0."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    soup: int | None = None
    """Average the weights of so many last checkpoints, and take the average if it is better; null: no average."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate by regular expression that matches the beginning of a name: `{classifier: 10}`."""
    layer_decay: float | None = None
    """Learning rate of a layer as a share of that of the layer above, e.g. 0.75; null: the same in all layers."""
    thaw_at: float | None = None
    """Epochs after which what `model.freeze` names is trained as well; null: never."""
    auto_batch: bool = False
    """After an out-of-memory error, pass half as many rows at once through the model; the batch stays what it is."""
    options: dict[str, Any] = field(default_factory=dict)
    """Values for the attributes that a Trainer of your own declares, by name."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Callbacks of your own by name, each the `_target_` of a `transformers.TrainerCallback` and its arguments."""


@dataclass
class TrackingConfig:
    """Where and what a run records."""

    backend: str = "mlflow"
    """`mlflow` or `none`."""
    uri: str | None = None
    """MLflow tracking URI; null: `MLFLOW_TRACKING_URI`, else `<output_dir>/mlflow.db`."""
    experiment: str | None = None
    """MLflow experiment; null: `MLFLOW_EXPERIMENT_NAME`, else the name of the data."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the MLflow run, by name."""
    also: list[str] = field(default_factory=list)
    """Other trackers that get the params and metrics too: `tensorboard`, `trackio`, `wandb`."""
    checkpoints: Checkpoints = Checkpoints.best
    register: str | None = None
    """Name in MLflow's model registry for the final model (alias `best`); `NAME@best`: only for a sweep's best run."""
    pictures: bool | None = None
    """Draw the pictures of the report, which takes a second or two; null: except in jobs of a sweep, which draws
    those of its best run at its end. `hfexp report RUN` draws them later."""
    system_metrics_interval: float | None = 10.0
    """Seconds between records of the load of this job's devices; null: no records."""


class Strategy(Enum):
    """Distribution of a run over processes."""

    single = "single"
    """One process, one device."""
    ddp = "ddp"
    """A copy of the model in each process, gradients averaged (torch's `DistributedDataParallel`)."""
    fsdp = "fsdp"
    """A part of the model in each process (torch's `fully_shard`, FSDP2)."""


@dataclass
class LaunchConfig:
    """The processes of a run; only their number (by the batch size) and the number of threads affect its result."""

    strategy: Strategy = Strategy.single
    num_processes: int | str = 1
    """Training processes on this machine; `auto`: one per visible accelerator."""
    num_machines: int = 1
    """With several processes: machines that train together, on each of which the same command is started."""
    rdzv_endpoint: str | None = None
    """With several machines: HOST:PORT, an address of the first machine that all can reach, and a free port of it."""
    num_threads: int | None = None
    """Threads per process with which torch computes on the CPU; null: as many as it has processors.

    The last bits of a result depend on this number.
    """
    max_restarts: int = 0
    """With several processes: times that all restart from the newest checkpoint after one has died."""
    timeout: int = 1800
    """With several processes: seconds that one waits for the others in an exchange, and a machine for the others."""
    grace_seconds: int = 60
    """With several processes: seconds that they have to write a checkpoint and end when the run is stopped."""
    fsdp: dict[str, Any] = field(default_factory=dict)
    """With `fsdp`: keys of Transformers' `fsdp_config` (`hfexp.training.sharding.SETTINGS`)."""
    parallelism: dict[str, Any] = field(default_factory=dict)
    """With `fsdp`: `dp_shard_size` and `dp_replicate_size` of Accelerate's `ParallelismConfig`."""
    time_limit: str | None = None
    """Time since the command's start (`11h50m`, `1-12:00:00`) after which the run stops with a checkpoint."""


@dataclass
class SecurityConfig:
    """What a config may run."""

    allowed_targets: list[str] = field(default_factory=list)
    """Packages that `_target_` may name, besides the known ones and your own project; only an override sets this."""


@dataclass
class Config:
    """The config of one experiment."""

    task: dict[str, Any] = MISSING
    """The kind of problem: the `_target_` of a task and its arguments; `hfexp list tasks` lists them."""
    model: Any = field(default_factory=dict)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name, each a `_target_` and its arguments; `metrics.NAME=null` leaves one out."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    seed: int = 42
    """Seed of new weights, the order of rows, dropout and augmentation."""
    name: str | None = None
    """Name of the run; null: `<model>-<dataset>`."""
    output_dir: str = "outputs"
    """Directory for everything that runs write; a relative one starts from the current directory."""
    on_existing: OnExisting = OnExisting.resume
    point: str | None = None
    """Address of a job in its sweep, which sets it (`hfexp.tracking.membership`)."""

    @property
    def decodes_while_training(self) -> bool:
        """True if rows are decoded during the training: those of a stream, and all rows if none are prepared."""
        return self.dataset.streaming or not self.transform.cache.enabled


SWEEP_KEYS = ("search", "point")
"""Keys that describe a sweep and not the run itself."""


def to_config(cfg: Any) -> Config:
    """Turn the composed `DictConfig` into a typed `Config`, resolved and checked (model section, `trainer.args`)."""
    try:
        learn_secrets(OmegaConf.to_container(cfg, resolve=False))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(f"{missing[0]} has no value: set it with {missing[0]}=...")
        config = OmegaConf.to_object(cfg)
        if not isinstance(config, Config):
            raise TypeError(f"expected the hfexp schema, got {type(config).__name__}")
        config.model = _to_model_config(config.model)
        config.trainer.args = check_args(config.trainer.args)
        values = to_dict(config)
        _refuse_masked(values)
        learn_secrets(values)
    except OmegaConfBaseException as error:  # e.g. an interpolation of a missing key
        raise ConfigError(explain_key_error(error)) from error
    return config


def _refuse_masked(values: dict[str, Any]) -> None:
    """Refuse the mask that a record shows in place of a secret, e.g. in a command copied from there."""
    key = find_masked(values)
    if key is not None:
        raise ConfigError(
            f"{key}: {MASK} stands for a secret, which is not recorded; set it again, e.g. {key}='${{oc.env:NAME}}'"
        )


def _to_model_config(node: Any) -> ModelConfig:
    """Type and check the model section; `model._target_` is the short form of `model.build`."""
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
    """A root for the model section, so that error messages show its full keys."""

    model: ModelConfig = field(default_factory=ModelConfig)


def explain_key_error(error: OmegaConfBaseException) -> str:
    """Describe a misspelt key or a value of the wrong type, with what is allowed there."""
    parent, full_key = getattr(error, "parent_node", None), error.full_key
    message = str(error.msg).splitlines()[0] if error.msg else str(error)
    if "not in" in message and parent is not None:
        allowed = [k for k in parent if k != "hydra"]
        advice = advise("hydra/sweeper" if str(full_key).startswith("hydra.sweeper.") else str(full_key))
        if advice is not None:
            return f"unknown key {full_key!r}: {way_out(advice, 'in hfexp, use')}"
        return unknown_key(str(full_key), allowed)
    if "is not a ListConfig" in message:
        message = f"expected a list, e.g. {full_key}=[A,B]"
    return f"{full_key}: {message}" if full_key else message


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain JSON types."""
    return json.loads(json.dumps(asdict(config), default=lambda value: value.value))


def recorded_values(config: Config) -> dict[str, Any]:
    """Return the config of a run for its record, without the keys of a sweep and with secrets masked."""
    return mask_values({key: value for key, value in to_dict(config).items() if key not in SWEEP_KEYS})


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to leaves by dotted key; lists of plain values stay whole, others are numbered."""
    if isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def advise(key: str, value: str = "...") -> str | None:
    """Return what to write in place of a key that does not exist; None if that is not known.

    Args:
        key: the key as the user typed it, perhaps with a section before it (`optimizer.lr`).
    """
    name = key.rpartition(".")[2]
    for known in (f"{key}={value}", key, name):
        if known in HABITS:
            return HABITS[known]
    full_keys = _full_keys().get(name, [])
    if name in full_keys or len(full_keys) == 1:
        return f"{name if name in full_keys else full_keys[0]}={value}"
    name = SHORT.get(name, name)
    if name in {**OWNED, **REFUSED}:
        return {**OWNED, **REFUSED}[name]
    if name in training_argument_types():
        return f"{ARGS}{name}={value}"
    return RENAMED.get(name)


@functools.cache
def _full_keys() -> Mapping[str, list[str]]:
    """Map the last part of each key of the schema to the full keys."""
    full_keys: dict[str, list[str]] = {}

    def walk(schema: Any, prefix: str) -> None:
        types = typing.get_type_hints(schema)
        for entry in fields(schema):
            inner = ModelConfig if entry.name == "model" else types[entry.name]
            full_keys.setdefault(entry.name, []).append(f"{prefix}{entry.name}")
            if is_dataclass(inner):
                walk(inner, f"{prefix}{entry.name}.")

    walk(Config, "")
    return full_keys


# Names of files and folders that denote a split.


SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that denote each split."""
SPLIT_ENDINGS = ("", "set", "split", "data", "images")
"""Endings that such a word may have, as in `trainset`."""
_SPLITS = {word + end: split for split, words in SPLIT_WORDS.items() for word in words for end in SPLIT_ENDINGS}


def split_called(name: str) -> str | None:
    """Return the split that a whole name denotes, or None; case, spaces, `-` and `_` do not count."""
    return _SPLITS.get(re.sub(r"[\s_-]+", "", name.lower()))
