"""Causal language models: tokens and their labels, blocks, perplexity, replies, conversations."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from conftest import SMALL_GPT

from hfexp import predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.causal_lm import IGNORED, Encode, LanguageCollator, check_messages
from hfexp.tasks.metrics import Perplexity
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_generation import ChatGeneration, TextGeneration

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Of a chat: `<role>content</>`, a line each."""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": "No."},
]


def chat_tokenizer(length: int = 512) -> Any:
    tokenizer = byte_tokenizer(length, generates=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_text_is_learnt_with_its_end_and_a_prompt_is_not() -> None:
    encode = Encode(byte_tokenizer(64, generates=True))
    begin, end = encode.tokenizer.bos_token_id, encode.tokenizer.eos_token_id
    tokens = encode({"text": "ab"})["input_ids"]
    assert [tokens[0], tokens[-1], len(tokens)] == [begin, end, 4]
    assert encode({"prompt": "ab"})["input_ids"] == tokens[:-1]
    assert len(encode({"text": "x" * 500})["input_ids"]) == 502
    assert len(Encode(byte_tokenizer(64, generates=True), max_length=9)({"text": "x" * 500})["input_ids"]) == 9
    assert len(encode({"prompt": "x" * 500})["input_ids"]) == 64


def merging_tokenizer(post_processor: Any, template: str) -> Any:
    """A tokenizer over bytes that has tokens of several spaces, and of a space with the word that follows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["a: b\n\n    indented  code"] * 3,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["</>"], initial_alphabet=letters, show_progress=False),
    )
    made.post_processor, made.decoder = post_processor, decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("reply", ["b:\n\n    indented  code", "  b  ", "\n\nb\n", "👍 b 👍👍"])
@pytest.mark.parametrize("post_processor", ["byte level", "roberta", "several"])
def test_every_token_of_a_reply_is_learnt_whatever_the_tokenizer_says_of_spaces(
    post_processor: str, reply: str
) -> None:
    from tokenizers import processors

    trimming = processors.ByteLevel(trim_offsets=True)
    kinds = {
        "byte level": trimming,
        "roberta": processors.RobertaProcessing(("</>", 0), ("</>", 0), trim_offsets=True, add_prefix_space=False),
        "several": processors.Sequence([trimming, processors.TemplateProcessing("$A", "$A $B", special_tokens=[])]),
    }
    for prompt in ("a\n", "a: "):  # with the space of the second, a reply's first word is one token
        template = "{% for m in messages %}{{ m['role'] }} " + prompt + "{{ m['content'] }}</>{% endfor %}"
        template += "{% if add_generation_prompt %}assistant " + prompt + "{% endif %}"
        encode = Encode(merging_tokenizer(kinds[post_processor], template))
        row = encode({"messages": [{"role": "user", "content": "code"}, {"role": "assistant", "content": reply}]})
        learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        text = encode.tokenizer.decode(learnt)
        assert text.endswith(f"{reply}</>")
        assert text.removesuffix(f"{reply}</>") in ("", prompt[-1])


def test_of_a_conversation_the_replies_are_learnt_and_nothing_else() -> None:
    encode = Encode(chat_tokenizer())
    row = encode({"messages": CHAT})
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert encode.tokenizer.decode(learnt) == "Hi!</>\nNo.</>\n"
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    whole = encode.tokenizer.apply_chat_template(CHAT, tokenize=True)
    assert row["input_ids"] == list(whole["input_ids"] if hasattr(whole, "keys") else whole)
    with pytest.raises(DataError, match="none of the assistant's among the first 10"):
        Encode(chat_tokenizer(), max_length=10)({"messages": CHAT})


def test_conversations_are_not_cut_into_blocks() -> None:
    with pytest.raises(ConfigError, match=r"task\.block_size=16: conversations can't be cut into blocks"):
        ChatGeneration(block_size=16)


def test_replies_are_found_where_a_template_takes_their_thoughts_away() -> None:
    """As Qwen3's: what was thought stands in the last reply only."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>"
        "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m['content'].split('</think>')[-1] }}</>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    encode = Encode(tokenizer)
    messages = [
        {**one, "content": f"hm</think>{one['content']}"} if one["role"] == "assistant" else one for one in CHAT
    ]
    for talk in (CHAT, messages):
        row = encode({"messages": talk})
        learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        assert tokenizer.decode(learnt) == "Hi!</>\n<think></think>No.</>\n"


def test_prompts_leave_room_for_the_reply() -> None:
    tokenizer = byte_tokenizer(32, generates=True)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = {"input_ids": torch.arange(32)[None], "attention_mask": torch.ones(1, 32, dtype=torch.long)}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    (reply,) = TextGeneration().respond(model, batch, tokenizer, options)
    newest = {name: tensor[:, 8:] for name, tensor in batch.items()}
    assert [reply] == TextGeneration().respond(model, newest, tokenizer, options)


def test_conversations_may_have_the_form_of_sharegpt() -> None:
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "system", "value": "c"}]
    assert [tuple(message.values()) for message in check_messages(shared)] == [
        ("user", "a"), ("assistant", "b"), ("system", "c"),
    ]  # fmt: skip
    assert ChatGeneration().inference_example({"messages": shared}) == "a"
    with pytest.raises(DataError, match="the unknown role 'boss'"):
        check_messages([{"from": "boss", "value": "a"}])


