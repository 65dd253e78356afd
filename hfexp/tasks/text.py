"""Tokenize texts once for all epochs, and pad each batch to its longest row."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from hfexp.core.errors import ConfigError
from hfexp.tasks import base
from hfexp.tasks.column_names import parts_of, usual_columns
from hfexp.tasks.entities import IGNORED

TEXT, PAIR = "text", "text_pair"
"""Columns of a text, and of an optional second one, or of several second ones."""
LENGTHS = "lengths"
"""Field of a row whose text has several second ones: the number of tokens of each pair, which lie end to end."""
UNLIMITED = 10**6
"""Tokens from which on `model_max_length` is no limit (Transformers writes 10**30 if it knows none)."""
MULTIPLE = 8
"""On an accelerator, batches are padded to a multiple of so many tokens: tensor cores compute whole tiles (NVIDIA,
"Matrix Multiplication Background User's Guide")."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens, in the order of their ids."""


class Tokenize(torch.nn.Module):
    """Operation for `transform.prepare`: turn a row's `text` (and `text_pair`) into `input_ids` and related fields.

    Where `text_pair` is a list, the tokens of the pairs lie end to end, and `lengths` has their numbers.
    """

    def __init__(self, processor: Any, max_length: int | None = None) -> None:
        """Copy the tokenizer and set its truncation.

        Args:
            processor: a tokenizer.
            max_length: tokens to keep of a row, special tokens included; None: as many as the model takes.

        Raises:
            ConfigError: `max_length` is out of range, or it is None and the model's limit is unknown.
        """
        super().__init__()
        self.max_length = max_length_of(processor, max_length)
        # The first call sets the truncation of the copy: doing so later, from several threads, would be an error.
        self.tokenizer = copy.deepcopy(processor)
        self.forward({TEXT: "a"})

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the columns of texts by lists of token ids; the collator adds the attention mask."""
        if isinstance(row.get(PAIR), list):
            return self._pairs(row)
        given = (row[TEXT], row[PAIR]) if PAIR in row else (row[TEXT],)
        tokens = self.tokenizer(*given, truncation=True, max_length=self.max_length)
        kept = {name: list(tokens[name]) for name in self.tokenizer.model_input_names if name in tokens}
        kept.pop("attention_mask", None)
        return {**{name: value for name, value in row.items() if name not in (TEXT, PAIR)}, **kept}

    def _pairs(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace a text and several second ones by the tokens of all pairs."""
        parts = [self.forward({TEXT: row[TEXT], PAIR: other}) for other in row[PAIR]]
        kept = {name: value for name, value in row.items() if name not in (TEXT, PAIR)}
        tokens = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        return {**kept, **tokens, LENGTHS: [len(part["input_ids"]) for part in parts]}


def max_length_of(processor: Any, max_length: int | None) -> int:
    """Return the number of tokens to keep of a row: `max_length`, or as many as the tokenizer says.

    Raises:
        ConfigError: `max_length` is out of range, or it is None and the model's limit is unknown.
    """
    limit = min(int(processor.model_max_length), UNLIMITED)
    if max_length is None and limit == UNLIMITED:
        raise ConfigError("neither the tokenizer nor the model defines a maximum length: set max_length")
    if max_length is not None and not 1 <= max_length <= limit:
        raise ConfigError(f"max_length={max_length} must be from 1 to {limit}, the maximum length of the model")
    return max_length or limit


