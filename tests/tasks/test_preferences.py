"""Reward models and preference training: rows, losses, scores and weights as of TRL's trainers, and the laws."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trainings
import transformers
from conftest import SMALL_TABLES
from test_generation import TEMPLATE

from hfexp import evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.metrics import Preferences
from hfexp.tasks.preference import Preference
from hfexp.tasks.preferences import LOSSES, EncodeAnswers, check_answers
from hfexp.tasks.reward import Reward
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_groups import split
from hfexp.training.reference import keep_reference

ALL_ROWS = "trainer.args.per_device_train_batch_size=24"
CHAT = "chat"
FORMS = ("prompt", "whole", CHAT)
"""Forms of rows: a prompt and texts, texts that begin alike, and conversations."""


def rows(form: str, numbers: range) -> list[dict[str, Any]]:
    made = []
    for n in numbers:
        prompt, chosen, rejected = f"{n} and 1 is" + " more" * (n % 3), f" {n + 1}" + "!" * (n % 4), " not known"
        if form == "prompt":
            made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        elif form == "whole":
            made.append({"chosen": prompt + chosen, "rejected": prompt + rejected})
        else:
            said = [{"role": "user", "content": prompt}]
            answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
            made.append({"prompt": said, "chosen": answers[0], "rejected": answers[1]})
    return made


def write_place(form: str, task: str) -> None:
    """A llama without dropout as a checkpoint, and tables of three splits."""
    sizes = {"vocab_size": 261, "max_position_embeddings": 64, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model("llama", **{**trainings.CONFIGS["llama"], **sizes, "num_labels": 1})
    kind = "AutoModelForSequenceClassification" if task == "reward" else "AutoModelForCausalLM"
    torch.manual_seed(0)
    getattr(transformers, kind).from_config(config).save_pretrained("start")
    tokenizer = byte_tokenizer(model_max_length=64, generates=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("start")
    for name, numbers in (("train", range(24)), ("validation", range(24, 37)), ("test", range(40, 53))):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(form, numbers))))


def history(result: Any) -> list[dict[str, float]]:
    last = max(result.run_dir.glob("checkpoints/*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(last.read_text())["log_history"]


def losses(logged: list[dict[str, float]]) -> list[float]:
    return [entry["loss"] for entry in logged if "loss" in entry]


def trl_trainer(task: str, form: str, trains: bool = True, **options: Any) -> Any:
    """TRL's trainer, by default trained; all rows are one batch, so that their order makes no difference."""
    trl = pytest.importorskip("trl")
    import datasets

    kinds = {
        "reward": (trl.RewardTrainer, trl.RewardConfig, transformers.AutoModelForSequenceClassification),
        "preference": (trl.DPOTrainer, trl.DPOConfig, transformers.AutoModelForCausalLM),
    }
    trainer_class, config_class, model_class = kinds[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            model=model_class.from_pretrained("start"),
            args=config_class(
                "theirs", num_train_epochs=3, per_device_train_batch_size=24, per_device_eval_batch_size=5,
                learning_rate=0.01, warmup_steps=0.1, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
                bf16=False, gradient_checkpointing=False, disable_tqdm=True, max_length=64, **options,
            ),
            train_dataset=datasets.Dataset.from_list(rows(form, range(24))),
            eval_dataset=datasets.Dataset.from_list(rows(form, range(24, 37))),
            processing_class=transformers.AutoTokenizer.from_pretrained("start"),
        )  # fmt: skip
        if trains:
            trainer.train()
    return trainer


