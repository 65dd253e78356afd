"""The command line: light where it must be, and its words, codes and messages."""

import subprocess
import sys
from pathlib import Path

import pytest

from hfexp import cli
from hfexp.hydra_app import hydra_words

HEAVY = ("torch", "transformers", "datasets", "mlflow", "evaluate", "accelerate", "numpy")

PROBE = """
import sys
from hfexp.cli import main
try:
    code = main()
except SystemExit as error:
    code = error.code
heavy = [name for name in {heavy} if name in sys.modules]
print("HEAVY", heavy, "CODE", code)
"""


def probe(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and report what it imported."""
    script = PROBE.format(heavy=HEAVY)
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["--help"], 0, "== Configuration groups"),
        (["--cfg", "job"], 0, "learning_rate: 0.001"),
        (["trainer.args.learning_rat=1"], 2, "Did you mean 'learning_rate'?"),
        (["modle=vit_base"], 2, "Did you mean 'model'?"),
        (["-m", "model=vit_bas,vit_tiny"], 2, "Did you mean 'vit_base'?"),
        (["version"], 0, "hfexp 0.1.0"),
    ],
)
def test_nothing_heavy_is_imported_before_a_run(words: list[str], code: int, shown: str, place: Path) -> None:
    done = probe(*words, cwd=place)
    assert f"HEAVY [] CODE {code}" in done.stdout, done.stdout + done.stderr
    assert shown in done.stdout + done.stderr
    left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    assert left == []


def test_the_first_word_is_a_command_or_an_override(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_flags_may_stand_after_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hydra_words(["seed=1", "--cfg", "job", "name=x"], cli.COMMANDS) == [
        "--cfg", "job", "seed=1", "name=x", "experiment=digits_vit",
    ]  # fmt: skip


def test_completion_skips_the_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "hfexp train model=vit_")
    monkeypatch.setattr(sys, "argv", ["hfexp", "-sc", "query=bash"])
    assert cli.main() == 0
    assert "model=vit_base" in capsys.readouterr().out.split()


def test_traceback_only_for_who_asks(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["seed=abc"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main(["seed=abc"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ui_without_a_store_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui"]) == 2
    assert "run `hfexp` first" in capsys.readouterr().err
    assert list(place.iterdir()) == []
