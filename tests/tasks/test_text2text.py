"""Text to text: metrics as of their packages, evaluation by generation, answers as `generate` by hand gives them."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import sacrebleu
import torch
import transformers
from conftest import trained_home

from hfexp import compose, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.experiment.fit import build_splits
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.metrics import Bleu, Chrf, ExactMatch, MetricSet, Rouge
from hfexp.tasks.seq2seq import EncodePair, language_tokens, set_languages, to_characters, to_texts, write_texts
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text2text import Text2Text

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SMALL = (
    "task=translation", "model=tiny_t5_subwords", "model.config.vocab_size=300", "trainer=scratch",
    "tracking.pictures=false", "dataset=table",
    "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "model.config.d_model=16",
    "model.config.d_kv=8", "model.config.d_ff=16", "model.config.num_layers=1", "model.config.num_decoder_layers=1",
    "model.config.num_heads=2", "task.generation.max_new_tokens=12", "trainer.args.num_train_epochs=2",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.learning_rate=0.01",
    "trainer.args.per_device_eval_batch_size=7",
)  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {"t5": T5, "bart": BART, "marian": BART, "mbart": BART}


def write_rows(count: int = 60) -> None:
    """A table of short texts of many lengths; the target says them backwards."""
    texts = [WORDS[: 1 + n % 5] + [WORDS[n % 10]] for n in range(count)]
    rows = [{"text": " ".join(text), "target": " ".join(text[::-1]), "size": len(text)} for text in texts]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def rows(place: Path) -> Path:
    write_rows()
    return place


# Metrics

WRITTEN = np.array(["the cat sat on the mat", "a dog\nbarks loudly", "", "nothing in common"], dtype=object)
TRUE = np.array(["the cat is on the mat", "a dog\nbarked loudly", "some words", "quite another thing"], dtype=object)


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_the_mean_of_the_packages_scores(stemmer: bool) -> None:
    metrics = MetricSet({"rouge": Rouge(use_stemmer=stemmer)})
    # Not at the top: absl, which it imports, would close the file to which pytest directs errors while it collects.
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(names, use_stemmer=stemmer)
    scores = [scorer.score(truth, written) for truth, written in zip(TRUE, WRITTEN, strict=True)]
    arrays = {"predictions": WRITTEN, "references": TRUE}
    found, of_rows = metrics.scalars(arrays), metrics.of_rows(arrays)
    for name in names:
        expected = [row[name].fmeasure for row in scores]
        assert of_rows[name].tolist() == expected
        assert found[name] == pytest.approx(np.mean(expected))
    assert found["rouge1"] == pytest.approx((10 / 12 + (1 if stemmer else 6 / 8)) / 4)  # 5 of 6, and 3 or 4 of 4 words


@pytest.mark.parametrize(("ours", "theirs"), [(Bleu, sacrebleu.BLEU), (Chrf, sacrebleu.CHRF)])
def test_bleu_and_chrf_are_sacrebleus_also_when_resampled(ours: Any, theirs: Any) -> None:
    metrics, arrays = MetricSet({"it": ours()}), {"predictions": WRITTEN, "references": TRUE}
    name = ours.name_of_value
    whole = theirs().corpus_score(WRITTEN.tolist(), [TRUE.tolist()]).score
    assert metrics.scalars(arrays) == {name: pytest.approx(whole)}
    counts = np.array([[1.0, 1, 1, 1], [0, 2, 0, 2], [3, 0, 1, 0]])
    for drawn, value in zip(counts.astype(int), metrics.resample(arrays, counts)[name], strict=True):
        again = [np.repeat(texts, drawn).tolist() for texts in (WRITTEN, TRUE)]
        assert value == pytest.approx(theirs().corpus_score(again[0], [again[1]]).score)
    assert f"version:{sacrebleu.__version__}" in metrics.signatures()["it"]


def test_texts_are_right_or_wrong_as_a_whole_and_are_no_classes() -> None:
    metrics = MetricSet({"exact": ExactMatch()})
    assert metrics.scalars({"predictions": TRUE, "references": TRUE[::-1]}) == {"exact_match": 0.0}
    assert metrics.scalars({"predictions": TRUE, "references": TRUE}) == {"exact_match": 1.0}
    with pytest.raises(ConfigError, match="Rouge is for texts, not for one class per row"):
        Rouge().compute(predictions=[1], references=[1])
    with pytest.raises(ConfigError, match="sacrebleu does not take {'tokenise': 'zh'}"):
        Bleu(tokenise="zh")


def test_a_missing_package_is_named(rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sacrebleu" else found(name, *a))
    assert cli.main([*SMALL]) == 2
    assert "need the package sacrebleu: pip install 'hfexp[text2text]'" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_texts_come_back_from_their_characters() -> None:
    texts = ["", "naïve", "日本語 \U0001f600", "a\ud800"]
    characters = to_characters(texts)
    assert characters.shape == (4, 5)
    assert to_texts(np.pad(characters.numpy(), ((0, 0), (0, 3)), constant_values=-100)).tolist() == texts


# Tokens and labels, by family


def tokenizer_of(family: str) -> Any:
    if family != "mbart":
        return byte_tokenizer(model_max_length=64, ends=True)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [("en_XX", 0.0), ("de_DE", 0.0), ("<mask>", 0.0)]
    return transformers.MBartTokenizer(vocab=pieces, model_max_length=64)


def model_of(family: str, tokenizer: Any) -> Any:
    start = {} if family == "mbart" else {"decoder_start_token_id": tokenizer.pad_token_id}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, forced_eos_token_id=None, **start, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_without_labels_are_those_with_labels(family: str) -> None:
    tokenizer = tokenizer_of(family)
    languages = {"source_lang": "en_XX", "target_lang": "de_DE"} if family == "mbart" else {}
    task, model = Text2Text(**languages, generation={"max_new_tokens": 8}), model_of(family, tokenizer)
    task.fit_processor(tokenizer)
    encode, collate = EncodePair(tokenizer), task.collator(tokenizer)
    batch = collate([encode({"text": "one two", "target": text}) for text in ("two one", "one two three")])
    assert (batch["labels"] == -100).sum() == (1 if family == "mbart" else 6)  # tokens are words, or bytes
    with torch.no_grad():
        outputs = model(**batch)
        again = model(**task.unlabelled(model, batch))
    assert torch.equal(outputs.logits, again.logits)
    scores = task.preprocess_logits(again.logits, batch["labels"])
    assert scores[:, 0].sum() / scores[:, 1].sum() == pytest.approx(outputs.loss.item(), rel=1e-5)
    written, truth = (to_texts(part.numpy()) for part in task.generate(model, batch, tokenizer))
    assert truth.tolist() == ["two one", "one two three"]
    assert len(written) == 2


def test_texts_and_targets_of_mbart_have_the_tokens_of_their_languages() -> None:
    tokenizer = tokenizer_of("mbart")
    set_languages(tokenizer, "en_XX", "de_DE")
    english, german, end = tokenizer.convert_tokens_to_ids(["en_XX", "de_DE", "</s>"])
    row = EncodePair(tokenizer)({"text": "one", "target": "two"})
    assert row["input_ids"][-2:] == [end, english]
    assert row["labels"][-2:] == [end, german]
    assert language_tokens(tokenizer) == {"decoder_start_token_id": german}
    model = model_of("mbart", tokenizer)
    shifted = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([row["labels"]]))
    assert shifted[0, 0] == german  # what generation begins with, too
    with pytest.raises(ConfigError, match=r"task\.target_lang=de_XX is unknown to MBartTokenizer\. Did you mean"):
        set_languages(tokenizer, "en_XX", "de_XX")
    with pytest.raises(ConfigError, match=r"task\.source_lang is missing: MBartTokenizer reads and writes several"):
        set_languages(tokenizer, None, "de_DE")
    with pytest.raises(ConfigError, match=r"task\.source_lang=en_XX: .* has no languages"):
        set_languages(tokenizer_of("t5"), "en_XX", None)


def test_a_model_writes_no_more_than_its_positions_allow() -> None:
    tokenizer = tokenizer_of("bart")
    model = model_of("bart", tokenizer)
    batch = {name: torch.tensor(value)[None] for name, value in tokenizer("one").items()}
    with torch.no_grad():
        assert write_texts(model, batch, tokenizer, {"max_new_tokens": 500, "min_new_tokens": 60})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a" * 9, "target": "b"}, "column 'text' has 10 tokens, more than max_length=8: shorten the text"),
        ({"text": "a", "target": "b" * 6}, "column 'target' has 7 tokens, more than max_target_length=6"),
    ],
)
def test_a_row_over_the_limit_is_refused_or_cut(row: dict[str, str], message: str) -> None:
    settings = {"processor": byte_tokenizer(64, ends=True), "max_length": 8, "max_target_length": 6}
    with pytest.raises(DataError, match=message):
        EncodePair(**settings)(row)
    cut = EncodePair(**settings, truncation=True)(row)
    assert len(cut["input_ids"]) <= 8
    assert len(cut["labels"]) <= 6
    assert cut["input_ids"][-1] == cut["labels"][-1] == 3  # the end of the text
    with pytest.raises(ConfigError, match="max_length=65 must be from 1 to 64"):
        EncodePair(byte_tokenizer(64, ends=True), max_target_length=65)


# Training and evaluation


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A directory in which a model was trained, and the result; tests leave it as it is."""
    with trained_home(
        tmp_path_factory, "writer", write_rows, *SMALL, "metrics.exact._target_=hfexp.tasks.metrics.ExactMatch"
    ) as made:
        yield made


