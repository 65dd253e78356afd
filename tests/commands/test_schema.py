"""`hfexp schema`: what editors complete and mark in YAML files of options."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from conftest import TESTS
from omegaconf import OmegaConf

from hfexp.commands import cli
from hfexp.commands.schema import schema
from hfexp.core.options import GROUPS

SHIPPED = sorted((TESTS.parent / "conf").rglob("*.yaml"))
TEMPLATE = sorted((TESTS.parent / "hfexp/commands/project/conf").rglob("*.yaml"))


@pytest.fixture(scope="module")
def registry() -> referencing.Registry:
    """The schemas, which refer to each other by the names of their files."""
    contents = {f"{name}.json": schema(name) for name in ("config", *GROUPS)}
    return referencing.Registry().with_resources(
        (name, referencing.Resource.from_contents(content)) for name, content in contents.items()
    )


def errors(registry: referencing.Registry, group: str, content: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(schema(group), registry=registry)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(content)]


def group_of(path: Path) -> str:
    return "config" if path.parent.name == "conf" else path.parent.name


@pytest.mark.parametrize("path", [*SHIPPED, *TEMPLATE], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_of_options_are_valid(path: Path, registry: referencing.Registry) -> None:
    text = path.read_text().replace("@NAME@", "name")
    assert errors(registry, group_of(path), OmegaConf.to_container(OmegaConf.create(text))) == []


@pytest.mark.parametrize("path", TEMPLATE, ids=lambda path: path.name)
def test_files_of_a_new_project_name_their_schema(path: Path) -> None:
    line = f"# yaml-language-server: $schema=../../schemas/{path.parent.name}.json"
    assert line in path.read_text().splitlines()[:2]


@pytest.mark.parametrize(
    ("group", "content", "place"),
    [
        ("dataset", {"sorce": {}}, ""),
        ("dataset", {"streaming": 3}, "streaming"),
        ("dataset", {"splits": {"tset": "a"}}, "splits"),
        ("dataset", {"on_bad_sample": "ignore"}, "on_bad_sample"),
        ("trainer", {"args": {"lerning_rate": 1e-3}}, "args"),
        ("trainer", {"args": {"learning_rate": "fast"}}, "args.learning_rate"),
        ("trainer", {"args": {"report_to": "wandb"}}, "args"),
        ("model", {"pth": "a"}, ""),
        ("search", {"metrics": [1]}, "metrics"),
        ("experiment", {"trainer": {"args": {"sead": 1}}}, "trainer.args"),
        ("experiment", {"seed": "one"}, "seed"),
        ("config", {"modle": {}}, ""),
    ],
)
def test_a_wrong_key_or_value_is_marked(
    group: str, content: dict[str, Any], place: str, registry: referencing.Registry
) -> None:
    marked = errors(registry, group, content)
    assert marked
    assert all(error.startswith(f"{place}: ") for error in marked)


@pytest.mark.parametrize(
    ("group", "content"),
    [
        ("dataset", {"validation_size": "${oc.env:SHARE}", "source": {"_target_": "a.b", "data_files": "???"}}),
        ("dataset", {"labels": None, "test_size": None, "columns": {"image": "img"}}),
        ("model", {"_target_": "my_parts.build", "width": 8}),
        ("trainer", {"args": {"eval_strategy": "steps", "logging_steps": 0.1, "max_grad_norm": 1}}),
        ("experiment", {"search": {"space": {"trainer.args.learning_rate": "interval(0, 1)"}}, "hydra": {"a": 1}}),
        ("experiment", {"defaults": [{"override /model": "mine"}], "model": {"width": 16, "freeze": ["a"]}}),
        ("metrics", {"accuracy": None, "own": {"_target_": "my_parts.f", "_partial_": True}}),
    ],
)
def test_what_hfexp_takes_is_not_marked(group: str, content: dict[str, Any], registry: referencing.Registry) -> None:
    assert errors(registry, group, content) == []


def test_texts_stand_beside_the_keys() -> None:
    described = schema("launch")["properties"]["num_processes"]["description"]
    assert "Training processes on this machine" in described
    assert (
        "initial learning rate"
        in schema("trainer")["properties"]["args"]["properties"]["learning_rate"]["description"]
    )


def test_the_command_writes_a_file_for_each_group(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "here"]) == 0
    assert {path.stem for path in Path("here").iterdir()} == {"config", *GROUPS}
    assert "$schema=../../here/dataset.json" in capsys.readouterr().out
    Path("file").touch()
    assert cli.main(["schema", "file"]) == 2
    assert "file can't be written" in capsys.readouterr().err


class LanguageServer:
    """npm's yaml-language-server, as an editor speaks to it."""

    def __init__(self, program: Path, root: Path) -> None:
        self.process = subprocess.Popen(
            ["node", program, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
        )
        self.number = 0
        self.diagnostics: dict[str, list[dict[str, Any]]] = {}
        self.ask("initialize", {"processId": os.getpid(), "rootUri": root.as_uri(), "capabilities": {}})
        self.send({"method": "initialized", "params": {}})

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Read a message; answer what the server asks with nothing."""
        assert self.process.stdout is not None
        length = 0
        while (line := self.process.stdout.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        message = json.loads(self.process.stdout.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            self.diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:
            self.send({"id": message["id"], "result": None})
        return message

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        while (message := self.read()).get("id") != self.number or "method" in message:
            pass
        return message["result"]

    def open(self, path: Path, text: str) -> list[dict[str, Any]]:
        """Open a file, and return what the server marks in it."""
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self.send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        while path.as_uri() not in self.diagnostics:
            self.read()
        return self.diagnostics[path.as_uri()]


@pytest.fixture
def server(place: Path) -> Iterator[LanguageServer]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    done = subprocess.run([npm, "install", "--silent", "--prefix", "node", "yaml-language-server@1"], check=False)
    program = place / "node/node_modules/yaml-language-server/bin/yaml-language-server"
    if done.returncode or not program.exists():
        pytest.skip("npm can't install yaml-language-server")
    made = LanguageServer(program, place)
    yield made
    made.process.kill()
    made.process.wait()
    for stream in (made.process.stdin, made.process.stdout):
        assert stream is not None
        stream.close()


@pytest.mark.slow
def test_an_editor_completes_keys_and_marks_a_misspelt_one(server: LanguageServer, place: Path) -> None:
    assert cli.main(["schema"]) == 0
    (place / "conf/dataset").mkdir(parents=True)
    head = "# yaml-language-server: $schema=../../schemas/dataset.json\n"
    good, wrong = place / "conf/dataset/good.yaml", place / "conf/dataset/wrong.yaml"
    assert server.open(good, f"{head}test_size: 0.2\nvalidation\n") is not None
    where = {"textDocument": {"uri": good.as_uri()}, "position": {"line": 2, "character": 10}}
    answer = server.ask("textDocument/completion", where)
    items = {item["label"]: item for item in (answer["items"] if isinstance(answer, dict) else answer)}
    assert "validation_size" in items
    assert "Share of the training rows" in json.dumps(items["validation_size"])
    marks = server.open(wrong, f"{head}test_sise: 0.2\n")
    assert [mark["range"]["start"]["line"] for mark in marks] == [1]
    assert "test_sise" in marks[0]["message"]
