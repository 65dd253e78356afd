"""Takes the pictures of MLflow's pages in docs/ again: `python -m benchmarks.screenshots` (needs Chromium).

It runs the main job twice and a small search, opens `hfexp ui` on them, and photographs the pages of the runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PORT = 5077
COMMANDS = (
    [],
    ["trainer.args.learning_rate=3e-3"],
    ["-m", "search=tpe", "search.trials=6", "search.name=rates", "trainer.args.num_train_epochs=6",
     "trainer.args.learning_rate=tag(log,interval(1e-4,1e-2))"],
)  # fmt: skip
SIZE = (1780, 1000)
SHOWN = (0, 0, 1322, 1000)
"""Part of the window that is kept: MLflow's assistant stands beside it at a browser's first visit."""
PATIENCE = 30_000
"""Milliseconds of the page's own clock until a picture is taken."""


@contextmanager
def mlflow_pages(place: Path) -> Iterator[str]:
    """Serve the runs of a directory, and yield the address of MLflow's pages."""
    command = [sys.executable, "-m", "hfexp", "ui", "--port", str(PORT)]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        while not process.stdout.readline().startswith("last run"):
            if process.poll() is not None:
                raise SystemExit("hfexp ui has ended; is the port in use?")
        yield f"http://127.0.0.1:{PORT}/#"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def photograph(chromium: str, address: str, picture: Path) -> None:
    """Write a picture of a page, with as few colours as its file should be small."""
    import PIL.Image

    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
                 "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}",
                 f"--window-size={SIZE[0]},{SIZE[1]}", f"--virtual-time-budget={PATIENCE}"]  # fmt: skip
        command = [chromium, *flags, f"--screenshot={picture}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    with PIL.Image.open(picture) as image:
        image.crop(SHOWN).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=128).save(picture, optimize=True)


def main() -> None:
    """Run the jobs, and write docs/*.png."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no chromium here")
    with tempfile.TemporaryDirectory(prefix="hfexp-pictures-") as directory:
        place = Path(directory)
        for command in COMMANDS:
            subprocess.run([sys.executable, "-m", "hfexp", *command], cwd=place, check=True)
        runs = {run["run_id"]: run["name"] for run in listed(place, "runs")}
        jobs = [run["run_id"] for run in listed(place, "compare", "sweep=rates")]
        sweep = next(run_id for run_id, name in runs.items() if name.startswith("rates"))
        singles = [run_id for run_id in runs if run_id not in (sweep, *jobs)]
        pages = {
            "run": f"/experiments/1/runs/{singles[-1]}/artifacts/report.html",
            "compare": _comparison(singles),
            "sweep": f"/experiments/1/runs/{sweep}/artifacts/report.html",
            "sweep_compare": _comparison(jobs),
        }
        with mlflow_pages(place) as address:
            for name, page in pages.items():
                mark = "&" if "?" in page else "?"
                photograph(chromium, f"{address}{page}{mark}workflowType=machine_learning", DOCS / f"{name}.png")


def listed(place: Path, *command: str) -> list[dict[str, str]]:
    """Return what a command lists in JSON."""
    words = [sys.executable, "-m", "hfexp", *command, "--format", "json"]
    return json.loads(subprocess.run(words, cwd=place, check=True, capture_output=True, text=True).stdout)


def _comparison(run_ids: list[str]) -> str:
    query = {"runs": json.dumps(run_ids), "experiments": '["1"]'}
    return f"/compare-runs?{urllib.parse.urlencode(query)}"


if __name__ == "__main__":
    main()
