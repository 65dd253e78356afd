"""The model: any `torch.nn.Module` whose `forward` returns `logits`, and the `loss` if it gets `labels`."""

import itertools

import torch
from torch import nn


class SmallCnn(nn.Module):
    """Three convolutions and a linear layer; hfexp passes `id2label` because it is a parameter."""

    main_input_name = "pixel_values"

    def __init__(self, width: int, id2label: dict[int, str]) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        layers = [
            layer
            for before, after in itertools.pairwise(sizes)
            for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1] * 4 * 4, len(id2label))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.body(pixel_values).flatten(1))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}
