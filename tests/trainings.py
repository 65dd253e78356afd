"""Short trainings of tiny models of every architecture that ships, in one process or in several.

python trainings.py FILE [fsdp]     as one of several processes: all of `TOGETHER`, or all of `IN_PARTS` with the
                                    model in parts, with the results in FILE
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hfexp.core.config import LaunchConfig, Strategy
from hfexp.core.training_args import build_arguments
from hfexp.data.dataset import ProcessedDataset
from hfexp.training.model import _evaluate, share_statistics
from hfexp.training.sharding import sharding_fields
from hfexp.training.trainer import Trainer

ROWS, CLASSES, VOCABULARY = 54, 3, 40

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
CAUSAL = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BOTH = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 0, "forced_eos_token_id": None}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGE = {"image_size": 8, "patch_size": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**SMALL, **IMAGE},
    "dinov2": {**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, **IMAGE},
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
             "window_size": 2, "drop_path_rate": 0.0},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "timm_wrapper": {"architecture": "test_resnet"},
    "bert": {**TEXT, **NO_DROPOUT},
    "distilbert": {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "dim": 16, "n_layers": 1, "n_heads": 2,
                   "hidden_dim": 16, "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "modernbert": {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
                   "sep_token_id": 2, "global_attn_every_n_layers": 1, "attn_implementation": "eager"},
    "llama": CAUSAL,
    "qwen3": {**CAUSAL, "head_dim": 8},
    "gemma3_text": {**CAUSAL, "head_dim": 8, "sliding_window": 16},
    "t5": {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
           "dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0},
    "bart": BOTH,
    "marian": BOTH,
}  # fmt: skip
"""One layer of each architecture, without anything random."""
IMAGES, TEXTS, LANGUAGE = ("vit", "dinov2", "swin", "convnext", "resnet", "timm_wrapper"), (
    "bert", "distilbert", "modernbert",
), ("llama", "qwen3", "gemma3_text")  # fmt: skip
ENCODER_DECODERS = ("t5", "bart", "marian")
KINDS = ("single_label_classification", "multi_label_classification", "regression")
PER_TOKEN = ("tokens", "tags", "masked", "targets")
"""Kinds whose loss is a mean over tokens: each the next one, some with a class of their own, some to be guessed, or
those of another text."""
CASES = [
    *((name, KINDS[0]) for name in IMAGES),
    *((name, kind) for name in TEXTS for kind in KINDS),
    *((name, "tokens") for name in LANGUAGE),
    *((name, "tags") for name in TEXTS),
    *((name, "masked") for name in TEXTS),
    *((name, "targets") for name in ENCODER_DECODERS),
]
SHIPPED = {
    "vit_base": "vit", "vit_tiny": "vit", "vit_digits": "vit", "swin_tiny": "swin", "convnext_tiny": "convnext",
    "resnet50": "resnet", "dinov2_small": "dinov2", "timm": "timm_wrapper", "bert_base": "bert", "minilm": "bert",
    "minilm_packaged": "bert", "tiny_bert": "bert", "tiny_bert_subwords": "bert", "distilbert": "distilbert",
    "modernbert_base": "modernbert", "tiny_modernbert": "modernbert", "gemma_3_1b": "gemma3_text",
    "qwen3_0_6b": "qwen3", "smollm2_135m": "llama", "tiny_gpt": "llama", "t5_small": "t5", "tiny_t5": "t5",
    "tiny_t5_subwords": "t5", "bart_base": "bart", "opus_mt": "marian",
}  # fmt: skip
"""The architecture of each option of the group `model`."""

TOGETHER = [
    ("bert", KINDS[0], {"train_sampling_strategy": "random"}),
    ("bert", KINDS[2], {"train_sampling_strategy": "sequential"}),
    ("bert", KINDS[1], {"train_sampling_strategy": "group_by_length"}),
    ("llama", "tokens", {"train_sampling_strategy": "group_by_length"}),
    ("llama", "tokens", {"gradient_accumulation_steps": 2}),
    ("bert", "tags", {"gradient_accumulation_steps": 2}),
    ("bert", "masked", {"gradient_accumulation_steps": 2}),
    ("t5", "targets", {"gradient_accumulation_steps": 2}),
    ("vit", KINDS[0], {"gradient_accumulation_steps": 2}),
    ("resnet", KINDS[0], {"batch_norm": True, "num_rows": 56}),
]
"""Architecture, labels and settings of the trainings that are compared with those of one process."""

IN_PARTS = [
    *((name, KINDS[0], {}) for name in ("vit", "swin", "convnext", "timm_wrapper")),
    ("resnet", KINDS[0], {"batch_norm": True, "num_rows": 56}),
    *((name, kind, {}) for name in TEXTS for kind in ("tags", "masked")),
    *((name, "tokens", {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}) for name in LANGUAGE),
    ("bart", "targets", {"activation_checkpointing": True}),
    ("marian", "targets", {}),
    ("vit", KINDS[0], {"weight_decay": 0.1, "activation_checkpointing": True}),
]
"""The same for trainings in which each process has a part of the model."""


class Rows(ProcessedDataset):
    """Made-up rows of unequal lengths."""

    def __init__(self, architecture: str, kind: str, count: int = ROWS) -> None:
        draw = torch.Generator().manual_seed(3)
        self.seed = None
        labels: dict[str, Any] = {
            KINDS[0]: torch.randint(CLASSES, (count,), generator=draw),
            KINDS[1]: torch.randint(2, (count, CLASSES), generator=draw).float(),
            KINDS[2]: torch.randn(count, generator=draw),
        }
        sizes = torch.randint(3, 20, (count,), generator=draw).tolist()
        self.made = []
        for row, size in enumerate(sizes):
            if architecture in IMAGES:
                side = 32 if architecture == "timm_wrapper" else CONFIGS[architecture].get("image_size", 16)
                inputs = {"pixel_values": torch.randn(3, side, side, generator=draw)}
            else:
                inputs = {"input_ids": torch.randint(3, VOCABULARY, (size,), generator=draw)}
            if kind in PER_TOKEN:
                own = inputs["input_ids"]
                classes = own if kind in ("tokens", "masked") else own % CLASSES
                truth = own if kind == "tokens" else torch.where(own % 3 > 0, classes, -100)
                truth = own.flip(0)[: 1 + size // 2] if kind == "targets" else truth
            else:
                truth = labels[kind][row]
            self.made.append({**inputs, "labels": truth})

    def __len__(self) -> int:
        return len(self.made)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [dict(self.made[key % len(self)]) for key in keys]

    def lengths(self, name: str) -> list[int]:
        return [len(row[name]) for row in self.made]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest row."""
    pad = nn.utils.rnn.pad_sequence
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        by_token = name == "input_ids" or (name == "labels" and values[0].ndim and values[0].dtype == torch.int64)
        filler = -100 if name == "labels" else 0
        batch[name] = pad(values, batch_first=True, padding_value=filler) if by_token else torch.stack(values)
    if "input_ids" in batch:
        batch["attention_mask"] = (batch["input_ids"] != 0).long()
    return batch


