"""Checks on a machine with GPUs what has run on CPUs alone: each check is a command and what it has to show.

    python -m benchmarks.gpu_check          one GPU is enough; with several, `launch=ddp` is checked, too
    python -m benchmarks.gpu_check --cpu    try the script itself, without a GPU

It prints a table, which belongs into docs/gpu-checklist.md with the card's name, and exits with 1 if a check failed.
The commands run one after the other, for under eight minutes on one GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine_line, scratch, table, versions
from benchmarks.startup import command

DIGITS = ("experiment=digits_vit", "on_existing=rerun")
LEAST_ACCURACY = 0.96
CLOSE = 0.02
"""Allowed difference between the test accuracies of two ways to compute: seven rows of 360."""
LONGEST = 240
"""Seconds after which a command is taken for hung."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    said: str
    runs: tuple[Path, ...]
    """Directories of the runs that it started, or continued."""

    def metric(self, name: str) -> float:
        """Return a metric of the only run."""
        return float(json.loads((self.runs[0] / "result.json").read_text())["metrics"][name])

    def environments(self) -> list[dict[str, Any]]:
        """Return the recorded environment of each run."""
        return [json.loads((path / "artifacts" / "environment.json").read_text()) for path in self.runs]

    def state(self) -> dict[str, Any]:
        """Return the state of the only run."""
        return json.loads((self.runs[0] / "run.json").read_text())


@dataclass(frozen=True)
class Check:
    """Overrides of a command, and what is wrong with how it ended: an empty text if nothing is."""

    name: str
    overrides: tuple[str, ...]
    problem: Callable[[Ended], str]
    terminate_after_checkpoint: bool = False
    """Send SIGTERM as soon as there is a checkpoint."""


class Checks:
    """The checks of one machine; some compare a run with an earlier one."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.accuracy = 0.0
        self.loss = 0.0

    def all(self) -> list[Check]:
        """Return the checks that this machine allows, in their order."""
        checks = [*self.single(), *self.stopping(), *self.slots()]
        return checks + (self.several() if self.gpus > 1 else [])

    def single(self) -> list[Check]:
        """Return the checks of one run on one device."""
        return [
            Check("a run uses one device", (*DIGITS, "debug=fast"), self.uses_one),
            Check("the main job", DIGITS, self.remember),
            *(self.faster() if self.gpus else []),
            Check("adapters", ("experiment=minilm_lora", "debug=fast"), succeeded),
            Check("a language model", ("experiment=text_generation_demo", "trainer.args.max_steps=20"), succeeded),
        ]

    def faster(self) -> list[Check]:
        """Return the checks of ways to compute that a CPU may only emulate."""
        ways = {"bfloat16": "trainer.args.bf16=true", "compiled": "trainer.args.torch_compile=true"}
        return [Check(name, (*DIGITS, override), self.is_close) for name, override in ways.items()]

    def stopping(self) -> list[Check]:
        """Return the checks of a run that is stopped and continued, beside one that is not."""
        words = ("experiment=digits_vit", "trainer.deterministic=true", "seed=7")
        return [
            Check("deterministic", (*words, "on_existing=rerun", "output_dir=whole"), self.remember_loss),
            Check("SIGTERM writes a checkpoint", words, was_terminated, terminate_after_checkpoint=True),
            Check("resumed equals uninterrupted", words, self.equals),
        ]

    def slots(self) -> list[Check]:
        """Return the checks of a sweep's jobs and their devices."""
        sweep = ("-m", "experiment=digits_vit", "debug=fast")
        more = f"hydra.launcher.gpus_per_job={self.gpus + 1}"
        return [
            Check(
                "jobs share the devices", (*sweep, "seed=1,2,3,4", "hydra.launcher.gpus_per_job=0.5"), self.one_each
            ),
            Check("more devices than there are", (*sweep, "seed=5,6", more), was_refused),
            Check("jobs without a device", (*sweep, "seed=7,8", "hydra.launcher.gpus_per_job=0"), uses_none),
        ]

    def several(self) -> list[Check]:
        """Return the checks of one run in several processes, each with a device of its own."""
        words = (*DIGITS, "launch=ddp")
        size = f"trainer.args.per_device_train_batch_size={32 // self.gpus}"
        offload = "launch.fsdp.cpu_offload=true"
        return [
            Check("launch=ddp", (*words, size), self.is_close),
            Check("launch=fsdp", (*DIGITS, "launch=fsdp", size), self.is_close),
            Check("launch=fsdp with the machine's memory", (*DIGITS, "launch=fsdp", size, offload), self.is_close),
            Check("more processes than devices", (*words, f"launch.num_processes={self.gpus + 1}"), was_refused),
            Check("jobs with a device each", ("-m", *DIGITS, "debug=fast", "seed=1,2,3,4"), self.one_each),
        ]

    def uses_one(self, ended: Ended) -> str:
        devices = ended.environments()[0]["devices"] if ended.runs else None
        return succeeded(ended) or (f"it saw the devices {devices}" if bool(devices) != bool(self.gpus) else "")

    def remember(self, ended: Ended) -> str:
        if ended.code == 0:
            self.accuracy = ended.metric("test_accuracy")
        return succeeded(ended) or (f"test accuracy {self.accuracy}" if self.accuracy < LEAST_ACCURACY else "")

    def is_close(self, ended: Ended) -> str:
        if problem := succeeded(ended):
            return problem
        accuracy = ended.metric("test_accuracy")
        return (
            "" if abs(accuracy - self.accuracy) <= CLOSE else f"test accuracy {accuracy}, float32 had {self.accuracy}"
        )

    def remember_loss(self, ended: Ended) -> str:
        if ended.code == 0:
            self.loss = ended.metric("test_loss")
        return succeeded(ended)

    def equals(self, ended: Ended) -> str:
        if problem := succeeded(ended):
            return problem
        loss = ended.metric("test_loss")
        return "" if loss == self.loss else f"test loss {loss!r}, uninterrupted {self.loss!r}"

    def one_each(self, ended: Ended) -> str:
        seen = [entry["variables"].get("CUDA_VISIBLE_DEVICES", "") for entry in ended.environments()]
        if self.gpus and (len(seen) != 4 or any("," in devices or not devices for devices in seen)):
            return f"four jobs saw the devices {seen}"
        return succeeded(ended)


