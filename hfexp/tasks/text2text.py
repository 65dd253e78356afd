"""Text to text with encoder-decoder models: summaries, translations, and any other text that follows from a text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import DataError
from hfexp.core.training_args import lower_is_better
from hfexp.tasks.base import TEXT
from hfexp.tasks.language_model import LanguageModelling, TextWriting


class Text2Text(TextWriting, LanguageModelling):
    """Writing of the column `target` from the column `text`; `transform` encodes both (`seq2seq.EncodePair`)."""

    model_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    columns: ClassVar[tuple[str, ...]] = ("text", "target")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "text": ("source", "src", "document", "article", "dialogue", "input"),
        "target": ("tgt", "summary", "highlights", "abstract", "translation", "output"),
    }  # fmt: skip
    label_column: ClassVar[str | None] = "target"
    label_kind: ClassVar[str] = TEXT

    def __init__(
        self,
        metric: str = "rougeL",
        prefix: str = "",
        source_lang: str | None = None,
        target_lang: str | None = None,
        generation: Mapping[str, Any] | None = None,
        predict_with_generate: bool = True,
    ) -> None:
        """Set up the task.

        Args:
            metric: chooses the best model.
            prefix: what stands before each text, as T5 needs to know what to do with it.
            source_lang: language of the texts, for a tokenizer that knows several.
            target_lang: language of the targets.
            generation: fields of `transformers.GenerationConfig` that replace the model's own, in evaluations too.
            predict_with_generate: write texts in evaluations; false: only metrics of the loss can be computed.
        """
        self.metric, self.greater_is_better = metric, not lower_is_better(metric)  # pyright: ignore
        self.prefix, self.generates = prefix, predict_with_generate
        self.source_lang, self.target_lang = source_lang, target_lang
        self.set_generation(generation)

    def fit_processor(self, processor: Any) -> None:
        """Tell the tokenizer the languages."""
        from hfexp.tasks.seq2seq import set_languages

        set_languages(processor, self.source_lang, self.target_lang)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with the prefix before its text; raise DataError unless its columns hold texts."""
        for name in self.columns:
            if name in row and not isinstance(row[name], str):
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, expected a text")
            if name in row and not row[name].strip():
                raise DataError(f"column {name!r} holds an empty text")
        return {**row, "text": self.prefix + row["text"]}

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Return the encoded row as it is."""
        return row

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode text and target, special tokens included."""
        return f"{processor.decode(inputs['input_ids'])} -> {processor.decode(inputs['labels'])}"

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text into a row without a target."""
        return {"text": value}

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads texts and targets each to the longest of a batch."""
        from hfexp.tasks.seq2seq import PairCollator

        return PairCollator(processor)

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[str]:
        """Write a text for each row; `options` are fields of `transformers.GenerationConfig`."""
        from hfexp.tasks.seq2seq import write_texts

        return write_texts(model, batch, processor, {**self.generation, **options})

    def unlabelled(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs with those of the decoder, which the model itself makes by shifting the labels."""
        inputs = super().unlabelled(model, batch)
        return {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])}

    def generate(self, model: Any, batch: dict[str, Any], processor: Any) -> tuple[Any, ...]:
        """Return the texts that the model writes and those of the labels, as characters (B, L) int32 each."""
        from hfexp.tasks.seq2seq import read_labels, to_characters

        written = self.respond(model, super().unlabelled(model, batch), processor, {})
        both = (written, read_labels(batch["labels"], processor))
        return tuple(to_characters(texts).to(batch["labels"].device) for texts in both)

    def metric_inputs(self, predictions: Any, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return `nll`, `tokens` and `correct` of each row, and the texts `predictions` and `references`: (N,)."""
        from hfexp.tasks.seq2seq import to_texts

        if not self.generates:
            return super().metric_inputs(predictions, references)
        scores, written, truth = predictions
        counts = super().metric_inputs(scores, references)
        return {**counts, "predictions": to_texts(written), "references": to_texts(truth)}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[Any, np.ndarray]:
        """Make scores of two rows, and their texts."""
        from hfexp.tasks.seq2seq import to_characters

        scores, references = super().fake_predictions(id2label)
        texts = to_characters(["one two three four five"] * len(scores)).numpy()
        return (scores, texts, texts) if self.generates else scores, references