def test_a_template_that_rewrites_earlier_replies_is_noticed() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] if loop.last else '-' }}{% endfor %}"
    with pytest.raises(DataError, match="differently when others follow"):
        Encode(tokenizer)({"messages": CHAT})
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Encode(tokenizer)({"messages": CHAT})
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        Encode(tokenizer)({"prompt": CHAT})


@pytest.mark.parametrize(
    "value", [None, [], "Hello", [{"role": "user"}], [{"role": "boss", "content": "a"}], [["user", "a"]]]
)
def test_what_are_no_messages_is_named(value: Any) -> None:
    with pytest.raises(DataError):
        check_messages(value)
    with pytest.raises(DataError):
        ChatGeneration().decode({"messages": CHAT[:2]})
    assert check_messages({"messages": CHAT}) == CHAT


def test_rows_are_padded_behind_and_prompts_in_front() -> None:
    collate = LanguageCollator(byte_tokenizer(generates=True))
    rows = [{"input_ids": [7, 8], "labels": [7, 8]}, {"input_ids": [5], "labels": [5]}]
    batch = collate(rows)
    assert batch["labels"].tolist() == [[7, 8], [5, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    asked = collate([{"input_ids": row["input_ids"]} for row in rows])
    assert asked["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert "labels" not in asked


@pytest.fixture
def texts(place: Path) -> str:
    """A table of texts of many lengths."""
    lines = [
        json.dumps({"text": f"{number} is followed by {number + 1}. " * (1 + number % 5)}) for number in range(60)
    ]
    (place / "rows.jsonl").write_text("\n".join(lines))
    return "dataset.source.data_files=rows.jsonl"


def test_blocks_hold_all_texts_one_after_the_other(texts: str) -> None:
    from hfexp import compose
    from hfexp.experiment.fit import build_splits
    from hfexp.experiment.preflight import load_inputs

    found = {}
    for kept in ("true", "false"):
        words = ("task=text_generation", "task.block_size=32", texts, *SMALL_GPT, f"transform.cache.enabled={kept}")
        config = compose(*words)
        inputs = load_inputs(config)
        blocks = build_splits(config, inputs)["train"]
        encode = inputs.transforms.train.fixed[0]
        stream = [token for row in inputs.dataset["train"] for token in encode(row)["input_ids"]]
        assert len(blocks) == len(stream) // 32
        rows = blocks.__getitems__([3, len(blocks) + 1])
        assert rows[0]["input_ids"] == stream[96:128]
        assert rows[1] == {"input_ids": stream[32:64], "labels": stream[32:64]}
        found[kept] = [row["input_ids"] for row in blocks]
    assert found["true"] == found["false"]


def test_a_generator_is_trained_kept_and_asked_as_a_pipeline_does(
    texts: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(
        "task=text_generation", "task.block_size=32", "task.generation.max_new_tokens=12", texts, *SMALL_GPT
    )
    assert result.task_metric == "perplexity"
    assert result.metrics["test_perplexity"] == pytest.approx(math.exp(result.metrics["test_loss"]), rel=1e-3)
    assert result.metrics["final_eval_perplexity"] == result.metrics["best_eval_perplexity"]
    model = str(result.run_dir / "model")
    prompts = ["1 is", "12 is followed by"]
    pipeline: Any = transformers.pipeline("text-generation", model)
    # One by one: in a batch the pipeline cuts nothing, but fillers stand in front.
    theirs = [pipeline(text, max_new_tokens=12, do_sample=False, return_full_text=False) for text in prompts]
    expected = [answers[0]["generated_text"] for answers in theirs]
    assert list(predict(run=result.run_dir.name, inputs=prompts)["text"]) == expected
    assert list(predict(run=model, inputs=prompts, batch_size=1)["text"]) == expected
    capsys.readouterr()
    assert cli.main(["predict", f"run={model}", "prompt=1 is", "stream=true", "generation.max_new_tokens=5"]) == 0
    streamed = capsys.readouterr().out
    assert cli.main(["predict", f"run={model}", "prompt=1 is", "stream=false", "generation.max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == streamed.rstrip("\n") == predict(
        "generation.max_new_tokens=5", run=model, inputs="1 is"
    )["text"][0]  # fmt: skip

    beams = ("generation.num_beams=2", "generation.max_new_tokens=5")  # no words before the last one is known
    expected_beams = predict(*beams, run=model, inputs="1 is")["text"][0]
    assert cli.main(["predict", f"run={model}", "prompt=1 is", "stream=true", *beams]) == 0
    assert capsys.readouterr().out.rstrip("\n") == expected_beams
    stop = f"generation.stop_strings=['{expected[0][2]}']"
    assert predict(stop, run=model, inputs="1 is")["text"][0] == expected[0][: expected[0].index(expected[0][2]) + 1]

    import mlflow.pyfunc
    from mlflow.models import Model

    path = next(place.glob("outputs/**/MLmodel")).parent
    assert set(Model.load(path).flavors) == {"python_function", "transformers"}
    loaded = mlflow.pyfunc.load_model(str(path))
    assert list(loaded.predict(pandas.DataFrame({"text": prompts}))["text"]) == expected
    assert list(loaded.predict(pandas.DataFrame({"text": prompts[:1]}), params={"max_new_tokens": 5})["text"]) == [
        expected[0][:5]
    ]


@pytest.mark.slow
def test_conversations_are_learnt_and_a_model_of_them_replies(place: Path) -> None:
    Path("chats.jsonl").write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(40)))
    Path("chat_parts.py").write_text(
        "from test_generation import chat_tokenizer\n\n\ndef make(length=512):\n    return chat_tokenizer(length)\n"
    )
    words = ("task=chat", "dataset.source.data_files=chats.jsonl", "task.generation.max_new_tokens=4", *SMALL_GPT)
    processor = ("model.processor._target_=chat_parts.make", "~model.processor.model_max_length")
    result = train(*words, *processor, "~model.processor.generates", "tracking=none")
    assert result.metrics["test_perplexity"] < 262
    model = str(result.run_dir / "model")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    pipeline: Any = transformers.pipeline("text-generation", model)
    reply = pipeline(asked, max_new_tokens=4, do_sample=False)[0]["generated_text"][-1]["content"]
    assert predict(run=model, inputs=asked)["text"][0] == reply
    assert predict("prompt=Hello", "system=Be brief.", run=model)["text"][0] == reply
    Path("asked.json").write_text(json.dumps(asked))
    assert predict("asked.json", run=model)["text"][0] == reply
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in asked]
    assert pipeline([parts], max_new_tokens=4, do_sample=False)[0][0]["generated_text"][-1]["content"] == reply
    Path("parts.json").write_text(json.dumps(parts))
    assert predict("parts.json", run=model)["text"][0] == reply
    plain = predict("generation.max_new_tokens=4", "generation.do_sample=false", run=plain_copy(model), inputs=asked)
    assert plain["text"][0] == reply


def plain_copy(model: str) -> str:
    """The directory without what hfexp adds: the task has to be found."""
    (Path(model) / "hfexp.json").unlink()
    return model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.generation.max_new_token=3"], "Did you mean 'max_new_tokens'"),
        (
            ["task.generation.num_return_sequences=3", "task.generation.do_sample=true"],
            "num_return_sequences must be 1",
        ),
        (["task.block_size=1"], "must be at least 2"),
        (["task.block_size=100000"], "task.block_size=100000 is more than the 512 tokens that the model takes"),
        (["task.block_size=100000", "model.config.max_position_embeddings=200000"], "have [0-9]+ tokens, fewer than"),
        (["metrics=accuracy"], "the task provides correct, nll, tokens"),
        (["transform.augment=[{_target_: hfexp.tasks.images.ToRGB}]"], "task.block_size"),
    ],
)
def test_what_can_not_be_is_said_before_training(texts: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train("task=text_generation", texts, *SMALL_GPT, *words)


def test_block_sums_do_not_depend_on_how_rows_are_batched() -> None:
    scores = np.array([[2.0, 4, 1], [6.0, 2, 0]], dtype=np.float32)
    task = TextGeneration()
    together = Perplexity().compute(**task.metric_inputs(scores, np.zeros((2, 1))))
    assert together == {"perplexity": pytest.approx(math.exp(8 / 6))}
