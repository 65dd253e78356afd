"""docs/notebook.ipynb runs from a clean kernel, offline, and keeps no trace of a machine."""

from pathlib import Path

import pytest

from benchmarks.notebook import NOTEBOOK, executed


@pytest.mark.slow
def test_the_notebook_runs_and_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cells = [cell for cell in executed().cells if cell.cell_type == "code"]
    failed = [cell for cell in cells if any(output.output_type == "error" for output in cell.outputs)]
    assert [cell.metadata.get("tags") for cell in failed] == [["raises-exception"]]
    (error,) = failed[0].outputs
    assert error.traceback == ["ConfigError: " + error.evalue]
    shown = [output for cell in cells for output in cell.outputs]
    pages = ["".join(output.data["text/html"]) for output in shown if "text/html" in output.get("data", {})]
    assert any("alt='confusion_matrix_test'" in page for page in pages)
    assert not any(output.output_type == "stream" and output.name == "stderr" for output in shown)


def test_the_kept_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert "/tmp/" not in text
    assert "site-packages" not in text
    assert str(Path.home()) not in text
