"""Token classification: a tag for each word of a text, such as the part of speech or the entity that it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.tasks.base import TAGS, Piece, Task
from hfexp.tasks.entities import TagScheme, mark

STRATEGIES = ("simple", "first", "average", "max")
"""Ways to merge tokens into entities (`aggregation_strategy` of Transformers' pipeline)."""
ENTITY = {"type": "string", "score": "double", "start": "long", "end": "long", "text": "string"}
"""Fields of an entity in an answer; `start` and `end` count characters of the text."""


class TokenClassification(Task):
    """Classification of the words in the columns `words` and `tags`, lists of equal length; `transform` tokenises."""

    model_class: ClassVar[str] = "AutoModelForTokenClassification"
    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("words", "tags")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "words": ("tokens", "word", "token"), "tags": ("ner_tags", "ner", "labels", "label", "tag"),
    }  # fmt: skip
    label_column: ClassVar[str | None] = "tags"
    label_kind: ClassVar[str] = TAGS
    tagged_column: ClassVar[str | None] = "words"
    metric: ClassVar[str] = "f1"
    loss_per_token: ClassVar[bool] = True
    varying_shapes: ClassVar[bool] = True
    windowed: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"
    raw_column: ClassVar[str | None] = "text"
    answer_types: ClassVar[dict[str, Any]] = {"entities": ENTITY}

    def __init__(self, label_all_tokens: bool = False, aggregation_strategy: str = "first") -> None:
        """Set up the task.

        Args:
            label_all_tokens: label every token of a word; otherwise only its first one.
            aggregation_strategy: how tokens are merged into entities, one of `STRATEGIES`.
        """
        if aggregation_strategy not in STRATEGIES:
            raise ConfigError(
                f"task.aggregation_strategy={aggregation_strategy} is unknown."
                f"{did_you_mean(str(aggregation_strategy), STRATEGIES)} Allowed: {one_of(STRATEGIES)}"
            )
        self.label_all_tokens, self.aggregation_strategy = label_all_tokens, aggregation_strategy
        self.scheme = TagScheme([])

    def set_classes(self, id2label: Mapping[int, str] | None) -> None:
        """Take note of the tags, whose names say where an entity begins and ends."""
        super().set_classes(id2label)
        self.scheme = TagScheme([name for _, name in sorted(self.class_names.items())])

    def fit_processor(self, processor: Any) -> None:
        """Let a byte-level tokenizer put a space before each word, so that it sees where words begin."""
        from hfexp.tasks.tagging import add_prefix_space

        add_prefix_space(processor)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its words are strings, each with a tag, or if it is to predict on; DataError otherwise."""
        if "text" in row:
            return row
        words, tags = row["words"], row["tags"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"column 'words' holds {words!r:.80}, expected a list of words")
        if isinstance(tags, list) and len(tags) != len(words):
            raise DataError(f"{len(tags)} tags for {len(words)} words: each word needs one")
        return row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels` per token in place of `tags` per word; leave a row to predict on as it is."""
        from hfexp.tasks.tagging import PARTS, align

        if PARTS in row:
            return row
        labels = align(row["tags"], row["word_ids"], self.class_names, self.label_all_tokens)
        inputs = {name: value for name, value in row.items() if name not in ("tags", "word_ids")}
        return {**inputs, "labels": labels}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Return the text of the tokens with the tags behind the words."""
        from hfexp.tasks.tagging import show_tags

        return show_tags(inputs, self.class_names, processor)

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text, or a list of words, into a row without tags."""
        if isinstance(value, str):
            return {"text": value, "tags": None}
        return self.decode({"words": list(value) if isinstance(value, tuple) else value, "tags": None})

    def inference_example(self, row: dict[str, Any]) -> str:
        """Return the words as one text."""
        return " ".join(row["words"])

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest row of a batch."""
        from hfexp.tasks.tagging import WordCollator

        return WordCollator(processor)

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Return the entities of each text, merged from tokens as Transformers' pipeline does."""
        from hfexp.tasks.tagging import find_entities

        return find_entities(model, batch, self.class_names, processor, self.aggregation_strategy)

    def answer(self, output: list[dict[str, Any]], id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the entities, each with the fields of `ENTITY`."""
        return {"entities": output}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce logits (B, T, C) of windows to the counts of `TagScheme.count`, so that no token is kept."""
        import torch

        logits = logits[0] if isinstance(logits, tuple) else logits
        counts = self.scheme.count(logits.argmax(-1).cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(counts.astype(np.int32)).to(logits.device)

    def merge(self, row: dict[str, Any], inputs: dict[str, Any], outputs: np.ndarray, options: Any) -> np.ndarray:
        """Return the counts of a row, in which an entity counts once also if it lies in several windows."""
        return self.scheme.join(outputs).astype(np.int32)

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return per row the number of labelled `tokens` and of `correct` ones, and the `entities` by type."""
        counts = np.stack(list(predictions))
        return {"tokens": counts[:, 0], "correct": counts[:, 1], "entities": self.scheme.by_type(counts)}

    def found_by_class(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, tuple[int, int, int]]:
        """Count right, predicted and true entities of each type."""
        entities = self.metric_inputs(predictions, references)["entities"]
        return {name: tuple(entities[name].sum(0).tolist()) for name in self.scheme.types}

    def marked(self, row: dict[str, Any], output: list[dict[str, Any]]) -> list[Piece]:
        """Mark the entities found in a row, and those of its tags that are not found."""
        true = self.scheme.places(row["words"], row["tags"])
        return mark(" ".join(row["words"]), true, [(item["start"], item["end"], item["type"]) for item in output])

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make the counts of two rows with one right entity of each type."""
        counts = np.ones((2, 2 + 3 * len(self.scheme.types)), np.int64)
        return counts, np.zeros((2, 1), np.int64)
