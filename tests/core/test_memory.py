"""When garbage is looked for: not while libraries are imported, and always from then on."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from hfexp.core import machine

SPY = """
import gc, sys
sys.argv = ["hfexp", *sys.argv[1:]]
import hfexp.commands.cli, hfexp.core.machine
began = []
begin = hfexp.core.machine.begin_collection
def seen():
    began.append((gc.isenabled(), "torch" in sys.modules))
    begin()
    began.append((gc.isenabled(), "torch" in sys.modules))
for name, module in list(sys.modules.items()):
    if name.startswith("hfexp.") and getattr(module, "begin_collection", None) is begin:
        module.begin_collection = seen
try:
    code = hfexp.commands.cli.program()
finally:
    print(began, gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)
sys.exit(code)
"""


def spied(*words: str) -> str:
    """What became of garbage collection in a program with these words; in the current directory."""
    done = subprocess.run([sys.executable, "-c", SPY, *words], capture_output=True, text=True)
    return done.stderr.splitlines()[-1]


def test_a_run_looks_for_garbage_once_all_is_imported() -> None:
    assert gc.isenabled()
    try:
        machine.put_off_collection()
        assert not gc.isenabled()
        machine.begin_collection()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()


def test_who_has_switched_it_off_keeps_it_so() -> None:
    gc.disable()
    try:
        machine.begin_collection()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.slow
def test_programs_begin_to_look_where_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("model=vit_digits", "dataset=imagefolder", "dataset.source.data_dir=nowhere")
    assert spied(*words) == "[(False, True), (True, True)] True True"
    assert spied("-m", "seed=1,2", "search=no_such").startswith("[(False, False), (True, False)")
    assert spied("compare", "no_such").startswith("[] True")
