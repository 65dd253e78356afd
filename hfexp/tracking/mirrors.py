"""Other trackers beside MLflow (`tracking.also`): each gets the params, and every metric once, as MLflow does."""

import contextlib
import functools
import importlib.util
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hfexp.core.console import note, say
from hfexp.core.errors import first_line, one_of
from hfexp.core.secrets import mask_values

logger = logging.getLogger(__name__)

FINISH_TIMEOUT = 60.0
"""Seconds that a finished run waits for W&B to upload the rest; `wandb sync` uploads it later."""
LOAD = "system/"
"""Prefix of the metrics of the load on devices: their steps are seconds, and other trackers measure their own."""


@dataclass(frozen=True)
class Place:
    """The run that a tracker opens, or continues."""

    project: str
    name: str
    key: str
    """Identifies the run: the same for all starts of one run."""
    directory: Path
    """The run's directory, for files that belong to the run."""
    output_dir: Path
    """For files with links: a run's directory has none."""


class Mirror(Protocol):
    """One other tracker, with the run that it has opened."""

    def log_params(self, params: dict[str, Any]) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def finish(self, succeeded: bool) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(place.directory / "tensorboard"))

    def log_params(self, params: dict[str, Any]) -> None:
        rows = [f"| {key} | {value} |" for key, value in params.items()]
        self._writer.add_text("params", "\n".join(["| param | value |", "|---|---|", *rows]))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, succeeded: bool) -> None:
        self._writer.close()


class Trackio:
    """A run in Trackio's local database; `trackio show` opens it.

    Trackio (0.43) takes params only when it opens a run, so the run is opened with the first metric.
    """

    def __init__(self, place: Place) -> None:
        import trackio  # pyright: ignore

        self._begin = functools.partial(trackio.init, place.project, place.key, resume="allow", embed=False)
        self._params: dict[str, Any] = {}
        self._run: Any = None

    def log_params(self, params: dict[str, Any]) -> None:
        self._params |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to open its page
            self._run = self._run or self._begin(config=self._params)
            self._run.log(metrics, step=step)

    def finish(self, succeeded: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if self._run is not None:
                self._run.finish()


class Wandb:
    """A run of Weights & Biases, as its own variables say: `WANDB_MODE=offline` keeps it in `<output_dir>/wandb`."""

    def __init__(self, place: Place) -> None:
        import wandb

        settings = wandb.Settings(  # hfexp records these itself, without secrets
            console="off", disable_code=True, disable_git=True, x_disable_meta=True, silent=True,
            finish_timeout=FINISH_TIMEOUT,
        )  # fmt: skip
        self._run = wandb.init(
            project=place.project, name=place.name, id=place.key, resume="allow", dir=place.output_dir,
            settings=settings,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")  # W&B's own step can't go back, as a resumed run's does
        if not self._run.offline:
            say(f"  also at {self._run.url}")

    def log_params(self, params: dict[str, Any]) -> None:
        self._run.config.update(params, allow_val_change=True)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def finish(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


MIRRORS: dict[str, Callable[[Place], Mirror]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
"""By the name in `tracking.also`, which is that of the package too."""


def check_mirrors(names: Sequence[str]) -> list[str]:
    """Return what is wrong with `tracking.also`."""
    problems = [f"tracking.also={name}; allowed: {one_of(MIRRORS)}" for name in names if name not in MIRRORS]
    problems += [f"tracking.also names {name} twice" for name, count in Counter(names).items() if count > 1]
    missing = [name for name in names if name in MIRRORS and not _is_installed(name)]
    problems += [f"tracking.also={name} needs the package {name}: pip install {name}" for name in missing]
    if "wandb" in names and "wandb" not in missing:
        import wandb

        # Without a key W&B would ask for one in the middle of the run's start.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            problems.append("tracking.also=wandb: there is no API key; type `wandb login`, or set WANDB_MODE=offline")
    return problems


def _is_installed(package: str) -> bool:
    """Tell whether a package is installed; a plain directory of its name, such as W&B's own `wandb/`, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


class Mirrors:
    """All other trackers of a run. One that fails is left out from then on: the training does not depend on it."""

    def __init__(self) -> None:
        self._open: dict[str, Mirror] = {}

    def open(self, names: Iterable[str], place: Place) -> None:
        for name in names:
            with self._kept_apart(name):
                self._open[name] = MIRRORS[name](place)

    def log_params(self, params: dict[str, Any]) -> None:
        self._each(lambda mirror: mirror.log_params(mask_values(params)))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        told = {name: value for name, value in metrics.items() if not name.startswith(LOAD)}
        if told:
            self._each(lambda mirror: mirror.log_metrics(told, step))

    def finish(self, succeeded: bool) -> None:
        self._each(lambda mirror: mirror.finish(succeeded))
        self._open = {}

    def _each(self, call: Callable[[Mirror], None]) -> None:
        for name, mirror in list(self._open.items()):
            with self._kept_apart(name):
                call(mirror)

    @contextlib.contextmanager
    def _kept_apart(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            note(f"{name} records nothing more of this run ({first_line(error)})")
            logger.info("tracking.also=%s failed", name, exc_info=True)  # the note has said it
