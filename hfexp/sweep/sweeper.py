"""Hydra's sweeper for experiments: the syntax of Hydra's own, samplers beside the grid, and nothing done is lost.

Imported by Hydra with every start of the command line: nothing heavy here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hfexp.memory import begin_collection


@dataclass
class ExperimentSweeperConf:
    """`hydra.sweeper` with `hydra/sweeper=hfexp`; the keys are those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.hfexp.ExperimentSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class ExperimentSweeper(BasicSweeper):
    """Sweeps by the section `search` of the configuration.

    In an application that has none: all combinations of the values, with any launcher; a table of what came out, and
    an error if any job failed.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        # Not by super(): Hydra executes the module of the basic sweeper again whenever it looks for plugins again, and
        # the class there, which its `__init__` asks for by name, is then another than the one inherited from here.
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.hydra_context = self.config = self.launcher = None

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]] | None:
        """Run all jobs.

        Returns:
            What became of the jobs, by batch; nothing if the sweep has a directory, which says all.

        Raises:
            SweepError: some jobs failed; all were tried.
        """
        begin_collection()  # also where hydra.mode=MULTIRUN began it
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        words = [*self._parse_config(), *arguments]
        if "search" not in self.config:
            return self._all_combinations(words)
        from hfexp.sweep.direct import Direction

        Direction(self.hydra_context, self.config, self.launcher, self.max_batch_size).sweep(words)
        return None

    def _all_combinations(self, words: list[str]) -> list[Sequence[JobReturn]]:
        from hfexp.errors import SweepError
        from hfexp.launch.jobs import differing_words

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides(words), self.max_batch_size)
        directory = Path(str(self.config.hydra.sweep.dir))
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        for batch in batches:
            self.validate_batch_is_legal(batch)
        returns: list[Sequence[JobReturn]] = []
        for batch in batches:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
        told_apart = differing_words([job for batch in batches for job in batch])
        jobs = list(zip(told_apart, (job for batch in returns for job in batch), strict=True))
        failures = show_jobs(jobs)
        if failures:
            raise SweepError(failures, len(jobs))
        return returns


def show_jobs(jobs: Sequence[tuple[str, JobReturn]]) -> list[tuple[str, Exception]]:
    """Print what came out of several jobs, and return what went wrong, by name of the job.

    Args:
        jobs: what tells each job from the others, and what became of it.
    """
    from rich.table import Table

    from hfexp.errors import first_line
    from hfexp.launch.board import show_objective
    from hfexp.launch.jobs import error_of
    from hfexp.screen import cell, print_table, say
    from hfexp.secrets import mask_secrets

    table = Table("job", "overrides", "objective", box=None, padding=(0, 2, 0, 0))
    failures: list[tuple[str, Exception]] = []
    for number, (words, result) in enumerate(jobs):
        error: Any = error_of(result)
        if error is not None:
            failures.append((f"job {number} ({words})" if len(jobs) > 1 else f"job {number}", error))
        shown = show_objective(result.return_value) if error is None else f"failed: {first_line(error)}"
        table.add_row(str(number), cell(words), cell(mask_secrets(shown)))
    if len(jobs) > 1:
        say()
        print_table(table)
    return failures
