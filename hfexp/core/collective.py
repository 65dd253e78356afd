"""Tensors of all processes of a run."""

from typing import Any


def gather_rows(rows: Any) -> tuple[Any, int]:
    """Return the rows (B, ...) of all processes in the order of their ranks, and how many come before this one's.

    Processes can have different numbers of rows. Gradients flow back to the process that a row came from.
    """
    import torch
    from torch.distributed import all_gather_object, get_rank, get_world_size, is_available, is_initialized
    from torch.distributed.nn.functional import all_gather

    if not (is_available() and is_initialized()) or rows.is_meta:
        return rows, 0
    sizes: list[int] = [0] * get_world_size()
    all_gather_object(sizes, len(rows))
    largest, before = max(sizes), sum(sizes[: get_rank()])
    # all_gather needs equal shapes.
    filled = torch.cat([rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])])
    return torch.cat([part[:size] for part, size in zip(all_gather(filled), sizes, strict=True)]), before
