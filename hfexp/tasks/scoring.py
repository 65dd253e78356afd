"""A set of metrics, computed together from the arrays that a task provides."""

from typing import Any

import evaluate
import numpy as np

from hfexp.core.errors import ConfigError, RunError, one_of


class MetricSet:
    """Computes several metrics from the arrays that a task provides."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        """`metrics`: `evaluate` modules by their name in the config."""
        self.metrics = metrics

    def compute(self, offered: dict[str, np.ndarray]) -> dict[str, Any]:
        """Compute all values by name, arrays (confusion matrix) included.

        Raises:
            ConfigError: a metric needs an input that the task does not provide, or two metrics share a name.
            RunError: an input has values that are not finite, so that every metric would be meaningless.
        """
        for name, values in offered.items():
            _require_finite(name, np.asarray(values))
        result: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            features = metric.features if isinstance(metric.features, list) else [metric.features]
            needed = next((list(f) for f in features if set(f) <= set(offered)), None)
            if needed is None:
                raise ConfigError(f"metrics.{name} needs {one_of(features[0])}; the task offers {one_of(offered)}")
            values = metric.compute(**{key: offered[key] for key in needed}) or {}
            taken = sorted(values.keys() & result.keys())
            if taken:
                raise ConfigError(
                    f"metrics.{name} gives {taken[0]!r}, which another metric gives too; remove one of them"
                )
            result |= values
        return result

    def scalars(self, offered: dict[str, np.ndarray]) -> dict[str, float]:
        """Compute the metrics and return those that are single numbers."""
        values = self.compute(offered)
        return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}


def _require_finite(name: str, values: np.ndarray) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    bad = [row for row, value in enumerate(values) if not np.isfinite(value).all()]
    raise RunError(
        f"the model's {name} are not finite numbers for {len(bad)} of {len(values)} rows, the first of them row "
        f"{bad[0]}: the model has diverged, or the row holds such a number"
    )


def build_metrics(nodes: dict[str, Any], allowed: list[str]) -> MetricSet:
    """Build the modules of the `metrics` section.

    Raises:
        ConfigError: a module does not exist, or can't be fetched.
    """
    from hfexp.core.hub import HubUnreachable, explain_hub_errors
    from hfexp.core.targets import instantiate

    metrics = {}
    for name, node in nodes.items():
        if node is None:
            continue
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(f"metrics.{name} must be a mapping with a _target_, got {node!r}")
        try:
            with explain_hub_errors("metric", str(node.get("path", name))):
                metrics[name] = instantiate(node, f"metrics.{name}", allowed)
        except (ConfigError, HubUnreachable):
            raise
        except Exception as error:
            raise ConfigError(f"metrics.{name} can't be built: {error.__cause__ or error}") from error
        if not isinstance(metrics[name], evaluate.EvaluationModule):
            raise ConfigError(f"metrics.{name}: {node['_target_']} is not an evaluate.EvaluationModule")
    return MetricSet(metrics)
