"""What a training shows and records: callbacks for progress and logged values, and the recorder behind them."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core import console
from hfexp.core.config import Checkpoints, Config, flatten, recorded_values
from hfexp.core.console import end_bar, is_terminal, move_bar, say
from hfexp.core.errors import DataError, RunError
from hfexp.core.provenance import Origin
from hfexp.data.dataset import first_rows, num_rows
from hfexp.experiment.context import Inputs
from hfexp.inference.mlflow_model import SavedModel, pipeline_name, save_mlflow_model, verify_model
from hfexp.inference.model_card import CardFacts, hub_id, model_card
from hfexp.inference.predictor import Predictor, Recipe, recipe_of, save_recipe
from hfexp.launch import job
from hfexp.tasks.base import Piece
from hfexp.tracking import lineage
from hfexp.tracking.delivery import CHECKPOINT_MODELS
from hfexp.tracking.environment import Environment
from hfexp.tracking.membership import PRUNED, register_of_run
from hfexp.tracking.models import FINAL
from hfexp.tracking.names import experiment_name
from hfexp.tracking.notes import NOTE, summarize
from hfexp.tracking.report.canvas import Pictures
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.facts import ItemScores, ReportFacts, Scores, store
from hfexp.tracking.report.figures import draw_samples
from hfexp.tracking.report.report import draw_report
from hfexp.tracking.run_directory import RunDirectory
from hfexp.tracking.tracker import Tracker
from hfexp.training.adapters import class_of, is_adapted
from hfexp.training.model import ModelSummary

# The recorder: passes an experiment's inputs, metrics, checkpoints, report and model to the tracker.


logger = logging.getLogger(__name__)

MARKED_ROWS = 20
"""Validation rows that the report shows with what the model finds in them."""
VERIFIED_EXAMPLES = 4
"""Validation rows on which the saved model is compared with the trained one."""
RESULTS = "results.json"


@dataclass
class Recorder:
    """Records one experiment: `begin`, then `checkpoint` while it trains, then `finish` or `give_up`."""

    tracker: Tracker
    config: Config
    origin: Origin
    environment: Environment
    inputs: Inputs
    directory: RunDirectory
    data: list[dict[str, Any]] = field(default_factory=list)
    """Datasets of the run, see `hfexp.tracking.lineage.dataset_inputs`."""
    model: dict[str, str] = field(default_factory=dict)
    """Source of the model before training, as tags, see `hfexp.tracking.lineage.model_source`."""
    summary: ModelSummary | None = None
    _not_drawn: Any = None
    """The training split between `begin` and `draw_samples`, else None."""

    @property
    def pictures(self) -> bool:
        """Tell whether the report has pictures; by default, a sweep draws those of its best run when it ends."""
        chosen = self.config.tracking.pictures
        return self.config.point is None if chosen is None else chosen

    def begin(self, model: Any, summary: ModelSummary, train_dataset: Any) -> None:
        """Record the data and the model that the run starts with."""
        self.summary = summary
        params: dict[str, Any] = {
            "model.num_parameters": summary.num_parameters,
            "model.num_trainable": summary.num_trainable,
        }
        sizes = {split: num_rows(rows) for split, rows in self.inputs.dataset.items()}
        params |= {f"dataset.num_{split}_samples": n for split, n in sizes.items() if n is not None}
        params |= {f"dataset.num_{split}_skipped": count for split, count in self.inputs.dropped.items()}
        if self.inputs.task.windowed:
            params["dataset.num_train_windows"] = len(train_dataset)
        self.tracker.log_params(params)
        transform = lineage.transform_hash(self.config, self.inputs.processor)
        splits = {str(split): rows for split, rows in self.inputs.dataset.items()}
        self.data = lineage.dataset_inputs(self.config, self.inputs.task, splits, self.inputs.dropped, transform)
        self.tracker.record("inputs", inputs=self.data)
        self.model = lineage.model_source(self.config, model)
        task = self.inputs.task
        goal = {"hfexp.metric": f"final_eval_{task.metric}"}
        goal["hfexp.metric_direction"] = "max" if task.greater_is_better else "min"
        # compare.py warns of runs without this tag: older versions did not weight the losses of accumulated batches.
        weighting = {"hfexp.loss_weighting": "items"}
        signatures = {f"hfexp.sacrebleu_{name}": text for name, text in self.inputs.metrics.signatures().items()}
        self.tracker.set_tags({"hfexp.transform_hash": transform, **self.model, **goal, **weighting, **signatures})
        self.tracker.log_artifacts(self.directory.artifacts)
        self._not_drawn = train_dataset

    def draw_samples(self) -> None:
        """Draw the training samples as a picture, once; it is called late so that the first steps need not wait."""
        if self._not_drawn is not None:
            drawn = Pictures(self.directory.artifacts, self.pictures)
            draw_samples(self._not_drawn, self.inputs.task, self.inputs.processor, drawn)
            self.tracker.log_artifacts(self.directory.artifacts)
            self._not_drawn = None

    def checkpoint(self, path: Path, step: int, model: Any) -> None:
        """Record a checkpoint that has just been written."""
        try:
            self._record_checkpoint(path, step, model)
        except OSError as error:  # a record that can't be written must not stop the training
            console.note(f"{path.name} could not be recorded: {error}")

    def _record_checkpoint(self, path: Path, step: int, model: Any) -> None:
        if self.config.tracking.checkpoints is Checkpoints.all:
            directory = self.directory.path / CHECKPOINT_MODELS / path.name
            saved = self._save(model, directory, path, card=None)
            if saved is not None:
                content = {"directory": str(saved.path.relative_to(self.directory.path)), "name": path.name}
                self.tracker.record(
                    "model", **content, key=path.name, step=step, metrics={}, register=None, temporary=True
                )
        elif self.config.tracking.checkpoints is Checkpoints.best:
            self.tracker.record("checkpoints")

    def finish(
        self,
        trainer: Any,
        metrics: dict[str, float],
        scores: dict[str, Scores],
        splits: dict[str, Any],
        seconds: float,
        is_best: bool,
    ) -> ClassReport | None:
        """Record final metrics, report and model, at the step that the saved model comes from.

        Args:
            is_best: no run of its sweep is better so far. Only such a run checks its recorded model: the others would
                take as long for what nobody uses.

        Returns:
            The class report of the last split.
        """
        step = (trainer.args.load_best_model_at_end and trainer.state.best_global_step) or trainer.state.global_step
        (self.directory.artifacts / RESULTS).write_text(json.dumps(metrics, indent=1) + "\n")
        # MLflow shows a chart for each metric, by name: a dozen single values more would stand before all curves, and
        # `best_*` is recorded at its step as `eval_*`, and for the saved model as `final_eval_*`.
        self.tracker.log_metrics({name: v for name, v in metrics.items() if not name.startswith("best_")}, step)
        console.status("drawing the report")
        facts = self._facts(metrics, trainer.state.log_history, seconds)
        task, processor = self.inputs.task, self.inputs.processor
        model = trainer.accelerator.unwrap_model(trainer.model)
        found = [part for part in scores.values() if isinstance(part, ItemScores)][:1]  # that of the validation
        for part in found if not trainer.is_sharded else []:  # no process alone can compute with a model in parts
            part.examples = self._marked_rows(model)
        self.draw_samples()
        store(self.directory.path, facts, scores)
        drawn = Pictures(self.directory.artifacts, self.pictures)
        report = draw_report(facts, scores, self.inputs.id2label, splits, task, processor, drawn)
        self.tracker.set_tags({NOTE: summarize(task.metric, metrics, report, self.origin.command)})
        card = model_card(self._card(model, metrics))
        (self.directory.model / "README.md").write_text(card)
        save_recipe(self.directory.model, self._recipe())
        if self.config.tracking.backend != "none" and self.config.tracking.checkpoints is not Checkpoints.none:
            console.status("recording the model")
            self._record_model(model, card, step, metrics, verify=is_best and not trainer.is_sharded)
        return report

    def give_up(self, metrics: dict[str, float], step: int, pruned_step: int) -> None:
        """Record a run that a sweep has pruned: its metrics so far, and no model.

        Args:
            metrics: the best values that the run reached, at `step`.
        """
        (self.directory.artifacts / RESULTS).write_text(json.dumps(metrics, indent=1) + "\n")
        self.tracker.log_metrics(metrics, step)
        self.tracker.set_tags({PRUNED: str(pruned_step)})

    def _record_model(self, model: Any, card: str, step: int, metrics: dict[str, float], verify: bool) -> None:
        """Record the final model as an MLflow model; `verify` its predictions first, unless it needs foreign code."""
        saved = self._save(model, self.directory.path / "mlflow_model", self.directory.model, card)
        if saved is None:
            self.tracker.log_artifacts(self.directory.model, "model")
            console.note(f"the model is recorded as files: {type(self.inputs.task).__name__} has no inference_example")
            return
        if not saved.flavors:
            console.note("the model is recorded as files: MLflow can't load a model that the user's own code builds")
        elif self.config.model.trust_remote_code:
            console.note("the recorded model was not checked: it needs code from the Hub")
        elif verify:
            self._verify(saved, model)
        model_metrics = {k: v for k, v in metrics.items() if k.startswith(("final_eval_", "test_"))}
        content = {"directory": str(saved.path.relative_to(self.directory.path)), "name": "model", "key": FINAL}
        register = register_of_run(self.config)
        self.tracker.record("model", **content, step=step, metrics=model_metrics, register=register)

    def _verify(self, saved: SavedModel, model: Any) -> None:
        """Load the saved model and compare its predictions; report and record a difference, but don't fail the run."""
        try:
            verify_model(saved, self._predictor(model), self._examples())
            self.tracker.set_tags({"hfexp.model_verified": "true"})
        except RunError as error:
            console.note(str(error))
            self.tracker.set_tags({"hfexp.model_verified": f"false: {error}"})

    def _save(self, model: Any, path: Path, weights: Path, card: str | None) -> SavedModel | None:
        """Save the model as an MLflow model; return None if the task can't predict on raw inputs."""
        examples = self._examples()
        if not examples:
            return None
        inputs = self.inputs
        return save_mlflow_model(
            model,
            inputs.processor,
            inputs.task,
            self._recipe(),
            path,
            example=examples[0],
            weights=weights,
            card=card,
        )

    def _recipe(self) -> Recipe:
        return recipe_of(self.config, self.inputs.id2label)

    def _predictor(self, model: Any) -> Predictor:
        inputs = self.inputs
        quick = inputs.task.quick_options
        return Predictor(model, inputs.processor, inputs.task, inputs.transforms, inputs.id2label, options=quick)

    def _marked_rows(self, model: Any) -> list[list[Piece]]:
        """Return the first validation rows as texts in which the model has marked what it finds."""
        task, rows = self.inputs.task, first_rows(self.inputs.dataset["validation"], MARKED_ROWS)
        inputs = [{name: row[name] for name in task.columns if name != task.label_column} for row in rows]
        outputs = self._predictor(model).outputs(dict, inputs)
        return [
            task.marked(row, output)
            for row, output in zip(rows, outputs, strict=True)
            if not isinstance(output, DataError)
        ]

    def _examples(self) -> list[Any]:
        rows = self.inputs.dataset["validation"]
        examples = [self.inputs.task.inference_example(row) for row in first_rows(rows, VERIFIED_EXAMPLES)]
        return [example for example in examples if example is not None]

    def _facts(self, metrics: dict[str, float], history: list[dict[str, float]], seconds: float) -> ReportFacts:
        """Collect the facts for the report."""
        model = {"parameters": f"{self.summary.num_parameters:,}" if self.summary else "", **self.model}
        model = {name.removeprefix("hfexp.model_"): value for name, value in model.items()}
        return ReportFacts(
            name=self.directory.title,
            experiment=experiment_name(self.config, self.origin),
            status="finished",
            command=self.origin.command,
            metrics=metrics,
            history=history,
            params={k: str(v) for k, v in flatten(recorded_values(self.config)).items()},
            environment=self.environment.summary(),
            data={str(s): self._split_facts(d) for s, d in zip(self.inputs.dataset, self.data, strict=True)},
            model={"architecture": self.summary.name if self.summary else "", **model},
            metric=self.inputs.task.metric,
            seconds=seconds,
        )

    def _split_facts(self, item: dict[str, Any]) -> dict[str, Any]:
        dataset = item["dataset"]
        profile = json.loads(dataset["profile"])
        return {
            "rows": profile["num_rows"],
            "digest": dataset["digest"],
            "source": dataset["source"],
            "classes": profile.get("classes"),
        }

    def _card(self, model: Any, metrics: dict[str, float]) -> CardFacts:
        """Collect the facts for the model's README."""
        config, inputs = self.config, self.inputs
        foreign = self._recipe().foreign_targets()
        source = config.dataset.source
        from_hub = source.get("_target_") == "datasets.load_dataset"
        return CardFacts(
            name=self.directory.title,
            architecture=class_of(model).__name__,
            model_class=inputs.task.model_class,
            processor_class=inputs.task.processor_class,
            pipeline=pipeline_name(inputs.task),
            num_parameters=self.summary.num_parameters if self.summary else 0,
            num_adapter=self.summary.num_trainable if self.summary and is_adapted(model) else None,
            base_model=config.model.path,
            dataset=self.origin.choices.get("dataset") or "its dataset",
            hub_dataset=hub_id(str(source.get("path"))) if from_hub and source.get("path") else None,
            rows={str(split): num_rows(rows) for split, rows in inputs.dataset.items()},
            labels=list((inputs.id2label or {}).values()),
            metrics=metrics,
            params=flatten(recorded_values(config)),
            versions=self.environment.summary(),
            digests={str(s): d["dataset"]["digest"] for s, d in zip(inputs.dataset, self.data, strict=True)},
            run_id=self.tracker.run_id,
            command=self.origin.command,
            git_sha=self.environment.git.get("sha"),
            notes=[f"It needs the code of {', '.join(foreign)}."] if foreign else [],
        )


