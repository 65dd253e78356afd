"""A callback that profiles training steps with torch's profiler and writes the trace beside the run's artifacts."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProfileCallback(TrainerCallback):
    """Profiles `active` steps after `wait` + `warmup` others.

    It writes `profile/trace.json` (for https://ui.perfetto.dev) and `profile/operators.txt`, the operators by time.
    """

    def __init__(self, wait: int = 2, warmup: int = 2, active: int = 4) -> None:
        self.schedule = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
        self.profiler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        directory = Path(str(args.output_dir)).parent / "artifacts" / "profile"
        directory.mkdir(parents=True, exist_ok=True)

        def write(profiler: Any) -> None:
            profiler.export_chrome_trace(str(directory / "trace.json"))
            table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
            (directory / "operators.txt").write_text(table)

        self.profiler = profile(activities=activities, schedule=self.schedule, on_trace_ready=write)
        self.profiler.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.profiler.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.profiler.stop()
