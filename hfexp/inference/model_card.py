"""The README.md of a trained model, as a Hugging Face model card; it states only what was measured or configured."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hfexp.core.console import code, plain, printable
from hfexp.core.secrets import mask_secrets
from hfexp.core.training_args import TIMINGS

SPLITS = {"final_eval_": "validation", "test_": "test"}
"""Prefixes of the reported metrics, and the split that each belongs to."""
MAX_LABELS = 30
"""Most classes that the introduction lists by name."""
SHOWN_PARAMS = (
    "model.path", "model.revision", "model.model_type", "model.config", "model.freeze", "model.peft",
    "model.quantization", "transform", "seed", "trainer.args.learning_rate", "trainer.args.num_train_epochs",
    "trainer.args.max_steps",
    "trainer.args.per_device_train_batch_size", "trainer.args.gradient_accumulation_steps", "trainer.args.optim",
    "trainer.args.weight_decay", "trainer.args.warmup_steps", "trainer.args.lr_scheduler_type",
    "trainer.args.label_smoothing_factor", "trainer.args.bf16", "trainer.args.fp16",
)  # fmt: skip
"""Params shown in the training table; a name includes everything below it."""


@dataclass
class CardFacts:
    """Measured or configured facts about a model."""

    name: str
    architecture: str
    """Class name of the model."""
    model_class: str
    processor_class: str
    """Names of the auto classes in `transformers`."""
    pipeline: str | None
    """Name of the Transformers pipeline."""
    num_parameters: int
    base_model: str | None
    """`model.path`; None without pretrained weights."""
    dataset: str
    """Name of the dataset for readers: a Hub id or the name of the dataset option."""
    hub_dataset: str | None
    """Id on the Hub, if the dataset comes from there."""
    rows: dict[str, int | None]
    """Number of rows per split; None for a streamed split."""
    labels: list[str]
    metrics: dict[str, float]
    """Metrics with a prefix from `SPLITS`: `final_eval_*` and `test_*`."""
    params: dict[str, Any]
    """The flattened config."""
    versions: dict[str, str]
    """Versions of Python and the libraries."""
    digests: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each split's data."""
    run_id: str | None = None
    command: str | None = None
    git_sha: str | None = None
    num_adapter: int | None = None
    """Number of weights in the adapter, if only an adapter was trained."""
    notes: list[str] = field(default_factory=list)
    """More sentences for the list of limits."""


