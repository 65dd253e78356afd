"""The command `hfexp help`: the commands on one screen, a key, a task, or all keys that contain a word."""

import shutil
import textwrap
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from hfexp.core.console import say
from hfexp.core.errors import ConfigError, did_you_mean
from hfexp.core.secrets import learn_secrets, mask_secrets, mask_values

if TYPE_CHECKING:
    from hfexp.commands.howto import HowTo
    from hfexp.core.keys import Key
    from hfexp.core.options import Option
    from hfexp.tasks.base import Task

SCREEN = """\
hfexp: the shell command is the experiment.

  hfexp                               train on handwritten digits (offline, a minute)
  hfexp dataset=imagefolder dataset.source.data_dir=photos model=vit_tiny
  hfexp trainer.args.learning_rate=3e-4 seed=1    change any setting
  hfexp -m seed=1,2,3                 one run per value
  hfexp launch=ddp                    one process per GPU

Commands
  [train] [GROUP=OPTION ...] [KEY=VALUE ...]    train; with -m, run a sweep
  plan -m ...                         list the jobs of a sweep, estimate their time
  submit ...                          send a run to SLURM, and return at once
  status                              list the jobs of SLURM with their last metric
  show data|model ...                 look at the data or the model before training
  init NAME                           write a project of your own, which runs at once
  rerun RUN [KEY=VALUE ...]           repeat a recorded run or sweep, with changes
  predict run=RUN INPUT ...           predict with a trained model
  evaluate run=RUN ...                score a trained model, on other data too
  runs                                list the recorded runs
  compare [RUN RUN]                   compare runs
  report RUN                          draw a run's report, with all pictures
  note RUN TEXT                       write a note that MLflow shows with a run
  tag RUN KEY=VALUE ...               set tags of a run
  remove RUN ...                      delete runs and sweeps, also in MLflow
  clean [KIND ...]                    free space: optimizer states, debug runs
  ui                                  open MLflow on the recorded runs
  sync                                deliver records that a server did not accept
  cache [clear]                       list or delete prepared data
  list [GROUP] [WORD]                 list models, datasets, tasks, ...
  help [KEY | TASK | COMMAND | WORD]  explain one of them
  schema [DIR]                        write JSON Schemas: editors check YAML by them
  completion bash|zsh|fish            complete keys, values and runs in your shell
  version                             print the version

Find out more
  hfexp list models                   the models; also datasets, tasks, searches, ...
  hfexp help text_classification      a task: columns, models, the smallest command
  hfexp help learning_rate            a key: type, default, allowed values, meaning
  hfexp help free disk space          how to do something
  hfexp --cfg job ...                 print the config that a command composes

Flags
  -m, --multirun                      run a sweep: a grid, or a search (search=tpe)
  --config-dir DIR                    add a directory with options of your own
  --hydra-help                        Hydra's other flags"""
WIDEST = 100
"""Columns that text takes at most; longer lines are hard to read."""
MOST = 40
"""Keys that are listed for a word."""


def main(args: list[str], commands: Mapping[str, Callable[[list[str]], int]]) -> int:
    """Explain a command, a task, a key or a word; without one, print the screen of all commands.

    Args:
        args: the topic, and overrides that choose the config in which a key's value is looked up.
        commands: hfexp's commands by name.

    Raises:
        ConfigError: nothing has this name or contains this word.
    """
    if not args or args[0] in ("train", "help", "--help", "-h"):
        say(SCREEN)
        return 0
    if args[0] in commands:
        return commands[args[0]](["--help"])
    from hfexp.core.compose import own_directories, own_options_first, split_config_dir
    from hfexp.core.options import find_option

    args, config_dir = split_config_dir(args)
    flag = next((arg for arg in args if arg.startswith("-")), None)
    if flag is not None:
        raise ConfigError(f"hfexp help takes no flag {flag}: hfexp help [KEY | TASK | COMMAND | WORD] [KEY=VALUE ...]")
    if not args:
        say(SCREEN)
        return 0
    topic = args[0] if "=" in args[0] else " ".join(arg for arg in args if "=" not in arg)
    overrides = [arg for arg in args[1:] if "=" in arg]
    with own_options_first(*own_directories(config_dir)):
        task = find_option("task", topic)
        if task is not None:
            _explain_task(task)
            return 0
    _explain_word(topic.partition("=")[0].lstrip("+"), overrides, config_dir)
    return 0


def _width() -> int:
    """Return the columns that text may take: those of the terminal, if there is one."""
    return min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns)


def _explain_word(topic: str, overrides: list[str], config_dir: str | None) -> None:
    """Explain the key of this name; for other words, print what says how to do it, and the keys that they match."""
    from hfexp.commands import howto
    from hfexp.core.config import HABITS
    from hfexp.core.keys import keys

    answers = [] if topic in keys() else howto.find(topic)
    are_titled = any(answer.count(topic)[0] for answer in answers)
    if are_titled:
        _show_answers(answers)
    try:
        _explain_key(topic, overrides, config_dir)
    except ConfigError:
        if not answers or (topic in HABITS and not are_titled):
            raise
        if not are_titled:
            _show_answers(answers)


def _show_answers(answers: "list[HowTo]") -> None:
    if len(answers) == 1:
        answers[0].show(_width())
    else:
        say("\n".join(f"hfexp help {answer.title[0].lower()}{answer.title[1:]}" for answer in answers) + "\n")


