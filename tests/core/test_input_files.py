"""Files and addresses that data names: no program is started, nothing is waited for, memory is bounded."""

import http.server
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from hfexp.commands.predict import check_paths, parse
from hfexp.core import files as input_files
from hfexp.core import outside
from hfexp.core.compose import compose
from hfexp.core.errors import ConfigError, DataError
from hfexp.data import csv_files
from hfexp.data.fingerprint import digest
from hfexp.data.image_folders import LeftOut, scan
from hfexp.data.sources import table
from hfexp.inference.outputs import Answer, answer_files
from hfexp.tasks import images
from hfexp.tasks.cells import csv_cell
from hfexp.tasks.images import SMALL, Budget, ToRGB, image_row, open_image, to_rgb

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
WMF = b"\xd7\xcd\xc6\x9a" + bytes(200)


def encoded(kind: str = "PNG", size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def everywhere(path: Path) -> list[str]:
    """What training, its fast way for JPEG, and a served model say of a file."""
    stored, said = {"bytes": None, "path": str(path)}, []
    for read in (
        lambda: open_image(stored),
        lambda: images.decode_to_tensor({"image": stored}, ToRGB()),
        lambda: image_row(path.read_bytes()) if os.path.isfile(path) else open_image(stored),
    ):
        with pytest.raises(DataError) as caught:
            read()
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize(
    "content", [EPS, WMF, b"\x1c\x02\x00\x00\x02\x00\x00" + EPS], ids=["EPS", "WMF", "EPS in IPTC"]
)
def test_no_image_starts_a_program(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "cat.png").write_bytes(content)
    said = everywhere(tmp_path / "cat.png")
    assert "cat.png can't be read as an image: its format is unknown" in said[0]
    assert not (tmp_path / "started").exists()


def test_folders_hold_what_is_decoded(tmp_path: Path) -> None:
    for ending in ("png", "eps", "ps", "wmf", "fits", "iim", "TGA", "jp2"):
        (tmp_path / f"x.{ending}").touch()
    left_out = LeftOut(str(tmp_path))
    assert {Path(name).name for name in scan(tmp_path, left_out).images} == {"x.png", "x.TGA", "x.jp2"}
    assert sum(left_out.counts.values()) == 5


def test_any_error_of_a_decoder_names_the_file(tmp_path: Path) -> None:
    dds = bytearray(encoded("DDS"))
    dds[80:84] = bytes(4)  # flags of the pixel format: NotImplementedError
    avif = encoded("AVIF")[:300]  # RuntimeError
    for name, data in (("a.dds", bytes(dds)), ("b.avif", avif)):
        (tmp_path / name).write_bytes(data)
        assert name in everywhere(tmp_path / name)[0]


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    os.mkfifo(tmp_path / "fifo.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)
        listening.bind("socket.png")
        for name in ("fifo.png", "zero.png", "folder.png", "socket.png", "gone.png", "\0", "x" * 300):
            assert all(f"{name} can't be read" in said for said in everywhere(tmp_path / name)), name
        rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "fifo.png")]}).cast_column(
            "image", datasets.Image(decode=False)
        )
        assert len(digest(rows)) == 32
        with pytest.raises(ConfigError, match=r"fifo\.png is neither a regular file nor a folder"):
            check_paths(["fifo.png"])
    os.mkfifo(tmp_path / "answers.csv")
    with pytest.raises(ConfigError, match=r"output=.*is not a regular file"):
        parse(["run=x", f"output={tmp_path}/answers.csv", "photos"])


@contextmanager
def served(content: bytes, pause: float = 0) -> Iterator[str]:
    """Serve an image byte by byte with a pause in seconds after each; give its address."""

    class Image(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with suppress(OSError):  # the reader has gone
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    time.sleep(pause)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Image) as server:
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/cat.png"
        server.shutdown()


def test_an_address_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "SECONDS", 1)
    began = time.monotonic()
    with served(encoded(), pause=0.5) as address, pytest.raises(DataError, match=r"cat\.png"):
        open_image({"bytes": None, "path": address})
    assert time.monotonic() - began < 4


def test_an_address_gives_an_image_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(size=(4, 4))
    with served(data) as address:
        assert open_image({"bytes": None, "path": address}).size == (4, 4)
        monkeypatch.setattr(input_files, "MAX_BYTES", len(data) - 1)
        with pytest.raises(DataError, match="is larger than"):
            open_image({"bytes": None, "path": address})


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(DataError, match="not a regular file"):
        open_image({"bytes": None, "path": f"file://{tmp_path}/fifo.png"})
    (tmp_path / "cat.png").write_bytes(encoded(size=(5, 4)))
    assert open_image({"bytes": None, "path": f"file://{tmp_path}/cat.png"}).size == (5, 4)


def test_pixels_are_bounded() -> None:
    data = encoded(size=(30, 20))
    for read in (
        lambda most: open_image({"bytes": data, "path": "cat.png"}, most),
        lambda most: image_row(data, most),
    ):
        read(600)
        with pytest.raises(DataError, match=r"600 pixels, more than 599\. task\.max_image_pixels=NUMBER allows more"):
            read(599)


