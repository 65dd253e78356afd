"""Checks that a run's model, dataset and task are chosen and fit together by the kinds that they declare."""

from collections.abc import Mapping

from hfexp.core.config import Config, ModelConfig
from hfexp.core.errors import ConfigError, did_you_mean, join_problems, one_of
from hfexp.core.options import Option, list_options
from hfexp.core.targets import locate
from hfexp.tasks.base import Task

MODELS = {
    "AutoModel": ("text", "causal_lm"),
    "AutoModelForImageClassification": ("image",),
    "AutoModelForSequenceClassification": ("text", "causal_lm"),
    "AutoModelForTokenClassification": ("text", "causal_lm"),
    "AutoModelForMaskedLM": ("text",),
    "AutoModelForMultipleChoice": ("text",),
    "AutoModelForQuestionAnswering": ("text",),
    "AutoModelForCausalLM": ("causal_lm",),
    "AutoModelForSeq2SeqLM": ("seq2seq",),
}
"""Values of `model.kind` that a task can train, by the task's `model_class`."""
ROWS = {"AutoImageProcessor": ("image",), "AutoTokenizer": ("text",)}
"""Values of `dataset.kind` that a task can read, by the task's `processor_class`."""
VERBS = {"image": "reads images", "text": "reads text", "causal_lm": "generates text", "seq2seq": "rewrites text"}
HOLDS = {"image": "holds images", "text": "holds text"}
KINDS = {"model": VERBS, "dataset": HOLDS}


def check_choices(config: Config, choices: Mapping[str, str | None]) -> None:
    """Refuse a run without a model or a dataset, and one whose parts are for different kinds of data.

    Args:
        choices: option chosen in each config group.

    Raises:
        ConfigError: names the options that fit.
    """
    task = locate(str(config.task.get("_target_")), "task._target_", config.security.allowed_targets)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ConfigError(f"task._target_: {config.task.get('_target_')} is not a subclass of {Task.__module__}.Task")
    name = f"task={choices.get('task') or config.task.get('_target_')}"
    fitting = {"model": MODELS.get(task.model_class), "dataset": ROWS.get(task.processor_class)}
    kinds = {"model": config.model.kind, "dataset": config.dataset.kind}
    missing = {"model": config.model == ModelConfig(), "dataset": not config.dataset.source}
    problems, misfits = [], []
    for group, fits in fitting.items():
        if kinds[group] not in (None, *KINDS[group]):
            hint = did_you_mean(str(kinds[group]), KINDS[group])
            problems.append(f"{group}.kind={kinds[group]} is not supported.{hint} Allowed: {one_of(KINDS[group])}")
        elif missing[group]:
            problems.append(f"no {group} is chosen for {name}: set {group}=NAME. {_options(group, fits)}")
        elif fits and kinds[group] not in (None, *fits):
            misfits.append(group)
    if misfits:
        problems.append(_misfit(misfits, name, choices, kinds, fitting))
    if problems:
        raise ConfigError(join_problems(problems))


def _misfit(
    groups: list[str],
    task: str,
    choices: Mapping[str, str | None],
    kinds: Mapping[str, str | None],
    fitting: Mapping[str, tuple[str, ...] | None],
) -> str:
    """Describe what does not fit, and what would: other options of the group, or another task."""
    parts = [f"{group}={choices.get(group) or '(your own)'} {KINDS[group][str(kinds[group])]}" for group in groups]
    verb = VERBS[next(fits[0] for fits in fitting.values() if fits)]
    others = f" {_options(groups[0], fitting[groups[0]])}" if len(groups) == 1 else ""
    tasks = set.intersection(*(_tasks(group, kinds[group]) for group in groups))
    return f"{' and '.join(parts)}, but {task} {verb}.{others} Tasks that fit: {one_of(tasks) or 'none'}"


def _options(group: str, fits: tuple[str, ...] | None) -> str:
    return f"Options that fit: {one_of(_suitable(group, fits))}."


def _suitable(group: str, fits: tuple[str, ...] | None) -> list[str]:
    """Return the options of a group that are of one of these kinds, or whose kind is not known; None: all options."""
    return [option.name for option in list_options(group) if option.kind is None or not fits or option.kind in fits]


def _tasks(group: str, kind: str | None) -> set[str]:
    """Return the options of `task` that can use a model or dataset of this kind."""
    return {task.name for task in list_options("task") if kind in (_fits(group, task) or ())}


def fitting_options(group: str, task: Option) -> list[str]:
    """Return the options of `model` or `dataset` that a task can use."""
    return _suitable(group, _fits(group, task))


def task_class(option: Option) -> type[Task] | None:
    """Return the class of a task; None for an option that inherits it, or whose class is the user's own code."""
    try:
        return locate(str(option.content.get("_target_")), "task._target_")
    except ConfigError:
        return None


def _fits(group: str, option: Option) -> tuple[str, ...] | None:
    """Return the kinds of models or datasets that a task can use; None for any, or if its class can't be told."""
    task = task_class(option)
    if task is None:
        return None
    return MODELS.get(task.model_class) if group == "model" else ROWS.get(task.processor_class)
