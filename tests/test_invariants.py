"""What may not depend on how a batch is divided, on the strategy of saving, or on how often a run was started."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import invariants
import pytest
import torch

from hfexp.composition import conf_dir


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert one["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-5)
    for name, values in one["weights"].items():
        assert torch.allclose(torch.tensor(values), torch.tensor(other["weights"][name]), atol=1e-5), name


def test_every_shipped_model_is_among_the_architectures() -> None:
    options = {path.stem for path in (conf_dir() / "model").glob("*.yaml")} - {"local"}
    assert options == set(invariants.SHIPPED)
    assert set(invariants.SHIPPED.values()) == {name for name, _ in invariants.CASES}


@pytest.mark.parametrize(("architecture", "kind"), invariants.CASES)
def test_accumulated_batches_are_one_batch(architecture: str, kind: str) -> None:
    # 54 rows: the last step of an epoch has 6, as 4 + 2.
    whole = invariants.train(architecture, kind, 16)
    assert_alike(invariants.train(architecture, kind, 4, gradient_accumulation_steps=4), whole)
    assert len(whole["loss"]) == 8


def test_two_processes_are_one(tmp_path: Path) -> None:
    # 54 rows in batches of 4 x 2: the last one has 4 + 2.
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, invariants.__file__, str(tmp_path / "found.json")]
    processes = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    for case, found in zip(invariants.TOGETHER, json.loads((tmp_path / "found.json").read_text()), strict=True):
        architecture, kind, settings = case
        assert_alike(found, invariants.train(architecture, kind, 8, **settings))
