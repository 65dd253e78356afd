"""Hydra's sweeper plugin for experiments: the basic sweeper's syntax, with samplers, and sweeps that can be resumed.

Hydra imports this module whenever the command line starts, so heavy imports are inside functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hfexp.core.machine import begin_collection


@dataclass
class ExperimentSweeperConf:
    """Config of `hydra/sweeper=hfexp`; the keys are those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.hfexp.ExperimentSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class ExperimentSweeper(BasicSweeper):
    """Runs the sweep that the config's section `search` describes.

    In an application without this section it runs all combinations of the values, with any launcher, prints a table
    of the results and raises an error if any job failed.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        # No super().__init__(): Hydra re-executes the basic sweeper's module whenever it looks for plugins again. The
        # class that its `__init__` then finds by name is no longer the one that this class inherits from.
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.hydra_context = self.config = self.launcher = None

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]] | None:
        """Run all jobs.

        Returns:
            The jobs' results by batch; None with a section `search`, whose results are in the sweep's directory.

        Raises:
            SweepError: some jobs failed.
        """
        begin_collection()  # the CLI has done it for `-m`, but not for hydra.mode=MULTIRUN
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        overrides = [*self._parse_config(), *arguments]
        if "search" not in self.config:
            return self._all_combinations(overrides)
        from hfexp.sweep.direct import SweepRunner

        SweepRunner(self.hydra_context, self.config, self.launcher, self.max_batch_size).sweep(overrides)
        return None

    def _all_combinations(self, overrides: list[str]) -> list[Sequence[JobReturn]]:
        from hfexp.core.errors import SweepError
        from hfexp.launch.job import differing_overrides

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides(overrides), self.max_batch_size)
        directory = Path(str(self.config.hydra.sweep.dir))
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        for batch in batches:
            self.validate_batch_is_legal(batch)
        returns: list[Sequence[JobReturn]] = []
        for batch in batches:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
        names = differing_overrides([job for batch in batches for job in batch])
        jobs = list(zip(names, (job for batch in returns for job in batch), strict=True))
        failures = show_jobs(jobs)
        if failures:
            raise SweepError(failures, len(jobs))
        return returns


def show_jobs(jobs: Sequence[tuple[str, JobReturn]]) -> list[tuple[str, Exception]]:
    """Print the results of several jobs in a table, and return the names and errors of the failed ones.

    Args:
        jobs: for each job the overrides that tell it from the others, and its result.
    """
    from hfexp.core.console import build_table, cell, print_table, say
    from hfexp.core.errors import first_line
    from hfexp.core.secrets import mask_secrets
    from hfexp.launch.job import error_of
    from hfexp.launch.pool import show_objective

    table = build_table("job", "overrides", "objective")
    failures: list[tuple[str, Exception]] = []
    for number, (overrides, result) in enumerate(jobs):
        error: Any = error_of(result)
        if error is not None:
            failures.append((f"job {number} ({overrides})" if len(jobs) > 1 else f"job {number}", error))
        text = show_objective(result.return_value) if error is None else f"failed: {first_line(error)}"
        table.add_row(str(number), cell(overrides), cell(mask_secrets(text)))
    if len(jobs) > 1:
        say()
        print_table(table)
    return failures
