"""The laws that every task keeps; `tests/laws.py` has an entry for each task."""

import base64
import contextlib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
import yaml
from checkpoints import assert_equal_weights
from laws import ENTRIES, PLAIN, SIZES, TRAINING, having, prolonged, without, write_rows
from peers import Batch, Row
from safetensors.torch import load_file
from sweeps import make_study, make_sweep, run_point
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hfexp import compose, evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError
from hfexp.core.training_args import TIMINGS
from hfexp.data.sampling import EpochSampler
from hfexp.experiment import fit
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.answers import objects
from hfexp.tasks.base import CLASS, CLASSES, OWN, TAGS, TEXT
from hfexp.tracking.membership import TrialKey
from hfexp.tracking.run_directory import read_state

QUICK = {"token_classification"}
"""Tasks whose cells run in `make test`; those of the others are marked as slow."""
LONG = {3, 8}
"""Laws whose cells are all slow: they start processes, or a whole sweep."""
UNTRACKED = "tracking=none"


class Subject:
    """A task in a directory of its own, and its trainings, each of which is made once."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.entry, self.home = name, ENTRIES[name], home
        self.suffix = ".parquet" if "image" in self.entry.row(0) else ".jsonl"
        self._trained: dict[tuple[str, ...], Any] = {}
        self.write()

    def write(
        self,
        change: Callable[[Row], Row] = lambda row: row,
        place: str = ".",
        keep: Callable[[Row], bool] = lambda row: True,
    ) -> None:
        """Write the splits, with a column to slice by; `change` and `keep` decide which rows they have."""
        Path(place).mkdir(exist_ok=True)
        start = 0
        for split, size in SIZES.items():
            rows = [{**self.entry.row(start + n), "place": "ab"[n * n % 5 % 2]} for n in range(size)]
            write_rows([change(row) for row in rows if keep(row)], Path(place, split).with_suffix(self.suffix))
            start += size

    def source(self, place: str = ".", splits: tuple[str, ...] = tuple(SIZES)) -> list[str]:
        """Words for the files of a directory."""
        files = ", ".join(f"{split}: {Path(place, split).with_suffix(self.suffix)}" for split in splits)
        kind = "parquet" if self.suffix == ".parquet" else "table"
        return [f"dataset={kind}", f"dataset.source.data_files={{{files}}}"]

    def words(self, *more: str) -> list[str]:
        return [f"task={self.name}", *TRAINING, *self.source(), *self.entry.overrides, *more]

    def trained(self, *more: str) -> Any:
        """The result of a training, with these words in addition."""
        if more not in self._trained:
            self._trained[more] = train(*self.words(*more, f"output_dir=runs/{len(self._trained)}"))
        return self._trained[more]

    @property
    def whole(self) -> Any:
        """The result of an uninterrupted training."""
        return self.trained()

    @property
    def still(self) -> Any:
        """The result of a training in which nothing is random but the order of the rows."""
        return self.trained(*self.still_words)

    @property
    def still_words(self) -> tuple[str, ...]:
        return (*PLAIN, *self.entry.still, UNTRACKED)

    def inputs(self, *more: str) -> Any:
        return load_inputs(compose(*self.words(*more)))

    def splits(self, *more: str) -> dict[str, Any]:
        """Splits as the Trainer gets them."""
        config = compose(*self.words(*more))
        return fit.build_splits(config, load_inputs(config))


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {}


@pytest.fixture
def subject(
    task: str, subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Subject:
    """The task in its own directory, which is the current one."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    home = subjects[task].home if task in subjects else tmp_path_factory.mktemp(task)
    monkeypatch.chdir(home)
    if task not in subjects:
        subjects[task] = Subject(task, home)
    return subjects[task]


def law(number: int) -> Callable[[Any], Any]:
    """Let a test state a law: it runs for each task, except where the task's entry says that it does not apply."""

    def state(test: Any) -> Any:
        test.law = number
        tasks = []
        for name, entry in ENTRIES.items():
            is_slow = name not in QUICK or number in LONG
            marks = [pytest.mark.xdist_group(name), *([pytest.mark.slow] if is_slow else [])]
            if number in entry.does_not_apply:
                marks.append(pytest.mark.skip(reason=entry.does_not_apply[number]))
            tasks.append(pytest.param(name, marks=marks))
        return pytest.mark.parametrize("task", tasks)(test)

    return state


