"""Several processes for one run: one directory, one record, the numbers of one process, and one ending for all."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
from conftest import SMALL_DIGITS, TESTS
from faults import fault_at
from safetensors.torch import load_file
from transformers import Dinov2Config, TrainerControl, TrainerState, TrainingArguments

from hfexp.commands import api, cli
from hfexp.core.config import LaunchConfig, Strategy
from hfexp.core.errors import ConfigError, RunError, Terminated
from hfexp.core.identity import config_hash
from hfexp.core.process import how_it_ended
from hfexp.experiment.distributed import Relay, relayed
from hfexp.experiment.preflight import leaves_parameters_unused, load_inputs
from hfexp.launch import workers, world
from hfexp.training.callbacks import StopFiles, StopTogether, forget

TWO = ("launch=ddp", "launch.num_processes=2", "trainer.args.per_device_train_batch_size=16", "launch.num_threads=1")
"""The same batches of 32 as `SMALL_DIGITS`."""


def resolved(launch: LaunchConfig, use_cpu: bool = False) -> LaunchConfig:
    world.resolve(launch, use_cpu)
    return launch


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "visible_devices", lambda: ("0", "1", "2"))
    ddp = Strategy.ddp
    assert resolved(LaunchConfig(ddp, "auto")).num_processes == 3
    assert resolved(LaunchConfig(ddp, 2)).num_processes == 2
    assert resolved(LaunchConfig(ddp, 5), use_cpu=True).num_processes == 5
    assert resolved(LaunchConfig(Strategy.single, "auto")).num_processes == 1
    for launch, use_cpu, message in (
        (LaunchConfig(ddp, 4), False, "more than the 3 visible accelerators"),
        (LaunchConfig(ddp, "auto"), True, "there are none"),
        (LaunchConfig(ddp, 0), False, "at least 1"),
        (LaunchConfig(ddp, "many"), False, "at least 1"),
        (LaunchConfig(Strategy.single, 2), False, "needs launch=ddp"),
    ):
        with pytest.raises(ConfigError, match=message):
            world.resolve(launch, use_cpu)


def among_others(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    """Set the variables of a process that torchrun has started."""
    place = {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in {"RANK": rank, "WORLD_SIZE": size, **place}.items():
        monkeypatch.setenv(name, str(value))


def test_a_process_among_others_takes_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    among_others(monkeypatch, rank=1, size=4)
    launch = resolved(LaunchConfig())
    assert (launch.strategy, launch.num_processes) == (Strategy.ddp, 4)
    with pytest.raises(ConfigError, match="started as one of 4"):
        world.resolve(LaunchConfig(Strategy.ddp, 2), use_cpu=False)


def test_srun_starts_one_task_on_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ConfigError, match=r"srun has started 2 tasks .*num_processes=2, or .*launch.num_machines=2"):
        resolved(LaunchConfig(Strategy.ddp, 2))
    assert resolved(LaunchConfig(Strategy.single)).num_processes == 1, "runs of their own"
    machines = LaunchConfig(Strategy.ddp, 2, num_machines=2, rdzv_endpoint="127.0.0.1:29500")
    assert resolved(machines).num_processes == 2
    among_others(monkeypatch, rank=1, size=2)
    assert resolved(LaunchConfig(Strategy.ddp, "auto")).num_processes == 2, "torchrun in each task"


def test_a_sweep_is_not_for_torchrun(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    among_others(monkeypatch, rank=0, size=2)
    assert cli.main(["-m", "seed=1,2"]) == 2
    assert "hfexp -m ... launch=ddp launch.num_processes=2" in capsys.readouterr().err
    among_others(monkeypatch, rank=1, size=2)
    assert cli.main(["-m", "seed=1,2"]) == 2
    assert capsys.readouterr().err == ""
    assert not list(place.iterdir())


def test_the_identity_is_that_of_the_whole_batch() -> None:
    one = config_hash(api.compose(*SMALL_DIGITS))
    assert config_hash(api.compose(*SMALL_DIGITS, *TWO)) == one
    assert config_hash(api.compose(*SMALL_DIGITS, *TWO, "launch.num_processes=4")) != one


def step_ends(stop: StopTogether, step: int) -> bool:
    """Whether the callback asks for a checkpoint after this step."""
    control = TrainerControl()
    state = TrainerState(global_step=step, epoch=step / 10)
    stop.on_step_end(TrainingArguments(use_cpu=True, report_to="none"), state, control)
    return control.should_save


def test_all_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    first, second = StopTogether(StopFiles(tmp_path), True), StopTogether(StopFiles(tmp_path), False)
    for stop in (first, second):
        stop.on_train_begin(TrainingArguments(use_cpu=True, report_to="none"), TrainerState(), TrainerControl())
    assert not step_ends(first, 3)
    second._request(signal.SIGTERM, None)
    second._request(signal.SIGTERM, None)  # it may come twice: from the terminal and from the starting process
    assert not step_ends(second, 3)
    assert not step_ends(first, 4)
    assert not step_ends(second, 4)
    assert step_ends(second, 5)
    assert step_ends(first, 5)
    with pytest.raises(Terminated):
        first.on_save(TrainingArguments(use_cpu=True, report_to="none"), TrainerState(), TrainerControl())
    forget(tmp_path)
    assert not step_ends(StopTogether(StopFiles(tmp_path), True), 6)


def test_parameters_without_a_gradient_are_found_beforehand() -> None:
    config = api.compose(*SMALL_DIGITS)
    inputs = load_inputs(config)
    batch = {"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([1, 2])}
    assert leaves_parameters_unused(config, inputs, batch) is False
    inputs.model_config = Dinov2Config(  # it has a mask token for another task
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, num_labels=10
    )
    assert leaves_parameters_unused(config, inputs, batch) is True
    config.model.freeze = ["dinov2.embeddings.mask_token"]
    assert leaves_parameters_unused(config, inputs, batch) is False


class Heard:
    """A tracker that remembers."""

    uri = run_id = None

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_what_a_process_told_before_it_was_killed_arrives() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    heard = Heard()

    def fail() -> None:
        raise OSError("no space")

    with relayed(receiver, sender, heard, fail=fail):  # pyright: ignore
        relay = Relay(sender, None, None)
        relay.send("fail")  # must not end the passing on
        for step in range(200):
            relay.log_metrics({"loss": torch.tensor(step)}, step)  # pyright: ignore
    assert [args for name, args, _ in heard.calls if name == "log_metrics"] == [
        ({"loss": float(step)}, step) for step in range(200)
    ]
    relay.log_metrics({"loss": 1.0}, 1)  # nobody is there any more


def test_exit_codes_in_words() -> None:
    assert how_it_ended(3) == "ended with exit code 3"
    assert how_it_ended(-signal.SIGKILL) == "was killed by SIGKILL (by the system when memory ran out, or by a user)"
    assert how_it_ended(-signal.SIGSEGV) == "was killed by SIGSEGV"


def test_the_process_that_began_it_is_named(tmp_path: Path) -> None:
    def noted(rank: int, error: BaseException) -> None:
        try:
            raise error
        except BaseException as raised:
            workers.note(tmp_path, rank, raised)

    def why(reported: dict[int, int]) -> str:
        return str(workers.WorkerMonitor(tmp_path, 3).explain(reported))

    noted(0, RuntimeError("Connection closed by peer"))
    assert "process 1 of 3 was killed by SIGSEGV" in why({1: -signal.SIGSEGV})
    assert "process 0 of 3: RuntimeError: Connection closed" in why({0: 1})
    noted(2, RunError("training diverged"))
    assert why({0: 1}) == "training diverged"
    workers.begin(tmp_path, 2)
    noted(1, Terminated())
    noted(2, SystemExit(7))
    assert "process 2 of 3 ended with exit code 7" in why({0: 1})
    for rank in (0, 2):
        workers.begin(tmp_path, rank)
    assert isinstance(workers.WorkerMonitor(tmp_path, 3).explain({1: 143}), Terminated)


def history(run_dir: Path, run_id: str | None, key: str) -> list[float]:
    client = mlflow.MlflowClient(f"sqlite:///{run_dir.parents[1] / 'mlflow.db'}")
    return [point.value for point in client.get_metric_history(str(run_id), key)]


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    place: Path, all_runs: Callable[[], list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_DIGITS, "dataset.max_validation_samples=41", "trainer.args.logging_steps=1"]
    two = api.train(*words, *TWO)
    shown = capfd.readouterr()
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["launch.num_processes"] == "2"
    assert [path.name for path in (place / "outputs" / "digits").iterdir() if path.name != ".locks"] == [
        two.run_dir.name
    ]
    assert {path.name for path in (two.run_dir / "logs").iterdir()} == {"rank0.log", "rank1.log"}
    assert shown.out.count("model: ViTForImageClassification") == shown.out.count("validation accuracy") == 1
    assert "epoch 2/2" in shown.out
    assert "Traceback" not in shown.err
    # Every parameter gets a gradient, so DDP need not look for those that do not.
    assert "find_unused_parameters" not in (two.run_dir / "logs" / "rank0.log").read_text()
    one = api.train(*words, "output_dir=one", "launch.num_threads=1")
    for key in ("loss", "eval_loss"):
        values = [history(r.run_dir, r.run_id, key) for r in (one, two)]
        assert len(values[0]) >= 2
        assert values[0] == pytest.approx(values[1], rel=2e-4)
    for name, weight in load_file(one.run_dir / "model" / "model.safetensors").items():
        other = load_file(two.run_dir / "model" / "model.safetensors")[name]
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)
    # 41 samples on two processes: none twice, none left out.
    assert two.metrics["final_eval_accuracy"] * 41 == pytest.approx(round(two.metrics["final_eval_accuracy"] * 41))
    assert two.report is not None
    assert two.report.support.sum() == one.report.support.sum()  # pyright: ignore
    assert torch.equal(two.model.classifier.weight, load_file(two.run_dir / "model" / "model.safetensors")[
        "classifier.weight"
    ])  # fmt: skip
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_recipes_give_two_processes_the_weights_of_one(place: Path) -> None:
    words = [
        *SMALL_DIGITS, "tracking=none", "trainer.args.num_train_epochs=3", "trainer.ema.decay=0.9",
        "trainer.layer_decay=0.8", "trainer.lr_factors={classifier: 3}", "model.freeze=[vit.embeddings]",
        "trainer.thaw_at=1.5", "trainer.balanced_sampling=true", "trainer.r_drop=0.5",
        "trainer.loss._target_=hfexp.training.losses.Focal", "trainer.class_weights=balanced",
    ]  # fmt: skip
    two, one = api.train(*words, *TWO), api.train(*words, "output_dir=one", "launch.num_threads=1")
    for name, weight in load_file(one.run_dir / "model" / "model.safetensors").items():
        other = load_file(two.run_dir / "model" / "model.safetensors")[name]
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)
    assert two.metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=2e-4)


def start(words: list[str], cwd: Path, *, by: tuple[str, ...] = ("-m", "hfexp")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *by, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_behind(session: int) -> list[psutil.Process]:
    """Processes of a session that live; those that are ending have a few seconds."""

    def living() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["pid", "status"]):
            try:
                if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    deadline = time.monotonic() + 5
    while (found := living()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0")
LONG = [*SMALL_DIGITS, *TWO, "trainer.args.num_train_epochs=3", "trainer.args.logging_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_asked_to_stop_all_write_one_checkpoint_and_go_on_later(
    name: str, code: int, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    endless = [*LONG, "trainer.args.num_train_epochs=300", "trainer.args.logging_steps=1"]
    process = start(endless, place)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 3/" in line:
            break
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert left_behind(process.pid) == []
    (run,) = all_runs()
    assert run.info.status == "KILLED"
    (directory,) = (place / "outputs" / "digits").glob("vit*")
    newest = max(int(p.name.partition("-")[2]) for p in (directory / "checkpoints").glob("checkpoint-*"))
    assert newest > 9
    process = start(endless, place)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("  epoch"):
            break
    assert f"continuing {directory.name} from checkpoint-{newest}" in "".join(lines)
    process.kill()
    process.communicate(timeout=60)
    assert left_behind(process.pid) == [], "SIGKILL of the starting process leaves none of the others"


@pytest.mark.slow
def test_asked_to_stop_the_run_continues_to_the_same_numbers(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [*LONG, *fault_at(3, rank=1)]
    (place / "fault").write_text("SIGTERM")  # to one process alone
    with pytest.raises(Terminated):
        api.train(*words)
    (killed,) = all_runs()
    assert killed.info.status == "KILLED"
    resumed = api.train(*words)
    # In the middle of the second epoch; one step later if the first process had looked just before the request came.
    assert re.search(r"continuing from checkpoint-[45]\b", (resumed.run_dir / "hfexp.log").read_text())
    (run,) = all_runs()
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    whole = api.train(*words, "output_dir=whole")
    for name, weight in load_file(whole.run_dir / "model" / "model.safetensors").items():
        assert torch.equal(weight, load_file(resumed.run_dir / "model" / "model.safetensors")[name])


@pytest.mark.slow
def test_another_number_of_processes_continues_at_the_right_sample(place: Path) -> None:
    words = [*LONG, *fault_at(4)]
    (place / "fault").write_text("SIGTERM")
    with pytest.raises(Terminated):
        api.train(*words)
    one = [word for word in words if word not in TWO]
    resumed = api.train(*one, "launch.num_threads=1")
    assert "continuing from checkpoint-5" in (resumed.run_dir / "hfexp.log").read_text()
    whole = api.train(*one, "launch.num_threads=1", "output_dir=whole")
    values = [history(r.run_dir, r.run_id, "loss") for r in (resumed, whole)]
    assert len(values[0]) == 9
    assert values[0] == pytest.approx(values[1], rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "message"),
    [
        ("error", 1, "process 1 of 2: RuntimeError: the disk caught fire"),
        ("error", 0, "process 0 of 2: RuntimeError: the disk caught fire"),
        ("SIGKILL", 1, "process 1 of 2 was killed by SIGKILL"),
        ("SIGSEGV", 0, "process 0 of 2 was killed by SIGSEGV"),
        ("leave 7", 1, "process 1 of 2 ended with exit code 7"),
    ],
)
def test_a_process_that_dies_ends_the_run_with_its_own_error(
    fault: str, rank: int, message: str, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    (place / "fault").write_text(fault)
    process = start([*LONG, *fault_at(5, rank)], place)
    began = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - began < 100
    assert process.returncode == 1
    assert message in output
    assert "Traceback" not in output
    assert left_behind(process.pid) == []
    (run,) = all_runs()
    assert run.info.status == ("KILLED" if fault == "SIGKILL" else "FAILED")  # from outside, or by its own fault
    assert message in run.data.tags["hfexp.status_reason"]
    (directory,) = (place / "outputs" / "digits").glob("vit*")
    if fault == "error":
        assert "faults.py" in (directory / "artifacts" / "traceback.txt").read_text()


@pytest.mark.slow
def test_processes_start_again_where_they_were(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    (place / "fault").write_text("SIGKILL")
    words = [*LONG, *fault_at(5, rank=1), "launch.max_restarts=1"]
    result = api.train(*words)
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    whole = api.train(*words, "output_dir=whole")
    losses = history(result.run_dir, result.run_id, "loss")
    assert losses == history(whole.run_dir, whole.run_id, "loss")
    assert len(losses) == 9
    assert result.metrics["test_accuracy"] == whole.metrics["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "accelerate"])
def test_started_by_others_all_join_one_run(by: str, place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [word for word in (*SMALL_DIGITS, *TWO) if not word.startswith("launch")]
    process = start(["-m", "hfexp", *words], place, by=TORCHRUN if by == "torchrun" else ACCELERATE)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("model: ViTForImageClassification") == output.count("validation accuracy") == 1
    assert left_behind(process.pid) == []
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["launch.num_processes"] == "2"
    (run_dir,) = (place / "outputs" / "digits").glob("vit*")
    # Killed while its end was delivered: there is nothing left to do, for none of the processes.
    (run_dir / "run.json").write_text((run_dir / "run.json").read_text().replace('"closed": true', '"closed": false'))
    process = start(["-m", "hfexp", *words], place, by=TORCHRUN if by == "torchrun" else ACCELERATE)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("not training again") == 1
    assert len(list((place / "outputs" / "digits").glob("vit*"))) == 1


@pytest.mark.slow
def test_one_process_in_place_of_several_is_refused(place: Path) -> None:
    by = ("-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1")
    process = start(["-m", "hfexp", *SMALL_DIGITS], place, by=by)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("`accelerate launch` was asked for several processes and has started only this one") == 1
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_wrong_input_among_several_processes_is_said_once(place: Path) -> None:
    process = start(["-m", "hfexp", "sed=1"], place, by=TORCHRUN)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("hfexp: error: unknown key") == 1
    assert not (place / "outputs").exists()


def test_wrong_input_is_left_to_the_first_process_to_say(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("hfexp.commands.cli.time.sleep", waited.append)
    place_of_process = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**place_of_process, "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["sed=1"]) == 2
    assert capsys.readouterr().err == ""
    assert waited == [cli.LONGEST_REPORT], "torchrun ends all processes when the first one to end has failed"
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["sed=1"]) == 2
    assert "unknown key 'sed'" in capsys.readouterr().err
    assert len(waited) == 1


@pytest.mark.slow
def test_a_sweep_of_runs_of_two_processes_each(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    shared_memory = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    words = [*SMALL_DIGITS, *TWO, "seed=1,2,3", "hydra.launcher.n_jobs=2"]
    process = start(["-m", *words], place)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert left_behind(process.pid) == []
    runs = [run for run in all_runs() if run.data.tags.get("hfexp.kind") != "sweep"]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert {run.data.params["seed"] for run in runs} == {"1", "2", "3"}
    directories = sorted((place / "outputs" / "digits").glob("vit*"))
    assert len(directories) == 3
    for directory in directories:
        assert {path.name for path in (directory / "logs").iterdir()} == {"rank0.log", "rank1.log"}
    (logs,) = (place / "outputs" / "sweeps").glob("*/logs")
    shown = {path.name: path.read_text() for path in logs.iterdir()}
    assert set(shown) == {"0.log", "1.log", "2.log"}
    assert all("model: ViTForImageClassification" in text and "epoch 2/2" in text for text in shown.values())
    if shared_memory:
        assert set(os.listdir("/dev/shm")) == shared_memory


@pytest.mark.slow
def test_a_sweep_that_is_killed_takes_the_processes_of_its_runs_along(place: Path) -> None:
    words = [*SMALL_DIGITS, *TWO, "seed=1,2", "hydra.launcher.n_jobs=2", "trainer.args.num_train_epochs=500"]
    process = start(["-m", *words], place)
    deadline = time.monotonic() + 150
    while len(list(place.glob("outputs/digits/vit*/checkpoints/checkpoint-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.kill()
    process.communicate(timeout=60)
    assert left_behind(process.pid) == []
    assert len(list(place.glob("outputs/digits/vit*/checkpoints/checkpoint-*"))) >= 2


WARM = """
from pathlib import Path

