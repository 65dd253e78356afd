"""`hfexp predict`: runs, sweeps, directories and plain models, asked about files, tables, texts and images."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import PIL.Image
import pyarrow.parquet
import pytest
import transformers
from conftest import SMALL_DIGITS, encoded_digits, write_images
from datasets import ClassLabel, Dataset, Features, LargeList, Value

from hfexp import load_run, predict, train
from hfexp.commands import cli
from hfexp.commands.predict import as_args, parse
from hfexp.core.errors import ConfigError, DataError
from hfexp.inference.inputs import _without_binary
from hfexp.tasks.text import byte_tokenizer

IMAGES = 5


@pytest.fixture
def here(trained: tuple[Path, Any], place: Path) -> Path:
    """A current directory with images in `photos` and a copy of what a small training has left."""
    (place / "photos").mkdir()
    for number, data in enumerate(encoded_digits(IMAGES)):
        (place / "photos" / f"{number}.png").write_bytes(data)
    shutil.copytree(trained[0] / "outputs", place / "outputs", symlinks=True)
    return place


@pytest.fixture
def run(here: Path) -> str:
    """The name of its run."""
    return run_directory(here).name


def run_directory(here: Path) -> Path:
    return next(path.parent for path in here.glob("outputs/digits/*/run.json"))


def test_what_is_typed_is_what_the_model_gets() -> None:
    typed = ["Hello, world", "It's", "x=1 (two)", "?a=1", ">", "${a}", "[1, {b: 2}]", "", " a ", '"quoted"']
    assert parse([f"prompt={text}" for text in typed]).text == typed
    assert parse(["text=a", "prompt=b", "run=x", "top_k=3"]).text == ["a", "b"]
    settings = parse(["generation.max_new_tokens=5", "columns.text=my text", "model.dtype=bfloat16", "stream=true"])
    assert settings.generation == {"max_new_tokens": 5}
    assert settings.columns == {"text": "my text"}
    assert settings.composed == ["model.dtype=bfloat16"]
    assert settings.stream is True


def test_settings_of_python_are_words_of_the_command() -> None:
    named = {
        "text": ["a", "b=c"], "generation": {"stop_strings": ["\n"], "max_new_tokens": 5, "do_sample": True},
        "columns": {"text": "1"}, "record": True, "output": Path("a.csv"), "device": None, "top_k": 2,
    }  # fmt: skip
    settings = parse(as_args(named))
    assert settings.text == ["a", "b=c"]
    assert settings.generation == {"stop_strings": ["\n"], "max_new_tokens": 5, "do_sample": True}
    assert settings.columns == {"text": "1"}
    assert (settings.record, settings.output, settings.device, settings.top_k) == (True, "a.csv", None, 2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("promt=Hello", "Did you mean 'prompt'?"),
        ("top_k=0", "a whole number from 1 on"),
        ("top_k=some", "expected a whole number"),
        ("record=perhaps", "expected true or false"),
        ("output=answers.xlsx", r"must end in \.csv, \.jsonl, \.parquet"),
        ("batch_size=0", "at least 1"),
    ],
)
def test_wrong_words_are_refused_with_what_is_allowed(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(["run=x", word])


def test_a_run_is_asked_as_a_pipeline_is(here: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(map(str, Path("photos").glob("*.png")))
    pipeline: Any = transformers.pipeline("image-classification", str(run_directory(here) / "model"), top_k=None)
    expected = [max(answers, key=lambda one: one["score"]) for answers in pipeline(paths)]
    assert cli.main(["predict", f"run={run}", "photos", "output=answers.csv"]) == 0
    found = pandas.read_csv("answers.csv", dtype={"label": str})
    assert list(found["input"]) == paths
    assert list(found["label"]) == [one["label"] for one in expected]
    assert np.allclose(found["score"], [one["score"] for one in expected], atol=1e-5)
    assert np.allclose(found.filter(like="probability_").sum(axis=1), 1, atol=1e-5)
    shown = capsys.readouterr().out
    assert "photos/0.png" in shown
    assert "5 answers written to answers.csv" in shown


@pytest.mark.slow
def test_all_forms_of_answers_say_the_same(here: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        assert cli.main(["predict", f"run={run_directory(here)}", "photos", "top_k=2", f"output=a/b.{ending}"]) == 0
    table, parquet = (
        pandas.read_csv("a/b.csv", dtype={"label": str, "label_2": str}),
        pandas.read_parquet("a/b.parquet"),
    )
    lines = [json.loads(line) for line in Path("a/b.jsonl").read_text().splitlines()]
    assert table["label"].tolist() == parquet["label"].tolist() == [line["label"] for line in lines]
    assert table["label_2"].tolist() == [line["top"][1]["label"] for line in lines]
    assert np.allclose(table["probability_3"], [line["probabilities"]["3"] for line in lines])
    assert sorted(path.name for path in Path("a").iterdir()) == ["b.csv", "b.jsonl", "b.parquet"]


def test_what_can_not_be_read_is_named_and_the_rest_is_answered(
    here: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/broken.png").write_bytes(b"\x89PNG nothing")
    assert cli.main(["predict", f"run={run}", "photos/*.png", "output=a.csv"]) == 1
    assert len(pandas.read_csv("a.csv")) == IMAGES
    errors = capsys.readouterr().err
    assert "skipped: photos/broken.png can't be read as an image" in errors
    assert "1 of 6 inputs could not be read" in errors
    with pytest.raises(DataError, match=r"broken\.png"):
        predict(run=run, inputs="photos/broken.png")
    assert len(predict(run=run, inputs=["photos/broken.png", "photos/1.png"], skip_unreadable=True)) == 1


def test_images_come_from_tables_standard_input_and_python(
    here: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(predict(run=run, inputs="photos")["label"])
    Path("photos/rows.csv").write_text("file,x\n" + "".join(f"{n}.png,1\n" for n in range(IMAGES)))
    assert list(predict("columns.image=file", run=run, inputs="photos/rows.csv")["label"]) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("photos/0.png\nphotos/1.png\n"))
    assert list(predict(run=run, inputs="-")["label"]) == expected[:2]
    image = PIL.Image.open("photos/2.png")
    raw = [image, np.asarray(image), Path("photos/2.png").read_bytes(), Path("photos/2.png")]
    assert list(predict(run=run, inputs=raw, batch_size=3)["label"]) == [expected[2]] * 4
    assert list(predict(run=run, inputs=np.asarray(image))["label"]) == [expected[2]]


@pytest.mark.slow
def test_a_model_that_is_only_in_the_store_is_fetched(here: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predict(run=run, inputs="photos")
    monkeypatch.setattr("hfexp.inference.load.home_of", lambda record, output_dir: None)
    assert list(predict(run=run, inputs="photos")["label"]) == list(expected["label"])


def test_answers_are_kept_with_the_run(here: Path, run: str) -> None:
    assert cli.main(["predict", f"run={run}", "photos", "record=true"]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")
    (recorded,) = client.search_runs(["1"], f"attributes.run_name = '{run.rpartition('-')[0]}'")
    (kept,) = client.list_artifacts(recorded.info.run_id, "predictions")
    assert kept.path.endswith(".csv")
    # The run of a directory is found; in Python answers are written and kept as by the command.
    asked = load_run(run_directory(here))
    batches: list[int] = []
    respond = asked._loaded.predictor._respond
    asked._loaded.predictor._respond = lambda rows, options: batches.append(len(rows)) or respond(rows, options)  # type: ignore[method-assign]
    found = asked.predict("photos", "batch_size=2", record=True, output="answers.csv", top_k=2)
    assert batches == [2, 2, 1]
    written = pandas.read_csv("answers.csv", dtype={"label": str, "label_2": str})
    assert list(written["label"]) == list(found["label"])
    assert "label_2" in written
    assert len(client.list_artifacts(recorded.info.run_id, "predictions")) == 2


def test_a_sweep_answers_by_its_best_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfexp.tracking import runs
    from hfexp.tracking.runs import best_run_of_sweep

    parent = runs.RunRecord("p" * 32, "search", "1", "digits", "FINISHED", 1, 2)
    parent.tags = {"hfexp.kind": "sweep", "hfexp.best_run_id": f"{'b' * 32}, {'c' * 32}"}
    best = runs.RunRecord("b" * 32, "best", "1", "digits", "FINISHED", 1, 2)
    known = {run.run_id: run for run in (parent, best)}

    def read_runs(uri: str, run_ids: Any = None, **_: Any) -> list[Any]:
        return [known[run_id] for run_id in (run_ids if run_ids is not None else known)]

    monkeypatch.setattr("hfexp.tracking.runs.read_runs", read_runs)
    assert best_run_of_sweep("", "search").name == "best"
    with pytest.raises(ConfigError, match="Did you mean 'search'"):
        best_run_of_sweep("", "serch")
    parent.tags.pop("hfexp.best_run_id")
    with pytest.raises(ConfigError, match="no best run yet"):
        best_run_of_sweep("", "search")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=RUN"], "there are no inputs"),
        (["run=RUN", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["run=RUN", "photos/*.gif"], "no file matches this pattern"),
        (["run=smal", "photos"], "no experiment, run name or run id"),
        (["photos"], "no model: give"),
        (["run=RUN", "sweep=x", "photos"], "give one of them"),
        (["run=RUN", "photos", "top_k=11"], "the model has 10 classes"),
        (["run=RUN", "photos", "generation.max_new_tokens=3"], "ImageClassification does not generate text"),
        (["run=RUN", "photos", "system=Be brief", "text=a"], "does not take a system prompt"),
        (["run=RUN", "photos", "stream=true"], "needs one prompt"),
        (["run=RUN", "photos", "task=image_classification"], "has its own model, task and transform"),
        (["run=RUN", "photos", "system=Be brief"], "applies only to text"),
        (["model=vit_digits", "task=image_classification", "photos"], "was not trained for ImageClassification"),
        (["run=RUN", "photos", "split=test"], "already name the inputs; leave out 'photos'"),
        (["run=RUN", "split=test", "columns.image=a"], "leave out columns"),
        (["run=RUN", "split=tests"], "split=tests: expected one of"),
        (["run=RUN", "photos", "columns.text=a"], r"columns\.text: the task reads only: image"),
    ],
)
def test_wrong_questions_are_answered_by_what_is_right(
    here: Path, run: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["predict", *(word.replace("RUN", run) for word in words)]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err


def plain_model(place: Path, kind: str) -> Path:
    """A directory as anybody's `save_pretrained` leaves it."""
    directory = place / kind
    labels = {"id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}
    transformers.set_seed(0)
    if kind == "image":
        config = transformers.ViTConfig(
            image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, initializer_range=1.0, **labels,
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(directory)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    else:
        config = transformers.BertConfig(
            vocab_size=261, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            initializer_range=1.0, **labels,
        )  # fmt: skip
        transformers.BertForSequenceClassification(config).save_pretrained(directory)
        byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_plain_model_answers_as_its_pipeline_and_its_task_is_found(here: Path, kind: str) -> None:
    directory = plain_model(here, kind)
    generator = np.random.default_rng(0)
    inputs: list[Any] = ["a", "b" * 40, "Grüße, Welt"]
    if kind == "image":
        inputs = [PIL.Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    pipeline: Any = transformers.pipeline(f"{kind}-classification", str(directory), top_k=None)  # pyright: ignore
    expected = [{one["label"]: one["score"] for one in answers} for answers in pipeline(inputs)]
    found = predict(run=str(directory), inputs=inputs)
    for ours, theirs in zip(found["probabilities"], expected, strict=True):
        assert ours == pytest.approx(
            [theirs[name] for name in ("cat", "dog", "eel")], abs=2e-3 if kind == "image" else 1e-5
        )


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"problem_type": "multi_label_classification"}, "labels"),
        ({"problem_type": "regression", "num_labels": 1}, "value"),
        ({"num_labels": 1}, "value"),
        ({"problem_type": "single_label_classification"}, "label"),
    ],
)
def test_the_kind_of_labels_of_a_plain_model_is_found(here: Path, fields: dict[str, Any], column: str) -> None:
    directory = plain_model(here, "text")
    config = transformers.AutoConfig.from_pretrained(directory, **fields)
    transformers.BertForSequenceClassification(config).save_pretrained(directory)
    odd = directory.rename(f"é's (v2), {directory.name}=1")  # no words of Hydra's grammar
    assert column in predict(run=str(odd), inputs=["one"])


