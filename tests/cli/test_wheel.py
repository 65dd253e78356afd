"""The built wheel in an environment of its own: the command works from any directory, with conf/ inside."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_wheel_works_in_another_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("hfexp-*.whl")
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
    place = tmp_path / "elsewhere"
    place.mkdir()
    hfexp = tmp_path / "env" / "bin" / "hfexp"
    for words in (["--help"], ["--cfg", "job"], ["debug=fast"]):
        done = subprocess.run([hfexp, *words], cwd=place, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert (place / "outputs" / "mlflow.db").is_file()
