"""One run on two hosts, which are network namespaces here: equal to one host's, clear ends, and continued after them.

Both hosts have names that mean 127.0.1.1, as Debian's installer writes them into /etc/hosts.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import netns
import pytest
import torch
from conftest import SMALL_DIGITS, TESTS
from faults import fault_at
from netns import Namespace, ip
from safetensors.torch import load_file
from test_ddp import history

from hfexp.commands import api

pytestmark = pytest.mark.slow

PORT = 29517
TOGETHER = (
    "launch=ddp", "launch.num_processes=1", "launch.num_machines=2", f"launch.rdzv_endpoint=10.99.0.1:{PORT}",
    "launch.num_threads=1", "trainer.args.per_device_train_batch_size=16",
)  # fmt: skip
"""The same batches of 32 as `SMALL_DIGITS`."""
LONGEST = 600
"""Seconds that a training may take on a very busy machine."""
NOTICED = 60
"""Seconds, on a busy machine, from the moment at which a loss can be noticed to the end of all processes."""


class Host(Namespace):
    """A host on which hfexp runs in a folder."""

    def __init__(self, name: str, address: str, place: Path) -> None:
        super().__init__(name, address)
        self.place = place

    def start(self, *words: str, before: str = "true", by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start hfexp with these words.

        `before` is a shell command that runs in the host's own mount namespace, `by` a module that starts hfexp.
        """
        return subprocess.Popen(
            self.within(self.place / "hosts", sys.executable, *by, "-m", "hfexp", *words, before=before),
            cwd=self.place,
            env={**os.environ, "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def hosts(place: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts with one link between them and one folder."""
    if reason := netns.why_not():
        pytest.skip(reason)
    a, b = Host("hosta", "10.99.0.1", place), Host("hostb", "10.99.0.2", place)
    (place / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 hosta hostb\n")
    with netns.namespaces(a, b):
        netns.join(a, b)
        yield a, b


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process prints until a line has the text; return all of it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def end_of(process: subprocess.Popen[str], timeout: float) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def run_dir(place: Path) -> Path:
    (directory,) = (place / "outputs" / "digits").glob("vit*")
    return directory


def newest_checkpoint(directory: Path) -> int:
    return max(int(path.name.partition("-")[2]) for path in (directory / "checkpoints").glob("checkpoint-*"))


def test_two_hosts_do_what_one_does(hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [*SMALL_DIGITS, "dataset.max_validation_samples=41", "trainer.args.logging_steps=1"]
    first, second = (host.start(*words, *TOGETHER) for host in hosts)
    code, shown = end_of(first, LONGEST)
    assert code == 0, shown
    other_code, other_shown = end_of(second, 120)
    assert other_code == 0, other_shown
    assert shown.count("model: ViTForImageClassification") == shown.count("validation accuracy") == 1
    assert other_shown.endswith("hfexp: machine 2 of 2; hosta (10.99.0.1) prints and records the run\n")
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert (run.data.params["launch.num_machines"], run.data.params["launch.num_processes"]) == ("2", "2")
    two = run_dir(place)
    assert {path.name for path in (two / "logs").iterdir()} == {"rank0.log", "rank1.log"}
    one = api.train(*words, "output_dir=one", "launch.num_threads=1")
    alone = mlflow.MlflowClient(f"sqlite:///{place / 'one' / 'mlflow.db'}").get_run(str(one.run_id))
    assert alone.data.tags["hfexp.config_hash"] == run.data.tags["hfexp.config_hash"]
    for key in ("loss", "eval_loss"):
        values = [history(one.run_dir, one.run_id, key), history(two, run.info.run_id, key)]
        assert len(values[0]) >= 2
        assert values[0] == pytest.approx(values[1], rel=2e-4)
    for name, weight in load_file(one.run_dir / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, load_file(two / "model" / "model.safetensors")[name], rtol=1e-3, atol=1e-4)
    for key in ("final_eval_accuracy", "test_accuracy"):
        assert run.data.metrics[key] == pytest.approx(one.metrics[key])


def test_torchrun_on_two_hosts_gives_one_run(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    """What torch needs by hand where names mean 127.0.1.1."""
    words = [word for word in (*SMALL_DIGITS, *TOGETHER) if not word.startswith("launch")]
    processes = []
    for number, host in enumerate(hosts):
        agent = (
            "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=10.99.0.1:{PORT}", f"--rdzv-conf=is_host={1 - number}", f"--local-addr={host.address}",
        )  # fmt: skip
        processes.append(host.start(*words, before=f"export GLOO_SOCKET_IFNAME={host.link}", by=agent))
    ends = [end_of(process, LONGEST) for process in processes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum(shown.count("model: ViTForImageClassification") for _, shown in ends) == 1
    (run,) = all_runs()
    assert (run.info.status, run.data.params["launch.num_processes"]) == ("FINISHED", "2")


def end_without(lost: Host, its: subprocess.Popen[str], other: Host, process: subprocess.Popen[str]) -> str:
    """Kill a host; return what the other one's command says as it ends, soon and with nothing left behind."""
    lost.kill()
    began = time.monotonic()
    code, shown = end_of(process, 120)
    assert time.monotonic() - began < NOTICED
    assert code == 1
    assert "Traceback" not in shown
    assert other.pids() == []
    its.communicate()
    return shown


LONG = (*SMALL_DIGITS, *TOGETHER, "trainer.args.num_train_epochs=30", "trainer.args.logging_steps=1")


def test_a_host_that_dies_ends_the_run_which_the_same_command_continues(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    first, second = (host.start(*LONG) for host in hosts)
    wait_for(first, "epoch 3/")
    assert "machine hostb (10.99.0.2) is gone without a word" in end_without(hosts[1], second, hosts[0], first)
    (killed,) = all_runs()
    assert killed.info.status == "KILLED"
    assert "machine hostb (10.99.0.2) is gone" in killed.data.tags["hfexp.status_reason"]
    newest = newest_checkpoint(run_dir(place))
    first, second = (host.start(*LONG) for host in hosts)
    code, shown = end_of(first, LONGEST)
    assert code == 0, shown
    assert f"continuing {run_dir(place).name} from checkpoint-{newest}" in shown
    assert end_of(second, 120)[0] == 0
    (run,) = all_runs()
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert len(history(run_dir(place), run.info.run_id, "loss")) == 90, "each step once"


def test_a_host_that_comes_back_joins_the_others_again(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    words = [*LONG, "launch.max_restarts=1"]
    first, second = (host.start(*words) for host in hosts)
    wait_for(first, "epoch 3/")
    hosts[1].kill()
    second.communicate()
    wait_for(first, "machine hostb (10.99.0.2) is gone without a word")
    second = hosts[1].start(*words)
    code, shown = end_of(first, LONGEST)
    assert code == 0, shown
    assert "continuing" in shown
    assert end_of(second, 120)[0] == 0
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert len(history(run_dir(place), run.info.run_id, "loss")) == 90


def test_the_first_process_that_dies_is_started_again(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    (place / "fault").write_text("SIGKILL")
    words = [*SMALL_DIGITS, *TOGETHER, *fault_at(4), "trainer.args.logging_steps=1", "launch.max_restarts=1"]
    ends = [end_of(process, LONGEST) for process in [host.start(*words) for host in hosts]]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "process 0 of 2 was killed by SIGKILL" in ends[0][1]
    assert "machine hosta (10.99.0.1) is gone without a word" in ends[1][1]
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert len(history(run_dir(place), run.info.run_id, "loss")) == 6, "each step once"


def test_without_the_first_host_the_other_ends(hosts: tuple[Host, Host]) -> None:
    first, second = (host.start(*LONG) for host in hosts)
    wait_for(first, "epoch 3/")
    assert "the first machine, hosta (10.99.0.1), is gone" in end_without(hosts[0], first, hosts[1], second)


def test_a_cut_link_ends_both_hosts_after_the_timeout(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    first, second = (host.start(*LONG, "launch.timeout=15") for host in hosts)
    wait_for(first, "epoch 3/")
    ip("-n", hosts[1].namespace, "link", "set", hosts[1].link, "down")
    began = time.monotonic()
    ends = [end_of(process, 150) for process in (first, second)]
    assert time.monotonic() - began < 15 + NOTICED
    assert [code for code, _ in ends] == [1, 1]
    assert "machine hostb (10.99.0.2) is gone without a word" in ends[0][1]
    assert "the first machine, hosta (10.99.0.1), is gone" in ends[1][1]
    assert [host.pids() for host in hosts] == [[], []]
    (run,) = all_runs()
    assert run.info.status == "KILLED"


def test_a_stop_on_one_host_stops_both_with_one_checkpoint(
    hosts: tuple[Host, Host], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    first, second = (host.start(*LONG) for host in hosts)
    wait_for(first, "epoch 3/")
    second.send_signal(signal.SIGTERM)
    ends = [end_of(process, 120) for process in (first, second)]
    assert [code for code, _ in ends] == [143, 143], ends
    (run,) = all_runs()
    assert run.info.status == "KILLED"
    assert newest_checkpoint(run_dir(place)) > 9


def test_a_host_without_the_folder_is_refused(hosts: tuple[Host, Host], place: Path) -> None:
    (place / "outputs").mkdir()
    blind = f"mount -t tmpfs none {place / 'outputs'}"
    first = hosts[0].start(*LONG)
    second = hosts[1].start(*LONG, before=blind)
    for code, shown in (end_of(first, LONGEST), end_of(second, 120)):
        assert code == 2, shown
        (error,) = re.findall(r"hfexp: error: .*", shown)
        assert f"hostb (10.99.0.2) can't see the folder {place / 'outputs'} of hosta (10.99.0.1)" in error
    assert list((place / "outputs").iterdir()) == []