# What the laws compare


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics that may not depend on the time that something takes."""
    return {name: value for name, value in metrics.items() if not name.endswith((*TIMINGS, "preparation_time"))}


def exact(metrics: dict[str, float]) -> dict[str, str]:
    """Metrics as texts that are equal if all bits are, also those of what is not a number."""
    return {name: repr(float(value)) for name, value in timeless(metrics).items()}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Weights of a model, or of an adapter."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


def history(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values that a training has logged, up to the newest checkpoint."""
    newest = max((run_dir / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    entries = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


def assert_same_training(one: Any, other: Any) -> None:
    """Equal metrics, weights and optimizer, bit for bit."""
    assert exact(one.metrics) == exact(other.metrics)
    assert_equal_weights(weights(one.run_dir / "model"), weights(other.run_dir / "model"))
    last, again = (max((run.run_dir / "checkpoints").iterdir(), key=checkpoint_step) for run in (one, other))
    assert last.name == again.name
    assert_equal_weights(weights(last), weights(again))
    states = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in (last, again)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    assert history(one.run_dir, "loss") == history(other.run_dir, "loss")


def checkpoint_step(path: Path) -> int:
    return int(path.name.partition("-")[2] or -1)


def assert_alike_training(one: Any, other: Any) -> None:
    """Equal losses, gradients, weights and metrics, up to rounding."""
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("eval_loss", 1e-4)):
        ours, theirs = history(one.run_dir, name), history(other.run_dir, name)
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=tolerance), name
    first, second = weights(one.run_dir / "model"), weights(other.run_dir / "model")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5, msg=name)
    assert timeless(one.metrics) == pytest.approx(timeless(other.metrics), rel=1e-4, abs=1e-6, nan_ok=True)


def plain(value: Any) -> Any:
    """Tensors and arrays as lists."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def rows_of(batch: Any, count: int) -> list[Row]:
    """Rows of a batch, which may come as columns."""
    if isinstance(batch, list):
        return [plain(row) for row in batch]
    return [{name: plain(values[index]) for name, values in batch.items()} for index in range(count)]


def assert_alike_answers(ours: Any, theirs: Any) -> None:
    """Equal structures, whose numbers are equal up to rounding."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_alike_answers(ours[name], theirs[name])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike_answers(one, other)
    else:
        assert ours == theirs


def answers(table: pandas.DataFrame) -> list[Row]:
    """Answers without the column that names the inputs."""
    return [plain(row) for row in table.drop(columns="input", errors="ignore").to_dict("records")]


# The laws


def adapted(subject: Subject) -> tuple[str, ...]:
    """Words that train an adapter of the trained model, without the words of the model itself."""
    return ("model=local", f"model.path={subject.whole.run_dir / 'model'}", "model.peft.r=2",
            "model.peft.lora_dropout=0.1", UNTRACKED)  # fmt: skip


