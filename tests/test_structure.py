"""The shape of the code: imports run one way, and the pipeline knows no task by name."""

import ast
from pathlib import Path

import hfexp

PACKAGE = Path(hfexp.__file__).parent

LAYERS = [
    ["hfexp.__main__"],
    ["hfexp.cli", "hfexp.api"],
    ["hfexp.planning.command", "hfexp.loaded_run", "hfexp.cache_command"],
    ["hfexp.predicting.evaluation"],
    ["hfexp.predicting.command", "hfexp.predicting.scored"],
    [
        "hfexp.predicting.models",
        "hfexp.predicting.inputs",
        "hfexp.predicting.answers",
        "hfexp.predicting.evaluated",
        "hfexp.predicting.scores",
        "hfexp.predicting.evaluation_settings",
    ],
    ["hfexp.hydra_app", "hfexp.planning.probes", "hfexp.planning.show"],
    ["hfexp.planning.measure", "hfexp.launch.plugin"],
    ["hfexp.planning.jobs", "hfexp.planning.planner", "hfexp.planning.estimate"],
    ["hfexp.sweep.sweeper"],
    ["hfexp.sweep.direct"],
    ["hfexp.sweep.schedule", "hfexp.launch.batches"],
    ["hfexp.launch.local", "hfexp.launch.pool", "hfexp.launch.warm"],
    ["hfexp.sweep.ledger"],
    ["hfexp.sweep.owner", "hfexp.sweep.outcome", "hfexp.sweep.study", "hfexp.sweep.samplers", "hfexp.sweep.summary"],
    ["hfexp.sweep.request"],
    ["hfexp.sweep.definition"],
    ["hfexp.sweep.objective", "hfexp.sweep.space"],
    ["hfexp.sweep.dimension"],
    ["hfexp.launch.board"],
    ["hfexp.ui", "hfexp.sync", "hfexp.compare", "hfexp.sweep.parent"],
    ["hfexp.sweep.report"],
    ["hfexp.sweep.plots"],
    ["hfexp.sweep.point"],
    ["hfexp.experiment"],
    ["hfexp.together"],
    ["hfexp.work"],
    ["hfexp.concluding"],
    ["hfexp.progress"],
    ["hfexp.recording"],
    ["hfexp.verifying"],
    ["hfexp.preflight", "hfexp.serving"],
    ["hfexp.launch.stop", "hfexp.chosen"],
    ["hfexp.training", "hfexp.profiling", "hfexp.checks", "hfexp.inference", "hfexp.reporting.report"],
    ["hfexp.reporting.sections"],
    ["hfexp.reporting.page"],
    ["hfexp.reporting.pictures", "hfexp.reporting.confusion", "hfexp.reporting.samples"],
    ["hfexp.stream_training"],
    ["hfexp.streaming"],
    ["hfexp.packing"],
    [
        "hfexp.data",
        "hfexp.processing",
        "hfexp.metrics",
        "hfexp.scoring",
        "hfexp.tracking.run",
        "hfexp.tracking.system",
    ],
    ["hfexp.stream_splits", "hfexp.preparing", "hfexp.tracking.lineage"],
    ["hfexp.launch.relay"],
    ["hfexp.tracking.tracker", "hfexp.records"],
    ["hfexp.tracking.recovery", "hfexp.tracking.writer"],
    ["hfexp.tracking.delivery"],
    ["hfexp.tracking.linked", "hfexp.tracking.nesting", "hfexp.sweep.curves"],
    ["hfexp.tracking.delivered"],
    ["hfexp.streams", "hfexp.processor", "hfexp.labels", "hfexp.sources"],
    ["hfexp.tables"],
    ["hfexp.csv_dataset"],
    ["hfexp.csv_files"],
    [
        "hfexp.image_folders",
        "hfexp.model",
        "hfexp.tracking.store",
        "hfexp.raw_images",
        "hfexp.cache",
        "hfexp.tasks.image_classification",
        "hfexp.tasks.text_classification",
        "hfexp.tasks.multi_label",
        "hfexp.tasks.text_regression",
        "hfexp.tasks.text_generation",
        "hfexp.run_directory",
    ],
    ["hfexp.launch.workers"],
    ["hfexp.language"],
    ["hfexp.environment", "hfexp.tracking.journal", "hfexp.transforms", "hfexp.decoding", "hfexp.launch.failures"],
    [
        "hfexp.head",
        "hfexp.tasks.classification",
        "hfexp.tasks.texts",
        "hfexp.tokenizer",
        "hfexp.images",
        "hfexp.text",
        "hfexp.checkpoints",
        "hfexp.sampling",
        "hfexp.reporting.classes",
        "hfexp.reporting.canvas",
        "hfexp.reporting.facts",
        "hfexp.tracking.models",
        "hfexp.model_card",
        "hfexp.reporting",
        "hfexp.quiet",
        "hfexp.timing",
        "hfexp.weighting",
        "hfexp.divergence",
        "hfexp.arrays",
        "hfexp.folder_metadata",
        "hfexp.digest",
        "hfexp.row_arrays",
        "hfexp.threads",
        "hfexp.launch.jobs",
        "hfexp.identity",
        "hfexp.sweep.watch",
        "hfexp.sweep.table",
        "hfexp.planning.stopwatch",
        "hfexp.planning.measurement",
        "hfexp.planning",
    ],
    ["hfexp.choices"],
    [
        "hfexp.sweep.storage",
        "hfexp.tasks.base",
        "hfexp.adapters",
        "hfexp.geometry",
        "hfexp.batch_norm",
        "hfexp.launch.world",
        "hfexp.launch.rendezvous",
    ],
    ["hfexp.markdown"],
    ["hfexp.screen", "hfexp.composition", "hfexp.tasks", "hfexp.tracking"],
    ["hfexp.literal_words"],
    ["hfexp.targets", "hfexp.hub", "hfexp.pretrained", "hfexp.config", "hfexp.signals", "hfexp.sweep.pruners"],
    ["hfexp.origin", "hfexp.git"],
    ["hfexp.secrets"],
    ["hfexp.habits", "hfexp.foreign_settings", "hfexp.own_options", "hfexp.sqlite_address"],
    ["hfexp.arguments"],
    ["hfexp.launch.slots", "hfexp.launch.watch", "hfexp.launch.place"],
    [
        "hfexp.cells",
        "hfexp.split_names",
        "hfexp.sweep.values",
        "hfexp.sweep.ranking",
        "hfexp.sweep.scales",
        "hfexp.predicting.settings",
    ],
    ["hfexp.image_files", "hfexp.image_memory"],
    [
        "hfexp.secret_names",
        "hfexp.secret_shapes",
        "hfexp.directions",
        "hfexp.idle_threads",
        "hfexp.machine",
        "hfexp.memory",
        "hfexp.html",
        "hfexp.stamp",
        "hfexp.launch",
        "hfexp.launch.forkserver",
        "hfexp.run_state",
        "hfexp.docstrings",
        "hfexp.launch.reports",
        "hfexp.predicting",
        "hfexp.sweep.membership",
    ],
    ["hfexp.outside"],
    ["hfexp.input_files", "hfexp.bounded_yaml", "hfexp.locks", "hfexp.whole_files"],
    ["hfexp.errors", "hfexp.process", "hfexp"],
    ["hfexp.sweep", "hfexp.sweep.settings", "hfexp.sweep.statistics", "hfexp.sweep.trials"],
]
"""From the shell down; a module imports only from layers below its own."""

DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = [*path.relative_to(PACKAGE.parent).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> set[str]:
    """Own modules that are imported when the module itself is (not inside functions or for type checking)."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hfexp"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if name in DEPTH} or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("hfexp")}
    return names


def test_imports_run_one_way() -> None:
    trees = modules()
    assert set(trees) == set(DEPTH)
    for module, tree in trees.items():
        upward = {name for name in imported(tree) if DEPTH[name] <= DEPTH[module]}
        assert not upward, f"{module} imports {upward}"


def test_no_task_is_known_by_name_outside_its_file() -> None:
    for module, tree in modules().items():
        if module.startswith("hfexp.tasks."):
            continue
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not any("image_classification" in word for word in words), module


def test_functions_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
