"""Lists all that one run of the main job leaves in its record, as docs/record.md: `python -m benchmarks.record`."""

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "record.md"
MACHINE = (
    "hfexp.device",
    "hfexp.host",
    "hfexp.pid",
    "hfexp.platform",
    "hfexp.process",
    "hfexp.run_key",
    "mlflow.user",
)
"""Tags whose values are nobody else's business."""
Sections = dict[str, dict[str, str]]

HEAD = """# What hfexp records

Everything that one run of `hfexp experiment=digits_vit` leaves in MLflow and in its directory, listed from a real run
by `python -m benchmarks.record`; a test compares the names with those of a fresh run. Values are that run's.
"""

NOTES = {
    "Params": "The whole resolved configuration, flattened with dots, and the sizes of data and model.",
    "Metrics": "With the number of recorded points and the last value. `system/...` is the load of this job's own "
    "processes and devices; its step is the run's age in seconds. Text tasks add `tokens_per_second`, accelerators "
    "`peak_gpu_<i>_memory_mb` and `system/gpu_<i>_...`.",
    "Tags": "What runs are found and compared by. Runs in a git repository add `hfexp.git_sha`, `hfexp.git_branch`, "
    "`hfexp.git_dirty`; an interrupted one `hfexp.status_reason`; one that was continued `hfexp.resumed`; one whose "
    "memory ran out `hfexp.rows_at_once` and `hfexp.eval_rows_at_once`; pretrained models `hfexp.model_revision`; "
    "metrics of sacrebleu `hfexp.sacrebleu_NAME`.",
    "Inputs": "One dataset per split. The digest covers every row; the profile has the number of rows and of each "
    "class; the source is what loads it, with the commit if it comes from the Hub.",
    "Models": "The final model is an MLflow model (`models:/<id>` or `runs:/<run>/model`); checkpoints are linked by "
    "their step, not copied.",
    "Artifacts": "Pictures, tables and texts; `report.html` shows them all. With uncommitted changes there is "
    "`git.diff`, after a failure `traceback.txt`.",
    "Model files": "`model/` is what `from_pretrained` reads; the whole directory is what MLflow loads and serves.",
    "Run directory": "Files below `outputs/<experiment>/<run>/`, beside the artifacts and the model.",
}


def main() -> None:
    """Run the main job in a scratch directory and write the list."""
    from hfexp.commands import api

    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        result = api.train("experiment=digits_vit")
        sections = describe(str(result.tracking_uri), str(result.run_id), result.run_dir)
    TARGET.write_text(render(sections, place))
    print(f"wrote {TARGET}")


def describe(uri: str, run_id: str, run_dir: Path) -> Sections:
    """Names and values by section, read back from the store."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    history = {name: client.get_metric_history(run_id, name) for name in sorted(run.data.metrics)}
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    final = next(model for model in models if model.name == "model")
    location = Path(final.artifact_location.removeprefix("file://"))
    return {
        "Params": dict(sorted(run.data.params.items())),
        "Metrics": {name: f"{len(points)} points, last {points[-1].value:.4g}" for name, points in history.items()},
        "Tags": dict(sorted(run.data.tags.items())),
        "Inputs": {_context(item): _dataset(item.dataset) for item in run.inputs.dataset_inputs},  # pyright: ignore
        "Models": {re.sub(r"-\d+$", "-<step>", m.name): ", ".join(sorted(m.tags)) for m in reversed(models)},
        "Artifacts": {file.path: f"{file.file_size:,} bytes" for file in client.list_artifacts(run_id)
                      if not file.is_dir},
        "Model files": _files(location, skip=("code/",)) | {"code/hfexp/": "this package"},
        "Run directory": _files(run_dir, skip=("artifacts/", "model/", "mlflow_model/")),
    }  # fmt: skip


def _context(item: Any) -> str:
    return next(tag.value for tag in item.tags if tag.key == "mlflow.data.context")


def _dataset(dataset: Any) -> str:
    rows = json.loads(dataset.profile)["num_rows"]
    return f"{dataset.name}, digest {dataset.digest}, {rows} rows, source {dataset.source}"


def _files(root: Path, skip: tuple[str, ...]) -> dict[str, str]:
    names = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in names.items() if not name.startswith(skip)}
    return {re.sub(r"checkpoint-\d+", "checkpoint-<step>", n): f"{p.stat().st_size:,} bytes" for n, p in kept.items()}


def render(sections: Sections, place: str) -> str:
    """The page; what only says where the run was made is left out."""
    parts = [HEAD]
    for title, entries in sections.items():
        rows = "\n".join(
            f"| `{name}` | {'...' if name in MACHINE else _cell(value, place)} |" for name, value in entries.items()
        )
        parts.append(f"## {title} ({len(entries)})\n\n{NOTES[title]}\n\n| name | value |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _cell(value: str, place: str) -> str:
    text = value.replace(place, "").replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 120 else text[:117] + "..."


def names(page: str) -> dict[str, set[str]]:
    """Names by section, read from the page."""
    found: dict[str, set[str]] = {}
    for part in page.split("\n## ")[1:]:
        found[part.partition(" (")[0]] = set(re.findall(r"^\| `([^`]+)`", part, re.MULTILINE))
    return found


if __name__ == "__main__":
    main()