from entry import loaded
from hfexp.commands import hydra_plugin
from hfexp.core.config import LaunchConfig
from hfexp.launch import workers

assert hydra_plugin.forkserver.modules
Path("run").mkdir()
print("LOADED", workers.start(LaunchConfig(num_processes=2, num_threads=1), Path("run").absolute(), loaded))
"""


@pytest.mark.slow
def test_workers_are_forked_from_a_server_that_has_imported_what_they_need(place: Path) -> None:
    (place / "entry.py").write_text("import sys\ndef loaded(): return 'hfexp.experiment.run' in sys.modules\n")
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-c", WARM], cwd=place, env=environment, capture_output=True, text=True)
    assert "LOADED True" in done.stdout, done.stderr


KILLED_AT_ITS_END = """
import os, signal, sys, threading, time
from pathlib import Path

import psutil
from hfexp.core.config import LaunchConfig
from hfexp.launch import forkserver, workers


def kill_what_is_stopped():
    while True:
        time.sleep(0.2)
        for child in psutil.Process(int(os.environ["SERVER"])).children():
            if child.status() == psutil.STATUS_STOPPED:
                time.sleep(1)  # the agent tells the workers meanwhile that all have ended
                child.kill()


forkserver.start()
os.environ["SERVER"] = str(forkserver.forkserver._forkserver._forkserver_pid)
threading.Thread(target=kill_what_is_stopped, daemon=True).start()
Path("run").mkdir()
import entry
launch = LaunchConfig(num_processes=2, num_threads=1)
print("RESULT", len(workers.start(launch, Path("run").absolute(), entry.work)), flush=True)
"""
STOPPED_AT_ITS_END = """
import os, signal, threading, time


def stop():
    time.sleep(0.5)  # until this process has nothing to do but to wait for the others
    os.kill(os.getpid(), signal.SIGSTOP)


def work():
    if os.environ["RANK"] == "1":
        threading.Thread(target=stop, daemon=True).start()
    else:
        time.sleep(1)
    return "x" * 1_000_000
"""


@pytest.mark.slow
def test_a_process_that_is_killed_after_its_work_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text(STOPPED_AT_ITS_END)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", KILLED_AT_ITS_END]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "RESULT 1000000" in done.stdout, done.stderr
