"""Several machines for one run, as far as one machine can show it: the endpoint, what must be equal, who is gone."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS
from test_ddp import among_others, start
from torch.distributed import HashStore  # pyright: ignore

from hfexp.commands import api, cli
from hfexp.core.config import LaunchConfig, Strategy
from hfexp.core.errors import ConfigError, RunError, Terminated
from hfexp.core.identity import config_hash
from hfexp.launch import lost, machines, workers, world
from hfexp.launch.endpoint import find_endpoint
from hfexp.training.callbacks import StopKeys

MACHINES = LaunchConfig(Strategy.ddp, 1, num_machines=2, rdzv_endpoint="127.0.0.1:29500")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (replace(MACHINES, num_machines=0), "launch.num_machines=0 must be at least 1"),
        (replace(MACHINES, num_machines=1), "set launch.num_machines too"),
        (replace(MACHINES, strategy=Strategy.single), "launch.num_machines=2 needs launch=ddp"),
        (replace(MACHINES, rdzv_endpoint=None), "needs launch.rdzv_endpoint=HOST:PORT"),
        (replace(MACHINES, rdzv_endpoint="hosta"), "must be HOST:PORT"),
        (replace(MACHINES, rdzv_endpoint="hosta:port"), "must be HOST:PORT"),
        (replace(MACHINES, rdzv_endpoint="nobody.invalid:29500"), "this machine does not know nobody.invalid"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(launch: LaunchConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.resolve(launch, use_cpu=True)


def names_mean(monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
    """Let names have these addresses."""

    def find(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.get(host, host), port))]

    monkeypatch.setattr("hfexp.launch.endpoint.socket.getaddrinfo", find)


def test_a_name_that_means_this_machine_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names_mean(monkeypatch, hosta="127.0.1.1")
    monkeypatch.setattr("hfexp.launch.endpoint.own_addresses", lambda: {"127.0.0.1": "lo", "10.99.0.1": "eth0"})
    with pytest.raises(ConfigError, match=r"hosta means 127.0.1.1, .* This machine has 10.99.0.1 \(eth0\)"):
        find_endpoint("hosta:29500")


def test_the_first_machine_is_the_one_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names_mean(monkeypatch, hosta="10.99.0.1")
    monkeypatch.setattr("hfexp.launch.endpoint.address_towards", lambda address, port: "10.99.0.2")
    monkeypatch.setattr("hfexp.launch.endpoint.own_addresses", lambda: {"10.99.0.1": "eth0", "10.99.0.7": "eth1"})
    here = find_endpoint("hosta:29500")
    assert (here.is_here, here.local_address, here.interface) == (True, "10.99.0.1", "eth0")
    monkeypatch.setattr("hfexp.launch.endpoint.own_addresses", lambda: {"10.99.0.2": "ib0"})
    there = find_endpoint("hosta:29500")
    assert (there.is_here, there.local_address, there.interface) == (False, "10.99.0.2", "ib0")
    monkeypatch.setattr("hfexp.launch.endpoint.address_towards", lambda address, port: None)
    with pytest.raises(ConfigError, match=r"no route to 10.99.0.1"):
        find_endpoint("hosta:29500")


def test_under_torchrun_the_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    among_others(monkeypatch, rank=1, size=2)
    with pytest.raises(ConfigError, match=r"leave out launch.num_machines and launch.rdzv_endpoint"):
        world.resolve(MACHINES, use_cpu=True)


def test_the_endpoint_does_not_change_what_an_experiment_is() -> None:
    words = [*SMALL_DIGITS, "launch=ddp", "trainer.args.per_device_train_batch_size=16"]
    one = api.compose(*words, "launch.num_processes=2")
    several = api.compose(*words, "launch.num_machines=2", "launch.rdzv_endpoint=10.0.0.1:29500")
    several.launch.num_processes = 2  # as a worker sees it that has joined
    assert config_hash(one) == config_hash(several) == config_hash(api.compose(*SMALL_DIGITS))


def test_a_sweep_is_not_for_several_machines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch=ddp", "launch.num_machines=2", "launch.rdzv_endpoint=127.0.0.1:1", "seed=1,2"]
    assert cli.main(["-m", *SMALL_DIGITS, *words]) == 2
    assert "launch.num_machines=2 is for a single run; -m can't be used with it" in capsys.readouterr().err
    assert not (place / "outputs").exists()


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = replace(find_endpoint(f"127.0.0.1:{free_port()}"), is_here=False)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"nobody has answered for 1 s \(launch.timeout\).*start the same command"):
        machines.open_store(endpoint, 1)
    assert time.monotonic() - began < 3


def test_the_store_listens_at_the_endpoint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    endpoint = find_endpoint(f"127.0.0.1:{port}")
    store, is_first = machines.open_store(endpoint, 5)
    other, is_other_first = machines.open_store(endpoint, 5)
    assert (is_first, is_other_first) == (True, False)
    other.set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):  # torch itself would listen on every address
        socket.create_connection(("127.0.0.2", port), timeout=2)
    elsewhere = replace(endpoint, address="127.0.0.1")
    monkeypatch.setattr(type(endpoint), "is_loopback", False)
    with pytest.raises(ConfigError, match=r"can't listen there: Address already in use; choose another port"):
        machines.open_store(elsewhere, 5)


def machine(name: str, **facts: str) -> machines.Machine:
    return machines.Machine(name, "10.99.0.1", False, 1, "", {"torch": "2.14.1", "seed": "1", **facts})


def test_machines_that_differ_are_told_in_what() -> None:
    machines.require_same([machine("hosta"), machine("hostb")])
    with pytest.raises(ConfigError) as refused:
        machines.require_same([machine("hosta"), machine("hostb", seed="2", torch="2.13.0"), machine("hostc")])
    told = str(refused.value)
    assert "torch is 2.14.1 on hosta (10.99.0.1), hostc (10.99.0.1) and 2.13.0 on hostb (10.99.0.1)" in told
    assert "seed is 1 on hosta (10.99.0.1), hostc (10.99.0.1) and 2 on hostb (10.99.0.1)" in told


def test_processes_of_several_machines_agree_on_the_last_step() -> None:
    store = HashStore()
    first, second = StopKeys(store), StopKeys(store)
    assert first.last_step(3, is_first=True) is None
    second.ask()
    assert second.last_step(3, is_first=False) is None
    assert first.last_step(4, is_first=True) == 5
    assert second.last_step(4, is_first=False) == 5


class Asking:
    """Rank 0 of four, two on each machine, whose exchange has failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = HashStore()
        among_others(monkeypatch, rank=0, size=4)
        monkeypatch.setattr(world, "_machines", ("hosta (a)", "hosta (a)", "hostb (b)", "hostb (b)"))
        monkeypatch.setattr(world, "store", lambda: self.store)
        monkeypatch.setattr(lost, "SECONDS", 0.5)

    def says(self, rank: int, *word: Any) -> None:
        self.store.set(f"{lost.KEY}/{rank}", json.dumps(word or None))

    def error(self, message: str = "gloo: Connection closed by peer [b]") -> BaseException:
        try:
            with lost.explained():
                raise RuntimeError(message)
        except BaseException as error:
            return error


