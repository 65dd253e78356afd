"""Tensors of all processes of a run."""

from typing import Any

# Rows that each process has some of.


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


# Tensors of which each process holds a part (torch's `DTensor`).


def whole(tensor: Any) -> Any:
    """Gather a tensor from its parts, in the first process's memory outside of its device; return others unchanged.

    All processes must call this. Each holds the whole tensor for a moment; all but the first then return None.
    """
    import torch
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.detach().full_tensor()  # pyright: ignore
    return gathered.cpu() if torch.distributed.get_rank() == 0 else None


def part_of(tensor: Any, like: Any) -> Any:
    """Return this process's part of a whole tensor, divided as `like` is; the tensor itself if that is not divided."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    # Each process has the whole tensor, so that none has to send its part to another one.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Any) -> Any:
    """Return the memory of the part that this process holds of a tensor, or the tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()  # pyright: ignore
