"""The environment of a run: its code, packages, machine and devices."""

import getpass
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfexp.core import machine
from hfexp.core.process import ProcessId
from hfexp.core.provenance import Origin, git_state
from hfexp.core.secrets import MASK, is_secret_variable, mask_secrets

SLURM_JOB = "hfexp.slurm_job"
"""Tag of a run: the id of the job of SLURM in which it was started last."""


@dataclass(frozen=True)
class Environment:
    """The environment of a run, recorded as tags and as files (see `save`)."""

    python: str
    platform: str
    user: str
    process: ProcessId
    cpu: str
    cpu_count: int
    """Processors on which this process may run."""
    memory_gb: float
    """Memory of the machine, in GiB."""
    devices: list[str]
    """Names of the CUDA devices that this process sees."""
    cuda: str | None
    """CUDA version that torch was built for; None without a CUDA device."""
    threads: int | None
    """Threads of torch on the CPU, on which the last bits of a result depend; None if the process computes nothing."""
    variables: dict[str, str]
    """Environment variables that change how the libraries compute or where they look for files, secrets masked."""
    config_sources: list[str]
    """Search path of the config, first to last."""
    packages: dict[str, str]
    """Version of each installed package."""
    git: dict[str, str]
    """`sha`, `branch`, `remote`, `diff`, `untracked` of the current directory; empty outside a repository."""

    @classmethod
    def gather(cls, origin: Origin, computes: bool = True) -> "Environment":
        """Gather the environment of this process; `computes` is False for one that only directs others."""
        import psutil

        return cls(
            python=platform.python_version(),
            platform=platform.platform(),
            user=_user(),
            process=ProcessId.own(),
            cpu=machine.cpu_name(),
            cpu_count=machine.affinity(),
            memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
            **(_computing() if computes else {"devices": [], "cuda": None, "threads": None}),
            variables=_variables(),
            config_sources=list(map(mask_secrets, origin.config_sources)),
            packages=machine.installed_packages(),
            git=git_state(),
        )

    def tags(self) -> dict[str, str]:
        """Return the tags by which runs are found and compared."""
        tags = {
            "hfexp.host": self.process.host,
            "hfexp.pid": str(self.process.pid),
            "hfexp.process": self.process.started,
            "hfexp.python": self.python,
            "hfexp.platform": self.platform,
            "hfexp.device": ", ".join(self.devices) or self.cpu,
            "hfexp.threads": str(self.threads or ""),
            SLURM_JOB: os.environ.get("SLURM_JOB_ID", ""),
            "hfexp.packages_hash": hashlib.sha256(json.dumps(self.packages).encode()).hexdigest()[:16],
        }
        if self.git:
            tags |= {"hfexp.git_sha": self.git["sha"], "hfexp.git_branch": self.git["branch"]}
            tags |= {"mlflow.source.git.commit": self.git["sha"], "mlflow.source.git.branch": self.git["branch"]}
            tags |= {"mlflow.source.git.repoURL": self.git["remote"]}
            tags |= {"hfexp.git_dirty": str(bool(self.git["diff"] or self.git["untracked"])).lower()}
        return {name: value for name, value in tags.items() if value}

    def summary(self) -> dict[str, str]:
        """Return the few facts that a person wants to read, e.g. in a report."""
        names = ("hfexp", "torch", "transformers", "datasets", "accelerate", "mlflow")
        facts = {"python": self.python, **{name: self.packages[name] for name in names if name in self.packages}}
        facts |= {
            "platform": self.platform,
            "cpu": f"{self.cpu} ({self.cpu_count} used)",
            "threads": str(self.threads),
        }
        facts |= {"accelerators": ", ".join(self.devices) or "none", "memory": f"{self.memory_gb} GB"}
        if self.git:
            dirty = ", with uncommitted changes" if self.git["diff"] or self.git["untracked"] else ""
            facts["code"] = f"{self.git['sha'][:12]} on {self.git['branch']}{dirty}"
        return facts

    def save(self, directory: Path) -> None:
        """Write `environment.json`, `requirements.txt` and, with uncommitted changes, `git.diff`."""
        facts: dict[str, Any] = asdict(self)
        diff, untracked = facts["git"].pop("diff", ""), facts["git"].pop("untracked", "")
        (directory / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")
        pins = "".join(f"{name}=={version}\n" for name, version in self.packages.items())
        (directory / "requirements.txt").write_text(pins)
        if diff or untracked:
            listed = "".join(f"# untracked: {name}\n" for name in untracked.splitlines())
            # `git_state` decodes with surrogateescape, so this writes the bytes that git gave.
            (directory / "git.diff").write_bytes((listed + diff).encode("utf-8", "surrogateescape"))


def _computing() -> dict[str, Any]:
    """Read from torch what this process computes with."""
    import torch

    return {
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _variables() -> dict[str, str]:
    prefixes = ("HF_", "HFEXP_", "TORCH", "PYTORCH", "CUDA_", "NCCL_", "OMP_", "MKL_", "ACCELERATE_", "TRANSFORMERS_")
    variables = [(k, v) for k, v in sorted(os.environ.items()) if k.startswith(prefixes)]
    return {k: MASK if is_secret_variable(k) else mask_secrets(v) for k, v in variables}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, the user's id may have no name
        return "unknown"
