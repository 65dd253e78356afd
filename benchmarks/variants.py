"""The same training in the ways that are compared: hfexp's words, the notebook's and the example script's Trainer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEAN = STD = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Shape:
    """A ViT and the size of its images."""

    size: int
    patch: int = 16
    width: int = 192
    layers: int = 6
    heads: int = 3
    intermediate: int = 768

    def settings(self) -> dict[str, Any]:
        """As `transformers.ViTConfig` names them."""
        return {
            "image_size": self.size,
            "patch_size": self.patch,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "initializer_range": 0.02,
        }

    def build(self, num_labels: int) -> Any:
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(ViTConfig(**self.settings(), id2label={i: str(i) for i in range(num_labels)}))

    def processor(self) -> Any:
        from transformers import ViTImageProcessor

        size = {"height": self.size, "width": self.size}
        return ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD)


@dataclass(frozen=True)
class Job:
    """What is trained on what, for how long."""

    shape: Shape
    data: Path
    """Folders `train/` and `validation/`."""
    epochs: int = 1
    batch: int = 16
    words: tuple[str, ...] = field(default=())
    """More words for hfexp."""


ALLOWED = "security.allowed_targets=[benchmarks]"


def hfexp_words(job: Job, *more: str) -> list[str]:
    """The job in the words of hfexp's command line; without evaluations and checkpoints meanwhile, as the others."""
    return [
        "dataset=imagefolder", f"dataset.source.data_dir={job.data}", "model=vit_digits", "transform=eval",
        *(f"model.config.{name}={value}" for name, value in job.shape.settings().items()),
        f"trainer.args.num_train_epochs={job.epochs}", f"trainer.args.per_device_train_batch_size={job.batch}",
        "trainer.args.gradient_accumulation_steps=1", "trainer.args.eval_strategy=no",
        "trainer.args.save_strategy=no", "trainer.args.load_best_model_at_end=false", "metrics=accuracy",
        "on_existing=rerun", ALLOWED, *job.words, *more,
    ]  # fmt: skip


def notebook(job: Job, *callbacks: Any) -> Any:
    """A Trainer as in the notebook that hfexp grew out of; accumulation, evaluation and saving as in every variant."""
    from transformers import DefaultDataCollator

    processor = job.shape.processor()
    dataset = _load(job)
    return _trainer(
        job, dataset.with_transform(_NotebookTransform(processor)), processor, DefaultDataCollator(), callbacks
    )


def script(job: Job, *callbacks: Any) -> Any:
    """A Trainer as in Transformers' examples/pytorch/image-classification/run_image_classification.py.

    Its random crop and flip would be further work: training rows get what the script gives validation rows.
    """
    processor = job.shape.processor()
    dataset = _load(job)
    dataset.set_transform(_ScriptTransform(processor))
    return _trainer(job, dataset, processor, _stack, callbacks)


def _load(job: Job) -> Any:
    import datasets

    return datasets.load_dataset("imagefolder", data_dir=str(job.data))["train"]


class _NotebookTransform:
    def __init__(self, processor: Any) -> None:
        from torchvision.transforms import Compose, Normalize, Resize, ToTensor

        size = (processor.size["height"], processor.size["width"])
        normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
        self.transforms = Compose([Resize(size), ToTensor(), normalize])

    def __call__(self, examples: dict[str, Any]) -> dict[str, Any]:
        examples["pixel_values"] = [self.transforms(image.convert("RGB")) for image in examples["image"]]
        del examples["image"]
        return examples


class _ScriptTransform:
    def __init__(self, processor: Any) -> None:
        from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

        size = (processor.size["height"], processor.size["width"])
        normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
        self.transforms = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])

    def __call__(self, examples: dict[str, Any]) -> dict[str, Any]:
        examples["pixel_values"] = [self.transforms(image.convert("RGB")) for image in examples["image"]]
        return examples


def _stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    images = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": images, "labels": torch.tensor([example["label"] for example in examples])}


def _trainer(job: Job, dataset: Any, processor: Any, collator: Any, callbacks: tuple[Any, ...]) -> Any:
    import transformers

    args = transformers.TrainingArguments(
        output_dir="peer",
        remove_unused_columns=False,
        learning_rate=5e-5,
        per_device_train_batch_size=job.batch,
        num_train_epochs=job.epochs,
        warmup_steps=0.1,
        logging_steps=10,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return transformers.Trainer(
        model=job.shape.build(len(dataset.features["label"].names)),
        args=args,
        data_collator=collator,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=list(callbacks),
    )
