"""The recipes of the `trainer` section: whether they suit the task and each other, and their way to the Trainer."""

from typing import Any

from hfexp.core.config import Config
from hfexp.core.errors import ConfigError
from hfexp.tasks.base import CLASS, CLASSES, NUMBER, Task
from hfexp.training.model import frozen_parameters, normalises_over_rows
from hfexp.training.rates import check_rates, rate_factors
from hfexp.training.soup import check_soup

AUTO_BATCH = "trainer.auto_batch=true"
NO_PARTS = (
    "so that fewer rows at once would train something else; lower trainer.args.per_device_train_batch_size, or try "
    "trainer.args.activation_checkpointing=true"
)


def check_recipes(config: Config, task: Task) -> list[str]:
    """Check the values of the recipes, and that they suit the task, the data and each other."""
    recipe = config.trainer
    problems = check_rates(recipe.lr_factors, recipe.layer_decay) + _check_thawing(config) + check_soup(config)
    decay = recipe.ema.decay
    if decay is not None and not 0 < decay < 1:
        problems.append(f"trainer.ema.decay={decay} must be between 0 and 1, e.g. 0.999")
    if recipe.r_drop is not None and not 0 <= recipe.r_drop < float("inf"):
        problems.append(f"trainer.r_drop={recipe.r_drop} must be at least 0, and finite")
    if recipe.r_drop and (task.has_own_loss or task.label_kind in (CLASSES, NUMBER)):
        problems.append(f"trainer.r_drop is for tasks with one class per row or token, not for {type(task).__name__}")
    if recipe.auto_batch and task.compares_rows:
        problems.append(f"{AUTO_BATCH}: {type(task).__name__} compares the rows of a batch, {NO_PARTS}")
    return problems + (_check_balance(config, task) if recipe.balanced_sampling else [])


def _check_thawing(config: Config) -> list[str]:
    """Check `trainer.thaw_at`, a number of epochs."""
    at, args = config.trainer.thaw_at, config.trainer.args
    if at is None:
        return []
    key = f"trainer.thaw_at={at:g}"
    if not config.model.freeze:
        return [f"{key}: nothing is frozen; set model.freeze to what is to be trained from then on"]
    if config.dataset.streaming:
        return [f"{key} counts epochs, which a stream does not have"]
    epochs = float(args.get("num_train_epochs", 3))  # the default of TrainingArguments
    if at <= 0 or (at >= epochs and args.get("max_steps", -1) <= 0):
        return [f"{key} must be above 0 and below trainer.args.num_train_epochs={epochs:g}"]
    return []


def _check_balance(config: Config, task: Task) -> list[str]:
    """Check that `trainer.balanced_sampling` can draw the rows."""
    key, strategy = "trainer.balanced_sampling", config.trainer.args.get("train_sampling_strategy", "random")
    if task.label_column is None or task.label_kind != CLASS:
        return [f"{key} is for tasks with one class per row, not for {type(task).__name__}"]
    if config.dataset.streaming:
        return [f"{key} can't draw the rows of a stream; set dataset.streaming=false"]
    if strategy != "random":
        return [f"{key} and trainer.args.train_sampling_strategy={strategy} both choose the rows: remove one of them"]
    return []


def notes(config: Config) -> list[str]:
    """Return what to tell the user about the recipes."""
    found, at = [], config.trainer.thaw_at
    if at is not None:
        found.append(f"the frozen parameters ({', '.join(config.model.freeze)}) are trained after {at:g} epochs")
    smoothing = config.trainer.args.get("label_smoothing_factor")
    if config.trainer.r_drop and smoothing:
        found.append(
            f"trainer.r_drop={config.trainer.r_drop:g} and label_smoothing_factor={smoothing:g} are both in effect; "
            "each keeps the model from being too sure, so one of them may be enough"
        )
    return found


def check_model(config: Config, model: Any) -> None:
    """Raise ConfigError if the recipes do not fit a model: the names of its parameters, or its layers."""
    rate_factors(model, config.trainer.lr_factors, config.trainer.layer_decay)
    if config.trainer.auto_batch and normalises_over_rows(model):
        raise ConfigError(f"{AUTO_BATCH}: the model's batch normalisation looks at all rows of a batch, {NO_PARTS}")


def use_recipes(trainer: Any, config: Config) -> None:
    """Give the recipes of the config to a `hfexp.training.trainer.Trainer`."""
    recipe = config.trainer
    trainer.ema_decay, trainer.ema_warmup = recipe.ema.decay, recipe.ema.warmup
    trainer.lr_factors, trainer.layer_decay = recipe.lr_factors, recipe.layer_decay
    check_model(config, trainer.model)  # one that was not checked before it was built
    trainer.auto_batch = recipe.auto_batch
    trainer.r_drop, trainer.balanced_sampling = recipe.r_drop or 0.0, recipe.balanced_sampling
    trainer.soup = recipe.soup or 0
    if recipe.thaw_at is not None:
        trainer.thaw_at, trainer.frozen = recipe.thaw_at, frozen_parameters(trainer.model, config.model.freeze)
