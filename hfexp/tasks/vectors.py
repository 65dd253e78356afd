"""Vectors of texts: pooled from a model's hidden states, compared by their cosine, and the losses that train them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hfexp.core.collective import gather_rows
from hfexp.core.errors import ConfigError
from hfexp.tasks.entities import IGNORED

POOLING_FIELDS = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
"""Ways to make one vector of a text's hidden states, by the end of their name in the config of a saved `Pooling`."""
OF_ROWS = ("CosineSimilarityLoss", "TripletLoss")
"""Losses that are means over rows, each by itself; the others compare the rows of a batch with each other."""
ROWS_AT_ONCE = 1024
"""Texts whose similarities with all documents are in memory together."""


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return a vector for each text, (B, D) float32, as `sentence_transformers`' module `Pooling` does.

    Args:
        hidden: (B, T, D); `mask`: (B, T), 1 for tokens and then 0 for padding.
    """
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def embed(model: Any, ids: torch.Tensor, mask: torch.Tensor, pooling: str, normalize: bool) -> torch.Tensor:
    """Return the vectors of all texts, (B, K, D) float32; each of the K columns goes through the model by itself.

    Args:
        ids: (B, K, T); `mask`: (B, K, T). A column is cut to its own longest text.
    """
    columns = []
    for place in range(ids.shape[1]):
        length = ids.shape[2] if ids.is_meta else int(mask[:, place].sum(1).max())
        part = mask[:, place, :length]
        hidden = model(input_ids=ids[:, place, :length], attention_mask=part)["last_hidden_state"]
        columns.append(pool(hidden, part, pooling))
    vectors = torch.stack(columns, 1)
    return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors


def build_loss(name: str, options: Mapping[str, Any]) -> Any:
    """Build a loss of `sentence_transformers.losses` that takes vectors.

    Raises:
        ConfigError: the package is missing, or the loss has no such option.
    """
    try:
        from sentence_transformers.sentence_transformer import losses
    except ImportError as error:
        raise ConfigError(f"task.loss={name} needs a package: pip install 'hfexp[sentence-transformers]'") from error
    options, metric = dict(options), options.get("distance_metric")
    if isinstance(metric, str):
        options["distance_metric"] = getattr(losses.TripletDistanceMetric, metric.upper(), metric)
    try:
        return getattr(losses, name)(None, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"task.loss_options: {name} does not take them: {error}") from error


def batch_loss(criterion: Any, name: str, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of vectors (B, K, D), a scalar.

    A loss that compares the rows of a batch gets those of all processes, and is the same in each of them.

    Args:
        labels: (B,) or (B, ...); a row whose labels are IGNORED only fills up the batch of a process.
    """
    if name not in OF_ROWS:
        vectors, labels = gather_rows(vectors)[0], gather_rows(labels)[0]
        if not labels.is_meta:
            real = (labels.view(len(labels), -1) != IGNORED).any(1)
            vectors, labels = vectors[real], labels[real]
    return criterion.compute_loss_from_embeddings(list(vectors.unbind(1)), labels)


def document_id(tokens: Sequence[int]) -> int:
    """Return a number (56 bits) for a text's tokens, by which equal texts are known to be one document."""
    return int.from_bytes(hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=7).digest(), "big")


def ranks(vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the rank of each row's own document among those of all rows, by cosine similarity, (N,) int64 from 1.

    Other documents that are as near as the own one come before it, so that equal vectors earn nothing.

    Args:
        vectors: (N, K, D) of the query, its own document, and further ones.
        ids: `document_id` (N, K - 1); documents with one id count once.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    documents, own = unit[:, 1:].reshape(-1, vectors.shape[-1])[first], place.reshape(ids.shape)[:, 0]
    found = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        scores = unit[part, 0] @ documents.T
        found[part] = (scores >= np.take_along_axis(scores, own[part, None], 1)).sum(1)
    return found


def cosine(vectors: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of the two vectors of each row, (N,) float32.

    Args:
        vectors: (N, 2, D).
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return (unit[:, 0] * unit[:, 1]).sum(-1)


def modules(width: int, pooling: str, normalize: bool, max_length: int) -> dict[str, Any]:
    """Return the files that let `sentence_transformers.SentenceTransformer` load a saved model, by path."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    pooled = {f"pooling_mode_{field}": name == pooling for name, field in POOLING_FIELDS.items()}
    return {
        "modules.json": listed,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **pooled},
        "sentence_bert_config.json": {"max_seq_length": max_length},
    }
