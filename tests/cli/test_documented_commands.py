"""Every command of README and documentation is composed; those that this machine can run are run, page by page.

Models of the Hub are replaced by small ones of the same kind, and trainings take two steps.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_DIGITS, SMALL_GPT, SMALL_MODEL, write_images

from hfexp import compose, train
from hfexp.commands import cli
from hfexp.core.options import find_option

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/tutorials").glob("*.md"))]
ELSEWHERE = ("gpu-checklist.md", "extending.md")
"""Pages whose commands need GPUs, and one whose commands have a test of their own."""
BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"(?<!`)`(hfexp [^`]+)`(?!`)")
OTHER_PROGRAMS = (
    "make", "pip", "uv", "conda", "docker", "apptainer", "hf", "wandb", "git", "torchrun", "ssh", "mlflow",
)  # fmt: skip
"""They install, download, or have tests of their own."""
HUB = ("dataset=hub", "experiment=food101_vit", "model=timm", "OWNER/NAME", "dataset.streaming=true")
DEVICES = ("gpus_per_job=", "launch.num_machines=", "hydra/launcher=slurm", "hydra.launcher.address=")
"""Parts of commands that are refused where there are no devices or commands of SLURM, or wait for another machine."""
NEEDS = {"bitsandbytes": "model.quantization", "ray": "hydra/launcher=ray"}
MISSING = tuple(part for package, part in NEEDS.items() if not importlib.util.find_spec(package))
"""Parts of commands that need a package which is not installed."""
NOT_ALONE = ("ui", "init", "sync", "submit", "status", "version", "completion")
"""Commands with tests of their own: a server, a new project, ..."""
LIMITS = (
    "dataset.max_train_samples=16", "dataset.max_validation_samples=12", "dataset.max_test_samples=12",
    "trainer.args.max_steps=2", "trainer.args.per_device_train_batch_size=4", "tracking.pictures=false",
)  # fmt: skip
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
KINDS = {"image": "image", "text": "text", "causal_lm": "gpt"}


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """What follows `hfexp`, without the comment at the end."""
        return shlex.split(self.text, comments=True)[1:]

    @property
    def name(self) -> str:
        return cli.split_command(self.words)[0]


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks; continued ones are joined."""
    for block in blocks(page, "bash"):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def typed(page: Path) -> list[Command]:
    """The commands of hfexp in blocks and in tables and texts, if nothing is left out in them."""
    texts = [line for line in lines(page) if line.startswith("hfexp")] + SPAN.findall(page.read_text())
    return [Command(page.name, text) for text in dict.fromkeys(texts) if not re.search(r"\.\.\.|[|>\\]", text)]


