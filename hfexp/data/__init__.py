"""From a source to batches: splits, labels, caches, streams, sampling."""