def by_hand(result: Any, texts: list[str], **options: Any) -> list[str]:
    """What the saved model writes, with nothing of hfexp."""
    place = result.run_dir / "model"
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    tokens = model.generate(**inputs, **{"max_new_tokens": 12, "num_beams": 1, "do_sample": False, **options})
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def test_the_best_model_is_chosen_by_what_it_writes(writer: tuple[Path, Any]) -> None:
    home, result = writer
    found = result.metrics
    assert result.task_metric == "chrf"
    assert found["final_eval_chrf"] == found["best_eval_chrf"] == result.best_metric > 0
    assert found["test_perplexity"] == pytest.approx(math.exp(found["test_loss"]), rel=1e-4)
    config = compose(*SMALL)
    rows = load_inputs(config).dataset["test"]
    written = by_hand(result, rows["text"][:])
    expected = sacrebleu.CHRF().corpus_score(written, [rows["target"][:]]).score
    assert found["test_chrf"] == pytest.approx(expected, abs=1e-6)
    assert "test_bleu" in found
    report = next(home.glob("outputs/**/report.md")).read_text()
    assert "## Written texts" in report
    assert rows["target"][0] in report


def test_options_of_generation_come_with_a_request(writer: tuple[Path, Any]) -> None:
    import mlflow.pyfunc

    home, result = writer
    texts = ["one two three", "ten", "four five"]
    beams = predict(run=result.run_dir, inputs=texts, generation={"num_beams": 3})["text"].tolist()
    assert beams == by_hand(result, texts, num_beams=3)
    loaded = mlflow.pyfunc.load_model(str(next(home.glob("outputs/**/MLmodel")).parent))
    short = loaded.predict(pandas.DataFrame({"text": texts}), params={"max_new_tokens": 3})["text"].tolist()
    assert short == by_hand(result, texts, max_new_tokens=3)