def test_who_says_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    asking.says(1)
    error = asking.error()
    assert isinstance(error, workers.WorkerKilledError)
    assert str(error).startswith("machine hostb (b) is gone without a word")
    asking.says(2)
    assert str(asking.error()).startswith("process 3 of 4 on hostb (b) is gone without a word")
    asking.says(3)
    assert str(asking.error()) == "gloo: Connection closed by peer [b]", "all have failed by each other's ends"


def test_who_has_failed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    assert str(asking.error("the disk caught fire")) == "the disk caught fire"
    assert json.loads(asking.store.get(f"{lost.KEY}/0")) == ["RuntimeError", "the disk caught fire", None]
    for rank in (1, 2):
        asking.says(rank)
    asking.says(3, "OSError", "no space", None)
    assert str(asking.error()) == "process 3 of 4 on hostb (b): OSError: no space"
    asking.says(3, "ConfigError", "seed is wrong", None)
    assert isinstance(asking.error(), ConfigError)
    asking.says(3, "Terminated", "143", 143)
    assert isinstance(asking.error(), Terminated)


def test_without_the_first_machine_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)

    def gone(*_: Any) -> None:
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(asking, "store", type("Gone", (), {"set": gone}))
    assert str(asking.error()).startswith("the first machine, hosta (a), is gone")


def test_a_call_that_does_not_return_is_given_up() -> None:
    assert world.within(5, max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        world.within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="no answer"):
        world.within(0.1, time.sleep, 1)


@pytest.mark.slow
def test_two_commands_that_differ_both_say_in_what(place: Path) -> None:
    together = ["launch=ddp", "launch.num_processes=1", "launch.num_machines=2", "launch.timeout=300"]
    words = [*SMALL_DIGITS, *together, f"launch.rdzv_endpoint=127.0.0.1:{free_port()}", "tracking=none"]
    both = [start([*words, f"seed={seed}"], place) for seed in (1, 2)]
    for process in both:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 2, output
        assert output.count("hfexp: error: ") == 1
        assert "seed is 1 on" in output or "seed is 2 on" in output
        assert "Traceback" not in output
    assert not (place / "outputs").exists()
