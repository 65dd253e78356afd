"""What everything stands on: configuration, errors, the console, targets, this machine."""

__version__ = "0.2.0"