def model_card(facts: CardFacts) -> str:
    """Return the whole file, YAML metadata and Markdown, with tokens and passwords masked."""
    sections = [
        f"# {plain(facts.name)}",
        _introduction(facts),
        "## Results\n\n" + _results(facts),
        "## Data\n\n" + _data(facts),
        "## How to use it\n\n" + _usage(facts),
        "## Training\n\n" + _training(facts),
        "## Limits\n\n" + "\n".join(f"* {text}" for text in _limits(facts)),
    ]
    return printable(mask_secrets(f"---\n{_metadata(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=facts.pipeline or "other",
            dataset_type=facts.hub_dataset or facts.dataset,
            dataset_name=facts.dataset,
            dataset_split=split,
            metric_type=name,
            metric_value=value,
        )
        for split, values in _scores(facts).items()
        for name, value in values.items()
    ]
    data = ModelCardData(
        library_name="peft" if facts.num_adapter else "transformers",
        pipeline_tag=facts.pipeline,
        base_model=hub_id(facts.base_model),
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        metrics=sorted({result.metric_type for result in results} - {"loss"}) or None,
        tags=["hfexp"],
        model_name=facts.name,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def hub_id(path: str | None) -> str | None:
    """Return the path if it is an id on the Hub, None if it is a local directory."""
    if path is None or path.startswith((".", "/", "~")) or path.count("/") > 1 or os.path.exists(path):
        return None
    return path


def _scores(facts: CardFacts) -> dict[str, dict[str, float]]:
    """Return the finite scores by split and metric; a split without any is left out."""
    scores: dict[str, dict[str, float]] = {}
    for prefix, split in SPLITS.items():
        for name, value in sorted(facts.metrics.items()):
            if name.startswith(prefix) and not name.endswith(TIMINGS) and math.isfinite(value):
                scores.setdefault(split, {})[name.removeprefix(prefix)] = float(value)
    return scores


def _introduction(facts: CardFacts) -> str:
    start = f"fine-tuned from {code(facts.base_model)}" if facts.base_model else "trained from random weights"
    adapter = f" of which {facts.num_adapter:,} are an adapter and the rest unchanged," if facts.num_adapter else ""
    text = (
        f"`{facts.architecture}` with {facts.num_parameters:,} parameters,{adapter} {start} on {plain(facts.dataset)}."
    )
    if not facts.labels:
        return text
    shown = ", ".join(map(code, facts.labels[:MAX_LABELS]))
    more = ", ..." if len(facts.labels) > MAX_LABELS else ""
    return f"{text} It distinguishes {len(facts.labels)} classes: {shown}{more}."


def _results(facts: CardFacts) -> str:
    scores = _scores(facts)
    if not scores:
        return "None were recorded."
    rows = [
        [plain(name), *(f"{values[name]:.4f}" if name in values else "" for values in scores.values())]
        for name in sorted({name for values in scores.values() for name in values})
    ]
    return _table(["metric", *scores], rows)


def _data(facts: CardFacts) -> str:
    rows = [
        [split, "streamed" if count is None else f"{count:,}", facts.digests.get(split, "")]
        for split, count in facts.rows.items()
    ]
    return _table(["split", "rows", "digest"], rows)


def _usage(facts: CardFacts) -> str:
    place = f"runs:/{facts.run_id}/model" if facts.run_id else "path/to/the/mlflow/model"
    return f"""In this directory, or a copy of it:

```python
{_loading(facts)}
processor = {facts.processor_class}.from_pretrained("path/to/this/directory")
```

From MLflow, with inputs processed exactly as in the evaluation above (as described in `hfexp.json`; a processor by
itself may resize or convert slightly differently):

```python
import mlflow

model = mlflow.pyfunc.load_model("{place}")
```

As a service: `mlflow models serve -m {place} --env-manager local`"""


def _loading(facts: CardFacts) -> str:
    """Return the lines of Python that load the model."""
    names = f"from transformers import {facts.model_class}, {facts.processor_class}"
    if facts.num_adapter is None:
        return f'{names}\n\nmodel = {facts.model_class}.from_pretrained("path/to/this/directory")'
    labels = f", num_labels={len(facts.labels)}" if facts.labels else ""
    base = f"{facts.model_class}.from_pretrained({str(facts.base_model)!r}{labels})"
    return f"""from peft import PeftModel
{names}

base = {base}
model = PeftModel.from_pretrained(base, "path/to/this/directory")"""


def _training(facts: CardFacts) -> str:
    shown = {
        name: value
        for name, value in facts.params.items()
        if value not in (None, [], {}) and any(name == p or name.startswith(f"{p}.") for p in SHOWN_PARAMS)
    }
    parts = [_table(["setting", "value"], [[code(name), plain(value)] for name, value in shown.items()])]
    if facts.command:
        parts.append(f"Command: {code(facts.command)}")
    if facts.git_sha:
        parts.append(f"Commit: `{facts.git_sha}`")
    if facts.run_id:
        parts.append(f"MLflow run: `{facts.run_id}`")
    parts.append("Made with " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    return "\n\n".join(parts)


def _limits(facts: CardFacts) -> Iterable[str]:
    yield "The results hold for the splits above; nothing was measured on other data, on robustness or on fairness."
    measured = _scores(facts)
    if "validation" in measured:
        yield "The best step and settings may have been chosen on the validation split: its results can be optimistic."
    if "test" not in measured:
        yield "There was no test split."
    if facts.base_model:
        yield "The base model's own card describes its training data and its licence."
    yield from facts.notes


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
