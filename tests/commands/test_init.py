"""`hfexp init`: a project that runs at once, and the options that a project has of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

from hfexp import compose
from hfexp.commands import cli
from hfexp.commands.init import NAME, package_name
from hfexp.core.errors import ConfigError


@pytest.fixture
def made(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new project, in which the test is."""
    assert cli.main(["init", "my-shapes"]) == 0
    monkeypatch.chdir(place / "my-shapes")
    yield place / "my-shapes"
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_shapes"]:
        del sys.modules[module]


def test_a_new_project_runs_at_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["debug=fast", "tracking.pictures=false"]) == 0
    shown = capsys.readouterr().out
    assert "own options: conf (tool.hfexp in pyproject.toml)" in shown
    assert "experiment my_shapes" in shown
    assert cli.main(["predict", "run=last", "split=test", "output=answers.csv"]) == 0
    answers = pandas.read_csv("answers.csv")
    assert set(answers["true"]) == {"circle", "square", "triangle"}
    corners = {"circle": 0, "square": 4, "triangle": 3}
    assert list(answers["corners"]) == [corners[label] for label in answers["label"]]
    assert compose().metrics["worst_class_accuracy"]["_target_"] == "my_shapes.metrics.worst_class_accuracy"


def test_its_files_are_whole_and_named_after_it(made: Path) -> None:
    files = {str(path.relative_to(made)): path.read_text() for path in made.rglob("*") if path.is_file()}
    assert {".gitignore", ".github/workflows/test.yml", "conf/experiment/my_shapes.yaml", "my_shapes/model.py"} <= set(
        files
    )
    for name, text in files.items():
        assert NAME not in name
        assert NAME not in text
        assert len(text.splitlines()) <= 60 or name.startswith("schemas"), name
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        assert subprocess.run([ruff, "check", "."], cwd=made).returncode == 0


@pytest.mark.slow
def test_its_make_targets_are_green(made: Path) -> None:
    (made / ".installed").touch()  # hfexp is installed already; this must not change the environment of the tests
    environment = {**os.environ, "HFEXP_CACHE": str(made / "cache")}
    for target in ("test", "run"):
        done = subprocess.run(
            ["make", target, f"PYTHON={sys.executable}"], cwd=made, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "test accuracy" in done.stdout
    assert "gradient norms from" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there", "there exists already"),
        ("torch", "there is a Python package of this name already"),
        ("9x", "the name must begin with a letter"),
        ("class", "the name must begin with a letter"),
        ("there/é", "the name must begin with a letter"),
    ],
)
def test_a_name_that_can_not_be_used(place: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    (place / "there").mkdir()
    (place / "there" / "file").touch()
    assert cli.main(["init", name]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["there"]


def test_an_empty_directory_is_taken(place: Path) -> None:
    (place / "new").mkdir()
    assert cli.main(["init", "new"]) == 0
    assert (place / "new" / "pyproject.toml").is_file()
    assert package_name(Path("a/My-New.Project")) == "my_new_project"


# --- `[tool.hfexp]`


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("config_dir = 'lost'", "tool.hfexp.config_dir: there is no directory lost"),
        ("config = 'conf'", "tool.hfexp has no key 'config'. Known keys: config_dir, experiment"),
        ("experiment = 3", "tool.hfexp.experiment must be a text, got 3"),
        ("experiment = 'lost'", "experiment"),
        ("config_dir =", "pyproject.toml can't be read"),
    ],
)
def test_a_wrong_project_file_is_one_message(
    place: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    Path("pyproject.toml").write_text(f"[tool.hfexp]\n{table}\n")
    assert cli.main(["debug=fast"]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ConfigError):
        compose()


def test_options_of_a_flag_come_before_those_of_the_project(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory, rate in (("conf", 0.1), ("more", 0.2)):
        (place / directory / "trainer").mkdir(parents=True)
        (place / directory / "trainer" / "mine.yaml").write_text(f"args: {{learning_rate: {rate}}}\n")
    Path("pyproject.toml").write_text("[tool.hfexp]\nconfig_dir = 'conf'\n")

    def rate(*words: str, **settings: Any) -> float:
        return compose("trainer=mine", *words, **settings).trainer.args["learning_rate"]

    assert rate() == 0.1
    assert rate(config_dir="more") == 0.2
    assert cli.main(["--cfg", "job", "--package", "trainer.args.learning_rate", "trainer=mine"]) == 0
    assert capsys.readouterr().out.strip() == "0.1"
    words = ["--config-dir", "more", "--cfg", "job", "--package", "trainer.args.learning_rate", "trainer=mine"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == "0.2"
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n")
    shutil.rmtree("conf")
    with pytest.raises(ConfigError, match="mine"):
        rate()
