"""Tiny pretrained checkpoints of every image family that ships, made on the spot, and the comparison of weights."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16}
SQUARE = {"size": {"height": 16, "width": 16}}
FAMILIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "vit": ("ViT", VIT | {"patch_size": 8}, transformers.ViTImageProcessor(**SQUARE)),
    "deit": ("DeiT", VIT | {"patch_size": 8}, transformers.DeiTImageProcessor(**SQUARE, do_center_crop=False)),
    "swin": (
        "Swin",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2},
        transformers.ViTImageProcessor(**SQUARE),
    ),
    "dinov2": (
        "Dinov2",
        VIT | {"patch_size": 8},
        transformers.BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    ),
    "beit": ("Beit", VIT | {"patch_size": 8}, transformers.BeitImageProcessor(**SQUARE, do_center_crop=False)),
    "resnet": (
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
        transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    ),
    "convnext": (
        "ConvNext",
        {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
        transformers.ConvNextImageProcessor(size={"shortest_edge": 16}),
    ),
    "timm": ("TimmWrapper", {"architecture": "test_resnet"}, None),
}


def write_checkpoint(family: str, directory: Path, num_labels: int = 4) -> Path:
    """A pretrained checkpoint of a tiny model, with a head for other classes than the digits."""
    torch.manual_seed(0)
    name, sizes, processor = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**sizes, num_labels=num_labels)
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    model.save_pretrained(directory)
    if processor is not None:
        processor.save_pretrained(directory)
    else:  # timm describes its preprocessing inside config.json
        path = directory / "config.json"
        content = json.loads(path.read_text())
        content["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0,
                                     "interpolation": "bicubic"}  # fmt: skip
        path.write_text(json.dumps(content))
    return directory


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []
