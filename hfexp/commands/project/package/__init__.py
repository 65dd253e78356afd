"""Own parts of the experiments: data, model, transform, metric, callback and task."""
