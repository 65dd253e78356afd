"""Text generation with causal language models: texts in blocks, or conversations whose replies are learnt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.language_model import LanguageModelling, TextWriting


class TextGeneration(TextWriting, LanguageModelling):
    """Text generation on the column `text`; `transform` must encode it (`hfexp.tasks.causal_lm.Encode`)."""

    model_class: ClassVar[str] = "AutoModelForCausalLM"
    streams: ClassVar[bool] = True

    def __init__(self, block_size: int | None = None, generation: Mapping[str, Any] | None = None) -> None:
        """Set up the task.

        Args:
            block_size: tokens per row when all texts are concatenated and cut; None: each text is a row.
            generation: fields of `transformers.GenerationConfig` that replace the model's own.
        """
        super().__init__(block_size)
        self.set_generation(generation)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its text is a string, or if it is a prompt; DataError otherwise."""
        if "prompt" not in row and not isinstance(row["text"], str):
            raise DataError(f"column 'text' holds {row['text']!r:.80}, expected a string")
        return row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels`: the tokens themselves, unless the transform has set them; a prompt gets none.

        A text that is a row of its own is truncated to the tokenizer's `model_max_length`.
        """
        if "prompt" in row:
            return {"input_ids": row["input_ids"]}
        if self.block_size is None:
            cut = (name for name in ("input_ids", "labels") if name in row)
            row = {**row, **{name: row[name][: processor.model_max_length] for name in cut}}
        return row if "labels" in row else {**row, "labels": list(row["input_ids"])}

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text to continue, or the messages of a conversation, into a row."""
        from hfexp.tasks.causal_lm import check_messages

        return {"prompt": value if isinstance(value, str) else check_messages(value)}

    def with_system(self, system: str, prompt: Any) -> Any:
        """Return messages: the system prompt, then the prompt in the role of the user."""
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest row of a batch."""
        from hfexp.tasks.causal_lm import LanguageCollator

        return LanguageCollator(processor)

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[str]:
        """Generate a reply to each prompt; return only the new text, without special tokens.

        Args:
            options: fields of `transformers.GenerationConfig`, and `on_text`, which is called with pieces of a reply.
        """
        import transformers

        settings = {**self.generation, **options}
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        new = settings.get("max_new_tokens", model.generation_config.max_new_tokens)
        if positions and new and new < positions:  # drop the oldest prompt tokens to make room
            batch = {name: tensor[:, new - positions :] for name, tensor in batch.items()}
        on_text = settings.pop("on_text", None)
        streamer = None
        beams = settings.get("num_beams", model.generation_config.num_beams) or 1
        if on_text is not None and beams == 1:
            streamer = transformers.TextStreamer(processor, skip_prompt=True, skip_special_tokens=True)
            streamer.on_finalized_text = lambda text, stream_end=False: on_text(text + "\n" * stream_end)
        fillers = {
            "pad_token_id": processor.eos_token_id if processor.pad_token_id is None else processor.pad_token_id
        }
        if model.generation_config.eos_token_id is None:
            fillers["eos_token_id"] = processor.eos_token_id
        if settings.get("stop_strings"):
            fillers["tokenizer"] = processor
        tokens = model.generate(**batch, **fillers, **settings, streamer=streamer)
        replies = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        if on_text is not None and streamer is None:  # a beam search has its reply only at the end
            on_text("".join(f"{reply}\n" for reply in replies))
        return replies

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce logits to the (B, 3) scores of `hfexp.tasks.causal_lm.token_scores`."""
        from hfexp.tasks.causal_lm import token_scores

        return token_scores(logits[0] if isinstance(logits, tuple) else logits, labels)


class ChatGeneration(TextGeneration):
    """Chat on the column `messages`, lists of `role` and `content`; the loss is on the assistant's messages."""

    columns: ClassVar[tuple[str, ...]] = ("messages",)
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"messages": ("conversation", "conversations", "chat")}

    def __init__(self, block_size: int | None = None, generation: Mapping[str, Any] | None = None) -> None:
        """Set up the task; `generation` has fields of `transformers.GenerationConfig` that replace the model's."""
        if block_size is not None:
            raise ConfigError(
                f"task.block_size={block_size}: conversations can't be cut into blocks, which would mix up their "
                "turns; set trainer.args.train_sampling_strategy=group_by_length for batches of similar lengths"
            )
        super().__init__(None, generation)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its messages are a conversation with a reply, or a prompt; DataError otherwise."""
        from hfexp.tasks.causal_lm import check_messages

        if "prompt" in row:
            return row
        messages = check_messages(row["messages"])
        if all(message["role"] != "assistant" for message in messages):
            raise DataError(f"the conversation has no message of the assistant: {messages!r:.80}")
        return {"messages": messages}

    def suits(self, processor: Any) -> bool:
        """Return True if the tokenizer has a chat template."""
        return bool(getattr(processor, "chat_template", None))

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a user's message, or the messages of a conversation, into a row."""
        return super().inference_row([{"role": "user", "content": value}] if isinstance(value, str) else value)

    def inference_example(self, row: dict[str, Any]) -> str | None:
        """Return the user's first message; None if there is none, or if it is not a text."""
        from hfexp.tasks.causal_lm import check_messages

        contents = [message["content"] for message in check_messages(row["messages"]) if message["role"] == "user"]
        return contents[0] if contents and isinstance(contents[0], str) else None