def interrupted(words: list[str], place: str) -> Any:
    """The result of a training that broke in its second epoch, after the checkpoint of step 10, and went on."""
    Path("fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        train(*words, f"output_dir={place}")
    resumed = train(*words, f"output_dir={place}")
    assert "continuing from checkpoint-10" in (resumed.run_dir / "hfexp.log").read_text()
    return resumed


@law(1)
def test_resumed_is_uninterrupted(subject: Subject) -> None:
    assert_same_training(subject.whole, interrupted(subject.words(UNTRACKED), "resumed"))
    words = [word for word in subject.words() if not word.lstrip("+~").startswith("model")]
    words += adapted(subject)
    whole = train(*words, "output_dir=adapted")
    assert_same_training(whole, interrupted(words, "adapted_again"))
    assert whole.metrics["final_eval_loss"] == whole.metrics["best_eval_loss"]
    best = weights(whole.run_dir / "checkpoints" / f"checkpoint-{whole.best_step}")
    assert best
    assert_equal_weights(best, weights(whole.run_dir / "model"))


@law(2)
def test_best_is_evaluated_is_saved(subject: Subject) -> None:
    whole = subject.whole
    step = whole.best_step
    assert step < 20, "the best model must not be the last one, or this proves nothing"
    assert (whole.run_dir / "checkpoints" / "checkpoint-21").is_dir()
    best = {name.removeprefix("best_"): value for name, value in whole.metrics.items() if name.startswith("best_")}
    assert best
    assert exact({name: whole.metrics[f"final_{name}"] for name in best}) == exact(best)
    assert dict(history(whole.run_dir, "eval_loss"))[step] == best["eval_loss"]
    kind = getattr(transformers, subject.inputs().task.model_class)
    saved = kind.from_pretrained(whole.run_dir / "model").state_dict()
    assert_equal_weights(whole.model.state_dict(), saved)
    chosen = kind.from_pretrained(whole.run_dir / "checkpoints" / f"checkpoint-{step}").state_dict()
    assert_equal_weights(chosen, saved)
    for split, prefix in (("validation", "final_eval"), ("test", "test")):
        if subject.inputs().task.needs_reference:
            assert_not_evaluated(whole.run_dir, split=split)
            continue
        table = evaluate(run=whole.run_dir, split=split, resamples=0, record=False)
        for name, value in zip(table["metric"], table["value"], strict=True):
            assert whole.metrics[f"{prefix}_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def assert_not_evaluated(run_dir: Path, **choices: str) -> None:
    """A model that is compared with what it was before the training can't be scored later."""
    with pytest.raises(ConfigError, match="compare a model with what it was before the training"):
        evaluate(run=run_dir, resamples=0, record=False, **choices)


@contextlib.contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch its number of threads back: sums of many numbers depend on it."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(threads))
        yield
    torch.set_num_threads(threads)


@law(3)
def test_two_processes_are_one(subject: Subject) -> None:
    with kept_threads():
        assert_two_processes_are_one(subject)


def assert_two_processes_are_one(subject: Subject) -> None:
    two = subject.trained(
        *subject.still_words, "launch=ddp", "launch.num_processes=2", "launch.num_threads=1",
        "trainer.args.per_device_train_batch_size=4", "trainer.args.per_device_eval_batch_size=4",
    )  # fmt: skip
    assert_alike_training(subject.still, two)


@law(4)
def test_accumulated_batches_are_one(subject: Subject) -> None:
    parts = subject.trained(
        *subject.still_words, "trainer.args.per_device_train_batch_size=2",
        "trainer.args.gradient_accumulation_steps=4",
    )  # fmt: skip
    assert_alike_training(subject.still, parts)


@law(5)
def test_cached_is_uncached_is_streamed(subject: Subject) -> None:
    cached, fresh = (subject.splits(f"transform.cache.enabled={on}") for on in ("true", "false"))
    assert cached["train"].prepared is not None
    assert fresh["train"].prepared is None
    for split, rows in cached.items():
        keys = [*range(len(rows)), *range(len(rows), 2 * len(rows))]
        assert [plain(rows[key]) for key in keys] == [plain(fresh[split][key]) for key in keys]
    assert_same_training(subject.whole, subject.trained("transform.cache.enabled=false", UNTRACKED))
    if subject.entry.streams is not None:
        assert_streamed_is_kept(subject)


def assert_streamed_is_kept(subject: Subject) -> None:
    """Streamed in the order of the file, as kept rows are read without being shuffled."""
    entry = subject.entry
    words = (*subject.still_words, *entry.as_rows)
    stream = (*(entry.streams or ()), "dataset.streaming=true", "dataset.shuffle_buffer=1")
    kept, streamed = subject.splits(*words), subject.splits(*words, *stream)
    for split, rows in kept.items():
        found = streamed[split].inputs([(row, None) for row in streamed[split].rows], 0)
        assert [entry.content(plain(row)) for row in found] == [entry.content(plain(row)) for row in rows]
    one = subject.trained(*words, "trainer.args.train_sampling_strategy=sequential")
    if not subject.inputs().task.draws:  # a row of a stream has no number from which its draws could follow
        assert_alike_training(one, subject.trained(*words, *stream))


@law(6)
def test_workers_and_order_change_nothing(subject: Subject) -> None:
    split = subject.splits()["train"]
    lengths = split.lengths("input_ids") if subject.suffix == ".jsonl" else []
    for epoch in (0, 1):
        seen = []
        for sampler in (EpochSampler(len(split), 42), EpochSampler(len(split), 42, lengths=lengths, group=8)):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            for workers in (0, 2):
                loader = torch.utils.data.DataLoader(
                    split, batch_size=8, sampler=keys, num_workers=workers, collate_fn=lambda batch: batch
                )
                places = iter(keys)
                found = {}
                for batch in loader:
                    size = len(batch) if isinstance(batch, list) else len(batch["labels"])
                    found |= {next(places): row for row in rows_of(batch, size)}
                seen.append(found)
        assert len(seen[0]) == len(split)
        assert all(found == seen[0] for found in seen[1:])
    assert_same_training(subject.whole, subject.trained("trainer.args.dataloader_num_workers=2", UNTRACKED))


def served(model: Any, asks: list[Row]) -> list[Row]:
    """Answers of the application that `mlflow models serve` starts, asked without a network."""
    from fastapi.testclient import TestClient
    from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
    from mlflow.pyfunc import scoring_server

    sent = [
        [base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in ask.values()] for ask in asks
    ]
    body = {"dataframe_split": {"columns": list(asks[0]), "data": sent}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name, "true")  # as `init` does, for ever
        with TestClient(scoring_server.init(model)) as client:
            answer = client.post("/invocations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


@law(7)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_asked_as_trained(subject: Subject) -> None:
    entry, whole = subject.entry, subject.whole
    import mlflow.pyfunc  # the training has imported it without MLflow's warnings

    expected = entry.peer(str(whole.run_dir / "model"), entry.asks)
    assert any(answer != expected[0] for answer in expected), "answers that are all equal prove little"
    assert_alike_answers(answers(predict(run=whole.run_dir, inputs=entry.asks)), expected)
    model = mlflow.pyfunc.load_model(str(whole.run_dir / "mlflow_model"))
    column = model.metadata.get_input_schema().input_names()[0]
    asks = [ask if isinstance(ask, dict) else {column: ask} for ask in entry.asks]
    assert_alike_answers(answers(model.predict(pandas.DataFrame(asks))), expected)
    assert_alike_answers(served(model, asks), expected)


@law(8)
def test_a_point_is_a_run(subject: Subject) -> None:
    words, whole = subject.words(UNTRACKED), subject.whole
    found_first = make_sweep("found", metrics=["loss"], directions=["minimize"])
    run_point(*words, f"point={found_first}:0:0", "output_dir=point")
    (found,) = Path("point").glob("*/*/artifacts/results.json")
    assert exact(json.loads(found.read_text())) == exact(whole.metrics)
    assert_equal_weights(weights(found.parents[1] / "model"), weights(whole.run_dir / "model"))

    sweep = make_sweep("pruned", metrics=["loss"], directions=["minimize"], pruner="median",
                       pruner_args={"n_startup_trials": 1})  # fmt: skip
    make_study(sweep, steps=(5, 10, 15, 20))
    value = run_point(*words, f"point={sweep}:2:0", "output_dir=pruned")
    state = read_state(Path(json.loads(TrialKey(sweep, 2, 0).file.read_text())["run_dir"]))
    assert state is not None
    assert (state.pruned_step, value) == (5, dict(history(whole.run_dir, "eval_loss"))[5])

    assert cli.main(["-m", *words, "search.replicates=2", "hydra/launcher=basic", "output_dir=swept"]) == 0
    runs = {compose_seed(path): path for path in Path("swept").glob("*/*/config.yaml")}
    assert sorted(runs) == [42, 43]
    single = {42: whole, 43: subject.trained("seed=43", UNTRACKED)}
    for seed, path in runs.items():
        results = json.loads((path.parent / "artifacts" / "results.json").read_text())
        assert exact(results) == exact(single[seed].metrics)


def compose_seed(path: Path) -> int:
    return yaml.safe_load(path.read_text())["seed"]


def kept_of(inputs: Any, batch: Batch) -> Any:
    """What the Trainer's evaluation keeps of a batch; texts are written by a model that writes given tokens."""
    task, labels = inputs.task, torch.from_numpy(batch.labels)
    outputs = tuple(map(torch.from_numpy, batch.logits if isinstance(batch.logits, tuple) else (batch.logits,)))
    if not task.has_own_loss:
        outputs = (*outputs, "other outputs")
    kept = task.preprocess_logits(outputs if len(outputs) > 1 else outputs[0], labels)
    if batch.written is None:
        return kept
    writer = SimpleNamespace(config=None, generate=lambda **_: torch.from_numpy(batch.written))
    return kept, *task.generate(writer, {"labels": labels}, inputs.processor)


def merged_windows(inputs: Any, batches: list[Batch]) -> tuple[Any, Any]:
    """Predictions and stored labels of rows, each of which is a batch of windows."""
    rows = [batch.cut for batch in batches if batch.cut]
    merged = [
        inputs.task.merge(*cut, kept_of(inputs, batch).numpy(), {}) for cut, batch in zip(rows, batches, strict=True)
    ]
    return objects(merged), objects(row[inputs.task.label_column] for row, _ in rows)


@law(9)
def test_metrics_are_the_fields(subject: Subject) -> None:
    inputs = subject.inputs()
    for seed in range(3):
        batches, expected = subject.entry.reference(inputs, np.random.default_rng(seed))
        if inputs.task.windowed:
            predictions, references = merged_windows(inputs, batches)
        else:
            predictions = nested_numpify(functools.reduce(nested_concat, (kept_of(inputs, one) for one in batches)))
            several = inputs.task.loss_per_token or inputs.task.reduces_labels
            references = np.concatenate([np.zeros(len(one.labels)) if several else one.labels for one in batches])
        offered = inputs.task.metric_inputs(predictions, references)
        assert inputs.metrics.scalars(dict(offered)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@contextlib.contextmanager
def kept_bytes() -> Iterator[list[tuple[int, int]]]:
    """Rows, and bytes of what is kept of them, by each array that an evaluation keeps until its end."""
    from transformers.trainer_pt_utils import EvalLoopContainer

    found: list[tuple[int, int]] = []
    add = EvalLoopContainer.add

    def count(self: Any, tensors: Any) -> None:
        for tensor in tensors if isinstance(tensors, tuple | list) else [tensors]:
            found.append((len(tensor), tensor.nbytes))
        add(self, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvalLoopContainer, "add", count)
        yield found


@law(10)
def test_an_evaluation_keeps_no_tokens(subject: Subject) -> None:
    entry = subject.entry
    subject.write(prolonged, "longer")
    each, inputs = [], []
    for place, more in ((".", ()), ("longer", entry.longer)):
        limits = (word for word in entry.overrides if "max_position_embeddings" in word)
        words = (
            *subject.source(place),
            *(f"{word.split('=')[0]}=400" for word in limits),
            *entry.brief,
            *more,
            UNTRACKED,
        )
        rows = subject.splits(*words)["validation"]
        inputs.append(np.mean([np.size(plain(rows[index])[main_name(rows[index])]) for index in range(len(rows))]))
        with kept_bytes() as kept:
            train(*subject.words(*words, "trainer.args.max_steps=5", f"output_dir=kept_{len(each)}"))
        assert sum(count for count, _ in kept) >= 3 * len(rows)  # losses, outputs and labels
        each.append({size / count for count, size in kept})
    assert inputs[1] > 1.5 * inputs[0]
    assert each[0] == each[1]
    assert max(each[0]) < 100


def main_name(row: Row) -> str:
    return next(name for name in ("input_ids", "pixel_values") if name in row)


def spoilt(subject: Subject) -> Iterator[tuple[str, Callable[[Row], Row], tuple[str, ...], str]]:
    """Wrong data: its name, what spoils the fourth row of the training split or each row, words, and the message."""
    task, place = subject.inputs().task, r"(line 4 of \S*train.jsonl|row [34])"
    for column in (name for name in task.columns if name not in task.defaults):
        missing = f"no column '{column}' for the task's '{column}'|image_column={column}: the table has only: label"
        yield f"no column {column}", without(column), (), missing
        name = "label" if column == task.label_column and task.label_kind not in (TEXT, OWN) else column
        if column == task.label_column and task.label_kind == CLASSES:
            continue  # a row without any class
        yield f"no value in {column}", only_fourth(having(**{column: None})), (), f"{name}.*{place}"
    if task.label_kind in (CLASS, CLASSES, TAGS) and task.label_column:
        known = [str(name) for name in task.class_names.values()]
        words = (f"dataset.labels={json.dumps(known)}",)
        value: Any = "unseen" if task.label_kind == CLASS else ["unseen"]
        change = {task.label_column: value} | ({"words": ["a"]} if task.label_kind == TAGS else {})
        message = f"unknown (label|tag|class) 'unseen'.*column '{task.label_column}'.*{place}"
        yield "unknown label", only_fourth(having(**change)), words, message
    for name, (change, message) in subject.entry.wrong.items():
        yield name, only_fourth(change), (), f"{message}.*{place}|{place}.*{message}"


def only_fourth(change: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """Change the fourth row that is written."""
    count = itertools.count(1)
    return lambda row: change(row) if next(count) == 4 else row


@law(11)
def test_wrong_data_is_one_message(
    subject: Subject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    monkeypatch.setattr(fit, "build_model", lambda *args: built.append(args))
    for number, (name, change, words, message) in enumerate(spoilt(subject)):
        place = f"wrong_{number}"
        subject.write(change, place)
        capsys.readouterr()
        code = cli.main(subject.words(*subject.source(place), *words, UNTRACKED, f"output_dir={place}"))
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if "error: " in line]
        assert len(errors) == 1, f"{name}: {said}"
        assert re.search(message, said), f"{name}: {said}"
        assert (code in (1, 2), built, "Traceback" in said) == (True, [], False), name


@law(12)
def test_the_report_and_slices(subject: Subject) -> None:
    whole = subject.whole
    page = (whole.run_dir / "artifacts" / "report.html").read_text()
    missing = [pattern for pattern in subject.entry.shown if not re.search(pattern, page)]
    assert missing == []
    if subject.inputs().task.needs_reference:
        assert_not_evaluated(whole.run_dir, by="place")
        return
    run = subject.trained(*subject.entry.as_rows, UNTRACKED) if subject.entry.as_rows else whole
    table = evaluate(run=run.run_dir, by="place", resamples=20, record=False)
    slices = {name: rows.set_index("metric") for name, rows in table.groupby("slice")}
    assert set(slices) == {"all", "place=a", "place=b"}
    for found in slices.values():
        intervals = found[["low", "high"]].dropna()
        assert len(intervals) > 0
        assert (intervals["low"] <= intervals["high"]).all()
    if not subject.entry.apart:
        parts = pandas.concat([slices[f"place={part}"]["value"] for part in "ab"], axis=1)
        assert (parts.min(axis=1) <= slices["all"]["value"]).all()
        assert (slices["all"]["value"] <= parts.max(axis=1)).all()
        return
    for part in "ab":
        subject.write(place=f"only_{part}", keep=lambda row, part=part: row["place"] == part)
        words = subject.source(f"only_{part}", ("test",))
        alone = evaluate(*words, run=run.run_dir, split="test", resamples=0, record=False).set_index("metric")
        found = slices[f"place={part}"]
        assert found["value"].to_dict() == pytest.approx(alone["value"].to_dict(), rel=1e-5, abs=1e-6, nan_ok=True)
        assert set(found["rows"]) == set(alone["rows"])