def _explain_task(task: "Option") -> None:
    from hfexp.core.options import find_option
    from hfexp.experiment.choices import fitting_options, task_class

    say(f"task={task.name}: {task.text}")
    for paragraph in task.paragraphs[1:]:
        say(f"\n{paragraph}")
    say()
    _show_columns(task_class(task))
    _pair("Models", ", ".join(fitting_options("model", task)))
    _pair("Datasets", ", ".join(fitting_options("dataset", task)))
    metrics = next((option for option in task.chosen() if option.group == "metrics"), None)
    metrics = metrics or find_option("metrics", "classification")
    chosen = task.content.get("metric") or getattr(task_class(task), "metric", None)
    best = f"; {chosen} chooses the best model" if chosen else ""
    _pair("Metrics", f"{', '.join(metrics.content)} (metrics={metrics.name}){best}" if metrics else "")
    for name, value in task.content.items():
        if name not in ("_target_", "defaults"):
            _pair(f"task.{name}", f"{task.comment(name)} Default: {_yaml(value)}.")


def _show_columns(task: "type[Task] | None") -> None:
    """Print the other names by which columns are found."""
    names = (*task.columns, *task.optional_columns) if task is not None else ()
    usual = {name: task.usual_names[name] for name in names if task and name in task.usual_names}
    if not usual:
        return
    _pair("Other names of these columns", "these are found; dataset.columns.NAME=COLUMN names any other one")
    for name, others in usual.items():
        _pair(f"    {name}", ", ".join(str(other).replace("'", "") for other in others))
    say()


def _explain_key(name: str, overrides: list[str], config_dir: str | None) -> None:
    """Print all about the key of this name, or one line for each key that the name or word matches."""
    from hfexp.core.keys import keys
    from hfexp.core.options import GROUPS

    matches = _matches(name, keys())
    if len(matches) == 1:
        _show_key(matches[0], overrides, config_dir)
        return
    if matches[0].name == name:
        say(f"{name}: {matches.pop(0).text}")
        say(f"Options: hfexp list {name}\n" if name in GROUPS else "")
    width = max(len(key.name) for key in matches[:MOST])
    for key in matches[:MOST]:
        first = " ".join(key.text.split("\n\n")[0].split())
        say(f"{key.name:{width}}  {textwrap.shorten(first, max(20, _width() - width - 2), placeholder=' ...')}")
    if len(matches) > MOST:
        say(f"({len(matches) - MOST} more keys contain {name!r}: use a longer word)")


def _matches(name: str, keys: Mapping[str, "Key"]) -> list["Key"]:
    """Find keys: the one of this name with those below it; those that end in it; or those that have most of the words.

    Raises:
        ConfigError: there are none, or the name belongs to another tool; the message says what to use instead.
    """
    from hfexp.core.config import HABITS
    from hfexp.core.options import GROUPS
    from hfexp.core.training_args import RENAMED, SHORT, way_out

    phrase, name = name.lower().split(), name.replace(" ", "_")
    if name in keys:
        return [keys[name], *(key for key in keys.values() if key.name.startswith(f"{name}."))]
    last = name.removeprefix("trainer.args.")
    ending = [key for key in keys.values() if key.name.endswith(f".{SHORT.get(last, last)}")]
    if ending:
        return ending
    instead = HABITS.get(name) or RENAMED.get(last)
    if instead:
        raise ConfigError(f"hfexp has no key {name!r}: {way_out(instead)}")
    texts = {key.name: f"{key.name} {key.text}".lower() for key in keys.values()}
    found = {name: sum(word in text for word in phrase) for name, text in texts.items()}
    most = max(found.values())
    containing = [key for key in keys.values() if found[key.name] == most > 0]
    containing.sort(key=lambda key: not any(word in key.name.lower() for word in phrase))  # those named so first
    if not containing:
        raise ConfigError(
            f"no key, task or command is called {' '.join(phrase)!r}, and no key's description contains it."
            f"{did_you_mean(name, [*keys, *GROUPS])} `hfexp help` lists the commands, `hfexp list` the groups"
        )
    return containing


def _show_key(key: "Key", overrides: list[str], config_dir: str | None) -> None:
    value, where = _value_in(key.name, overrides, config_dir)
    say(f"{key.name}  ({key.type})\n")
    for paragraph in key.text.split("\n\n"):
        say(textwrap.fill(" ".join(paragraph.split()), _width()))
    say()
    values = key.allowed.split("\n")
    _pair("Allowed", values[0] if len(values) == 1 else "")
    for line in values if len(values) > 1 else ():
        say(textwrap.fill(line, _width(), initial_indent="  ", subsequent_indent="    "))
    _pair("Default", _yaml(key.default))
    if where:
        _pair("In this config" if overrides else "In the default experiment", f"{value}, set by {where}")


def _value_in(name: str, overrides: list[str], config_dir: str | None) -> tuple[str, str]:
    """Return the value of a key in the composed config, and the file or override that sets it; empty without one.

    Interpolations stay as they are written, and secrets are masked.
    """
    from omegaconf import OmegaConf

    from hfexp.core.compose import compose_with_sources

    config, sources = compose_with_sources(overrides, config_dir)
    values = OmegaConf.to_container(config)
    learn_secrets(values)
    setters = [option for option, own in sources if _has(own, name)]
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key == name or name.startswith(f"{key}."):
            setters.append(override)
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return _yaml(mask_values({name: value})[name]), setters[-1] if setters else ""


def _has(values: Mapping[str, Any], name: str) -> bool:
    node: Any = values
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _yaml(value: Any) -> str:
    """Write a value as an override takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value.name if isinstance(value, Enum) else str(value)


def _pair(name: str, text: str) -> None:
    """Print a name and a text, wrapped; secrets are masked before a line can break within one."""
    if text:
        text = mask_secrets(f"{name}: {text}")
        say(textwrap.fill(text, _width(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
