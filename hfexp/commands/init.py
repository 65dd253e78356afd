"""The command `hfexp init`, which writes a project of one's own: options, code and a test that run at once."""

import argparse
import importlib.util
import keyword
import os
import re
import shlex
from pathlib import Path

from hfexp.commands.schema import DIRECTORY, write_schemas
from hfexp.core.console import say
from hfexp.core.errors import ConfigError

TEMPLATE = Path(__file__).parent / "project"
"""Files of the new project; `@NAME@` in them stands for its name."""
NAME = "@NAME@"
PLACES = {
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
    "conf/experiment/project.yaml": f"conf/experiment/{NAME}.yaml",
    **{f"package/{name}.py": f"{NAME}/{name}.py" for name in
       ("__init__", "data", "model", "transforms", "metrics", "callbacks", "tasks")},
}  # fmt: skip
"""Files that the project has under another name."""


def main(argv: list[str]) -> int:
    """Write a project to a new directory, and print what to do next."""
    parser = argparse.ArgumentParser(
        prog="hfexp init",
        description="Write a project of your own, which runs at once: an experiment, a dataset, a model, a transform, "
        "a metric, a callback, a task, a test of all of them, README, Makefile and pyproject.toml.",
    )
    parser.add_argument("name", help="the new directory; its name is that of the Python package too")
    place = Path(parser.parse_args(argv).name)
    name = package_name(place)
    if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"{place} exists already; give a new name, or remove it")
    try:
        write_project(place, name)
    except OSError as error:
        raise ConfigError(f"{place} can't be written: {error.strerror}") from error
    say(f"{place}: a project with the package {name}; next:")
    say(f"  cd {shlex.quote(str(place))}")
    say("  make test    # two steps through the whole pipeline")
    say("  make run     # train, for a minute")
    say("README.md says which file to change for what.")
    return 0


def package_name(place: Path) -> str:
    """Return the name of the package for a directory: `my-shapes` becomes `my_shapes`.

    Raises:
        ConfigError: the name is none that Python can import, or another package has it.
    """
    name = re.sub(r"[-. ]", "_", place.name).lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{place.name!r}: the name must begin with a letter and have only a-z, 0-9, - and _")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # a plain directory is found too, without an origin
        raise ConfigError(f"{place.name!r}: there is a Python package of this name already; give another name")
    return name


def write_project(place: Path, name: str) -> None:
    """Write the files of the template to a directory, with the name put in."""
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        relative = source.relative_to(TEMPLATE).as_posix()
        target = place / PLACES.get(relative, relative).replace(NAME, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(NAME, name), encoding="utf-8")
    write_schemas(place / DIRECTORY)