class TrackingCallback(TrainerCallback):
    """Records what the Trainer logs, at its step, and announces checkpoints to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.recorder.checkpoint(path, state.global_step, kwargs["model"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self._record(logs, state.global_step)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the checkpoint's logs again; some are missing if the recording process was killed before."""
        if state.is_world_process_zero:
            for entry in state.log_history:
                logs = {name: value for name, value in entry.items() if name != "step"}
                self._record(logs, int(entry["step"]))

    def _record(self, logs: dict[str, float], step: int) -> None:
        # The user's metrics and callbacks may log NumPy numbers or one-element tensors.
        numbers = {name: float(value) for name, value in logs.items() if hasattr(value, "__float__")}
        self.recorder.tracker.log_metrics(numbers, step)


class DrawSamples(TrainerCallback):
    """Draws the training samples when training first pauses: at its first log or the end of its first epoch."""

    def __init__(self, recorder: Recorder, aside: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """`aside`: makes a context whose time counts in no training rate."""
        self.recorder = recorder
        self.aside = aside

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.aside():
                self.recorder.draw_samples()

    on_epoch_end = on_log


BAR_INTERVAL = 0.1
"""Seconds between two updates of the bar."""


class ShowProgress(TrainerCallback):
    """Shows epoch, loss, validation metric, samples per second and remaining time."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: dict[str, float] = {}
        self.started = 0.0
        self.first_step = 0
        self._first_ended: tuple[float, int] | None = None
        """Time and step at the end of the first step, which is the slowest (it may compile); rates count from here."""
        self.train_seconds = 0.0
        self._next = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_step, self._first_ended = time.perf_counter(), state.global_step, None
        if args.torch_compile and state.is_world_process_zero:
            say("  the first step compiles the model: up to a minute or two")
        self._move_bar(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first_ended = self._first_ended or (time.perf_counter(), state.global_step)
        if time.perf_counter() > self._next or state.global_step >= state.max_steps:
            self._move_bar(args, state)
        if state.is_world_process_zero:
            job.report(args.run_name, state.global_step, state.max_steps, self.values)

    def _move_bar(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero and is_terminal():
            epoch = f"epoch {min(int(state.epoch or 0) + 1, int(state.num_train_epochs))}/{state.num_train_epochs}"
            epoch = "streaming" if state.num_train_epochs == sys.maxsize else epoch
            move_bar(state.global_step, state.max_steps, epoch, self._text(args, state))
            self._next = time.perf_counter() + BAR_INTERVAL

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("loss", f"eval_{self.metric}"):
            if logs and name in logs:
                self.values[name] = logs[name]

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_terminal():
            self._move_bar(args, state)  # the last evaluation would not be shown: no step follows
        elif state.is_world_process_zero and state.global_step:
            left = (state.max_steps - state.global_step) / max(self._steps_per_second(state), 1e-9)
            epoch = f"epoch {state.epoch or 0:.4g}/{state.num_train_epochs}"
            epoch = "streaming" if state.num_train_epochs == sys.maxsize else epoch  # a stream may have no known end
            say(f"  {epoch}  step {state.global_step}/{state.max_steps}  {self._text(args, state)}  {left:.0f} s left")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the terminal, also after an error."""
        if self.started:
            self.train_seconds = time.perf_counter() - self.started
        end_bar()

    def _steps_per_second(self, state: TrainerState) -> float:
        """Return the mean rate, with the time of evaluation and saving included."""
        first = self._first_ended
        since, step = first if first and state.global_step > first[1] else (self.started, self.first_step)
        return (state.global_step - step) / max(time.perf_counter() - since, 1e-9)

    def _text(self, args: TrainingArguments, state: TrainerState) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rate = batch * self._steps_per_second(state)
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"{numbers}  {rate:.0f} samples/s".strip()
