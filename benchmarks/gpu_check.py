"""Checks on a machine with GPUs what has run on CPUs alone: each check is a command and what it has to show.

    python -m benchmarks.gpu_check               what runs on one GPU
    python -m benchmarks.gpu_check --gpus 2      what runs on several: one run over two GPUs, and jobs with one each
    python -m benchmarks.gpu_check --cpu ...     try the script itself, without a GPU
    python -m benchmarks.gpu_check --list ...    print the commands and what they have to show, and run none

It prints a table, which belongs into docs/gpu-checklist.md with the card's name, and exits with 1 if a check failed.
"""

import argparse
import json
import os
import shlex
import signal
import sqlite3
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
AS_FLOAT32 = f"test accuracy within {CLOSE} of the main job's"
LARGE = (
    "model.config.hidden_size=1024", "model.config.intermediate_size=4096", "model.config.num_hidden_layers=24",
    "model.config.num_attention_heads=16", "trainer.args.max_steps=3",
)  # fmt: skip
"""A ViT of 300 million parameters, for three steps."""
LARGE_PARTS_MB = 300e6 * 16 / 2**20
"""Parameter, gradient and AdamW's two moments of `LARGE` in float32."""
TOO_LARGE = (
    "model.config.image_size=224", "model.config.patch_size=8", "model.config.hidden_size=768",
    "model.config.num_hidden_layers=12", "model.config.num_attention_heads=12", "model.config.intermediate_size=3072",
    "trainer.args.per_device_train_batch_size=1024", "trainer.args.max_steps=3", "trainer.auto_batch=true",
)  # fmt: skip
"""A ViT-Base whose activations need some 400 GB."""
REFUSED = "exit code 2, and a message with the number of devices"
LONGEST, LONGEST_ON_CPU = 240, 1200
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

    def recorded(self, name: str) -> float:
        """Return a metric of the only run that MLflow alone has."""
        query = "select value from latest_metrics where run_uuid = ? and key = ?"
        with sqlite3.connect(self.runs[0].parents[1] / "mlflow.db") as store:
            return float(store.execute(query, (self.state()["run_id"], name)).fetchone()[0])

    def environments(self) -> list[dict[str, Any]]:
        """Return the recorded environment of each run."""
        return [json.loads((path / "artifacts" / "environment.json").read_text()) for path in self.runs]

    def state(self) -> dict[str, Any]:
        """Return the state of the only run."""
        return json.loads((self.runs[0] / "run.json").read_text())


@dataclass(frozen=True)
class Check:
    """A command, what it has to show, and a function that says what is wrong with how it ended: nothing if it held."""

    name: str
    overrides: tuple[str, ...]
    expected: str
    problem: Callable[[Ended], str]
    terminate_after_checkpoint: bool = False
    """Send SIGTERM as soon as there is a checkpoint."""
    torchrun: int = 0
    """Processes that torchrun starts; 0: the command starts them itself."""
    devices: str | None = None
    """Value of CUDA_VISIBLE_DEVICES; None: that of this script."""

    @property
    def command(self) -> list[str]:
        """Return the words of the command."""
        if not self.torchrun:
            return command(*self.overrides)
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.torchrun}"]
        return [*torchrun, "-m", "hfexp", *self.overrides]


