"""Damaged inputs for every reader: each gives a value or an error that says what is wrong, soon and in little memory.

python tests/fuzz.py [COUNT [SEED [READER ...]]]     try about COUNT inputs (100,000); exit code 1: another outcome

An input is made from (SEED, reader, number) alone, so that a finding can be had again.
"""

import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_SECONDS = 2.0
"""Of the processor, for one input."""
MAX_MEMORY = 500
"""MB that a reader may take beyond what its process has at first."""
MAX_PIXELS = 16_000_000
"""`task.max_image_pixels` here: what is larger takes its time even if nothing is wrong with it."""
INTERESTING = (0, 1, 127, 128, 255)


@dataclass
class Outcome:
    """What became of the inputs of one reader."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Seconds of the processor."""
    memory: float = 0.0
    """MB beyond what there was at first."""
    wrong: dict[str, int] = field(default_factory=dict)
    """Errors of other kinds, with the number of the first input that gave each."""

    @property
    def is_sound(self) -> bool:
        return not self.wrong and self.slowest < MAX_SECONDS and self.memory < MAX_MEMORY


@dataclass(frozen=True)
class Reader:
    """A reader, and how its inputs are made."""

    read: Callable[[Any, Path], object]
    """Reads an input; the directory is for files."""
    seeds: Callable[[], list[Any]]
    damage: Callable[[Any, random.Random], Any]
    share: float
    """Of all inputs."""


# Damage


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, doubled, inserted; half of the places are among the first 120."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        way, end = rng.random(), len(content)
        place = rng.randrange(max(1, min(end, rng.choice((120, end)))))
        if way < 0.6:
            content[place : place + 1] = bytes([rng.choice((*INTERESTING, rng.randrange(256)))])
        elif way < 0.7:
            content[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1)))
        elif way < 0.8:
            del content[place:]
        elif way < 0.9:
            content[place:place] = content[place : place + rng.randrange(1, 60)]
        else:
            content[place:place] = rng.randbytes(rng.choice((1, 4, 40)))
    return bytes(content)


ODD_VALUES = (
    None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\0", "\ud800", "[/b]",
    [], {}, [[]], {"": None}, ["x"] * 50, {"files": {"a": 1}}, "9" * 400,
)  # fmt: skip


def damaged_json(data: Any, rng: random.Random) -> bytes:
    """A value replaced by an odd one, a key taken out, added or renamed; or the bytes damaged."""
    content = json.loads(json.dumps(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = _changed(content, rng)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    if rng.random() < 0.03:
        text = b"[" * 100_000 + text
    return damaged_bytes(text, rng) if rng.random() < 0.3 else text


def _changed(node: Any, rng: random.Random) -> Any:
    if not isinstance(node, dict | list) or not node or rng.random() < 0.15:
        return rng.choice(ODD_VALUES)
    if isinstance(node, list):
        place = rng.randrange(len(node))
        return [*node[:place], _changed(node[place], rng), *node[place + 1 :]]
    key = rng.choice(list(node))
    way = rng.random()
    if way < 0.15:
        return {name: value for name, value in node.items() if name != key}
    if way < 0.3:
        return {**node, rng.choice(("other", "", "__class__", f"{key} ")): rng.choice(ODD_VALUES)}
    return {**node, key: _changed(node[key], rng)}


PIECES = (
    "model", "dataset", "task", "trainer.args", "trainer.args.learning_rate", "seed", "name", "experiment", "metrics",
    "hydra.run.dir", "tracking.tags.x", "model.config", "dataset.source.data_files", "+", "++", "~", "@", "=", ":",
    ",", "[", "]", "{", "}", "(", ")", "'", '"', "\\", "$", "${seed}", "${oc.env:HOME}", "${", "}", "null", "true",
    ".", "1e400", "-1", "0x10", "choice(1,2)", "range(1,9)", "interval(0,1)", "glob(*)", "\n", "\t", "\0", "\ud800",
    "é", "/", "..", "*a", "&a", "!!",
    "vit_digits", "digits", "imagefolder", "x" * 300, " ", "#", "%s", "?", "|", ";", "<", ">", "_target_", "os.system",
)  # fmt: skip


def damaged_words(words: list[str], rng: random.Random) -> list[str]:
    """Words of a command with pieces of the grammar put in, cut, or made of such pieces alone."""
    found = list(words)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.4:
            word = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 8)))
            found.append(word if rng.random() < 0.3 else f"{rng.choice(PIECES[:11])}={word}")
        elif found:
            place = rng.randrange(len(found))
            cut = rng.randrange(len(found[place]) + 1)
            found[place] = found[place][:cut] + rng.choice(PIECES) + found[place][cut + rng.randrange(3) :]
    return found


