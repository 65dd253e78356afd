"""Text classification: one class for a text, or for a pair of texts."""

from hfexp.tasks.classification import Classification
from hfexp.tasks.texts import TextPairs, Texts


class TextClassification(Texts, Classification):
    """Classification on the columns `text` and `label`; `transform` must tokenise."""


class TextPairClassification(TextPairs, Classification):
    """Classification on the columns `text`, `text_pair` and `label`, e.g. of a premise and a hypothesis."""
