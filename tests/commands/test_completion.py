"""`hfexp completion`: the words that complete a line, and the real shells that ask for them."""

import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path

import pytest
from recorded import Store

from hfexp.commands import cli
from hfexp.commands.completion import SHELLS, answers


@pytest.fixture
def store(place: Path) -> Store:
    (place / "outputs").mkdir()
    store = Store(place / "outputs" / "mlflow.db")
    photos = store.experiment("photos")
    store.run(photos, "vit-a")
    store.run(photos, "lr", tags={"hfexp.kind": "sweep"})
    return store


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hfexp pre", ["predict"]),
        ("hfexp mo", ["model.", "model="]),
        ("hfexp model=vit_", ["model=vit_base", "model=vit_digits", "model=vit_tiny"]),
        ("hfexp -m model=vit_base,vit_t", ["model=vit_base,vit_tiny"]),
        ("hfexp train +debug=f", ["+debug=fast"]),
        ("hfexp plan -m se", ["search.", "search=", "security.", "seed="]),
        ("hfexp ~trainer.args.learn", ["~trainer.args.learning_rate="]),
        ("hfexp trainer.args.lr_scheduler_type=warmup", ["trainer.args.lr_scheduler_type=warmup_stable_decay"]),
        ("hfexp tracking.pictures=", ["tracking.pictures=false", "tracking.pictures=true"]),
        ("hfexp launch.strategy=", ["launch.strategy=ddp", "launch.strategy=fsdp", "launch.strategy=single"]),
        ("hfexp dataset=imagefolder dataset.source.", ["dataset.source.data_dir="]),
        ("hfexp predict run=", ["run=best", "run=best:photos", "run=last", "run=vit-a"]),
        ("hfexp evaluate sweep=", ["sweep=lr"]),
        ("hfexp predict top", ["top_k="]),
        ("hfexp compare ", ["best", "best:photos", "last", "sweep=lr", "vit-a"]),
        ("hfexp compare --met", ["--metric"]),
        ("hfexp rerun last see", ["seed="]),
        ("hfexp cache c", ["clear"]),
        ("hfexp clean de", ["debug", "deleted"]),
        ("hfexp list sea", ["search"]),
        ("hfexp list models vit_t", ["vit_tiny"]),
        ("hfexp list searches tp", ["tpe"]),
        ("hfexp list nothing ", []),
        ("hfexp help text_class", ["text_classification"]),
        ("hfexp help launch.ti", ["launch.time_limit", "launch.timeout"]),
        ("hfexp completion z", ["zsh"]),
        ("hfexp --cf", ["--cfg"]),
        ("hfexp nothing_begins_so", []),
        ("hfexp --config-dir nowhere model=", []),
    ],
)  # fmt: skip
def test_answers(line: str, expected: list[str]) -> None:
    assert answers(line, cli.COMMANDS) == expected


def test_own_options_are_completed(place: Path) -> None:
    (place / "mine" / "model").mkdir(parents=True)
    (place / "mine" / "model" / "vit_mine.yaml").write_text("path: x\n")
    assert answers("hfexp --config-dir mine model=vit_m", cli.COMMANDS) == ["model=vit_mine"]
    assert answers("hfexp predict run=", cli.COMMANDS) == []  # there is no store


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 2
    assert "hfexp completion csh: give one shell: bash, fish, zsh" in capsys.readouterr().err
    assert cli.main(["completion"]) == 0
    assert 'eval "$(hfexp completion bash)"' in capsys.readouterr().out


class Terminal:
    """An interactive shell in a terminal of its own."""

    def __init__(self, command: list[str], place: Path) -> None:
        environment = {
            **os.environ, "HOME": str(place), "TERM": "xterm", "PS1": "$ ",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> bool:
        """Read until a text has been seen since the last call."""
        deadline = time.monotonic() + seconds
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                output = os.read(self.descriptor, 4096).decode(errors="replace")
                self.seen += re.sub(r"\x1b\[[0-9;]*m", "", output)
                if "\x1b[c" in output:  # fish asks what the terminal is, and waits for an answer
                    self.type("\x1b[?62;c")
        found = text in self.seen
        self.seen = ""
        return found

    def close(self) -> None:
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)


INTERACTIVE = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(hfexp completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u; eval "$(hfexp completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "hfexp completion fish | source"),
}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("shell", SHELLS)
def test_the_real_shells(shell: str, place: Path) -> None:
    command, line = INTERACTIVE[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(command, place)
    try:
        terminal.type(f"{line}; echo re''ady\n")
        assert terminal.wait_for("ready")
        terminal.type("hfexp model=vit_t\t")
        assert terminal.wait_for("iny"), "an option"
        terminal.type("trainer.args.num_tr\t")
        assert terminal.wait_for("ain_epochs="), "a key, with no space after it"
        terminal.type("5 launch.strategy=d\t")
        assert terminal.wait_for("dp"), "a value"
        terminal.type("\x15hfexp predict run=vi\t")
        assert terminal.wait_for("t-a"), "a run"
        (place / "some_photos").mkdir()
        terminal.type(" some_ph\t")
        assert terminal.wait_for("otos/"), "a file"
        terminal.type("\x15exit\n")
    finally:
        terminal.close()
