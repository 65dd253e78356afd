"""A warm start: the head of a checkpoint is that of the same classes, or starts anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import FAMILIES, write_checkpoint
from conftest import SMALL_DIGITS

from hfexp import train
from hfexp.commands import cli
from hfexp.core.config import ModelConfig
from hfexp.tasks.base import Task
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_classification import MultiLabelTextClassification, TextClassification, TextRegression
from hfexp.tracking.runs import resolve_models
from hfexp.training import adapters
from hfexp.training.model import build_model

NAMES = ("bad", "good", "ok", "odd")
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 261}


def checkpoint(directory: Path, names: tuple[str, ...] | None = NAMES, kind: str = "bert", **fields: Any) -> Path:
    """A classifier of texts with a head for these classes; None: four without a name."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names))} if names else {"num_labels": 4}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **labels, **fields)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    byte_tokenizer(64).save_pretrained(directory)
    return directory


def started(directory: Path, names: tuple[str, ...] | None, task: Task | None = None) -> tuple[Any, Any, Any]:
    """A warm start for these classes, what was said of it, and the model that was saved."""
    task = task or TextClassification()
    saved = getattr(transformers, task.model_class).from_pretrained(directory)
    torch.manual_seed(1)
    id2label = dict(enumerate(names)) if names else None
    model, summary = build_model(ModelConfig(path=str(directory)), task, id2label, [])
    return model, summary, saved


def test_classes_in_another_order_take_their_rows_along(tmp_path: Path) -> None:
    model, summary, saved = started(checkpoint(tmp_path), ("ok", "bad", "odd", "good"))
    rows = [2, 0, 3, 1]
    assert torch.equal(model.classifier.weight, saved.classifier.weight[rows])
    tokens = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    assert torch.equal(model.eval()(**tokens).logits, saved.eval()(**tokens).logits[:, rows])
    assert summary.new_tensors == []
    assert summary.head == "reordered the head's rows to match the classes: ok, bad, odd, good"
    model, summary, saved = started(tmp_path, NAMES)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert summary.head is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_head_of_other_classes_starts_anew_and_nothing_else_does(tmp_path: Path, kind: str) -> None:
    model, summary, saved = started(checkpoint(tmp_path, kind=kind, pad_token_id=0), ("1", "3", "5", "7"))
    fresh = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, saved.state_dict()[name])}
    head = "classifier.out_proj" if kind == "roberta" else "classifier"
    assert fresh | {f"{head}.bias"} == {f"{head}.weight", f"{head}.bias"} == set(summary.new_tensors)
    weight = model.get_parameter(f"{head}.weight")
    assert 0.25 < weight.std().item() / saved.get_parameter(f"{head}.weight").std().item() < 4
    said = "the head is initialised anew: the checkpoint's classes are bad, good, ok, odd, the dataset's 1, 3, 5, 7"
    assert summary.head == said


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_images_follow_their_classes(tmp_path: Path, family: str) -> None:
    """Written without names by most; timm has them in a list of its own."""
    directory = write_checkpoint(family, tmp_path, num_labels=4)
    content = json.loads((directory / "config.json").read_text())
    content |= {"label_names": list(NAMES)} if family == "timm" else {"id2label": dict(enumerate(NAMES))}
    (directory / "config.json").write_text(json.dumps(content))
    for names in (NAMES[::-1], ("1", "3", "5", "7")):
        model, summary, saved = started(directory, names, ImageClassification())
        before = saved.state_dict()
        changed = {
            name: tensor for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
        }
        assert changed
        if names == NAMES[::-1]:
            assert summary.new_tensors == []
            assert all(torch.equal(tensor, before[name].flip(0)) for name, tensor in changed.items())
        else:
            assert changed.keys() <= set(summary.new_tensors)