def test_a_huge_jpeg_is_decoded_at_half_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (images, images):
        monkeypatch.setattr(module, "HALVED_FROM", 96 * 64)
    for width, size in ((96, (96, 64)), (104, (52, 32))):
        stored = {"bytes": encoded("JPEG", size=(width, 64)), "path": None}
        assert open_image(stored).size == size
        assert images.decode_to_tensor({"image": stored}, ToRGB())["image"].shape == (3, *size[::-1])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "I", "F", "transparent RGB"])
def test_large_images_go_band_by_band_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (37, 29), dtype=np.uint8)
    image = PIL.Image.fromarray(levels)
    if mode == "I;16":
        image = PIL.Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode == "F":  # levels up to 1, in one band up to 0.5
        image = PIL.Image.fromarray((levels / 255 * np.linspace(0.5, 1, 37)[:, None]).astype(np.float32))
    elif mode == "I":  # 8 bits in one band, 16 in others
        image = PIL.Image.fromarray(
            (levels.astype(np.int32) * np.linspace(0, 200, 37, dtype=int)[:, None]).astype("i4")
        )
    else:
        image = image.convert("RGB").convert(mode.split()[-1])
    if mode == "transparent RGB":
        image.info["transparency"] = image.getpixel((3, 3))
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(images, "BAND", 100)
    assert np.array_equal(np.asarray(to_rgb(image)), whole)


def test_images_in_work_are_bounded_whatever_the_number_of_threads() -> None:
    budget, most, alone = Budget(100 * SMALL), [0], []

    def work(pixels: int) -> None:
        budget.own.bytes = 0
        budget.take(pixels, 10)
        budget.take(pixels, 10)  # a second image of the row does not wait for other threads
        most[0] = max(most[0], budget.in_work if pixels < 100 * SMALL else 0)
        alone.append(budget.in_work == 20 * pixels if pixels > 100 * SMALL else True)
        time.sleep(0.01)
        budget.release()

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in [2 * SMALL] * 24 + [200 * SMALL]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert budget.in_work == 0
    budget.take(200 * SMALL, 10)  # no row: not counted, and not waited for
    assert budget.in_work == 0


def test_spreadsheets_compute_nothing(tmp_path: Path) -> None:
    labels = {0: "=1+1", 1: "@SUM(A1)", 2: "-1", 3: "+x"}
    answers = [
        Answer("=cmd|' /C calc'!A0.png", {"label": "=1+1", "score": 0.5, "probabilities": [0.5, 0.2, 0.2, 0.1]}),
        Answer("-1.5", {"label": "\t=1", "score": -0.25, "probabilities": [0.1, 0.2, 0.3, 0.4]}),
    ]
    with answer_files({tmp_path / "a.csv": None, tmp_path / "a.jsonl": None}, labels, 1) as files:
        for answer in answers:
            for file in files:
                file.add(answer)
    head, first, second = (tmp_path / "a.csv").read_text().splitlines()
    assert first.startswith("'=cmd|' /C calc'!A0.png,'=1+1,0.5")
    assert second.startswith("-1.5,'\t=1,-0.25"), "numbers stay numbers"
    assert not any(cell[:1] in "=+@" for cell in head.split(","))
    assert '"=1+1"' in (tmp_path / "a.jsonl").read_text(), "no spreadsheet reads it"
    assert [csv_cell(value) for value in (-3, "-3", "-3e4", "--3", None)] == [-3, "-3", "-3e4", "'--3", None]


def test_aliases_of_yaml_are_bounded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "experiment").mkdir()
    options = tmp_path / "experiment" / "mine.yaml"
    for text in ("\n".join(lines), "a: &a [*a]"):
        options.write_text(f"# @package _global_\ntracking:\n  tags:\n    x: 1\n{text}\n")
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"mine\.yaml: its aliases .* expand to more than 100,000 values"):
            compose("experiment=mine", config_dir=tmp_path)
        assert time.monotonic() - began < 2
    assert outside.load("a: &a [1]\nb: [*a, *a]", "x") == {"a": [1], "b": [[1], [1]]}


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "MAX_LINE", 1000)
    rows = "text,label\n" + "a,b\n" * 3
    for content in (rows + "x" * 2000 + ",a\n", rows + '"' + "x\n" * 2000):
        (tmp_path / "rows.csv").write_text(content)
        file = csv_files.CsvFile(str(tmp_path / "rows.csv"), csv_files.Dialect())
        with pytest.raises(ConfigError, match=r"line 5 of .*rows.csv has a line or cell of more than 1,000"):
            list(file.tables(["text"]))
    (tmp_path / "rows.csv").write_text(rows + "x" * 900 + ",a\n")
    assert sum(map(len, csv_files.CsvFile(str(tmp_path / "rows.csv"), csv_files.Dialect()).tables(["text"]))) == 4


def test_json_that_is_nested_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ' + "[" * 10**5 + "]" * 10**5 + "}\n")
    with pytest.raises(ConfigError, match=r"line 1 of .*rows.jsonl is nested too deeply"):
        table(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "[" * 600 + '\\"{', "label": [[]] * 600}] * 600))
    assert len(table(str(tmp_path / "rows.json"))["train"]) == 600