# Readers


def _pictures() -> list[bytes]:
    """A small picture in every format and mode that Pillow writes, some with EXIF."""
    import numpy as np
    import PIL.Image

    PIL.Image.init()
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    found = []
    for name in sorted(PIL.Image.SAVE.keys() - {"PDF"}):
        for mode in ("RGB", "P", "L", "RGBA", "1", "CMYK", "I;16", "EXIF"):
            kind, more = {"EXIF": ("RGB", {"exif": exif}), "I;16": ("L", {})}.get(mode, (mode, {}))
            file = io.BytesIO()
            with contextlib.suppress(Exception):  # not every format has every mode
                image = picture.convert(kind)
                (image.convert(mode) if mode == "I;16" else image).save(file, name, **more)
                found.append(file.getvalue())
    return found


def _jpegs() -> list[bytes]:
    return [data for data in _pictures() if data.startswith(b"\xff\xd8\xff")]


def _open_image(data: bytes, place: Path) -> None:
    from hfexp.tasks.images import open_image, to_rgb

    to_rgb(open_image({"bytes": data, "path": None}, MAX_PIXELS))


def _open_file(data: bytes, place: Path) -> None:
    from hfexp.tasks.images import open_image, to_rgb

    (place / "x.png").write_bytes(data)
    to_rgb(open_image({"bytes": None, "path": str(place / "x.png")}, MAX_PIXELS))


def _decode(data: bytes, place: Path) -> None:
    from hfexp.tasks.images import ToRGB, decode_to_tensor

    decode_to_tensor({"image": {"bytes": data, "path": None}}, ToRGB(), MAX_PIXELS)


def _served(data: bytes, place: Path) -> None:
    from hfexp.tasks.images import image_row, to_rgb

    to_rgb(image_row(data, MAX_PIXELS)["image"])


CSV = b'text,label,n\n"a ""b"" c",x,1\nd,y,2.5\n"two\nlines",x,\n\xc3\xa9,z,-3\n'
LINES = b'{"text": "a", "label": "x", "n": 1}\n{"text": "b", "label": "y", "n": null}\n{"text": "c", "label": "x"}\n'


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"file_name": ["0.png", "1.png"], "label": ["x", "y"], "n": [1, 2]}), file)
    return file.getvalue()


def _csv_file(data: bytes, place: Path) -> None:
    from hfexp.data.csv_files import CsvFile, Dialect

    (place / "x.csv").write_bytes(data)
    table = CsvFile(str(place / "x.csv"), Dialect())
    list(table.tables(table.columns))
    list(table.rows())


def _table(data: tuple[str, bytes], place: Path) -> None:
    from hfexp.data.sources import table

    shutil.rmtree(place / "rows", ignore_errors=True)
    (place / "rows").mkdir()
    path = place / "rows" / f"x{data[0]}"
    path.write_bytes(data[1])
    for row in table(str(path))["train"]:
        str(row)


def _metadata(data: tuple[str, bytes], place: Path) -> None:
    from hfexp.data.image_folders import columns_of, read_metadata

    path = place / f"metadata{data[0]}"
    path.write_bytes(data[1])
    rows = read_metadata(str(path))
    columns_of(rows, rows)


