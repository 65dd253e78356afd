"""Bad inputs, each given to the real command: `python tests/bad_inputs.py` writes docs/bad-inputs.md.

Exit code 1 if an input gives a traceback, takes more than a minute, or is accepted without a word.
"""

import gzip
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "bad-inputs.md"
MAX_SECONDS = 60.0
LONGEST = 400
"""Letters of a message that are shown."""
Content = str | bytes | Callable[[Path], object]
TEXT = ["task=text_classification", "model=tiny_bert", "dataset=table", "debug=fast", "tracking=none"]
IMAGES = ["model=vit_digits", "dataset=imagefolder", "debug=fast", "tracking=none", "dataset.source.data_dir=photos"]
ROWS = "text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40))


@dataclass
class Case:
    """A command, and the files that it is given."""

    kind: str
    name: str
    words: list[str]
    files: Mapping[str, Content]


@dataclass
class Outcome:
    """What the command said."""

    code: int
    seconds: float
    message: str
    problem: str | None


def table(name: str, content: Content, *words: str, file: str = "rows.csv") -> Case:
    return Case("table", name, [*TEXT, f"dataset.source.data_files={file}", *words], {file: content})


def folder(name: str, files: Mapping[str, Content], *words: str) -> Case:
    return Case("folder", name, [*IMAGES, *words], {f"photos/{path}": content for path, content in files.items()})


def config(name: str, *words: str, files: Mapping[str, Content] | None = None) -> Case:
    return Case("configuration", name, list(words), files or {})


def asked(name: str, *words: str, files: Mapping[str, Content] | None = None) -> Case:
    return Case("prediction", name, ["predict", "run=RUN", *words], files or {})


def record(name: str, *words: str, files: Mapping[str, Content]) -> Case:
    return Case("record", name, list(words), files)