def build(architecture: str, kind: str, batch_norm: bool) -> Any:
    """A model, always with the same weights; without batch normalisation, which looks at single batches."""
    config = transformers.AutoConfig.for_model(architecture, **CONFIGS[architecture])
    if kind == "tags":
        config.num_labels = CLASSES
    elif kind not in ("tokens", "masked", "targets"):
        config.num_labels, config.problem_type = 1 if kind == KINDS[2] else CLASSES, kind
    classes = {"tokens": transformers.AutoModelForCausalLM, KINDS[0]: transformers.AutoModelForImageClassification}
    texts = transformers.AutoModelForSequenceClassification
    auto_class = classes.get(kind, texts) if architecture not in TEXTS else texts
    own = {"tags": transformers.AutoModelForTokenClassification, "masked": transformers.AutoModelForMaskedLM}
    own["targets"] = transformers.AutoModelForSeq2SeqLM
    auto_class = own.get(kind, auto_class)
    torch.manual_seed(0)
    model = auto_class.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not batch_norm:
            module.register_forward_pre_hook(_evaluate)
    return model


def make_trainer(
    architecture: str,
    kind: str,
    size: int,
    place: Path,
    gradient_accumulation_steps: int = 1,
    batch_norm: bool = False,
    num_rows: int = ROWS,
    sharding: dict[str, Any] | None = None,
    **args: Any,
) -> Trainer:
    """hfexp's Trainer of a small model for two short epochs."""
    model = build(architecture, kind, batch_norm)
    arguments = build_arguments(
        {
            "per_device_train_batch_size": size, "per_device_eval_batch_size": size, "num_train_epochs": 2,
            "gradient_accumulation_steps": gradient_accumulation_steps, "logging_steps": 1, "optim": "sgd",
            "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "save_strategy": "no",
            "use_cpu": True, **args,
        },
        output_dir=place, seed=1, run_name="check", metric="loss", greater_is_better=False,
        deterministic=False, loss_per_token=kind in PER_TOKEN, sharding=sharding,
    )  # fmt: skip
    if arguments.world_size > 1:
        arguments.ddp_find_unused_parameters = True
        share_statistics(model, on_accelerator=False)
    rows = Rows(architecture, kind, num_rows)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.loss_per_token = kind in PER_TOKEN
    return trainer


def train(architecture: str, kind: str, size: int, **settings: Any) -> dict[str, Any]:
    """Losses, norms of gradients, evaluation and final weights of a training."""
    with tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(architecture, kind, size, Path(place), **settings)
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        state = trainer.whole_weights()
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict() if state is None else state
        return {
            "loss": [entry["loss"] for entry in steps],
            "grad_norm": [entry["grad_norm"] for entry in steps],
            "eval_loss": trainer.evaluate()["eval_loss"],
            "weights": {name: value.double().tolist() for name, value in state.items()},
        }


def main(path: Path, fsdp: bool) -> None:
    """Train all of `TOGETHER`, or of `IN_PARTS`, among other processes."""
    size = 8 // int(os.environ["WORLD_SIZE"])
    more: dict[str, Any] = {"sharding": sharding_fields(LaunchConfig(Strategy.fsdp))} if fsdp else {}
    cases = IN_PARTS if fsdp else TOGETHER
    found = [train(architecture, kind, size, **settings, **more) for architecture, kind, settings in cases]
    if os.environ["RANK"] == "0":
        path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "fsdp" in sys.argv[2:])
