"""The checklist for GPUs: each command says what to expect, and those of the script can be composed."""

import re

import pytest
from conftest import ROOT

from benchmarks.gpu_check import Checks, main
from hfexp import compose


def test_each_command_says_what_to_expect() -> None:
    """A paragraph of a block begins with a comment, and has commands, or sets variables for them."""
    page = (ROOT / "docs/gpu-checklist.md").read_text()
    paragraphs = [text for block in re.findall(r"```bash\n(.*?)```", page, re.S) for text in block.split("\n\n")]
    commands = [text for text in paragraphs if re.search(r"^(\$CMD|hfexp|timeout|torchrun)", text, re.M)]
    assert len(commands) >= 20
    assert [text for text in commands if not re.search(r"^# .*Expected", text, re.S)] == []


def test_the_script_has_commands_that_can_be_composed(capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for gpus in (1, 2):
        assert main(["--list", "--gpus", str(gpus)]) == 0
        checks = Checks(gpus, cpu=False).all()
        assert capsys.readouterr().out.count("Expected: ") == len(checks) >= 13
        found |= {check.overrides for check in checks if "-m" not in check.overrides}
    for overrides in found:
        assert compose(*overrides).task