def _damaged_table(data: tuple[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    return data[0], damaged_bytes(data[1], rng)


def _compose(words: list[str], place: Path) -> None:
    from hfexp.core.compose import compose
    from hfexp.core.config import to_config

    to_config(compose(*words)[0])


def _prepare(words: list[str], place: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hfexp.core.compose import explained, prepare_overrides

    with explained():
        OverridesParser.create().parse_overrides(prepare_overrides(words))


def _predict(words: list[str], place: Path) -> None:
    from hfexp.commands.predict import parse

    parse(words)


def _evaluate(words: list[str], place: Path) -> None:
    from hfexp.commands.evaluate import parse

    parse(words)


def _yaml(data: bytes, place: Path) -> None:
    from hfexp.core.outside import load

    load(data.decode("utf-8", "replace"), "x.yaml")


def _checkpoint(data: bytes, place: Path) -> None:
    from hfexp.core.checkpoint import MANIFEST, find_problem, processes_of

    (place / "weights").write_bytes(b"abc")
    (place / MANIFEST).write_bytes(data)
    if find_problem(place) is None:
        processes_of(place)


def _run_state(data: bytes, place: Path) -> None:
    from hfexp.tracking.run_directory import STATE, read_state

    (place / STATE).write_bytes(data)
    read_state(place)


def _recipe(data: bytes, place: Path) -> None:
    from hfexp.inference.predictor import RECIPE_FILE, load_recipe

    (place / RECIPE_FILE).write_bytes(data)
    load_recipe(place).foreign_targets()


def _delivered(data: bytes, place: Path) -> None:
    from hfexp.tracking.journal import FOLDER, STATE, DeliveryState, read_delivered

    (place / FOLDER).mkdir(exist_ok=True)
    (place / FOLDER / STATE).write_bytes(data)
    read_delivered(place)
    DeliveryState.load(place, "sqlite:///x.db", 100)


def _journal(data: bytes, place: Path) -> None:
    from hfexp.tracking.journal import Journal

    journal = Journal(place)
    journal.path.write_bytes(data)
    journal = Journal(place)
    journal.begun()
    journal.recorded()


def _sweep(data: bytes, place: Path) -> None:
    from hfexp.tracking.membership import DEFINITION, read_sweep_info

    (place / DEFINITION).write_bytes(data)
    with contextlib.suppress(OSError, ValueError):  # as it says
        read_sweep_info(place)


def _weights(data: bytes, place: Path) -> None:
    import safetensors
    import safetensors.torch

    from hfexp.core.errors import DataError

    try:
        safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise DataError(str(error)) from error


def _one_tensor() -> bytes:
    import safetensors.torch
    import torch

    return safetensors.torch.save({"a": torch.zeros(3, 2), "b": torch.ones(4, dtype=torch.int64)}, {"format": "pt"})


STATE_SEED = {
    "status": "finished", "config_hash": "0" * 64, "process": {"host": "h", "pid": 1, "started": 1.0}, "run_id": "a",
    "kind": "run", "seconds": 1.5, "point": None, "splits": {"train": {"digest": "d", "rows": 3}}, "values": [0.5],
}  # fmt: skip
MANIFEST_SEED = {
    "files": {"weights": {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
    "resumable": True, "step": 3, "config_hash": "0" * 64, "world_size": 1,
}  # fmt: skip
RECIPE_SEED = {
    "format": 1, "task": {"_target_": "hfexp.tasks.image_classification.ImageClassification"},
    "transform": {"prepare": {"rgb": {"_target_": "hfexp.tasks.images.ToRGB"}}, "evaluate": {}},
    "id2label": {"0": "a", "1": "b"}, "model": None,
}  # fmt: skip
DELIVERED_SEED = {
    "uri": "sqlite:///x.db", "run_id": "a", "experiment_id": "1", "offset": 10, "deferred": [1, 5], "creating": False
}  # fmt: skip
SWEEP_SEED = {
    "name": "s", "study": "s", "storage": "sqlite:///x.db", "parent_run_id": None, "metrics": ["m"],
    "directions": ["minimize"], "pruner": "none", "pruner_args": {},
}  # fmt: skip
JOURNAL = (
    b'{"kind": "create", "name": "x", "time": 1}\n{"kind": "params", "params": {"a": "1"}}\n'
    b'{"kind": "metrics", "metrics": {"loss": 1.5}, "step": 3, "time": 2}\n'
)
YAML = b"a: &a [1, two, null]\nb: {x: *a, y: 2026-01-01, z: !!str 3}\nc:\n  - &b {k: v}\n  - *b\n  - |\n    text\n"
COMMANDS = [
    ["experiment=digits_vit", "seed=1", "name=a b", "trainer.args.learning_rate=1e-3"],
    ["model=vit_digits", "dataset=digits", "model.config.hidden_size=16"],
    ["task=text_classification", "model=tiny_bert", "dataset=table", "dataset.source.data_files={train: a.csv}"],
]
ASKED = [
    ["run=abc", "photos/", "top_k=3", "batch_size=8", "columns.text=review", "generation.max_new_tokens=5"],
    ["run=abc", "split=validation", "by=label", "resamples=10", "record=false", "output=x.json"],
]


def _tables() -> list[tuple[str, bytes]]:
    listed = b"[" + LINES.replace(b"}\n{", b"},{") + b"]"
    packed = [(".csv.gz", gzip.compress(CSV)), (".jsonl.gz", gzip.compress(LINES))]
    return [(".csv", CSV), (".jsonl", LINES), (".json", listed), (".parquet", _parquet()), *packed]


def _metadata_tables() -> list[tuple[str, bytes]]:
    named = LINES.replace(b'"text": "', b'"file_name": "x/')
    return [(".csv", CSV.replace(b"text,", b"file_name,")), (".jsonl", named), (".parquet", _parquet())]


READERS = {
    "images, embedded": Reader(_open_image, _pictures, damaged_bytes, 0.24),
    "images, files": Reader(_open_file, _pictures, damaged_bytes, 0.08),
    "images, JPEG to tensors": Reader(_decode, _jpegs, damaged_bytes, 0.1),
    "images, served": Reader(_served, _pictures, damaged_bytes, 0.12),
    "CSV files": Reader(_csv_file, lambda: [CSV], damaged_bytes, 0.1),
    "tables": Reader(_table, _tables, _damaged_table, 0.005),
    "metadata of folders": Reader(_metadata, _metadata_tables, _damaged_table, 0.06),
    "overrides, composed": Reader(_compose, lambda: COMMANDS, damaged_words, 0.005),
    "overrides, parsed": Reader(_prepare, lambda: COMMANDS, damaged_words, 0.04),
    "words of predict": Reader(_predict, lambda: ASKED[:1], damaged_words, 0.02),
    "words of evaluate": Reader(_evaluate, lambda: ASKED[1:], damaged_words, 0.02),
    "YAML": Reader(_yaml, lambda: [YAML], damaged_bytes, 0.04),
    "manifests": Reader(_checkpoint, lambda: [MANIFEST_SEED], damaged_json, 0.03),
    "run.json": Reader(_run_state, lambda: [STATE_SEED], damaged_json, 0.03),
    "hfexp.json": Reader(_recipe, lambda: [RECIPE_SEED], damaged_json, 0.03),
    "delivered.json": Reader(_delivered, lambda: [DELIVERED_SEED], damaged_json, 0.02),
    "journals": Reader(_journal, lambda: [JOURNAL], damaged_bytes, 0.02),
    "sweep.json": Reader(_sweep, lambda: [SWEEP_SEED], damaged_json, 0.02),
    "safetensors": Reader(_weights, lambda: [_one_tensor()], damaged_bytes, 0.02),
}


# Running


def try_reader(name: str, count: int, seed: int = 0) -> Outcome:
    """Read damaged inputs in this process."""
    from hfexp.core.errors import ConfigError, RunError

    reader, outcome = READERS[name], Outcome()
    seeds = reader.seeds()
    with tempfile.TemporaryDirectory(prefix="hfexp-fuzz-") as directory, _silent():
        place, before = Path(directory), 0.0
        for number in range(count):
            rng = random.Random(f"{seed}/{name}/{number}")
            given = reader.damage(rng.choice(seeds), rng)
            began = time.process_time()
            try:
                reader.read(given, place)
            except (ConfigError, RunError):
                outcome.refused += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{type(error).__name__}: {error!s:.80} ({Path(where.filename).name}:{where.lineno})"
                outcome.wrong.setdefault(key, number)
            outcome.slowest = max(outcome.slowest, time.process_time() - began if number else 0.0)
            before = before or _peak()
        outcome.inputs, outcome.memory = count, _peak() - before
    return outcome


def _peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Warnings of decoders, and what their libraries write past Python."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def in_child(name: str, count: int, seed: int) -> Outcome:
    """Read damaged inputs in a process that may crash."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(writing, json.dumps(asdict(try_reader(name, count, seed))).encode("ascii"))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return Outcome(count, wrong={f"the process ended with status {status}": -1})
    return Outcome(**json.loads(said))


def main(count: int = 100_000, seed: int = 0, *names: str) -> int:
    """Print a table of all readers; 1 if an input was not read or refused as it should be."""
    import torch  # what every child would import

    import hfexp.data.sources  # noqa: F401

    torch.set_num_threads(1)
    outcomes = {}
    print(f"{'reader':28} {'inputs':>7} {'refused':>7} {'s, worst':>8} {'MB':>5}")
    for name in names or READERS:
        outcome = outcomes[name] = in_child(name, round(count * READERS[name].share), seed)
        print(
            f"{name:28} {outcome.inputs:7} {outcome.refused:7} {outcome.slowest:8.2f} {outcome.memory:5.0f}",
            flush=True,
        )
        for error, number in outcome.wrong.items():
            print(f"  input {number}: {error!r}"[:300])
    total = sum(outcome.inputs for outcome in outcomes.values())
    bad = [name for name, outcome in outcomes.items() if not outcome.is_sound]
    print(f"{total} inputs; " + (f"wrong: {', '.join(bad)}" if bad else "all read or refused as they should be"))
    return 1 if bad else 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(*map(int, given[:2]), *given[2:]))
