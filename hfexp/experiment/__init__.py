"""One run, in the order in which its data flows: preflight, fit, record, result."""
