"""One file per kind of problem; reached by `_target_`, never by a registry."""