class Checks:
    """The checks of one machine; some compare a run with an earlier one.

    Args:
        gpus: devices to use.
        cpu: there are none; each stands for a process on the CPU.
    """

    def __init__(self, gpus: int, cpu: bool) -> None:
        self.count = gpus
        self.gpus = 0 if cpu else gpus
        self.accuracy = 0.0
        self.loss = 0.0
        self.memory = 0.0

    def all(self) -> list[Check]:
        """Return the checks that this machine allows, in their order."""
        main = Check("the main job", DIGITS, f"test accuracy of at least {LEAST_ACCURACY}", self.remember)
        if self.count > 1:
            return [main, *self.several(), *self.parts(), *(self.only_gpus() if self.gpus else [])]
        return [main, *self.single(), *self.stopping(), *self.slots()]

    def single(self) -> list[Check]:
        """Return the checks of one run on one device."""
        limited = ("experiment=digits_vit", *TOO_LARGE, "on_existing=rerun")
        on_gpus = [
            Check("bfloat16", (*DIGITS, "trainer.args.bf16=true"), AS_FLOAT32, self.is_close),
            Check("compiled", (*DIGITS, "trainer.args.torch_compile=true"), AS_FLOAT32, self.is_close),
            Check("out of memory", limited, "it goes on with fewer rows at once", went_on),
        ]
        small = ("experiment=text_generation_demo", "trainer.args.max_steps=20")
        return [
            Check("a run uses one device", (*DIGITS, "debug=fast"), "one device in environment.json", self.uses_one),
            *(on_gpus if self.gpus else []),
            Check("adapters", ("experiment=minilm_lora", "debug=fast"), "exit code 0", succeeded),
            Check("a language model", small, "exit code 0", succeeded),
        ]

    def stopping(self) -> list[Check]:
        """Return the checks of a run that is stopped and continued, beside one that is not."""
        words = ("experiment=digits_vit", "trainer.deterministic=true", "seed=7")
        whole = (*words, "on_existing=rerun", "output_dir=whole")
        stops = "exit code 143, status killed, a checkpoint"
        return [
            Check("deterministic", whole, "exit code 0", self.remember_loss),
            Check("SIGTERM writes a checkpoint", words, stops, was_terminated, terminate_after_checkpoint=True),
            Check("resumed equals uninterrupted", words, "the same test loss, bit for bit", self.equals),
        ]

    def slots(self) -> list[Check]:
        """Return the checks of a sweep's jobs and their devices."""
        sweep = ("-m", "experiment=digits_vit", "debug=fast")
        shared = (*sweep, "seed=1,2,3,4", "hydra.launcher.gpus_per_job=0.5")
        more = (*sweep, "seed=5,6", f"hydra.launcher.gpus_per_job={self.gpus + 1}")
        none = (*sweep, "seed=7,8", "hydra.launcher.gpus_per_job=0")
        return [
            Check("jobs share the devices", shared, "one device in each of four runs", self.one_each),
            Check("more devices than there are", more, REFUSED, was_refused),
            Check("jobs without a device", none, "no device in environment.json", uses_none),
        ]

    def several(self) -> list[Check]:
        """Return the checks of one run in several processes, each with a device of its own."""
        ddp, words = self.together("ddp"), self.together("ddp")[len(DIGITS) :]
        stopped = ("experiment=digits_vit", "seed=7", *words)
        stops = "exit code 143, status killed, a checkpoint"
        outside = (*DIGITS, *(word for word in words if not word.startswith("launch")))
        alone = ("experiment=digits_vit", "seed=7", "trainer.args.per_device_train_batch_size=32")
        return [
            Check("launch=ddp", ddp, AS_FLOAT32, self.is_close),
            Check("torchrun", outside, AS_FLOAT32, self.is_close, torchrun=self.count),
            Check("SIGTERM with launch=ddp", stopped, stops, was_terminated, terminate_after_checkpoint=True),
            Check("one process continues", alone, "it continues from a checkpoint", continued),
        ]

    def parts(self) -> list[Check]:
        """Return the checks of a model that is spread over processes."""
        words, bf16 = self.together("fsdp"), "trainer.args.bf16=true"
        return [
            Check("launch=fsdp", words, AS_FLOAT32, self.is_close),
            Check("launch=fsdp, bfloat16", (*words, bf16), AS_FLOAT32, self.is_close),
        ]

    def only_gpus(self) -> list[Check]:
        """Return the checks of several devices that make no sense without any."""
        ddp, fsdp = self.together("ddp"), self.together("fsdp")
        sweep, each = ("-m", "experiment=digits_vit", "debug=fast"), "one device in each of four runs"
        whole = f"more than {LARGE_PARTS_MB:.0f} MB of the first GPU"
        less = "at most 0.75 of that"
        return [
            Check("launch=ddp, bfloat16", (*ddp, "trainer.args.bf16=true"), AS_FLOAT32, self.is_close),
            Check("launch=ddp, compiled", (*ddp, "trainer.args.torch_compile=true"), AS_FLOAT32, self.is_close),
            Check("launch=fsdp, offloaded", (*fsdp, "launch.fsdp.cpu_offload=true"), AS_FLOAT32, self.is_close),
            Check("memory of a whole model", (*ddp, *LARGE), whole, self.is_whole),
            Check("memory of a model in parts", (*fsdp, *LARGE), less, self.is_less),
            Check("more processes", (*ddp, f"launch.num_processes={self.gpus + 1}"), REFUSED, was_refused),
            Check("jobs with a device each", (*sweep, "seed=1,2,3,4"), each, self.one_each),
            Check(
                "jobs on the last device",
                (*sweep, "seed=5,6,7,8"),
                each,
                self.one_each,
                devices=_visible(self.gpus)[-1],
            ),
        ]

    def together(self, strategy: str) -> tuple[str, ...]:
        """Return the overrides of the main job in several processes."""
        number = [f"launch.num_processes={self.count}"] if not self.gpus else []
        return (*DIGITS, f"launch={strategy}", *number, f"trainer.args.per_device_train_batch_size={32 // self.count}")

    def uses_one(self, ended: Ended) -> str:
        devices = ended.environments()[0]["devices"] if ended.runs else None
        return succeeded(ended) or (f"it saw the devices {devices}" if bool(devices) != bool(self.gpus) else "")

    def remember(self, ended: Ended) -> str:
        if problem := succeeded(ended):
            return problem
        self.accuracy = ended.metric("test_accuracy")
        if self.gpus > 1 and ended.recorded("peak_gpu_1_memory_mb"):
            return "a run of one process used the second GPU"
        return f"test accuracy {self.accuracy}" if self.accuracy < LEAST_ACCURACY else ""

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

    def is_whole(self, ended: Ended) -> str:
        if ended.code == 0:
            self.memory = ended.recorded("peak_gpu_0_memory_mb")
        return succeeded(ended) or (f"{self.memory:.0f} MB" if self.memory < LARGE_PARTS_MB else "")

    def is_less(self, ended: Ended) -> str:
        if problem := succeeded(ended):
            return problem
        memory = ended.recorded("peak_gpu_0_memory_mb")
        return "" if memory <= 0.75 * self.memory else f"{memory:.0f} MB, the whole model {self.memory:.0f}"

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


