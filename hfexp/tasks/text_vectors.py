"""What the tasks share that train the vectors of texts: pooling, losses of `sentence_transformers`, and answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.tasks import column_names
from hfexp.tasks.base import Task

POOLING = ("mean", "cls", "lasttoken")
"""Ways to make one vector of a text's hidden states, as `sentence_transformers` calls them."""


class Vectors(Task):
    """Base of tasks that train the vectors of texts; `transform` must tokenise each text by itself."""

    model_class: ClassVar[str] = "AutoModel"
    processor_class: ClassVar[str] = "AutoTokenizer"
    inference_columns: ClassVar[tuple[str, ...]] = ("text",)
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"text": column_names.TEXT}
    varying_shapes: ClassVar[bool] = True
    has_own_loss: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"
    raw_column: ClassVar[str | None] = "text"
    answer_types: ClassVar[dict[str, str]] = {"vector": "doubles"}
    losses: ClassVar[tuple[str, ...]]
    """Losses of `sentence_transformers.losses` that suit the columns."""

    def __init__(
        self,
        loss: str,
        loss_options: Mapping[str, Any] | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
    ) -> None:
        """Set up the task.

        Args:
            loss: one of `losses`; `loss_options`: its arguments.
            pooling: how the hidden states of a text become one vector: `mean`, `cls` or `lasttoken`.
            normalize: give all vectors the length 1.
            max_length: tokens of a text; None: as many as the model takes.
        """
        for key, value, known in (("loss", loss, self.losses), ("pooling", pooling, POOLING)):
            if value not in known:
                hint = did_you_mean(str(value), known)
                raise ConfigError(f"task.{key}={value} is unknown.{hint} Allowed: {one_of(known)}")
        self.loss_name, self.loss_options = loss, dict(loss_options or {})
        self.pooling, self.normalize, self.max_length = pooling, normalize, max_length
        self._criterion: Any = None

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its texts are strings that are not empty; DataError otherwise."""
        for name in row.keys() & {*self.all_columns, "text"} - {self.label_column}:
            if not isinstance(row[name], str):
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, expected a string")
            if not row[name].strip():
                raise DataError(f"column {name!r} holds an empty text, which has no meaning to learn")
        return row

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the texts, each in a line of its own, special tokens included."""
        from hfexp.tasks.text_groups import show_texts

        return show_texts(inputs, processor)

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text into a row."""
        return self.decode({"text": value})

    def inference_example(self, row: dict[str, Any]) -> str:
        """Return the first text."""
        return row[self.columns[0]]

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest text of a batch."""
        from hfexp.tasks.text_groups import GroupCollator

        return GroupCollator(processor)

    def build_loss(self) -> None:
        """Build the loss; raise ConfigError if `sentence_transformers` is missing, or an option is wrong."""
        from hfexp.tasks.vectors import build_loss

        self._criterion = build_loss(self.loss_name, self.loss_options)

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Return the vectors of each row's texts, (B, K, D) float32."""
        from hfexp.tasks.vectors import embed

        return embed(model, batch["input_ids"], batch["attention_mask"], self.pooling, self.normalize)

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return the loss of `sentence_transformers` on vectors (B, K, D)."""
        from hfexp.tasks.vectors import batch_loss

        return batch_loss(self._criterion, self.loss_name, outputs, batch["labels"])

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Return the vector of each row's first text, (B, D)."""
        return self.forward(model, batch)[:, 0].cpu().numpy()

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the vector as a list of numbers."""
        return {"vector": output.tolist()}

    def companion_files(self, model_config: Any, processor: Any) -> dict[str, Any]:
        """Return the files that make the saved model a `SentenceTransformer`."""
        from hfexp.tasks.vectors import modules

        length = min(self.max_length or processor.model_max_length, processor.model_max_length)
        return modules(model_config.hidden_size, self.pooling, self.normalize, length)