@pytest.mark.parametrize(("task", "form", "loss"), [
    ("reward", "prompt", None), ("preference", CHAT, "sigmoid"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("reward", CHAT, None), ("preference", "whole", "sigmoid"),
        *(("preference", "prompt", loss) for loss in LOSSES),
    ]),
])  # fmt: skip
def test_a_training_is_that_of_trl(task: str, form: str, loss: str | None, place: Path) -> None:
    write_place(form, task)
    smoothing = 0.1 if loss == "robust" else 0.0
    chosen = (f"task.loss={loss}", "task.beta=0.3", f"task.label_smoothing={smoothing}") if loss else ()
    extra = {"loss_type": loss, "beta": 0.3, "label_smoothing": smoothing} if loss else {}
    ours = train(
        *SMALL_TABLES, f"task={task}", *chosen, ALL_ROWS, "tracking=none", "trainer.args.load_best_model_at_end=false"
    )
    theirs = trl_trainer(task, form, **extra)
    assert losses(history(ours)) == pytest.approx(losses(theirs.state.log_history), rel=1e-4)
    for name, value in theirs.model.state_dict().items():
        assert torch.allclose(value, ours.model.state_dict()[name], atol=2e-4), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = theirs.evaluate()
    # TRL's scores are means over batches, and the last one has fewer rows.
    assert ours.metrics["final_eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-3)
    assert ours.metrics["final_eval_accuracy"] == found["eval_rewards/accuracies" if loss else "eval_accuracy"] == 1


def test_tokens_are_those_of_trl(place: Path) -> None:
    """Each form: what the model reads, and where the answers begin."""
    pytest.importorskip("trl")
    for form in FORMS:
        write_place(form, "preference")
        trainer = trl_trainer("preference", form, trains=False)
        encode = EncodeAnswers(transformers.AutoTokenizer.from_pretrained("start"))
        for row, theirs in zip(rows(form, range(24)), trainer.train_dataset, strict=True):
            ours = encode(check_answers(row))
            assert split(ours) == [theirs["prompt_ids"] + theirs[f"{name}_ids"] for name in ("chosen", "rejected")]
            assert ours["begin"] == len(theirs["prompt_ids"])


# The parts


def test_scores_are_counted_by_row() -> None:
    found: Any = Preferences().compute(chosen=np.array([1.0, 2, 0]), rejected=np.array([0.0, 3, 0]))
    assert found == {"accuracy": pytest.approx(1 / 3), "margin": 0, "chosen_score": 1, "rejected_score": 1}


def test_a_margin_and_centred_rewards_are_in_the_loss() -> None:
    rewards = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    given = {"margin": torch.tensor([0.5, 1.0])}
    plain = -torch.nn.functional.logsigmoid(torch.tensor([0.0, -3.0])).mean()
    assert Reward().loss(rewards, given) == pytest.approx(plain.item())
    centred = plain + 0.1 * (1.5**2 + 2**2) / 2
    assert Reward(0.1).loss(rewards, given) == pytest.approx(centred.item())


@pytest.mark.parametrize(("family", "sizes"), [
    ("llama", {**trainings.CONFIGS["llama"], "attention_dropout": 0.9}),
    ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "attn_pdrop": 0.9}),
    ("opt", {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "ffn_dim": 16, "dropout": 0.9}),
])  # fmt: skip
def test_a_model_and_its_reference_compute_without_dropout(family: str, sizes: dict[str, Any]) -> None:
    """Of both kinds: modules of dropout, and numbers that a module hands to a function."""
    config = transformers.AutoConfig.for_model(family, **{**sizes, "vocab_size": 64})
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(1, 13)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    reference = keep_reference(model, SimpleNamespace(prepare_model=lambda model, evaluation_mode: model))
    assert torch.equal(model(ids).logits, reference(ids).logits)