class TextCollator:
    """Collator that pads rows of token ids to the longest of them: (B, T) int64, with `attention_mask`."""

    def __init__(
        self,
        tokenizer: Any,
        multiple: int | None = None,
        padding: Mapping[str, int] | None = None,
        pad_id: int | None = None,
        side: str | None = None,
    ) -> None:
        """Set what rows are padded with.

        Args:
            multiple: T is rounded up to a multiple of this; None: 8 on an accelerator, else 1.
            padding: filler values of the fields other than `input_ids`.
            pad_id: filler value of `input_ids`; `side`: `left` or `right`. None: as the tokenizer says.
        """
        pad_id = tokenizer.pad_token_id if pad_id is None else pad_id
        if pad_id is None:
            raise ConfigError("the tokenizer has no padding token; set model.processor.pad_token")
        self.padding = {"token_type_ids": tokenizer.pad_token_type_id, **(padding or {})}
        self.pad_id, self.left = pad_id, (side or tokenizer.padding_side) == "left"
        self.multiple = multiple or (MULTIPLE if torch.accelerator.is_available() else 1)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        batch = {}
        for name, value in rows[0].items():
            if isinstance(value, list):
                batch[name] = self._padded([row[name] for row in rows], length, self.padding.get(name, self.pad_id))
            else:
                batch[name] = torch.tensor([row[name] for row in rows])
        batch["attention_mask"] = self._padded([[1] * len(row["input_ids"]) for row in rows], length, 0)
        return batch

    def _padded(self, rows: list[list[int]], length: int, filler: int) -> torch.Tensor:
        padded = torch.full((len(rows), length), filler, dtype=torch.int64)
        for place, row in enumerate(rows):
            start = length - len(row) if self.left else 0
            padded[place, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        return padded


class NestedCollator:
    """Collator for rows of several pairs each: (B, C, T) int64 padded in both ways, with `attention_mask`.

    C is the most pairs of a row. `labels`, one for each pair, become (B, C); a pair that a row lacks has `IGNORED`.
    It is one padding token that attends to itself, because attention to nothing is NaN. Lists of texts stay as they
    are.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.pad = TextCollator(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        size = max(len(row[LENGTHS]) for row in rows)
        flat = self.pad([pair for row in rows for pair in self._pairs(row, size)])
        batch: dict[str, Any] = {name: values.unflatten(0, (len(rows), size)) for name, values in flat.items()}
        batch["labels"] = torch.full((len(rows), size), IGNORED)
        for labels, row in zip(batch["labels"], rows, strict=True):
            labels[: len(row["labels"])] = torch.tensor(row["labels"])
        texts = [name for name, value in rows[0].items() if isinstance(value, list) and isinstance(value[0], str)]
        return batch | {name: [row[name] for row in rows] for name in texts}

    def _pairs(self, row: dict[str, Any], size: int) -> list[dict[str, list[int]]]:
        """Return the tokens of each pair, and for those that the row lacks the padding token."""
        tokens = {n: v for n, v in row.items() if n not in ("labels", LENGTHS) and isinstance(v[0], int)}
        ends = list(itertools.accumulate(row[LENGTHS]))
        pairs = [{n: v[start:end] for n, v in tokens.items()} for start, end in zip([0, *ends], ends, strict=False)]
        absent = {name: [self.pad.padding.get(name, self.pad.pad_id)] for name in tokens}
        return [*pairs, *[absent] * (size - len(pairs))]


def byte_tokenizer(
    model_max_length: int = 512, generates: bool = False, ends: bool = False, chat_template: str | None = None
) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer from no file: its 261 tokens are the 256 bytes and BERT's special tokens.

    Saved with a model, it loads as `AutoTokenizer`.

    Args:
        generates: for a causal language model: texts begin with [CLS], and [SEP] is the end-of-text token.
        ends: for an encoder-decoder: texts end with [SEP], the end-of-text token, as those of ByT5 do.
        chat_template: the form of conversations, in Jinja, as of `apply_chat_template`.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters))}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _wrapped(made, model_max_length, CAUSAL if generates else ENDED if ends else BERT)
    tokenizer.chat_template = chat_template
    return tokenizer


def subword_tokenizer(
    source: Any,
    column: str | list[str] | None = None,
    vocab_size: int = 4096,
    model_max_length: int = 512,
    ends: bool = False,
    columns: Mapping[str, Any] | None = None,
    task: base.Task | None = None,
) -> transformers.PreTrainedTokenizerFast:
    """Train a tokenizer on texts; its tokens are subwords in lower case.

    It uses byte pair encoding (R. Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL
    2016) over bytes, so that any text has tokens. The same texts give the same tokenizer. Saved with a model, it loads
    as `AutoTokenizer`.

    Args:
        source: a `Dataset`, or a `DatasetDict` whose training split is read; labels are not used.
        column: the column of the texts, or of lists of words; or several such columns. None: those that the task reads
            but its label, if that is not a text itself.
        vocab_size: number of tokens, including BERT's special tokens and the 256 bytes.
        ends: for an encoder-decoder: texts end with [SEP], the end-of-text token.
        columns: the source's own names for columns of the task, as in `dataset.columns`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    rows = source["train"] if isinstance(source, Mapping) else source
    names = [column] if isinstance(column, str) else column or text_columns(rows, columns or {}, task)
    rows = rows.flatten() if any("." in name for name in names) else rows
    for name in names:
        if name not in rows.column_names:
            raise ConfigError(f"model.processor.column={name}: the source has only {', '.join(rows.column_names)}")
    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=letters, show_progress=False
    )
    values = itertools.chain.from_iterable(rows[name] for name in names)
    texts = (" ".join(word or "" for word in text) if isinstance(text, list) else text for text in values)
    made.train_from_iterator((text or "" for text in texts), trainer)
    return _wrapped(made, model_max_length, ENDED if ends else BERT, trim=True)


def text_columns(rows: Any, columns: Mapping[str, Any], task: base.Task | None) -> list[str]:
    """Return the columns of a source that hold the texts, or lists of them, that a task reads."""
    if task is None:
        return [TEXT]
    wanted = [name for name in task.columns if name != task.label_column or task.label_kind == base.TEXT]
    known = {**columns, **usual_columns(rows.column_names, columns, wanted, task, "dataset.columns")}
    read = [name for name in wanted if name in known or name in rows.column_names or name not in task.defaults]
    names = [part for name in read for part in parts_of(known.get(name, name))]
    # A column that does not exist is kept, so that the message names it.
    return [name for name in names if name not in rows.column_names or _holds_texts(rows.features[name])]


def _holds_texts(feature: Any) -> bool:
    return "string" in str(getattr(getattr(feature, "feature", feature), "dtype", ""))


BERT, CAUSAL, ENDED = "[CLS] $A [SEP]", "[CLS] $A", "$A [SEP]"
"""Places of the special tokens of a text: as BERT, causal language models, and encoder-decoders read it."""


def _wrapped(
    made: Any, model_max_length: int, single: str, trim: bool = False
) -> transformers.PreTrainedTokenizerFast:
    """Wrap a byte-level tokenizer in one that puts BERT's special tokens in their places.

    Args:
        trim: leave the space before a word out of the place of its first token.
    """
    from tokenizers import decoders, processors

    made.decoder = decoders.ByteLevel()
    if single == ENDED:  # a text that is written does not begin with the space that subwords put before it
        made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    template = processors.TemplateProcessing(single=single, pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    places = processors.ByteLevel(trim_offsets=True)
    made.post_processor = processors.Sequence([places, template]) if trim else template
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if single == BERT else ["input_ids", "attention_mask"]
    roles = {} if single == BERT else {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=model_max_length, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_input_names=inputs, **roles,
    )  # fmt: skip
