"""Text classification: a text, or two, in, one class out."""

from hfexp.tasks.classification import Classification
from hfexp.tasks.texts import TextPairs, Texts


class TextClassification(Texts, Classification):
    """Columns `text` and `label`; `transform` must tokenise."""


class TextPairClassification(TextPairs, Classification):
    """Columns `text`, `text_pair` and `label`, e.g. a premise and a hypothesis."""
