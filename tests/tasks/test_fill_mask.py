"""Masked language models: which tokens are masked, what follows from a key alone, fillers as of a pipeline."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import trainings
import transformers
from conftest import trained_home
from faults import fault_at

from hfexp import compose, evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.data.sampling import uniforms
from hfexp.experiment.fit import build_splits
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.fill_mask import FillMask
from hfexp.tasks.masking import STARTS, EncodeText, Masking
from hfexp.tasks.text import byte_tokenizer

SMALL = (
    "task=fill_mask", "model=tiny_bert_subwords", "trainer=scratch", "tracking.pictures=false", "dataset=table",
    "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "model.config.hidden_size=16",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16", "model.config.vocab_size=300",
    "model.config.max_position_embeddings=24", "trainer.args.num_train_epochs=2",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.learning_rate=0.01",
)  # fmt: skip
KINDS = ("text", "block", "words")
OPTIONS = {"text": (), "block": ("task.block_size=16",), "words": ("task.block_size=16", "task.whole_words=true")}


def write_rows(count: int = 60) -> None:
    """A table of texts of many lengths, some longer than the model takes."""
    lines = [
        {"text": f"Number {n} is followed by number {n + 1}. " * (1 + n % 3), "label": "ab"[n % 2]}
        for n in range(count)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def rows(place: Path) -> Path:
    write_rows()
    return place


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A word is one token, or several."""
    words = ("ada", "love", "##lace", "##ly", "went", "to", "new", "york")
    vocabulary = {name: number for number, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=64)


def splits_of(*words: str) -> dict[str, Any]:
    config = compose(*SMALL, *words)
    return build_splits(config, load_inputs(config))


# Which tokens are masked


def masked(tokenizer: Any, text: str, count: int, probability: float = 0.15, whole: bool = False) -> Any:
    """A text's tokens, and so many rows of what is made of it: inputs and labels, (count, T) each."""
    row = EncodeText(tokenizer)({"text": text})
    mask, starts = Masking(tokenizer, probability), row[STARTS] if whole else None
    made = [
        mask(row["input_ids"], starts, lambda number, key=key: uniforms(1, [key], number)[0]) for key in range(count)
    ]
    return np.array(row["input_ids"]), *(np.array([one[name] for one in made]) for name in ("input_ids", "labels"))


def test_of_the_tokens_15_percent_are_chosen_and_of_these_80_percent_masked_and_10_replaced() -> None:
    tokenizer = byte_tokenizer()
    tokens, inputs, labels = masked(tokenizer, "abcdefghij" * 10 + "klm", 2000)
    chosen = labels != IGNORED
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.003)
    assert set(chosen.sum(1)) == {15, 16}
    assert np.ptp(chosen[:, 1:-1].mean(0)) < 0.08  # every place alike
    assert (np.where(chosen, labels, tokens) == tokens).all()
    assert (inputs[~chosen] == np.broadcast_to(tokens, inputs.shape)[~chosen]).all()
    new, old = inputs[chosen], labels[chosen]
    is_mask = new == tokenizer.mask_token_id
    assert is_mask.mean() == pytest.approx(0.8, abs=0.01)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.01)
    random = new[~is_mask & (new != old)]
    assert random.min() == 5  # none of the special tokens
    assert len(set(random)) > 250


def test_short_texts_have_the_same_share_and_every_row_has_a_mask() -> None:
    _, _, labels = masked(byte_tokenizer(), "abcdefghij", 2000, 0.25)
    assert (labels != IGNORED).sum(1).mean() == pytest.approx(2.5, abs=0.05)
    _, _, labels = masked(byte_tokenizer(), "ab", 100, 0.01)
    assert ((labels != IGNORED).sum(1) == 1).all()


@pytest.mark.parametrize("whole", [False, True])
def test_special_tokens_are_never_masked(tokenizer: Any, whole: bool) -> None:
    tokens, inputs, labels = masked(tokenizer, "ada [MASK] [SEP] xyz to", 100, 0.9, whole)
    special = np.isin(tokens, tokenizer.all_special_ids)
    assert special.tolist() == [True, False, True, True, True, False, True]
    assert (labels[:, special] == IGNORED).all()
    assert (inputs[:, special] == tokens[special]).all()
    tokens, inputs, labels = masked(tokenizer, "xyz", 3, whole=whole)
    assert (labels == IGNORED).all()
    assert (inputs == tokens).all()