def test_what_outputs_mean_decides_where_classes_have_no_names(tmp_path: Path) -> None:
    nameless = checkpoint(tmp_path / "nameless", None)
    model, summary, saved = started(nameless, NAMES)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert summary.head == (
        "the checkpoint's classes have no names: taking its outputs as bad, good, ok, odd, in order"
    )
    of_one = checkpoint(tmp_path / "one", None, problem_type="single_label_classification")
    _, summary, _ = started(of_one, NAMES, MultiLabelTextClassification())
    assert summary.new_tensors == ["classifier.bias", "classifier.weight"]
    assert "is for single_label_classification, the task is multi_label_classification" in summary.head
    _, summary, _ = started(checkpoint(tmp_path / "named"), NAMES, MultiLabelTextClassification())
    assert (summary.new_tensors, summary.head) == ([], None)
    _, summary, _ = started(tmp_path / "named", None, TextRegression())
    assert summary.head == "the head is initialised anew: the checkpoint's has 4 outputs, the task needs 1"
    number = checkpoint(tmp_path / "number", ("much",), problem_type="regression")
    assert started(number, None, TextRegression())[1].new_tensors == []
    assert started(number, ("a",), MultiLabelTextClassification())[1].new_tensors != []
    bare = tmp_path / "bare"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(bare)  # pyright: ignore
    assert started(bare, ("a", "b"))[1].head is None


def test_an_adapter_keeps_a_head_in_another_order(place: Path) -> None:
    """Loaded again, it finds the pretrained weights with the rows as they were."""
    directory = checkpoint(place / "start")
    lines = [{"text": "xyz"[n % 3] * 5, "label": NAMES[::-1][n % 4]} for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = train(
        "task=text_classification", "dataset=table", "dataset.source.data_files=rows.jsonl", "debug=fast",
        "dataset.labels=[odd,ok,good,bad]", "model=local", f"model.path={directory}", "model.peft.r=2",
        "trainer.args.learning_rate=0", "tracking=none", "dataset.test_size=0.2",
    )  # fmt: skip
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    loaded = adapters.load_saved(transformers.AutoModelForSequenceClassification, result.run_dir / "model")
    tokens = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    assert torch.allclose(loaded.eval()(**tokens).logits, saved.eval()(**tokens).logits.flip(-1), atol=1e-6)


def test_a_run_starts_from_the_model_of_another(trained: tuple[Path, Any], place: Path) -> None:
    shutil.copytree(trained[0] / "outputs", place / "outputs", symlinks=True)
    source = next(place.glob("outputs/digits/*/model"))
    path = f"model.path={source.relative_to(place)}"
    assert resolve_models(["model.path=run:last", "name=run:last"]) == [path, "name=run:last"]
    assert resolve_models(["+model.path=run:best,run:best:digits"]) == [f"+{path},{source.relative_to(place)}"]
    words = [word for word in SMALL_DIGITS if not word.startswith("model")]
    started = train(*words, "model=local", "model.path=run:last", "trainer.args.learning_rate=0")
    for name, tensor in transformers.AutoModelForImageClassification.from_pretrained(source).state_dict().items():
        assert torch.equal(started.model.state_dict()[name], tensor)
    assert path in (started.run_dir / "overrides.yaml").read_text()


def test_a_run_without_a_model_is_no_start(
    trained: tuple[Path, Any], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0] / "outputs", place / "outputs", symlinks=True)
    words = ["model=local", "dataset=digits", "task=image_classification"]
    assert cli.main([*words, "model.path=run:lost"]) == 2
    assert "matches 'lost'" in capsys.readouterr().err
    shutil.rmtree(next(place.glob("outputs/digits/*/model")))
    assert cli.main([*words, "model.path=run:last"]) == 2
    assert "model.path=run:last: the model of vit_digits-digits" in capsys.readouterr().err
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/mine.yaml").write_text("path: run:last\n")
    assert cli.main([*words[1:], "model=mine", "--config-dir", "conf"]) == 2
    assert "a run can only be named in a command that trains" in capsys.readouterr().err