def test_texts_are_read_from_tables_lines_and_words(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = plain_model(here, "text")
    expected = predict(run=str(directory), inputs=["one", "two, three"])
    Path("rows.jsonl").write_text('{"review": "one"}\n{"review": "two, three"}\n{"review": null}\n')
    Path("lines.txt").write_text("one\ntwo, three\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo, three\n"))
    for words in (["columns.text=review", "rows.jsonl"], ["lines.txt"], ["-"], ["text=one", "text=two, three"]):
        output = f"output={words[0].replace('=', '_')}.jsonl"
        code = cli.main(["predict", f"run={directory}", *words, output])
        assert code == (1 if "rows.jsonl" in words else 0)
        lines = [json.loads(line) for line in Path(output.removeprefix("output=")).read_text().splitlines()]
        assert [line["label"] for line in lines] == list(expected["label"])
    assert "expected a string" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_answers_stand_beside_all_columns_of_the_table(here: Path, ending: str) -> None:
    directory = plain_model(here, "text")
    rows = [{"id": f"0{n}", "review": f"text {n}", "label": "dog", "late": None} for n in range(1001)]
    rows[-1]["late"] = "=1+1"
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("more.csv").write_text("review,tag\nanother,a\n")
    output, inputs = f"answers.{ending}", ["rows.jsonl", "more.csv"]
    assert cli.main(["predict", f"run={directory}", "columns.text=review", *inputs, f"output={output}"]) == 0
    read: Any = {
        "csv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False),
        "jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
        "parquet": pandas.read_parquet,
    }[ending]
    answers = read(output)
    assert list(answers.columns)[:6] == ["input", "id", "review", "input.label", "late", "tag"]
    assert list(answers["id"])[:1001] == [row["id"] for row in rows]
    assert set(answers["input.label"][:1001]) == {"dog"}
    assert answers["late"][1000] == ("'=1+1" if ending == "csv" else "=1+1")
    assert (answers["review"][1001], answers["tag"][1001]) == ("another", "a")
    assert list(answers["label"]) == list(predict(run=directory, inputs=[*answers["review"]])["label"])


