"""Forward passes of a trained model over labelled rows, as in the Trainer's evaluation."""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from hfexp.core.config import DatasetConfig
from hfexp.data import streaming
from hfexp.inference.predictor import Predictor, as_weights
from hfexp.tasks.base import main_output


def evaluated(
    predictor: Predictor, rows: Dataset, config: DatasetConfig, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, batch by batch, what the Trainer's evaluation passes to `Task.metric_inputs`.

    Yields:
        The model's reduced outputs, (B, ...), and the labels, (B,) or (B, num_labels); zeros (B,) if they are tokens.
    """
    splits = streaming.process(
        DatasetDict({"test": rows}), predictor.task, predictor.processor, predictor.transforms, 0, config
    )
    processed, was_training = splits["test"], predictor.model.training
    predictor.model.eval()
    try:
        for start in range(0, len(processed), batch_size):
            batch = predictor.collate(
                processed.__getitems__(list(range(start, min(start + batch_size, len(processed)))))
            )
            labels = batch["labels"]
            weights = next(predictor.model.parameters())
            with torch.inference_mode():
                inputs = {name: as_weights(tensor, weights) for name, tensor in batch.items() if name != "labels"}
                outputs = main_output(predictor.model(**inputs))
                scores = predictor.task.preprocess_logits(outputs, labels.to(weights.device))
            of_rows = labels.ndim == 1 or labels.is_floating_point()
            plain = labels.numpy() if of_rows else np.zeros(len(labels))
            yield scores.cpu().numpy(), plain
    finally:
        predictor.model.train(was_training)