def test_the_tokens_of_a_word_are_masked_together(tokenizer: Any) -> None:
    text = "ada lovelace went to new yorklylace"
    assert EncodeText(tokenizer)({"text": text})[STARTS] == [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1]
    _, _, labels = masked(tokenizer, text, 500, 0.4, whole=True)
    chosen = labels != IGNORED
    assert (chosen[:, 2] == chosen[:, 3]).all()
    assert (chosen[:, 7] == chosen[:, 8]).all()
    assert (chosen[:, 7] == chosen[:, 9]).all()
    assert chosen[:, 1:-1].any(0).all()
    assert (chosen.sum(1) <= 4).all()
    _, _, labels = masked(tokenizer, text, 500, 0.4)
    assert ((labels[:, 2] != IGNORED) != (labels[:, 3] != IGNORED)).any()


def test_a_long_text_keeps_the_special_token_at_its_end(rows: Path) -> None:
    row = {"input_ids": [2, *range(5, 25), 3], STARTS: [1] * 22}
    cut = Masking(byte_tokenizer(), 0.15).cut(row, 10)
    assert cut["input_ids"] == [2, *range(5, 13), 3]
    assert len(cut[STARTS]) == 10
    assert max(len(row["input_ids"]) for row in splits_of()["train"]) == 24


# What follows from a key alone


@pytest.mark.parametrize("kind", KINDS)
def test_masks_follow_from_seed_epoch_and_row_and_in_an_evaluation_from_the_row(rows: Path, kind: str) -> None:
    first, again, other = splits_of(*OPTIONS[kind]), splits_of(*OPTIONS[kind]), splits_of(*OPTIONS[kind], "seed=7")
    count = len(first["train"])
    epochs = [[first["train"][index + epoch * count] for index in range(count)] for epoch in (0, 1)]
    assert epochs[0] == list(again["train"])
    assert sum(one["input_ids"] != two["input_ids"] for one, two in zip(*epochs, strict=True)) > count * 0.8
    assert [one["input_ids"] for one in other["train"]] != [one["input_ids"] for one in epochs[0]]
    for split in ("validation", "test"):
        size = len(first[split])
        assert list(first[split]) == list(other[split]) == [first[split][index + size] for index in range(size)]
        assert all(any(label != IGNORED for label in row["labels"]) for row in first[split])


@pytest.mark.parametrize("kind", KINDS)
def test_cached_rows_are_those_that_are_made_when_they_are_read(rows: Path, kind: str) -> None:
    kept, made = (
        splits_of(*OPTIONS[kind], f"transform.cache.enabled={on}", "dataset.split_seed=1") for on in ("true", "false")
    )
    assert kept["train"].prepared is not None
    for split in kept:
        assert list(kept[split]) == list(made[split])


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_workers_gives_the_same_masks(rows: Path, kind: str) -> None:
    split = splits_of(*OPTIONS[kind])["train"]
    keys = [3, len(split) + 1, 7 * len(split), 0, 5]

    def read(workers: int) -> list[Any]:
        loader = torch.utils.data.DataLoader(
            split, batch_size=2, sampler=keys, num_workers=workers, collate_fn=lambda batch: batch
        )
        return [row for batch in loader for row in batch]

    assert read(0) == read(2) == [split[key] for key in keys]


def test_a_stream_is_masked_anew_in_each_epoch_and_alike_in_each_evaluation(rows: Path) -> None:
    splits = splits_of(
        "dataset.streaming=true", "trainer.args.max_steps=2", "trainer.args.eval_strategy=steps",
        "trainer.args.save_strategy=steps", "trainer.args.logging_strategy=steps", "dataset.test_size=10",
        "dataset.validation_size=10",
    )  # fmt: skip
    train_rows = [(row, None) for row in splits["train"].first]
    first, second, again = (splits["train"].inputs(train_rows, epoch) for epoch in (0, 1, 0))
    assert first == again != second
    assert list(splits["validation"]) == list(splits["validation"])
    masks = [[label != IGNORED for label in row["labels"][:10]] for row in splits["validation"]]
    assert len({tuple(mask) for mask in masks}) > 1  # not the same in all rows