def test_rows_of_a_split_are_answered_beside_their_targets(writer: tuple[Path, Any]) -> None:
    answers = predict(run=writer[1].run_dir, split="test")
    assert list(answers["text"]) == by_hand(writer[1], list(answers["input.text"]))
    lines = Path(writer[0], "rows.jsonl").read_text().splitlines()
    assert set(answers["true"]) <= {json.loads(line)["target"] for line in lines}


def test_signatures_of_the_metrics_are_recorded(writer: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    home, result = writer
    monkeypatch.chdir(home)
    tags = MlflowClient(result.tracking_uri).get_run(result.run_id).data.tags
    assert tags["hfexp.sacrebleu_bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_labels_are_smoothed_as_transformers_does(rows: Path) -> None:
    words = ["task=summarization", *SMALL[1:], "tracking=none", "trainer.args.label_smoothing_factor=0.1"]
    words += ["trainer.args.max_steps=1"]
    result = train(*words, "trainer.args.learning_rate=0")
    config = compose(*words)
    inputs = load_inputs(config)
    splits = build_splits(config, inputs)
    batch = inputs.task.collator(inputs.processor)(list(splits["test"]))
    model = result.model.eval()
    with torch.no_grad():
        logits = model(**batch).logits
    kept = batch["labels"] != -100
    logs = logits.log_softmax(-1)[kept]
    truth = -logs.gather(-1, batch["labels"][kept][:, None])
    expected = 0.9 * truth.mean() + 0.1 * -logs.mean()
    assert result.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert result.task_metric == "rougeL"
    assert {"test_rouge1", "test_rouge2", "test_rougeL", "test_rougeLsum"} <= result.metrics.keys()


def test_evaluations_may_leave_out_the_writing(rows: Path) -> None:
    words = [*SMALL, "tracking=none", "trainer.args.max_steps=1", "task.predict_with_generate=false"]
    result = train(*words, "metrics=language", "task.metric=perplexity")
    assert result.metrics["test_perplexity"] == pytest.approx(math.exp(result.metrics["test_loss"]), rel=1e-4)
    assert "test_chrf" not in result.metrics
    with pytest.raises(ConfigError, match=r"metrics\.bleu needs predictions, references; the task provides"):
        train(*words)


def test_sampled_texts_are_the_same_in_each_evaluation_and_training_does_not_notice(rows: Path) -> None:
    words = [*SMALL, "tracking=none", "trainer.args.num_train_epochs=1", "model.config.dropout_rate=0.1"]
    plain = train(*words, "output_dir=plain")
    often = ["trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.save_strategy=no"]
    often += ["trainer.args.load_best_model_at_end=false", "task.generation.do_sample=true"]
    first, second = (train(*words, *often, f"output_dir={name}") for name in "ab")
    assert first.metrics["test_chrf"] == second.metrics["test_chrf"]
    ours, theirs = plain.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_a_checkpoint_of_each_family_is_trained_saved_and_asked(family: str, rows: Path) -> None:
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained("start")
    model_of(family, tokenizer).save_pretrained("start")
    words = [word for word in SMALL if not word.startswith("model")]
    result = train(*words, "tracking=none", "model=local", "model.path=start", "trainer.args.max_steps=4")
    saved = transformers.AutoModelForSeq2SeqLM.from_pretrained(result.run_dir / "model").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in result.model.state_dict().items())
    texts = ["one two", "three"]
    assert predict(run=result.run_dir, inputs=texts)["text"].tolist() == by_hand(result, texts)
    shutil.copytree(result.run_dir / "model", "plain")
    Path("plain/hfexp.json").unlink()
    asked = predict("model=local", "model.path=plain", inputs=texts, generation={"max_new_tokens": 12})
    assert asked["text"].tolist() == by_hand(result, texts)


# Wrong inputs

WRONG = [
    ("task.generation.max_new_token=3", "unknown key 'generation.max_new_token'. Did you mean 'max_new_tokens'?"),
    ("task.generation.num_return_sequences=2", "do not support `num_return_sequences` different than 1"),
    ("task.metric=blue", "trainer.args.metric_for_best_model=blue is not computed. Did you mean 'bleu'?"),
    ("task.source_lang=en", "task.source_lang=en: TokenizersBackend has no languages"),
    ("transform.prepare.0.max_length=999", "max_length=999 must be from 1 to 256"),
    ("model=tiny_bert", "model=tiny_bert reads text, but task=translation rewrites text"),
    ("trainer.loss._target_=torch.nn.CrossEntropyLoss", "this task's loss is over tokens"),
]


@pytest.mark.parametrize(("word", "message"), WRONG)
def test_a_wrong_setting_is_one_message(rows: Path, word: str, message: str, capsys: Any) -> None:
    given = [one for one in SMALL if not (word.startswith("model=") and one.startswith("model"))]
    assert cli.main([*given, word]) == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "row", [{"text": "a", "target": "  "}, {"text": "  ", "target": "a"}, {"text": "? " * 300, "target": "a"}]
)
def test_a_wrong_row_can_be_skipped_and_a_long_one_cut(rows: Path, row: dict[str, str]) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({**row, "size": 1}))
    assert cli.main([*SMALL, "tracking=none", "dataset.on_bad_sample=skip", "trainer.args.max_steps=1",
                     "transform.prepare.0.truncation=true"]) == 0  # fmt: skip


