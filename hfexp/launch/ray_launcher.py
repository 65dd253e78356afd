"""Hydra launcher for a Ray cluster: each job runs in a process of its own, on a node that has room for it.

A Ray worker is only the job's launcher: it forks the job from a warm server of its own, as the local launcher does. So
jobs are as isolated as there, and a job whose worker or node is lost writes a checkpoint if it still can.

Hydra imports this module at every start of the command line, so nothing heavy is imported at the top.
"""

import contextlib
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hfexp.core.errors import ConfigError, first_line
from hfexp.launch.local import LocalLauncher, Source

if TYPE_CHECKING:
    from hfexp.launch.pool import Pool

KEY = "hydra.launcher"
ANSWER_SECONDS = 10
"""Seconds that a cluster has to accept a connection."""


@dataclass
class RayLauncherConf:
    """Schema of `hydra.launcher` with `hydra/launcher=ray`."""

    _target_: str = "hydra_plugins.hfexp.RayLauncher"
    address: str | None = None
    """The cluster, as in `ray.init`: `auto`, `HOST:6379`, `ray://HOST:10001`, `local`; null: Ray's own choice."""
    init: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `ray.init`."""
    num_cpus: float = 1
    """CPUs per job; also its number of threads, rounded down."""
    num_gpus: float = 0
    """GPUs per job, or its share of one (0.5)."""
    resources: dict[str, float] = field(default_factory=dict)
    """Resources of your own per job, by name."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's runtime environment of the jobs: `env_vars`, `working_dir`, `pip`, ..."""
    n_jobs: int | None = None
    """Maximum number of concurrent jobs; null: as many as the nodes have room for when the sweep starts."""
    max_retries: int = 3
    """Times that a job is started again after its node or worker was lost."""
    grace_seconds: float = 30.0
    """Seconds that a job has to write a checkpoint and exit when the launcher is stopped or its worker is lost."""


class RayLauncher(LocalLauncher):
    """Runs jobs on the nodes of a Ray cluster, which share the file system that `output_dir` is on."""

    def __init__(
        self,
        address: str | None,
        init: Mapping[str, Any],
        num_cpus: float,
        num_gpus: float,
        resources: Mapping[str, float],
        runtime_env: Mapping[str, Any],
        n_jobs: int | None,
        max_retries: int,
        grace_seconds: float,
    ) -> None:
        super().__init__(n_jobs, None, None, grace_seconds)
        self.address, self.init, self.runtime_env = address, _plain(init), _plain(runtime_env)
        self.num_cpus, self.num_gpus, self.resources = num_cpus, num_gpus, _plain(resources)
        self.max_retries = max_retries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes in.

        Raises:
            ConfigError: Ray is not installed, or a number is out of range; nothing has been started.
        """
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("hydra/launcher=ray needs the package ray (pip install 'hfexp[ray]')")
        smallest = {"num_gpus": 0, "max_retries": 0, "grace_seconds": 0}
        for name, least in smallest.items():
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{KEY}.{name}={getattr(self, name)} must be a finite number of at least {least}")
        if not 0 < self.num_cpus < math.inf:
            raise ConfigError(f"{KEY}.num_cpus={self.num_cpus} must be more than 0, and finite")
        if self.n_jobs is not None and self.n_jobs < 1:
            raise ConfigError(f"{KEY}.n_jobs={self.n_jobs} must be at least 1 (null: as many as there is room for)")
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs and return their results in order, failures included."""
        with _disconnected_at_end():
            return super().launch(job_overrides, initial_job_idx)

    def serve(self, source: Source, logs: Path) -> None:
        """Run jobs until the source has no more, asking for the next one as soon as the cluster has room for it."""
        with _disconnected_at_end():
            super().serve(source, logs)

    def prepare(self) -> None:
        """Connect to the cluster, and count the jobs that it has room for."""
        import ray  # pyright: ignore[reportMissingImports]

        from hfexp.launch.pool import Slot

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ray.is_initialized():
            _require_answer(self.address)
            quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
            try:
                ray.init(self.address, **{**quiet, **self.init}, runtime_env=self.runtime_env or None)
            except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
                raise ConfigError(f"{KEY}: can't connect to Ray: {first_line(error)}") from error
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = self.n_jobs or room(nodes, needs)
        if not count:
            shown = ", ".join(f"{name} {number:g}" for name, number in needs.items() if number)
            raise ConfigError(
                f"{KEY}: none of the cluster's {len(nodes)} nodes has room for a job ({shown}); lower what a job "
                f"needs, or set {KEY}.n_jobs if an autoscaler will add nodes"
            )
        self.slots = [Slot((), max(1, int(self.num_cpus)))] * count

    def _pool(self, total: int) -> "Pool":
        from hfexp.launch.pool import LineDisplay
        from hfexp.launch.ray_tasks import RayPool

        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": self.resources}
        return RayPool(self.slots, LineDisplay(total), self.grace_seconds, options, self.runtime_env, self.max_retries)

    def _needs_logs(self) -> bool:
        return True


def room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Return how many jobs nodes have room for.

    Args:
        nodes: resources of each node, by name.
        needs: resources of a job, by name.
    """

    def fits(name: str, has: float, number: float) -> int:
        if name == "GPU" and number < 1:  # no job gets parts of two devices
            return int(has) * int(1 / number + 1e-9)
        return int(has / number + 1e-9)

    needed = {name: number for name, number in needs.items() if number > 0}
    return sum(min(fits(name, node.get(name, 0), number) for name, number in needed.items()) for node in nodes)


def _require_answer(address: str | None) -> None:
    """Raise ConfigError if nothing listens at `HOST:PORT`: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"{KEY}.address={address}: nothing answers there: {error.strerror or error}") from error


def _plain(node: Any) -> dict[str, Any]:
    """Return a section of the config as a plain dictionary."""
    content: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return dict(content)


@contextlib.contextmanager
def _disconnected_at_end() -> Iterator[None]:
    """Disconnect from Ray at the end of the block, unless it was connected before; a cluster begun in it ends."""
    import ray  # pyright: ignore[reportMissingImports]

    connected = ray.is_initialized()
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()
