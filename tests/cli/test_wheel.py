"""The built packages: what the sdist holds, and the wheel in an environment of its own, which works from anywhere."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from conftest import ROOT

import hfexp

WANTED = (
    "CHANGELOG.md", "Dockerfile", "LICENSE", "PKG-INFO", "README.md", "benchmarks/__init__.py", "conf/config.yaml",
    "constraints.txt", "docs/architecture.md", "hfexp/core/__init__.py", "pyproject.toml",
    "tests/cli/test_wheel.py",
)  # fmt: skip
UNWANTED = re.compile(r"__pycache__|\.pyc$|^outputs/|^\.venv|^\.git/|mlflow\.db|^dist/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an sdist and of the wheel that is built from it."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", directory, ROOT], check=True, capture_output=True)
    return directory


@pytest.mark.slow
def test_the_sdist_has_the_sources_and_nothing_that_was_made(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    top = f"hfexp-{hfexp.__version__}/"
    assert sdist.name == f"{top[:-1]}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        metadata = message_from_bytes(archive.extractfile(f"{top}PKG-INFO").read())  # pyright: ignore
    assert all(name.startswith(top) for name in names)
    files = [name.removeprefix(top) for name in names]
    assert set(WANTED) - set(files) == set()
    assert [file for file in files if UNWANTED.search(file)] == []
    check_description(metadata)


def check_description(metadata: Message) -> None:
    """Check what an index shows: its page has no files of the repository to link to."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert text.startswith("# hfexp\n")
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []
    assert "docs/tasks.md" in text
    assert "details: benchmarks/results/demos.md" in text


@pytest.mark.slow
def test_the_wheel_works_in_another_environment(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would put the checkout before the wheel
    (wheel,) = built.glob("hfexp-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    # The dependencies come from this environment, where the checkout is installed by a .pth that does not count there.
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = subprocess.run(
        [python, "-c", "import hfexp; print(hfexp.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(site))
    assert (site / "hfexp" / "conf" / "config.yaml").is_file()
    assert (site / "hfexp" / "howto.md").is_file()
    place = tmp_path / "elsewhere"
    place.mkdir()
    program = tmp_path / "env" / "bin" / "hfexp"
    for words in (["--help"], ["--cfg", "job"], ["debug=fast"]):
        done = subprocess.run([program, *words], cwd=place, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert (place / "outputs" / "mlflow.db").is_file()
