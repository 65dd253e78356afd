"""Names of files and folders that denote a split."""

import re

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that denote each split."""
SPLIT_ENDINGS = ("", "set", "split", "data", "images")
"""Endings that such a word may have, as in `trainset`."""
_SPLITS = {word + end: split for split, words in SPLIT_WORDS.items() for word in words for end in SPLIT_ENDINGS}


def split_called(name: str) -> str | None:
    """Return the split that a whole name denotes, or None; case, spaces, `-` and `_` do not count."""
    return _SPLITS.get(re.sub(r"[\s_-]+", "", name.lower()))