# From rows to answers


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A directory in which a model was trained, and the result; tests leave it as it is."""
    with trained_home(tmp_path_factory, "filler", write_rows, *SMALL) as made:
        yield made


def test_a_model_is_trained_and_evaluated_on_the_same_masks(filler: tuple[Path, Any]) -> None:
    home, result = filler
    assert result.task_metric == "perplexity"
    assert result.metrics["test_perplexity"] == pytest.approx(math.exp(result.metrics["test_loss"]), rel=1e-4)
    assert result.metrics["final_eval_perplexity"] == result.metrics["best_eval_perplexity"] < 250
    scores = evaluate(run=result.run_dir, resamples=20, record=False)
    found = dict(zip(scores["metric"], scores["value"], strict=True))
    for name in ("perplexity", "token_accuracy"):
        assert found[name] == pytest.approx(result.metrics[f"test_{name}"], rel=1e-6)
    saved = transformers.AutoModelForMaskedLM.from_pretrained(result.run_dir / "model").state_dict()
    assert saved.keys() == result.model.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in result.model.state_dict().items())
    assert "[MASK]" in next(home.glob("outputs/**/samples.txt")).read_text()


def test_fillers_are_those_of_a_pipeline_and_of_a_served_model(filler: tuple[Path, Any]) -> None:
    import mlflow.pyfunc

    home, result = filler
    texts = ["Number 3 is [MASK] by number 4.", "[MASK] 5", "Number 7 is followed by number [MASK]. Number 8"]
    ours: Any = predict(run=result.run_dir, inputs=texts)
    pipeline: Any = transformers.pipeline("fill-mask", str(result.run_dir / "model"))
    for text, answer, fillers in zip(texts, ours["text"], ours["fillers"], strict=True):
        theirs = pipeline(text)
        assert [one["token"] for one in fillers] == [one["token_str"] for one in theirs]
        assert [one["score"] for one in fillers] == pytest.approx([one["score"] for one in theirs], abs=1e-6)
        assert answer == theirs[0]["sequence"]
    loaded = mlflow.pyfunc.load_model(str(next(home.glob("outputs/**/MLmodel")).parent))
    served = loaded.predict(pandas.DataFrame({"text": texts}))
    one = loaded.predict(pandas.DataFrame({"text": texts}), params={"top_k": 1})
    for fillers, others, best in zip(ours["fillers"], served["fillers"], one["fillers"], strict=True):
        assert [item["token"] for item in fillers] == [item["token"] for item in others]
        assert [item["token"] for item in best] == [fillers[0]["token"]]


def test_each_mask_of_a_text_has_fillers_of_its_own(filler: tuple[Path, Any]) -> None:
    result = filler[1]
    (fillers,) = predict(
        run=result.run_dir, inputs="Number [MASK] is [MASK] by", generation={"top_k": 2}
    )["fillers"]  # fmt: skip
    assert [item["mask"] for item in fillers] == [1, 1, 2, 2]
    pipeline: Any = transformers.pipeline("fill-mask", str(result.run_dir / "model"), top_k=2)
    theirs = [item["token_str"] for items in pipeline("Number [MASK] is [MASK] by") for item in items]
    assert [item["token"] for item in fillers] == theirs


def test_a_text_that_no_model_can_be_asked_about_is_named(
    filler: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", f"run={filler[1].run_dir}", "text=It is [MASK]", "record=false"]
    assert cli.main([*words, "text=no mask", f"text={'a ' * 30}[MASK]"]) == 1
    said = capsys.readouterr()
    assert "1 " in said.out
    assert "the text has no [MASK]: put one in place of each word to fill in" in said.err
    assert "and a [MASK] behind the 24 that the model takes: shorten what is before it" in said.err
    assert cli.main([*words, f"text=[MASK] {'a ' * 30}"]) == 0
    assert cli.main([*words, "generation.temperature=2"]) == 2
    assert "generation.temperature is unknown" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"expected a text, got \['a'\]"):
        FillMask().inference_row(["a"])


def test_the_model_is_a_start_for_other_tasks(filler: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    home, result = filler
    monkeypatch.chdir(home)
    start = [word for word in SMALL if not word.startswith(("task", "model"))]
    start += ["model=local", "tracking=none", "trainer.args.max_steps=1", "trainer.args.learning_rate=0"]
    other = train(*start, "task=text_classification", f"model.path=run:{result.run_dir.name}")
    ours, theirs = other.model.state_dict(), result.model.state_dict()
    encoder = [name for name in theirs if name.startswith("bert.")]
    assert len(encoder) > 15
    assert all(torch.equal(ours[name], theirs[name]) for name in encoder)


def test_an_adapter_needs_a_model_with_a_head_for_masks(
    filler: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    home, result = filler
    monkeypatch.chdir(home)
    start = [word for word in SMALL if not word.startswith("model")]
    start += ["model=local", "tracking=none", "trainer.args.num_train_epochs=1", "model.peft.r=2"]
    adapted = train(*start, f"model.path={result.run_dir}/model")
    (ours,) = predict(run=adapted.run_dir, inputs="Number 3 is [MASK] by")["fillers"]
    assert len(ours) == 5
    result.model.bert.save_pretrained(home / "encoder")
    transformers.AutoTokenizer.from_pretrained(result.run_dir / "model").save_pretrained(home / "encoder")
    with pytest.raises(ConfigError, match=r"model\.peft: cls\.predictions\.decoder would be trained whole"):
        train(*start, "model.path=encoder")


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_a_checkpoint_is_asked_as_by_a_pipeline_and_its_task_is_inferred(
    architecture: str, tokenizer: Any, place: Path
) -> None:
    tokenizer.save_pretrained(place / "checkpoint")
    config = transformers.AutoConfig.for_model(
        architecture, **{**trainings.CONFIGS[architecture], "vocab_size": len(tokenizer), "pad_token_id": 0}
    )
    torch.manual_seed(0)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(place / "checkpoint")
    text = "Ada Lovelace [MASK] to York"
    (fillers,) = predict("model=local", "model.path=checkpoint", inputs=text)["fillers"]
    theirs: Any = transformers.pipeline("fill-mask", "checkpoint")(text)
    assert [one["token"] for one in fillers] == [one["token_str"] for one in theirs]
    assert [one["score"] for one in fillers] == pytest.approx([one["score"] for one in theirs], abs=1e-6)


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_uninterrupted_one(rows: Path) -> None:
    words = [*SMALL, *fault_at(7), "tracking=none", "task.block_size=16", "task.whole_words=true"]
    whole = train(*words, "output_dir=whole")
    Path("fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        train(*words)
    resumed = train(*words, "trainer.args.dataloader_num_workers=2")
    assert resumed.metrics["test_loss"] == whole.metrics["test_loss"]
    first, second = (result.model.state_dict() for result in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


# Wrong inputs


WRONG = [
    ("task.mlm_probability=1.5", "task.mlm_probability=1.5 must be between 0 and 1"),
    ("task.block_size=1", "task.block_size=1 must be at least 2"),
    ("task.block_size=100", "task.block_size=100 is more than the 24 tokens that the model takes"),
    ("task.top_k=0", "top_k=0: expected a whole number from 1 on"),
    ("transform.prepare.0.max_length=99", "max_length=99 must be from 1 to 24"),
    ("model=tiny_gpt", "model=tiny_gpt generates text, but task=fill_mask reads text"),
]


@pytest.mark.parametrize(("word", "message"), WRONG)
def test_a_wrong_setting_is_one_message(
    rows: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one for one in SMALL if not (word == "model=tiny_gpt" and one.startswith("model"))]
    assert cli.main([*given, word]) == 2
    assert message in capsys.readouterr().err
    assert not (rows / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("  ", "column 'text' holds an empty text"), (5, "column 'text' holds 5, expected a string")]
)
def test_a_text_with_nothing_to_mask_is_refused_unless_it_is_cut_into_blocks(text: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FillMask().decode({"text": text})
    assert FillMask(block_size=8).decode({"text": ""}) == {"text": ""}


def test_an_empty_text_is_named_with_its_row(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write('\n{"text": "  ", "label": "a"}')
    assert cli.main([*SMALL, "tracking=none"]) == 1
    assert "row 60: column 'text' holds an empty text, in which there is nothing to mask" in capsys.readouterr().err


def test_a_tokenizer_that_can_not_mask_is_refused() -> None:
    made = byte_tokenizer(generates=True)
    made.mask_token = None
    with pytest.raises(ConfigError, match=r"no mask token; set model\.processor\.mask_token"):
        EncodeText(made)
    with pytest.raises(ConfigError, match=r"task\.whole_words=true: .* is a slow tokenizer"):
        FillMask(whole_words=True).vary({"input_ids": [5, 6]}, byte_tokenizer(), lambda count: np.zeros(count))