def png(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", ROWS)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def two_classes(**others: Content) -> dict[str, Content]:
    return {**{f"{name}/{n}.png": png() for name in ("cat", "dog") for n in range(12)}, **others}


IMAGE_TASK = "hfexp.tasks.image_classification.ImageClassification"
EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
RECIPE = {
    "format": 1, "task": {"_target_": "os.system"}, "transform": {"prepare": [], "evaluate": []}, "id2label": None
}  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [*_tables(), *_folders(), *_configurations(), *_predictions(), *_records()]


def _tables() -> list[Case]:
    return [
        table("empty file", ""),
        table("header alone", "text,label\n"),
        table("only empty lines", "\n\n\n"),
        table("one column", "text\na\nb\n"),
        table("no header", "a b,x\nc d,y\n" * 20),
        table("other names", ROWS.replace("text,label", "sentence,class")),
        table("name with another case", ROWS.replace("text,label", "Text,Label")),
        table("column twice", ROWS.replace("text,label", "text,text")),
        table("semicolons", ROWS.replace(",", ";")),
        table("tabs", ROWS.replace(",", "\t")),
        table("too many cells in a row", ROWS + "a,b,c\n"),
        table("too few cells in a row", ROWS + "a\n"),
        table("quote that is not closed", ROWS + '"a,b\n'),
        table("quote that swallows lines", ROWS.replace("text 6,", '"text 6,').replace("text 9,", 'text" 9,')),
        table("a row without text", ROWS + ",a\n"),
        table("a row without label", ROWS + "some text,\n"),
        table("no label at all", ROWS.replace(",a", ",").replace(",b", ",")),
        table("one class", ROWS.replace(",b", ",a")),
        table("one row", "text,label\na,x\n"),
        table("every label once", "text,label\n" + "".join(f"t,{n}x\n" for n in range(30))),
        table("Latin-1", ROWS.replace("text 3", "é").encode("latin-1")),
        table("UTF-16 without a mark", ROWS.encode("utf-16-le")),
        table("zero bytes", bytes(1000)),
        table("random bytes", bytes(range(256)) * 40),
        table("ZIP archive called CSV", zipped),
        table("gzip that is cut", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc", file="rows.csv.gz"),
        table("FIFO", fifo),
        table("no such file", ROWS, "dataset.source.data_files=gone.csv"),
        table("pattern that fits nothing", ROWS, "dataset.source.data_files=gone*.csv"),
        table("separator of two characters", ROWS, "dataset.source.sep=ab"),
        table("unknown encoding", ROWS, "dataset.source.encoding=klingon"),
        table("unknown option of CSV", ROWS, "dataset.source.seperator=x"),
        table("unknown format", ROWS, "dataset.source.format=xls"),
        table("name without an ending", ROWS, file="rows"),
        table("JSON that is cut", '{"text": "a", "label": "x"}\n{"text": ', file="rows.jsonl"),
        table("JSON lines that are numbers", "1\n2\n3\n", file="rows.jsonl"),
        table("JSON lists in place of rows", "[1, 2]\n[3, 4]\n", file="rows.jsonl"),
        table("JSON that is not UTF-8", b'{"text": "\xff", "label": "x"}\n' * 20, file="rows.jsonl"),
        table("JSON texts that are objects", "".join(
            f'{{"text": {{"a": {n}}}, "label": "{"xy"[n % 2]}"}}\n' for n in range(40)), file="rows.jsonl"),
        table("JSON that is nested deep", '{"text": ' + "[" * 10**5 + "]" * 10**5 + "}\n", file="rows.jsonl"),
        table("a line of 40 MB", ROWS + "x" * 40_000_000 + ",a\n"),
        table("a quote that opens and a cell of 40 MB", ROWS + '"' + ("x" * 99 + "\n") * 400_000),
        table("gzip of 1 GB in one line", lambda path: path.write_bytes(gzip.compress(b"x" * 2**30, 1)),
              file="rows.csv.gz"),
        table("Parquet that is CSV", ROWS, file="rows.parquet"),
        table("Parquet with nothing behind its mark", b"PAR1" + bytes(50) + b"PAR1", file="rows.parquet"),
        table("sizes that leave nothing", ROWS, "dataset.test_size=0.99"),
        table("negative size", ROWS, "dataset.test_size=-1"),
        table("labels that are not there", ROWS, "dataset.labels=[x,y]"),
        table("column that is not there", ROWS, "dataset.columns.text=sentence"),
    ]  # fmt: skip


def _folders() -> list[Case]:
    nothing = {"readme.txt": "x"}
    return [
        folder("no images", nothing),
        folder("images without folders", {f"{n}.png": png() for n in range(8)}),
        folder("one class", {f"cat/{n}.png": png() for n in range(8)}),
        folder("one image a class", {"cat/1.png": png(), "dog/1.png": png()}),
        folder("empty images", {f"{name}/{n}.png": b"" for name in ("cat", "dog") for n in range(6)}),
        folder("one damaged image", two_classes(**{"cat/bad.png": png()[:40]})),
        folder("an HTML page called PNG", two_classes(**{"cat/bad.png": "<html></html>"})),
        folder("EPS called PNG", two_classes(**{"cat/bad.png": EPS})),
        folder("only EPS", {f"{name}/{n}.eps": EPS for name in ("cat", "dog") for n in range(6)}),
        folder("only HEIC", {f"{name}/{n}.heic": "x" for name in ("cat", "dog") for n in range(6)}),
        folder("only FIFOs", {f"{name}/{n}.png": fifo for name in ("cat", "dog") for n in range(2)}),
        folder("an archive", {"photos.zip": zipped}),
        folder("image too large", two_classes(), "task.max_image_pixels=10"),
        folder("a split beside a class", {f"{place}/1.png": png() for place in ("train/a", "train/b", "holdout/a")}),
        folder("two folders for one split", {
            f"{split}/{name}/1.png": png() for split in ("train", "eval", "test") for name in "ab"}),
        folder("unknown split folder", two_classes(), "dataset.source.split_folders={train: gone}"),
        folder("metadata that names a missing file", two_classes(**{"metadata.csv": "file_name,label\n" + "".join(
            f"{name}/{n}.png,{name}\n" for name in ("cat", "dog", "gone") for n in range(12))})),
        folder("metadata without file_name", two_classes(**{"metadata.csv": "name,label\n1.png,x\n"})),
        folder("metadata that leads outside", two_classes(**{"metadata.csv": "file_name,label\n../../x.png,x\n"})),
        folder("metadata with a column twice", two_classes(**{"metadata.csv": "file_name,a,a\ncat/1.png,x,y\n"})),
        folder("metadata that is not JSON", two_classes(**{"metadata.jsonl": "{"})),
        folder("metadata that is no Parquet", two_classes(**{"metadata.parquet": "x"})),
        folder("a file in place of the folder", two_classes(), "dataset.source.data_dir=photos/cat/1.png"),
        folder("no such folder", two_classes(), "dataset.source.data_dir=gone"),
        folder("a name that is too long", two_classes(), f"dataset.source.data_dir={'x' * 400}"),
    ]  # fmt: skip


def _configurations() -> list[Case]:
    single = [
        "sead=1", "seed=x", "seed=1.5", "seed=", "model=vit_digit", "model=null", "dataset=7", "experiment=gone",
        "task=vision", "trainer.args.learning_rate=fast", "trainer.args.learning_rat=1", "trainer.args.eval_steps=-1",
        "trainer.args.num_train_epochs=many", "trainer.args.per_device_train_batch_size=0", "trainer.args.optim=best",
        "trainer.args.lr_scheduler_type=up", "metrics=accurracy", "trainer.args.metric_for_best_model=beauty",
        "model.config.hidden_size=big", "model.config.hiden_size=16",
        "model.freeze=[x]",
        
        "transform=upside_down", "transform.cache.max_size=lots", "transform.augment.x._target_=os.system",
        "transform.augment.x._target_=torchvision.gone", "dataset.test_size=0.0001", "dataset.max_train_samples=0",
        "dataset.source._target_=os.system", "tracking.uri=nowhere://x", "launch=rocket",
        "launch.num_processes=0", "name=${gone}", "name=${oc.env:NO_SUCH_VARIABLE}", "hydra.run.dir=x", "seed=1,2",
        "trainer.args={a", "'a b'", "--verbose", "search=tpe", "output_dir=/proc/x", "task.max_image_pixels=0",
        "trainer.callbacks.x._target_=builtins.exec", "hydra.job.chdir=true", "+hydra.job.env_set.PATH=bin",
        "security.allowed_targets=7", f"model={'x' * 300}",
        "dataset=\x1b[31m",
    ]  # fmt: skip
    own = {"conf/experiment/mine.yaml": "# @package _global_\nseed: [1\n"}
    return [
        *(config(word if len(word) < 60 else f"{word[:30]}...", "debug=fast", word) for word in single),
        config("option file that is not YAML", "--config-dir", "conf", "experiment=mine", files=own),
        config("option file with aliases of aliases", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": LAUGHS}),
        config("option file that is a list", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": "- a\n"}),
        config("option file with an unknown key", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": "# @package _global_\nsead: 1\n"}),
        config("option file that lets other packages run", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": "# @package _global_\nsecurity: {allowed_targets: [os]}\n"}),
        config("option file that trusts code beside weights", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": "# @package _global_\nmodel: {trust_remote_code: true}\n"}),
        config("option file that sets up logging by a program", "--config-dir", "conf", "experiment=mine", files={
            "conf/experiment/mine.yaml": "# @package _global_\nhydra: {hydra_logging: {version: 1, "
            "root: {handlers: [x]}, handlers: {x: {(): os.system, command: id}}}}\n"}),
        config("option file that logs into another file", "--config-dir", "conf", "experiment=mine", files={
            "conf/experiment/mine.yaml": "# @package _global_\nhydra: {job_logging: {version: 1, "
            "root: {handlers: [x]}, handlers: {x: {class: logging.FileHandler, filename: notes.txt}}}}\n"}),
        config("option file without # @package _global_", "--config-dir", "conf", "experiment=mine",
               files={"conf/experiment/mine.yaml": "seed: 1\n"}),
        config("no such --config-dir", "--config-dir", "gone"),
    ]  # fmt: skip


def _predictions() -> list[Case]:
    return [
        asked("nothing"),
        asked("no such file", "gone.png"),
        asked("pattern that fits nothing", "*.gone"),
        asked("FIFO", "x.png", files={"x.png": fifo}),
        asked("folder without images", "photos", files={"photos/x.txt": "x"}),
        asked("image that is text", "x.png", files={"x.png": "x"}),
        asked("EPS", "x.png", files={"x.png": EPS}),
        asked("table without the column", "x.csv", files={"x.csv": "file\nx.png\n"}),
        asked("table that names a FIFO", "x.csv", files={"x.csv": "image\nx.png\n", "x.png": fifo}),
        asked("table that names a missing file", "x.csv", files={"x.csv": "image\ngone.png\n"}),
        asked("address that nobody serves", "http://127.0.0.1:9/x.png"),
        asked("unknown scheme", "gopher://x/y.png"),
        asked("text for a model of images", "text=hello"),
        asked("output with another ending", "x.png", "output=x.xls", files={"x.png": png()}),
        asked("output that is a FIFO", "x.png", "output=a.csv", files={"x.png": png(), "a.csv": fifo}),
        asked("output in a file's place", "x.png", "output=x.png/a.csv", files={"x.png": png()}),
        asked("top_k of more classes than there are", "x.png", "top_k=99", files={"x.png": png()}),
        asked("batch_size=0", "x.png", "batch_size=0", files={"x.png": png()}),
        asked("unknown key", "x.png", "batchsize=3", files={"x.png": png()}),
        asked("a name of 400 letters", "x" * 400),
    ]  # fmt: skip


def _records() -> list[Case]:
    recipe = json.dumps(RECIPE)
    return [
        record("run that is nowhere", "predict", "run=gone", "x.png", files={"x.png": png()}),
        record("folder that is no run", "predict", "run=d", "x.png", files={"x.png": png(), "d/a.txt": "x"}),
        record("recipe that is cut", "predict", "run=d", "x.png", files={"x.png": png(), "d/hfexp.json": recipe[:40]}),
        record("recipe that runs a program", "predict", "run=d", "x.png", files={
            "x.png": png(), "d/hfexp.json": recipe}),
        record("recipe that is a list", "predict", "run=d", "x.png", files={"x.png": png(), "d/hfexp.json": "[]"}),
        record("recipe without weights", "predict", "run=d", "x.png", files={
            "x.png": png(), "d/hfexp.json": recipe.replace("os.system", IMAGE_TASK)}),
        record("comparison without a store", "compare", files={}),
        record("comparison of runs that are nowhere", "compare", "a", "b", files={}),
        record("evaluation of a run that is nowhere", "evaluate", "run=gone", files={}),
        record("store that is no database", "compare", files={"outputs/mlflow.db": "x" * 100}),
    ]  # fmt: skip


def run(case: Case, trained: str) -> Outcome:
    """Run a command in a process and a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="hfexp-bad-") as directory:
        place = Path(directory)
        for name, content in case.files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        words = [word.replace("run=RUN", f"run={trained}") for word in case.words]
        began = time.monotonic()
        code = _wait(_started(words, place), began)
        said = (place / ".said").read_text(errors="replace")
    lines = [line.removeprefix("hfexp: ") for line in said.splitlines() if line.startswith("hfexp: ")]
    message = next((line for line in lines if "error:" in line), "; ".join(lines[-2:]))
    message = message.replace(directory, "DIR").replace(trained, "RUN")
    message = re.sub(r"(\w)\1{30,}", r"\1\1\1...", message)
    return Outcome(code, time.monotonic() - began, message, _problem(code, said, message))


def _problem(code: int, said: str, message: str) -> str | None:
    if code < 0:
        return "no end within a minute" if code == -signal.SIGKILL else f"ended by signal {-code}"
    if "Traceback (most recent" in said or "HYDRA_FULL_ERROR" in said:
        return "an error that nobody has foreseen"
    return None if message else "accepted without a word"


def _started(words: list[str], place: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(place)
        said = os.open(".said", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from hfexp.commands import cli

        code = cli.main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(child: int, began: float) -> int:
    while time.monotonic() - began < MAX_SECONDS:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trained_run(place: Path) -> str:
    """The directory of a small run of digits."""
    child = _started(
        ["experiment=digits_vit", "debug=fast", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
         "model.config.num_attention_heads=2", "model.config.intermediate_size=16"], place
    )  # fmt: skip
    _wait(child, time.monotonic() + 240)
    return str(next(place.glob("outputs/*/*/model")).parent)


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."


def page(outcomes: list[tuple[Case, Outcome]]) -> str:
    """The table."""
    from hfexp.core.console import plain

    rows = [
        f"| {case.kind} | {plain(case.name)} | {plain(_shortened(said.message))} | {said.code} | {said.seconds:.1f} |"
        for case, said in outcomes
    ]
    head = (
        f"# Bad inputs\n\n{len(outcomes)} of them, each given to the real command, with the line that says what is "
        "wrong. Exit code 2: nothing was begun; 1: it ended early, or some of it could not be done; 0: done, with a "
        "warning. "
        "Written by `python tests/bad_inputs.py`; seconds are those of a process that has done its imports.\n\n"
        "| kind | input | message | exit code | s |\n|---|---|---|--:|--:|\n"
    )
    return head + "\n".join(rows) + "\n"


def main(*chosen: str) -> int:
    """Run all cases, or those whose name contains a word; 1 if one ends as it should not."""
    import hfexp.experiment.run
    import hfexp.inference.load  # noqa: F401

    os.environ |= {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    home = Path(tempfile.mkdtemp(prefix="hfexp-bad-home-"))
    os.environ["HFEXP_CACHE"] = str(home / "cache")
    outcomes = []
    try:
        trained = trained_run(home)
        for case in cases():
            if chosen and not any(word in case.name for word in chosen):
                continue
            outcome = run(case, trained)
            outcomes.append((case, outcome))
            if outcome.problem:
                said = f"{outcome.problem}: exit {outcome.code}, {outcome.message}"
                print(f"{case.kind}, {case.name}: {said}", flush=True)
    finally:
        shutil.rmtree(home)
    if not chosen:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    slowest = max((outcome.seconds for _, outcome in outcomes), default=0)
    print(f"{len(outcomes)} bad inputs, the slowest {slowest:.1f} s")
    return 1 if any(outcome.problem for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
