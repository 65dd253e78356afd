"""The rehearsal in the fork server: it leaves nothing that a forked job could not bear."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PROGRAM = """
import json, threading
from hfexp.experiment.rehearsal import prepare_for_forks
import torch
before = torch.get_num_threads()
prepare_for_forks()
from accelerate.state import PartialState
from hfexp.core.outside import _adapter
from hfexp.data.sources import _encoded_digits
print(json.dumps({
    "threads": threading.active_count(), "of torch": torch.get_num_threads() - before,
    "device": bool(PartialState._shared_state), "cuda": torch.cuda.is_initialized(),
    "read": _encoded_digits.cache_info().currsize, "adapters": _adapter.cache_info().currsize > 0,
}))
"""


def test_a_rehearsal_leaves_no_threads_no_device_and_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {  # and it prints nothing else
        "threads": 1, "of torch": 0, "device": False, "cuda": False, "read": 1, "adapters": True,
    }  # fmt: skip
    assert not list(tmp_path.iterdir())
