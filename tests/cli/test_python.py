"""From Python and in notebooks: recorded runs, results that show themselves, errors without a traceback."""

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import encoded_digits

import hfexp
from hfexp import Result, load_run, predict, train
from hfexp.core.errors import ConfigError, DataError
from hfexp.experiment.result import result_html


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "0.png"
    path.write_bytes(encoded_digits(1)[0])
    return path


def test_a_run_is_loaded_by_its_name_with_all_that_is_known(
    trained: tuple[Path, Result], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, result = trained
    monkeypatch.chdir(home)
    run = load_run(result.run_dir.name)
    assert run.run_id == result.run_id
    assert run.metrics["test_accuracy"] == result.metrics["test_accuracy"]
    assert run.params["seed"] == "42"
    assert run.status == "FINISHED"
    assert list(run.history("eval_loss")["step"]) == [3, 6]
    assert run.report is not None
    first = run.predict(image)
    assert list(first["label"]) == list(predict(run=run.run_id, inputs=image)["label"])
    assert run.predict([image, image])["score"].tolist() == pytest.approx([first["score"][0]] * 2)
    assert run.model is run.model
    assert type(run.processor) is type(result.processor)
    table = run.evaluate(resamples=0, record=False)
    assert dict(zip(table["metric"], table["value"], strict=True))["accuracy"] == result.metrics["test_accuracy"]
    same = load_run(result.run_dir)
    assert same.metrics["test_accuracy"] == run.metrics["test_accuracy"]
    assert list(same.predict(image)["label"]) == list(first["label"])
    with pytest.raises(ConfigError, match="Did you mean 'eval_loss'"):
        run.history("eval_los")
    with pytest.raises(ConfigError, match="is already loaded"):
        run.predict(image, run="another")
    with pytest.raises(ConfigError, match="in MLflow"):
        same.history("eval_loss")


def test_what_is_no_run_is_said(place: Path) -> None:
    with pytest.raises(ConfigError, match="no run is given"):
        load_run()
    with pytest.raises(ConfigError, match=r"has no readable run\.json"):
        load_run(place)


def test_results_show_numbers_and_pictures(trained: tuple[Path, Result]) -> None:
    _, result = trained
    shown = result._repr_html_()
    assert f"{result.metrics['test_accuracy']:.4f}" in shown
    assert shown.count("<img") == 2
    assert "alt='learning_curves'" in shown
    assert "alt='confusion_matrix_test'" in shown
    assert "runtime" not in shown
    escaped = result_html("<script>", {"test_a<b": 0.5}, None)
    assert "<script>" not in escaped
    assert "a&lt;b" in escaped


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_errors_are_one_line_in_notebooks(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    error: Any = kind("the key is wrong")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert error._render_traceback_() == [f"{kind.__name__}: the key is wrong"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(NotImplementedError):
        error._render_traceback_()


def test_public_names_are_functions_whatever_was_imported_before(trained: tuple[Path, Result]) -> None:
    from hfexp import compose, evaluate

    assert all(callable(one) for one in (compose, evaluate, predict, train, load_run))
    assert set(hfexp.__all__) >= {"compose", "evaluate", "load_run", "predict", "train"}


def test_pictures_are_fetched_from_the_web_by_who_says_who_it_is(
    trained: tuple[Path, Result], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["User-Agent"]))
            self.send_response(200 if "cat" in self.path else 404)
            self.end_headers()
            self.wfile.write(image.read_bytes() if "cat" in self.path else b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    home, result = trained
    monkeypatch.chdir(home)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        words = [f"{address}/images?q=cat:one&s=2", f"{address}/dog.png", str(image)]
        found = predict(*words, run=result.run_id, skip_unreadable=True)
    finally:
        server.shutdown()
        server.server_close()
    assert found["input"].tolist() == [words[0], str(image)]
    assert found["label"].nunique() == 1
    assert {agent for _, agent in asked} == {f"hfexp/{hfexp.__version__}"}
