"""What jobs of SLURM do in tests; a job imports this module before it takes the place of its command."""

import os
import sys
import time
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    print("hello")
    return {
        "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path, "cpus": os.environ["HFEXP_CPUS"],
        "threads": os.environ["OMP_NUM_THREADS"],
    }  # fmt: skip


def wait_once(place: str) -> str:
    """The first time: write down the process, and wait for a signal."""
    begun = Path(place) / "begun"
    if begun.exists():
        return "continued"
    begun.with_suffix(".new").write_text(str(os.getpid()))
    begun.with_suffix(".new").rename(begun)
    time.sleep(60)
    return "not stopped"


def fail() -> None:
    raise ZeroDivisionError("division by zero")