def succeeded(ended: Ended) -> str:
    """Say how the command failed."""
    return "" if ended.code == 0 else f"exit code {ended.code}: {last_line(ended.said)}"


def was_refused(ended: Ended) -> str:
    """Say that the command was not refused with a message."""
    held = ended.code == 2 and any(words in ended.said for words in ("available here", "visible accelerators"))
    return "" if held else f"exit code {ended.code}: {last_line(ended.said)}"


def was_terminated(ended: Ended) -> str:
    """Say that SIGTERM did not end the run with a checkpoint."""
    if ended.code != 128 + signal.SIGTERM:
        return f"exit code {ended.code}: {last_line(ended.said)}"
    return "" if ended.state()["status"] == "killed" else f"run.json says {ended.state()['status']}"


def uses_none(ended: Ended) -> str:
    """Say that a job saw a device."""
    seen = [entry["devices"] for entry in ended.environments()]
    return succeeded(ended) or (f"the jobs saw the devices {seen}" if any(seen) else "")


def last_line(said: str) -> str:
    """Return the last line that is not empty."""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


def run_check(check: Check) -> Ended:
    """Run the command of a check in the current directory."""
    started = time.time()
    process = subprocess.Popen(
        command(*check.overrides), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    if check.terminate_after_checkpoint:
        while process.poll() is None and not list(
            Path("outputs").glob("*/*-s7-*/checkpoints/checkpoint-*/manifest.json")
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    try:
        said, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0] + f"\nstill running after {LONGEST} s"
    states = [path for home in ("outputs", "whole") for path in Path(home).glob("*/*/run.json")]
    runs = [path.parent for path in states if path.stat().st_mtime >= started and _is_run(path)]
    return Ended(process.returncode, said, tuple(sorted(runs)))


def _is_run(path: Path) -> bool:
    return json.loads(path.read_text())["kind"] == "run"


def main(argv: list[str] | None = None) -> int:
    """Run all checks and print their table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cpu", action="store_true", help="run without a GPU, to try the script itself")
    args = options.parse_args(argv)
    import torch

    gpus = torch.cuda.device_count()
    if not gpus and not args.cpu:
        print("no GPU is visible to torch: nothing was checked", file=sys.stderr)
        return 2
    cards = ", ".join(torch.cuda.get_device_name(number) for number in range(gpus)) or "no GPU"
    rows = []
    with scratch():
        os.environ["PYTHONPATH"] = str(ROOT)
        for check in Checks(gpus).all():
            began = time.monotonic()
            problem = check.problem(run_check(check))
            rows.append([check.name, problem or "held", f"{time.monotonic() - began:.0f}"])
            print(f"  {rows[-1][0]}: {rows[-1][1]} ({rows[-1][2]} s)", file=sys.stderr, flush=True)
    facts = ", ".join(f"{name} {value}" for name, value in versions().items())
    print(f"\n{table(['check', 'found', 's'], rows)}\n\n{cards}. {machine_line()}.\n{facts}.")
    return int(any(row[1] != "held" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