def test_columns_keep_their_values_in_every_format(here: Path) -> None:
    directory = plain_model(here, "text")
    number = 1234567890123456789
    rows = [
        {"text": "a", "id": number, "price": 1.5, "kind": 1},
        {"text": "b", "id": None, "price": 100.25, "kind": 2},
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("b.jsonl").write_text('{"text": "c", "id": 7, "price": 3.0, "kind": "x"}\n')
    for ending in ("csv", "parquet"):
        assert cli.main(["predict", f"run={directory}", "a.jsonl", "b.jsonl", "text=d", f"output=out.{ending}"]) == 0
    lines = Path("out.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == [str(number), "", "7", ""]
    kept = pyarrow.parquet.read_table("out.parquet").to_pylist()
    assert [row["id"] for row in kept] == [number, None, 7, None]
    assert [row["kind"] for row in kept] == ["1", "2", "x", None]


def test_a_class_called_binary_is_no_binary_data() -> None:
    features = Features({"a": ClassLabel(names=["binary"]), "b": Value("binary"), "c": LargeList(Value("string"))})
    rows = Dataset.from_dict({"a": [0], "b": [b"x"], "c": [["y"]]}, features=features)
    assert _without_binary(rows).column_names == ["a", "c"]


def test_the_rows_of_the_runs_own_split_are_answered(here: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = next(run_directory(here).rglob("predictions_test.csv"))
    expected = pandas.read_csv(recorded, dtype={"true": str, "predicted": str})
    assert cli.main(["predict", f"run={run}", "split=test", "output=answers.csv", "record=true"]) == 0
    answers = pandas.read_csv("answers.csv", dtype={"true": str, "label": str})
    assert list(answers.columns)[:6] == ["input", "split", "index", "true", "label", "score"]
    assert list(answers["input"])[:2] == ["test[0]", "test[1]"]
    for ours, theirs in (("index", "index"), ("true", "true"), ("label", "predicted")):
        assert list(answers[ours])[: len(expected)] == list(expected[theirs])
    assert np.allclose(answers["score"][: len(expected)], expected["probability"], atol=1e-4)
    assert "true" in capsys.readouterr().out
    everything = predict(run=run, split="all")
    assert everything["split"].value_counts().to_dict() == {"train": 96, "validation": 40, "test": 40}


def test_the_rows_of_another_dataset_are_answered(here: Path, run: str) -> None:
    root = write_images(here / "new", ("3", "7"), 2)
    answers = predict("dataset=imagefolder", f"dataset.source.data_dir={root}", run=run)
    assert list(answers["input"]) == sorted(map(str, root.glob("*/*.jpg")))
    assert list(answers["true"]) == ["3", "3", "7", "7"]
    assert set(answers["split"]) == {"train"}


def test_a_split_keeps_the_columns_of_its_source_under_their_names(place: Path) -> None:
    lines = [f'{n},"text {n}",{["no", "yes"][n % 2]},{n}.5' for n in range(30)]
    Path("rows.csv").write_text("\n".join(["text,body,verdict,split", *lines]) + "\n")
    words = ("task=text_classification", "model=tiny_bert", "dataset=table", "dataset.source.data_files=rows.csv",
             "dataset.columns={text: body, label: verdict}", "dataset.test_size=0.2", "debug=fast")  # fmt: skip
    answers = predict(run=train(*words).run_dir, split="test")
    assert list(answers.columns) == [
        "input", "text", "body", "input.split", "split", "index", "true", "label", "score", "probabilities",
    ]  # fmt: skip
    assert list(answers["input"]) == list(answers["body"]) == [f"text {n}" for n in answers["text"]]
    assert list(answers["true"]) == [["no", "yes"][int(n) % 2] for n in answers["text"]]
    assert list(answers["input.split"]) == [f"{n}.5" for n in answers["text"]]


@pytest.mark.slow
def test_a_task_of_the_users_own_is_asked_too(here: Path) -> None:
    Path("own_task.py").write_text(
        "from hfexp.tasks.image_classification import ImageClassification\n\n\n"
        "class Shouting(ImageClassification):\n"
        "    answer_types = {'text': 'string'}\n\n"
        "    def answer(self, output, id2label):\n"
        "        return {'text': id2label[int(output.argmax())].upper() + '!'}\n"
    )
    Path("conf/task").mkdir(parents=True)
    Path("conf/task/shouting.yaml").write_text("_target_: own_task.Shouting\n")
    directory = plain_model(here, "image")
    found = predict("task=shouting", run=str(directory), inputs="photos", config_dir="conf")
    assert set(found["text"]) <= {"CAT!", "DOG!", "EEL!"}
    assert len(found) == IMAGES


@pytest.mark.slow
def test_the_users_own_task_and_model_are_trained_swept_and_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_kind.py").write_text(
        "import torch\nfrom hfexp.tasks.image_classification import ImageClassification\n\n\n"
        "class Parity(ImageClassification):\n"
        "    answer_types = {'parity': 'string'}\n\n"
        "    def answer(self, output, id2label):\n"
        "        return {'parity': 'odd' if int(output.argmax()) % 2 else 'even'}\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    main_input_name = 'pixel_values'\n\n"
        "    def __init__(self, width, id2label):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(192, width)\n"
        "        self.head = torch.nn.Linear(width, len(id2label))\n\n"
        "    def forward(self, pixel_values, labels=None):\n"
        "        logits = self.head(self.inner(pixel_values.flatten(1)).relu())\n"
        "        if labels is None:\n"
        "            return {'logits': logits}\n"
        "        return {'loss': torch.nn.functional.cross_entropy(logits, labels), 'logits': logits}\n"
    )
    Path("conf/task").mkdir(parents=True)
    Path("conf/model").mkdir()
    Path("conf/task/parity.yaml").write_text("_target_: own_kind.Parity\n")
    Path("conf/model/net.yaml").write_text(
        "_target_: own_kind.Net\nwidth: 8\n"
        "processor: {_target_: transformers.ViTImageProcessor, size: {height: 8, width: 8}}\n"
    )
    small = [word for word in SMALL_DIGITS if not word.startswith(("experiment", "model"))]
    words = ["--config-dir", "conf", "task=parity", "model=net", "dataset=digits", "trainer=scratch", *small]
    assert cli.main([*words, "dataset.test_size=0.2"]) == 0
    assert cli.main(["-m", *words, "dataset.test_size=0.2", "model.width=4,16", "search.name=widths"]) == 0
    (place / "one.png").write_bytes(encoded_digits(1)[0])
    assert cli.main(["predict", f"run={run_directory(place)}", "one.png"]) == 2
    assert "if you trust this model, set HFEXP_ALLOWED_TARGETS=own_kind" in capsys.readouterr().err
    for asked in (f"run={run_directory(place).name}", "sweep=widths"):
        capsys.readouterr()
        assert cli.main(["predict", asked, "one.png", "output=a.csv"]) == 0
        assert set(pandas.read_csv("a.csv")["parity"]) <= {"odd", "even"}


def test_an_address_that_gives_nothing_is_named(here: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", f"run={run}", "photos/0.png", "http://127.0.0.1:9/cat.jpg"]) == 1
    assert "http://127.0.0.1:9/cat.jpg" in capsys.readouterr().err


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--help"]) == 0
    assert "hfexp predict run=RUN" in capsys.readouterr().out
