"""What the laws in tests/invariants/test_laws.py need of each task: one entry, with a tiny model and tiny data.

A task joins by its entry in `ENTRIES`. `make laws` runs the whole table and writes docs/laws.md.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
from peers import ANSWERS, BEST, COUNTED, IGNORED, NAMES, NULL_THRESHOLD, STRIDE, Batch, Row

LAWS = {
    1: "A training that is resumed in mid-epoch equals an uninterrupted one, bit for bit, with and without LoRA.",
    2: "The best recorded model is the one that is evaluated and saved, and the saved one loaded anew.",
    3: "Two processes train and evaluate as one does with the same whole batch; last batches and tokens are uneven.",
    4: "A batch of 8 equals four accumulated batches of 2.",
    5: "Data that is cached, that is prepared when it is read, and that is streamed gives the same training.",
    6: "Any number of data loader workers and any order of the rows give the same samples and augmentation.",
    7: "`hfexp predict` answers as Transformers' pipeline does, as the MLflow model, and as that model when served.",
    8: "A point of a sweep equals the single run, also in replicates, and up to the step at which it is pruned.",
    9: "Metrics equal those of the field's own implementation, on random examples in batches.",
    10: "An evaluation keeps of each row nothing that grows with the row's tokens or pixels.",
    11: "Wrong data gives one message with its row and column, before any weights are loaded.",
    12: "The report shows what the task is about; `hfexp evaluate by=` scores a slice as it scores the slice's rows.",
}
SIZES = {"train": 54, "validation": 21, "test": 13}
"""Rows by split: in batches of 8, and of 4 in each of two processes, every last batch is shorter than the others."""
TRAINING = (
    "trainer=scratch", "tracking.pictures=false", "security.allowed_targets=[faults,laws]",
    "trainer.callbacks.fault={_target_: faults.Fault, at: 12}",
    "trainer.args.max_steps=21", "trainer.args.per_device_train_batch_size=8",
    "trainer.args.per_device_eval_batch_size=8", "trainer.args.learning_rate=0.01",
    "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=5",
    "trainer.args.save_strategy=steps", "trainer.args.save_steps=5", "trainer.args.logging_steps=3",
    # The highest loss is sought, which is that of the first evaluation: the best model is not the last one.
    "trainer.args.metric_for_best_model=loss", "trainer.args.greater_is_better=true",
)  # fmt: skip
"""Three epochs of 7 steps; an armed fault ends it in step 12, and the checkpoint of step 10 is in mid-epoch."""
PLAIN = ("trainer.args.optim=sgd", "trainer.args.learning_rate=0.1", "trainer.args.lr_scheduler_type=constant",
         "trainer.args.max_grad_norm=1e9", "trainer.args.weight_decay=0", "trainer.args.logging_steps=1")  # fmt: skip
"""Stochastic gradient descent, whose steps are proportional to the gradients: Adam would blow up rounding errors."""
BERT = (
    "model=tiny_bert", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=48",
)  # fmt: skip
SUBWORDS = ("model=tiny_bert_subwords", *BERT[1:], "model.config.vocab_size=300")
GPT = (
    "model=tiny_gpt", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.num_key_value_heads=2", "model.config.intermediate_size=16",
    "model.config.max_position_embeddings=96", "++model.config.attention_dropout=0.1",
    "task.generation.max_new_tokens=4",
)  # fmt: skip
T5 = (
    "model=tiny_t5", "model.processor._target_=laws.word_tokenizer", "model.config.vocab_size=8",
    "model.config.eos_token_id=2",
    "model.config.d_model=16", "model.config.d_kv=8", "model.config.d_ff=16", "model.config.num_layers=1",
    "model.config.num_decoder_layers=1", "model.config.num_heads=2", "task.generation.max_new_tokens=8",
)  # fmt: skip
VIT = (
    "model=vit_digits", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16",
    "++model.config.hidden_dropout_prob=0.1",
)  # fmt: skip
NO_DROPOUT = ("model.config.hidden_dropout_prob=0", "++model.config.attention_probs_dropout_prob=0")


@dataclass(frozen=True)
class Entry:
    """What the laws ask of a task, by the name of its option in conf/task."""

    overrides: tuple[str, ...]
    """A tiny model, and what else differs from `TRAINING`."""
    row: Callable[[int], Row]
    """Writes a row of data by its number; rows differ in length."""
    still: tuple[str, ...]
    """Switches off all that is random, dropout and augmentation; also what else differs from `PLAIN`."""
    asks: list[Any]
    """Raw inputs of a prediction."""
    peer: Callable[[str, list[Any]], list[Row]]
    """Answers by Transformers' pipeline (or by hand) with the model of a directory, in the form of `Task.answer`."""
    reference: Callable[[Any, np.random.Generator], tuple[list[Batch], dict[str, float]]]
    """Random batches, and their metrics by the field's own implementation; it gets the task and the processor."""
    longer: tuple[str, ...] = ()
    """Makes the inputs of the model longer, beside the rows that are written `LONGER` times as long."""
    brief: tuple[str, ...] = ()
    """Leaves out of an evaluation what has to be kept whole."""
    as_rows: tuple[str, ...] = ()
    """Makes each row of the data a row of the model, where it is not."""
    streams: tuple[str, ...] | None = ()
    """What a stream needs; None: the task's labels can't be streamed."""
    apart: bool = True
    """Whether the metrics of a row depend on that row alone."""
    content: Callable[[Row], Any] = lambda row: row
    """Undoes what is drawn at random for a row of model inputs."""
    wrong: Mapping[str, tuple[Callable[[Row], Row], str]] = field(default_factory=dict)
    """Ways to spoil one row, and what the message has to match."""
    shown: tuple[str, ...] = ()
    """Patterns that the page of the report has to match: what the people of this task look at."""
    does_not_apply: Mapping[int, str] = field(default_factory=dict)
    """Laws that make no sense for this task, and why."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """What a law means for this task, where that is less than it says."""


# Rows


WORDS = {"cold": ("ice", "snow"), "hot": ("sun", "fire"), "mild": ("rain", "cloud")}
LONGER = 3


def sentence(number: int, word: str) -> str:
    return " ".join([word] * (1 + number % 4))


def text_row(number: int) -> Row:
    name = NAMES[number % 3]
    return {"text": sentence(number, WORDS[name][number // 3 % 2]), "label": name}


def pair_row(number: int) -> Row:
    return {**text_row(number), "text_pair": "or not"[: number % 5 + 2]}


def classes_row(number: int) -> Row:
    names = [name for bit, name in enumerate(NAMES) if number >> bit & 1]
    return {"text": " ".join(WORDS[name][0] for name in names) or "nothing", "label": names}


def number_row(number: int) -> Row:
    """No two texts are equal: ranks of equal numbers would depend on the last bit."""
    return {"text": f"{'abcde'[number % 5] * (1 + number % 4)} {number}", "label": number % 5 / 2}


def number_pair_row(number: int) -> Row:
    return {**number_row(number), "text_pair": "x" * (1 + number % 3)}


def tagged_row(number: int) -> Row:
    """Tagged words; every fifth row is cut into windows."""
    words = ["Ada", "Lovelace", "went", "to", "Oslo", "and", "back"][: 4 + number % 4]
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC", "O", "O"][: len(words)]
    words, tags = words[number % 2 :], ["B-PER", *tags[2:]] if number % 2 else tags
    times = 8 if number % 5 == 0 else 1
    return {"words": words * times, "tags": tags * times}


def line_row(number: int) -> Row:
    return {"text": f"{number} is before {number + 1}. " * (1 + number % 2)}


def chat_row(number: int) -> Row:
    return {
        "messages": [
            {"role": "user", "content": "Count" + "!" * (number % 3)},
            {"role": "assistant", "content": "12345"[: 1 + number % 5]},
        ]
    }


def image_row(number: int) -> Row:
    """A noisy image, bright at its left, in the middle or at its right."""
    import PIL.Image

    pixels = np.random.default_rng(number).integers(0, 120, (8, 8, 3), dtype=np.uint8)
    pixels[:, number % 3 * 3 : number % 3 * 3 + 2] += 130
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return {"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": NAMES[number % 3]}


def rewritten_row(number: int) -> Row:
    """A text, and one that says some of its words backwards."""
    words = [COUNTED[(number + place) % 5] for place in range(1 + number % 4)]
    return {"text": " ".join(words), "target": " ".join(words[: 1 + number % 3][::-1])}


def choice_row(number: int) -> Row:
    choices = [COUNTED[(number + away) % 5] for away in range(2 + number % 3)]
    text_pair = "It is"[: number % 6]
    return {
        "text": f"After {COUNTED[number % 5]}",
        "text_pair": text_pair,
        "choices": choices,
        "label": number % len(choices),
    }


def question_row(number: int) -> Row:
    """A question; every fifth context is cut into windows, and every seventh has no answer."""
    where = ("Oslo", "Rome", "\u00c5rhus", "New York")[number % 4]
    context = f"{'It rained. ' * (3 if number % 5 == 0 else number % 2)}Ada is in {where}."
    found = ([], []) if number % 7 == 3 else ([where], [context.index(where)])
    return {"question": "Where?"[number % 3 :], "context": context, "answers": dict(zip(ANSWERS, found, strict=True))}


def search_row(number: int) -> Row:
    """A question and what belongs to it; some questions have one document in common."""
    return {"anchor": f"what is {number} + {number}", "positive": f"{number // 2 * 4} " * (1 + number % 4)}


def alike_row(number: int) -> Row:
    return {
        "text": f"{number} and {number + 1}",
        "text_pair": f"{number + 1} " * (1 + number % 4),
        "label": number % 7 / 6,
    }


def preferred_row(number: int) -> Row:
    prompt = f"{number} and 1 is" + " more" * (number % 3)
    return {"prompt": prompt, "chosen": f" {number + 1}" + "!" * (number % 4), "rejected": " not known"}


TEXT_COLUMNS = ("text", "text_pair", "target", "context", "anchor", "positive", "prompt", "chosen", "rejected")
LISTS = ("words", "tags", "messages")


def prolonged(row: Row) -> Row:
    """The same row with `LONGER` times as many words."""
    text = {name: " ".join([value] * LONGER) for name, value in row.items() if name in TEXT_COLUMNS}
    lists = {name: value * LONGER for name, value in row.items() if name in LISTS}
    texts = {name: [" ".join([one] * LONGER) for one in value] for name, value in row.items() if name == "choices"}
    return {**row, **text, **lists, **texts}


def write_rows(rows: list[Row], path: Path) -> None:
    """Write JSON lines or, with images inside, Parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    import datasets

    made = datasets.Dataset.from_list(rows)
    image = datasets.Image(decode=False)
    (made.cast_column("image", image) if "image" in made.column_names else made).to_parquet(path)


