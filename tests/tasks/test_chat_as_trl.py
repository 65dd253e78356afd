"""Conversations: a training with hfexp is that of TRL's `SFTTrainer`."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import SMALL_TABLES
from test_preferences import ALL_ROWS, CHAT, history, losses, rows, write_place

from hfexp import train


def conversations(numbers: range) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows(CHAT, numbers)]


def test_a_chat_is_learnt_as_by_trl(place: Path) -> None:
    trl = pytest.importorskip("trl")
    import datasets

    write_place(CHAT, "chat")
    for name, numbers in (("train", range(24)), ("validation", range(24, 37)), ("test", range(40, 53))):
        lines = [{"messages": row["prompt"] + row["completion"]} for row in conversations(numbers)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ours = train(*SMALL_TABLES, "task=chat", ALL_ROWS, "tracking=none", "trainer.args.load_best_model_at_end=false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained("start"),
            args=trl.SFTConfig(
                "theirs", num_train_epochs=3, per_device_train_batch_size=24, learning_rate=0.01, warmup_steps=0.1,
                logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, max_length=64,
                gradient_checkpointing=False, disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(conversations(range(24))),
            processing_class=transformers.AutoTokenizer.from_pretrained("start"),
        )  # fmt: skip
        trainer.train()
    found = losses(trainer.state.log_history)
    assert len(found) == 3
    assert losses(history(ours)) == pytest.approx(found, rel=1e-4)