COMPOSED = [
    command
    for page in PAGES
    if page.name not in ELSEWHERE
    for command in typed(page)
    if command.name in ("train", "plan")
    and not any(part in command.text for part in (*DEVICES, *MISSING))
    and not {"--help", "--version", "--hydra-help"} & set(command.words)
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the code and the options that pages show."""
    place = tmp_path_factory.mktemp("parts")
    for page in PAGES:
        write_files(page, place)
    return place


def write_files(page: Path, place: Path) -> None:
    """Write the files of a page, which name themselves in a comment: `# my_parts.py`."""
    for language in ("python", "yaml"):
        for block in blocks(page, language):
            named = re.match(r"# ([\w/.]+\.(?:py|yaml))\n", block)
            if named:
                path = place / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                own = path.suffix == ".py" and path.exists() and block not in path.read_text()
                path.write_text(f"{path.read_text() if own else ''}{block.partition(chr(10))[2]}")


@pytest.mark.parametrize("command", COMPOSED, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_it_can_be_composed(command: Command, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts)
    words = [word for word in command.words if word not in ("plan", "--no-probe")]
    if "-m" in words:
        assert cli.main(["plan", "--no-probe", *words]) == 0
        return
    directory = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = [word for word in words if "=" in word]
    assert compose(*overrides, config_dir=directory).task


class Machine:
    """A place that has what the pages assume: images, tables, models, and finished runs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        write_images(home / "photos", count=20)
        write_images(home / "new_photos", count=6)
        (home / "holiday").mkdir()
        for name in ("cat.jpg", "holiday/1.jpg", "holiday/2.jpg"):
            shutil.copy(home / "photos/cat/0.jpg", home / name)
        text = "the film was long and {} in place {}"
        rows = [
            (text.format(("good", "bad")[n % 2], n), str(n % 2 + 1), f"photos/cat/{n % 20}.jpg") for n in range(60)
        ]
        for name in ("rows", "reviews", "more"):
            table = ["text,review,label,stars,file,source,language"]
            table += [f"{text},{text},{label},{label},{file},site{label},en" for text, label, file in rows]
            (home / f"{name}.csv").write_text("\n".join(table) + "\n")
        (home / "books.txt").write_text("\n".join(text for text, _, _ in rows))
        turns = [
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Hello {n}"}] for n in range(40)
        ]
        for name in ("chats", "conversations"):
            (home / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": turn}) for turn in turns))
        tagged = {"tokens": ["Ada", "Lovelace", "lived", "in", "London"], "ner_tags": ["B-P", "I-P", "O", "O", "B-L"]}
        (home / "tagged.jsonl").write_text("\n".join([json.dumps(tagged)] * 40))
        answers = {"prompt": "Say more", "chosen": "Gladly.", "rejected": "No."}
        (home / "pairs.jsonl").write_text("\n".join([json.dumps(answers)] * 40))
        asked = "".join(f"what is {n},it is {n},what is {n},it is {n}\n" for n in range(40))
        (home / "pairs.csv").write_text(f"anchor,positive,question,answer\n{asked}")
        (home / "scored.csv").write_text(
            "text,text_pair,label\n" + "".join(f"a {n},b {n},{n / 40}\n" for n in range(40))
        )
        lines = "\n".join(map(" ".join, zip(*tagged.values(), strict=True)))
        for name in ("train", "dev", "test"):
            (home / f"{name}.conll").write_text(f"{lines}\n\n" * 40)
        choice = {"text": "It rains.", "choices": ["She swims.", "She opens her umbrella."], "label": 1}
        (home / "questions.jsonl").write_text("\n".join([json.dumps(choice)] * 40))
        answers = [{"text": "Oslo", "answer_start": 3}]
        paragraph = {"context": "In Oslo.", "qas": [{"question": "Where?", "answers": answers}] * 40}
        for name in ("train", "dev"):
            (home / f"{name}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
        (home / "questions.csv").write_text("question,context,answer,answer_start\n" + "Where?,In Oslo.,Oslo,3\n" * 40)
        self.models = {
            "image": train(*SMALL_DIGITS, "metrics=classification", "name=vit_digits-digits").run_dir,
            "photos": train(*SMALL_MODEL, "dataset=imagefolder", "dataset.source.data_dir=photos", *LIMITS).run_dir,
            "text": train(
                "task=text_classification", "model=tiny_bert", "dataset=table", "dataset.source.data_files=rows.csv",
                "dataset.test_size=0.2", *LIMITS,
            ).run_dir,
            "gpt": train("task=text_generation", *SMALL_GPT, "dataset.source.data_files=books.txt", *LIMITS).run_dir,
        }  # fmt: skip
        shutil.copytree(self.models["image"] / "model", home / "models" / "vit")
        (self.models["gpt"] / "model/chat_template.jinja").write_text(TEMPLATE)
        sweep = ("-m", *SMALL_DIGITS, "trainer.args.learning_rate=1e-3,3e-3", "search.name=prepared")
        subprocess.run([sys.executable, "-m", "hfexp", *sweep], check=True, capture_output=True)

    def rewrite(self, command: Command) -> list[str] | None:
        """The words of a command as this machine can run them; None if it can't."""
        words = command.words
        if any(part in word for word in words for part in (*HUB, *DEVICES, *MISSING)) or command.name in NOT_ALONE:
            return None
        reads_text = any(word.startswith(("text=", "columns.text")) for word in words) or "more.csv" in str(words)
        of_photos = command.name == "evaluate" and "dataset=imagefolder" in words
        run = self.models["text" if reads_text else "photos" if of_photos else "image"].name
        replaced: list[str] = []
        for word in words:
            key, _, value = word.partition("=")
            if command.name == "remove" and word == "photos":  # an experiment
                replaced.append("digits")
            elif key == "model":
                replaced += self.model(value.partition(",")[0])
            elif key in ("search.trials", "search.replicates"):
                replaced.append(f"{key}=2")
            elif word == "sweep=NAME" and reads_text:  # the prepared sweep is one of images
                replaced.append(f"run={run}")
            elif word.startswith(("https://", "s3://")):
                replaced.append("cat.jpg")
            else:
                word = re.sub(r"\bRUN(_A|_B)?\b", run, word).replace("sweep=NAME", "sweep=prepared")
                word = word.replace("sweep=lr", "sweep=lr" if Path("outputs/sweeps/lr").exists() else "sweep=prepared")
                word = word.replace("range(8)", "range(1,3)").replace("dataset=food101", "dataset=imagefolder")
                word = word.replace("run=google/vit-base-patch16-224", f"run={run}")
                word = word.replace("vit_digits-digits-s42-9ac4584b", run)
                replaced.append(word)
        return replaced + self.more(replaced, command.name)

    def more(self, words: list[str], command: str) -> list[str]:
        """What a command needs on this machine besides its words."""
        more = self.model("vit_tiny") if "experiment=pets" in words else []  # its file names a model of the Hub
        if "dataset=imagefolder" in words and not any("data_dir" in word for word in words):
            more.append("dataset.source.data_dir=photos")
        if {"launch=ddp", "launch=fsdp"} & {*words} and not any("num_processes" in word for word in words):
            more.append("launch.num_processes=2")  # by default one per GPU
        if command in ("remove", "clean") and "--yes" not in words:
            more.append("--yes")
        trains = command in ("train", "plan", "rerun") and "debug=" not in str(words)
        return more + [word for word in LIMITS if trains]

    def model(self, name: str) -> list[str]:
        option = find_option("model", name)
        if option is None or option.needs != "Hub":
            return [f"model={name}"]
        path = self.models[KINDS[str(option.kind)]] / "model"
        return ["model=local", f"model.path={path}"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("GOMP_SPINCOUNT", "0")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Machine(home)


def run_line(line: str, machine: Machine, environment: dict[str, str]) -> str | None:
    """Run a line of a page; return None if this machine can't, else what the shell shows."""
    if line.split()[0] in OTHER_PROGRAMS:
        return None
    parts = re.split(r"(\s[|>]\s)", line)
    for index, part in enumerate(parts):
        found = re.match(r"\s*((?:[A-Z_0-9]+=\S+ )*)hfexp\b(.*)", part, re.S)
        if found:
            words = machine.rewrite(Command("", f"hfexp {found[2]}"))
            if words is None:
                return None
            quoted = [word if "*" in word and " " not in word else shlex.quote(word) for word in words]
            parts[index] = f"{found[1]}hfexp {' '.join(quoted)}"
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + "".join(parts)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{''.join(parts)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_it_runs(page: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(lines(page)):
        pytest.skip("the page has no commands")
    place = tmp_path / "place"
    shutil.copytree(machine.home, place)
    write_files(page, place)
    monkeypatch.chdir(place)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "hfexp").write_text(f'#!/bin/sh\nexec {sys.executable} -m hfexp "$@"\n')
    (bin_dir / "hfexp").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = [line for line in lines(page) if run_line(line, machine, environment) is not None]
    own = [line for line in lines(page) if line.startswith("hfexp ") and line.split()[1] not in NOT_ALONE]
    assert {line for line in own if not any(part in line for part in (*HUB, *DEVICES))} <= set(ran)