def went_on(ended: Ended) -> str:
    """Say that a run that was out of memory has not ended well, or was not out of memory."""
    return succeeded(ended) or ("" if "going on with" in ended.said else "it was never out of memory")


def continued(ended: Ended) -> str:
    """Say that a run has not continued from a checkpoint of another number of processes."""
    said = "continuing" in ended.said and "processes instead of" in ended.said
    return succeeded(ended) or ("" if said else "it began anew")


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


def run_check(check: Check, longest: int) -> Ended:
    """Run the command of a check in the current directory, for `longest` seconds at the most."""
    started = time.time()
    process = subprocess.Popen(
        check.command,
        env={**os.environ, **({} if check.devices is None else {"CUDA_VISIBLE_DEVICES": check.devices})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    if check.terminate_after_checkpoint:
        while process.poll() is None and not list(
            Path("outputs").glob("*/*-s7-*/checkpoints/checkpoint-*/manifest.json")
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    try:
        said, _ = process.communicate(timeout=longest)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0] + f"\nstill running after {longest} s"
    states = [path for home in ("outputs", "whole") for path in Path(home).glob("*/*/run.json")]
    runs = [path.parent for path in states if path.stat().st_mtime >= started and _is_run(path)]
    return Ended(process.returncode, said, tuple(sorted(runs)))


def _is_run(path: Path) -> bool:
    return json.loads(path.read_text())["kind"] == "run"


def _visible(gpus: int) -> list[str]:
    """Return the first GPUs that this script may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(number) for number in range(gpus)])[:gpus]


def main(argv: list[str] | None = None) -> int:
    """Run all checks and print their table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gpus", type=int, default=1, help="number of GPUs to use (1)")
    options.add_argument("--cpu", action="store_true", help="run without a GPU, to try the script itself")
    options.add_argument("--list", action="store_true", help="print the commands, and run none")
    args = options.parse_args(argv)
    checks = Checks(args.gpus, args.cpu).all()
    if args.list:
        print("\n\n".join(f"# {check.name}. Expected: {check.expected}.\n{shown(check)}" for check in checks))
        return 0
    import torch

    if not args.cpu and torch.cuda.device_count() < args.gpus:
        print(f"torch sees {torch.cuda.device_count()} GPUs of {args.gpus}: nothing was checked", file=sys.stderr)
        return 2
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if args.cpu else ",".join(_visible(args.gpus))
    os.environ["PYTHONPATH"] = str(ROOT)
    rows = []
    with scratch():
        for check in checks:
            began = time.monotonic()
            problem = check.problem(run_check(check, LONGEST_ON_CPU if args.cpu else LONGEST))
            rows.append([check.name, check.expected, problem or "held", f"{time.monotonic() - began:.0f}"])
            print(f"  {check.name}: {problem or 'held'} ({rows[-1][-1]} s)", file=sys.stderr, flush=True)
    cards = "no GPU" if args.cpu else ", ".join(torch.cuda.get_device_name(number) for number in range(args.gpus))
    facts = ", ".join(f"{name} {value}" for name, value in versions().items())
    print(f"\n{table(['check', 'expected', 'found', 's'], rows)}\n\n{cards}. {machine_line()}.\n{facts}.")
    return int(any(row[2] != "held" for row in rows))


def shown(check: Check) -> str:
    """Return the command of a check as a person would type it."""
    program = f"torchrun --nproc-per-node={check.torchrun} -m hfexp" if check.torchrun else "hfexp"
    devices = f"CUDA_VISIBLE_DEVICES={check.devices} " if check.devices is not None else ""
    return f"{devices}{program} {shlex.join(check.overrides)}"


if __name__ == "__main__":
    sys.exit(main())