@pytest.fixture(scope="module", params=["reward", "preference"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """In its directory: a task, and a training; tests leave it as it is."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_place("prompt", request.param)
        yield request.param, train(*SMALL_TABLES, f"task={request.param}")


def test_answers_are_those_of_the_saved_model(trained: tuple[str, Any]) -> None:
    import mlflow.pyfunc
    import pandas

    task, result = trained
    assert result.metrics["final_eval_accuracy"] == result.metrics["best_eval_accuracy"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.run_dir / "model")
    asked = ["3 and 1 is", "4 and 1 is more 5"]
    if task == "reward":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(result.run_dir / "model").eval()
        answers = list(predict(run=result.run_dir, inputs=asked)["score"])
        given = [tokenizer(text + tokenizer.eos_token, return_tensors="pt")["input_ids"] for text in asked]
        assert answers == pytest.approx([model(ids).logits.item() for ids in given], abs=1e-5)
        scores = evaluate(run=result.run_dir, resamples=20, record=False)
        found = dict(zip(scores["metric"], scores["value"], strict=True))
        assert found["margin"] == pytest.approx(result.metrics["test_margin"], abs=1e-5)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(result.run_dir / "model").eval()
        answers = list(predict(run=result.run_dir, inputs=asked, generation={"max_new_tokens": 5})["text"])
        for text, answer in zip(asked, answers, strict=True):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            whole = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
            assert answer == tokenizer.decode(whole, skip_special_tokens=True)
        with pytest.raises(ConfigError, match="compare a model with what it was before the training"):
            evaluate(run=result.run_dir, resamples=20, record=False)
    column = "text" if task == "reward" else "prompt"
    served = mlflow.pyfunc.load_model(str(next(result.run_dir.glob("**/MLmodel")).parent))
    options = {} if task == "reward" else {"max_new_tokens": 5}
    again = served.predict(pandas.DataFrame({column: asked}), params=options).iloc[:, 0]
    assert list(again) == pytest.approx(answers) if task == "reward" else list(again) == answers


@pytest.mark.slow
def test_an_adapter_is_compared_with_its_base(place: Path) -> None:
    """In the first evaluation nothing has been learnt, so that all rewards are 0; then they are not."""
    pytest.importorskip("peft")
    write_place("prompt", "preference")
    words = [*SMALL_TABLES, "task=preference", "tracking=none", "model.peft.r=2", "model.peft.lora_dropout=0.5"]
    still = train(*words, "trainer.args.learning_rate=0", "output_dir=still")
    assert still.metrics["test_margin"] == still.metrics["test_chosen_score"] == 0
    moved = train(*words, "trainer.args.num_train_epochs=4")
    assert moved.metrics["test_accuracy"] > 0.9
    assert len(predict(run=moved.run_dir, inputs="3 and 1 is")["text"]) == 1


# Wrong inputs


@pytest.mark.parametrize(("row", "message"), [
    ({"chosen": "a", "rejected": "a"}, "the chosen and the rejected answer are equal"),
    ({"chosen": "", "rejected": "a"}, "column 'chosen' holds an empty answer"),
    ({"chosen": 3, "rejected": "a"}, "column 'chosen': expected a list of messages, got 3, or a text"),
    ({"prompt": "x", "chosen": [{"role": "user", "content": "a"}], "rejected": "a"}, "some are texts and some are"),
])  # fmt: skip
def test_rows_without_a_preference_are_refused(row: dict[str, Any], message: str) -> None:
    for task in (Reward(), Preference()):
        with pytest.raises(DataError, match=message):
            task.decode(row)


def test_a_prompt_that_fills_the_row_is_refused() -> None:
    encode = EncodeAnswers(byte_tokenizer(generates=True), max_length=10)
    with pytest.raises(DataError, match="the prompt alone has 13 tokens, and a row keeps 10"):
        encode({"prompt": "prompt of 12", "chosen": "yes", "rejected": "no"})


@pytest.mark.parametrize(("word", "message"), [
    ("task.loss=sigmod", "task.loss=sigmod is unknown. Did you mean 'sigmoid'?"),
    ("task.beta=0", "task.beta=0"),
    ("task.label_smoothing=0.1", "task.label_smoothing has no effect on task.loss=sigmoid"),
    ("dataset.columns.chosen=good", "no column 'good' for the task's 'chosen'"),
])  # fmt: skip
def test_a_wrong_setting_is_one_message(
    word: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_place("prompt", "preference")
    assert cli.main([*SMALL_TABLES, "task=preference", word]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "outputs").exists()