# Tokenizers


def chat_tokenizer(model_max_length: int = 512, generates: bool = True) -> Any:
    """A tokenizer of bytes with a chat template."""
    from hfexp.tasks.text import byte_tokenizer

    tokenizer = byte_tokenizer(model_max_length, generates)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    return tokenizer


def word_tokenizer(model_max_length: int = 64, ends: bool = True) -> Any:
    """A tokenizer of so few words that a model which has hardly been trained writes some of them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[SEP]", *COUNTED))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]" if ends else "$A", special_tokens=[("[SEP]", vocabulary["[SEP]"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=model_max_length, pad_token="[PAD]", unk_token="[UNK]",
        eos_token="[SEP]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


# Entries


def without(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: value for name, value in row.items() if name not in names}


def having(**values: Any) -> Callable[[Row], Row]:
    return lambda row: {**row, **values}


def unmasked(row: Row) -> Row:
    """The tokens before some were masked."""
    tokens = [
        token if label == IGNORED else label for token, label in zip(row["input_ids"], row["labels"], strict=True)
    ]
    return {"input_ids": tokens}


NO_TEXTS = "Without written texts: metrics of texts need those and the true ones, whole."
IN_BATCH = "The other rows of a batch are a row's wrong answers, so smaller batches are another loss."
OF_ALL_ROWS = "The documents of all rows compete, so the rows of a slice score otherwise alone. "
VECTORS = "The vectors of each row's texts are kept, as ranks need them; nothing of their tokens is."
NO_REFERENCE = (
    "The model from before the training is not saved; without it, an evaluation of a saved model is refused."
)
NOT_STREAMED = "Not streamed: labels of the task's own form are checked in all rows before."
BY_HAND = "Transformers has no pipeline for this task; its model is asked by hand."
WINDOWS = (
    "The best spans of each window are kept, 3 numbers each, so more of a row of more windows; no scores of tokens."
)
COUNTS = "The counts of each window are kept, so more of a row that is longer than the model takes; no tags of tokens."
SCRIPTS = "By the rules of Transformers' example and of SQuAD's evaluation, written out, as no package has them."
SENTENCES = "By sentence-transformers in place of a pipeline."
MEANS = "By plain means over the rows."
NO_VIEW = "The report shows the metrics and the rows as the model sees them; it has no view of single mistakes."
PER_ROW = "The probabilities of each row are kept, as ranking metrics and the report need them; no token is."
MASKED_STREAMS = "Rows of a stream have other masks: these follow from the row, which has no number."
MASKED_SLICES = (
    "The masks of a row follow from its number, so the rows of a slice have other masks alone; the scores of all rows "
    "lie between those of the slices."
)
CLASS_LABELS = f"dataset.labels=[{','.join(NAMES)}]"
TEXTS: dict[str, Any] = {
    "still": NO_DROPOUT, "asks": ["ice ice", "sun", "rain and snow on the hills"], "peer": peers.classify,
    "reference": peers.score_classes, "streams": (CLASS_LABELS,),
    "shown": ("Classes</h2>", "Mistakes</h2>", "accuracy"), "notes": {10: PER_ROW},
}  # fmt: skip
PAIRS = [{"text": "ice ice", "text_pair": "or"}, {"text": "sun", "text_pair": "or not, as you like"}]
SPREAD = "model.config.initializer_range=0.3"
"""Lets the answers of a model differ: the correlation of nearly equal numbers is mostly rounding error."""
NUMBERS: dict[str, Any] = {
    "still": (*NO_DROPOUT, "trainer.args.learning_rate=0.01"), "asks": ["a", "ccc c", "eeee"],
    "peer": peers.regress, "reference": peers.score_numbers,
    "shown": ("rmse", "spearman", "r2"), "notes": {12: NO_VIEW},
    "wrong": {"a text in place of a number": (having(label="much"), "column 'label' holds 'much', expected a number")},
}  # fmt: skip

REWRITTEN: dict[str, Any] = {
    "row": rewritten_row, "still": ("model.config.dropout_rate=0",),
    "asks": ["one two three", "five", "four one", "three two five one"], "peer": peers.rewrite,
    "brief": ("task.predict_with_generate=false", "metrics=language", "task.metric=perplexity"),
    "notes": {7: BY_HAND, 10: NO_TEXTS},
    "wrong": {
        "an empty text": (having(text=" "), "column 'text' holds an empty text"),
        "an empty target": (having(target=" "), "no usable target: the text is empty"),
        "too long": (having(text="? " * 300), "tokens, more than max_length=256"),
    },
}  # fmt: skip

NO_CHOICE: dict[str, Any] = {
    "equal answers": (having(rejected="a", chosen="a"), "the chosen and the rejected answer are equal"),
    "an empty answer": (having(chosen=""), "column 'chosen' holds an empty answer"),
}

ENTRIES: dict[str, Entry] = {
    "image_classification": Entry(
        (*VIT, "transform=jitter"), image_row, ("transform=eval", "++model.config.hidden_dropout_prob=0"),
        [image_row(number)["image"]["bytes"] for number in (100, 101, 102)], peers.classify_images,
        peers.score_classes, longer=("model.config.image_size=16",), streams=(CLASS_LABELS,), notes={10: PER_ROW},
        shown=("Classes</h2>", "Mistakes</h2>", "accuracy"),
    ),
    "text_classification": Entry((*BERT,), text_row, **TEXTS),
    "text_pair_classification": Entry(
        (*BERT,), pair_row, **{**TEXTS, "asks": PAIRS}
    ),
    "multi_label_text_classification": Entry(
        (*BERT,), classes_row, NO_DROPOUT, TEXTS["asks"], peers.find_classes, peers.score_several, streams=None,
        shown=("f1_micro", "mean_average_precision"),
        notes={5: "Not streamed: labels of several classes are read whole.", 10: PER_ROW, 12: NO_VIEW},
    ),
    "text_regression": Entry((*BERT, SPREAD), number_row, **NUMBERS),
    "text_pair_regression": Entry(
        (*BERT, SPREAD), number_pair_row, **{**NUMBERS, "asks": PAIRS}
    ),
    "token_classification": Entry(
        (*SUBWORDS, "model.config.vocab_size=320", "task.label_all_tokens=true",
         "trainer.args.train_sampling_strategy=group_by_length"),
        tagged_row, NO_DROPOUT,
        ["Ada Lovelace went to Oslo", "Ada went to Oslo and back", "nothing"], peers.find_entities,
        peers.score_entities, streams=None,
        wrong={
            "tags of another length": (having(tags=["O"]), "1 tags for 6 words"),
            "a word that is none": (having(words=["a", None], tags=["O", "O"]), "column 'words' holds"),
        },
        shown=("Types</h2>", "Marked texts</h2>", "<mark class=", "f1_PER"),
        notes={5: "Not streamed: the tags are read whole.", 10: COUNTS},
    ),
    "fill_mask": Entry(
        (*SUBWORDS, "task.whole_words=true"), line_row, NO_DROPOUT,
        ["[MASK] is before 4.", "3 is [MASK] 4. 3 is before 4."], peers.fill_masks, peers.score_tokens(0),
        content=unmasked, apart=False, shown=("perplexity", r"\[MASK\]"),
        notes={5: MASKED_STREAMS, 12: MASKED_SLICES},
        wrong={"an empty text": (having(text=" "), "column 'text' holds an empty text")},
    ),
    "text_generation": Entry(
        (*GPT, SPREAD, "task.block_size=24"), line_row, ("++model.config.attention_dropout=0",),
        ["1 is", "12 is before"],
        peers.generate, peers.score_tokens(1), longer=("task.block_size=48",), as_rows=("task.block_size=null",),
        shown=("perplexity", "is before"),
        notes={5: "Streamed without blocks.", 12: f"Sliced without blocks. {NO_VIEW}"},
    ),
    "chat": Entry(
        (*GPT, SPREAD, "model.processor._target_=laws.chat_tokenizer"), chat_row,
        ("++model.config.attention_dropout=0",), ["Count", "Count!!"], peers.reply, peers.score_tokens(1),
        shown=("perplexity", "Count"), notes={12: NO_VIEW},
        wrong={
            "no reply": (having(messages=[{"role": "user", "content": "a"}]), "has no message of the assistant"),
            "unknown role": (having(messages=[{"role": "boss", "content": "a"}]), "the unknown role 'boss'"),
        },
    ),
    "summarization": Entry(
        (*T5,), reference=peers.score_texts(peers.score_summaries), shown=("Written texts</h2>", "rougeL"), **REWRITTEN
    ),
    "translation": Entry(
        (*T5,), reference=peers.score_texts(peers.score_translations), shown=("Written texts</h2>", "chrf"),
        **REWRITTEN,
    ),
    "multiple_choice": Entry(
        (*BERT,), choice_row, NO_DROPOUT,
        [{"text": "After", "text_pair": "It is", "choices": ["one", "two"]},
         {"text": "After four", "text_pair": "", "choices": ["five", "one", "three"]}],
        peers.choose, peers.score_choices, streams=None, shown=("accuracy", "After"),
        notes={5: NOT_STREAMED, 7: BY_HAND, 12: NO_VIEW},
        wrong={
            "one choice": (having(choices=["b"]), "column 'choices' holds .*, expected a list of two texts or more"),
            "no such choice": (having(label=7), "column 'label' holds 7, expected one of"),
        },
    ),
    "question_answering": Entry(
        (*BERT, f"transform.prepare.0.stride={STRIDE}", f"task.n_best={BEST}",
         f"task.null_threshold={NULL_THRESHOLD}", "trainer.args.train_sampling_strategy=group_by_length"),
        question_row, NO_DROPOUT, [without("answers")(question_row(number)) for number in (0, 1, 2, 5)],
        peers.find_answers, peers.score_answers, streams=None,
        shown=("Marked texts</h2>", "<mark class=", "no_answer_f1"),
        notes={5: NOT_STREAMED, 7: BY_HAND, 9: SCRIPTS, 10: WINDOWS},
        wrong={
            "an empty context": (having(context=" "), "column 'context' holds ' ', expected a text"),
            "a wrong place": (having(answers={"text": ["zzz"], "answer_start": [2]}), "at character 2 the context"),
            "no place": (having(answers={"text": ["zzz"], "answer_start": []}), "holds 1 texts and 0 places"),
            "too long a question": (having(question="q" * 49), "column 'question' holds 51 tokens, which leaves"),
        },
    ),
    "embedding": Entry(
        (*BERT, "model.config.hidden_size=8"), search_row, NO_DROPOUT, ["what is 3", "ten", "a longer one"],
        peers.embed, peers.score_search, apart=False, shown=("ndcg_at_10", "what is"), does_not_apply={4: IN_BATCH},
        notes={7: SENTENCES, 10: VECTORS, 12: OF_ALL_ROWS + NO_VIEW},
        wrong={"an empty text": (having(positive=" "), "column 'positive' holds an empty text")},
    ),
    "embedding_similarity": Entry(
        (*BERT, "model.config.hidden_size=8"), alike_row, NUMBERS["still"], ["3 and 4", "ten", "a longer one"],
        peers.embed, peers.score_likeness, shown=("spearman", "and"), notes={7: SENTENCES, 10: VECTORS, 12: NO_VIEW},
        wrong={"no cosine": (having(label=5), "column 'label' holds 5, but a cosine is from -1 to 1")},
    ),
    "reward": Entry(
        (*BERT,), preferred_row, NO_DROPOUT, ["3 and 1 is 4", "ten", "5 and 1 is more not known"], peers.reward,
        peers.score_rewards, shown=("margin", "and 1 is"), notes={9: MEANS, 12: NO_VIEW}, wrong=NO_CHOICE,
    ),
    "preference": Entry(
        (*GPT,), preferred_row, (), ["3 and 1 is", "12", "and"], peers.generate, peers.score_preferences,
        shown=("margin", "and 1 is"), wrong=NO_CHOICE,
        notes={2: NO_REFERENCE, 9: MEANS, 12: f"{NO_REFERENCE} {NO_VIEW}"},
    ),
}  # fmt: skip
