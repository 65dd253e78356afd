"""Transforms: modules that take a row, a dictionary whose `image` is a uint8 tensor (C, H, W), and return one."""

from typing import Any

import torch


class Noise(torch.nn.Module):
    """Adds noise to every pixel; hfexp seeds torch for each row, so the noise is the same in every run of a seed."""

    def __init__(self, amount: int = 10) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        noise = torch.randint(-self.amount, self.amount + 1, row["image"].shape)
        return {**row, "image": (row["image"].int() + noise).clamp(0, 255).to(torch.uint8)}
