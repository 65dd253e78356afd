"""One training step with the libraries that hfexp stands on and nothing else, as fast as a script can get there.

Run by `benchmarks.startup`: the same digits, model and settings as hfexp's own run of one step. With the address of an
MLflow store as its argument, it first creates the run there that it would record in. With `--whole`, for
`benchmarks.small_jobs`, it does what `debug=fast` does and no more: two steps, an evaluation, one of the saved model
on both other splits, and `save_pretrained`.
"""

import sys
import warnings

import hydra  # noqa: F401
import mlflow.tracking
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from sklearn.datasets import load_digits
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    default_data_collator,
)

from benchmarks.steps import FirstStep

PATCH, WIDTH, LAYERS, HEADS, INTERMEDIATE = 2, 64, 4, 4, 128
"""Of conf/model/vit_digits.yaml."""


def main() -> None:
    """Print the time of day when the first step has ended."""
    warnings.simplefilter("ignore")
    whole = "--whole" in sys.argv
    for uri in sys.argv[1:]:
        if not uri.startswith("--"):
            mlflow.tracking.MlflowClient(uri).create_run("0")
    dataset = load()
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def transform(rows: dict) -> dict:
        images = [image.convert("RGB") for image in rows["image"]]
        return {**processor(images, return_tensors="pt"), "labels": torch.tensor(rows["label"])}

    config = ViTConfig(
        image_size=8,
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        initializer_range=0.1,
        id2label={i: str(i) for i in range(10)},
    )
    args = TrainingArguments(
        output_dir="bare",
        max_steps=2 if whole else 1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.05,
        warmup_steps=0.1,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
    )
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=args,
        data_collator=default_data_collator,
        train_dataset=dataset.with_transform(transform),
        processing_class=processor,
        callbacks=[FirstStep()],
    )
    trainer.train()
    if whole:
        for start in (32, 32, 64):
            trainer.evaluate(dataset.with_transform(transform).select(range(start, start + 32)))
        trainer.save_model("bare/model")


def load() -> Dataset:
    """The digits as images, as in `hfexp.data.sources.digits`."""
    import PIL.Image

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    labels = bunch.target.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    images = [PIL.Image.fromarray(image) for image in pixels]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


if __name__ == "__main__":
    main()