def test_an_encoder_is_refused(rows: Path, capsys: Any) -> None:
    words = [word for word in SMALL if not word.startswith("model")]
    transformers.BertConfig(vocab_size=261, hidden_size=16, num_hidden_layers=1).save_pretrained("bert")
    byte_tokenizer(ends=True).save_pretrained("bert")
    assert cli.main([*words, "model=local", "model.path=bert"]) == 2
    assert "has no Seq2SeqLM model of the type bert, which Text2Text needs" in capsys.readouterr().err


def test_usual_names_of_columns_are_found_if_they_are_clear(place: Path, capsys: Any) -> None:
    words = ["model=tiny_t5", *(word for word in SMALL if "data_files" not in word and "vocab" not in word)]
    words = [word for word in words if word != "model=tiny_t5_subwords"]
    made = [{"article": " ".join(WORDS[: 1 + n % 5]), "summary": WORDS[n % 10]} for n in range(30)]
    table = pandas.DataFrame(made)
    table.to_csv("rows.csv", index=False)
    words += ["dataset.source.data_files=rows.csv", "tracking=none", "trainer.args.max_steps=1"]
    assert cli.main(words) == 0
    assert "column 'article' is read as 'text'" in capsys.readouterr().err
    table.assign(document="x").to_csv("rows.csv", index=False)
    assert cli.main(words) == 2
    message = "column 'article' and column 'document' could each be 'text': set dataset.columns.text=NAME"
    assert message in capsys.readouterr().err


def test_rouge_leaves_a_replaced_standard_error_open() -> None:
    code = (
        "import io, logging.config, sys\n"
        "sys.stderr = file = io.StringIO()\n"
        "from hfexp.tasks.metrics import Rouge\n"
        "Rouge()\n"
        "sys.stderr = sys.__stderr__\n"
        "logging.config.dictConfig({'version': 1})\n"  # as Hydra does
        "assert not file.closed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_table_is_asked_by_the_usual_names_of_its_columns_and_by_parts_of_one(writer: tuple[Path, Any]) -> None:
    home, result = writer
    expected = predict(run=result.run_dir, inputs=["ab", "cd"])["text"].tolist()
    usual, nested = ([{"article": text} for text in ("ab", "cd")], [{"pair": {"de": text}} for text in ("ab", "cd")])
    for name, rows in (("usual", usual), ("nested", nested)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        predict(run=result.run_dir, inputs=home / "usual.jsonl"),
        predict(run=result.run_dir, inputs=home / "nested.jsonl", columns={"text": "pair.de"}),
    ]
    assert [table["text"].tolist() for table in found] == [expected, expected]
