"""Names that columns often have in people's tables and on the Hub, by what they hold; capitals do not matter.

They are those of well-known datasets of the Hub: GLUE, IMDB, CoNLL-2003, SNLI, SWAG, RACE, SQuAD, CIFAR, and the
examples of TRL and sentence-transformers. A name that can mean several things (`title`, `pos_tags`) is in no list.
"""

TEXT = ("sentence", "content", "review", "document", "comment", "tweet", "message", "utterance", "body")
"""Names of a column of texts that stand alone."""
FIRST = (
    "sentence1", "sentence_1", "sentence_a", "premise", "question1", "question", "query", "text1", "text_a", "sent1",
)  # fmt: skip
"""Names of the first of two texts."""
SECOND = (
    "sentence2", "sentence_2", "sentence_b", "hypothesis", "question2", "sentence", "passage", "text2", "text_b",
    "sent2",
)  # fmt: skip
"""Names of the second of two texts."""
CLASS = ("labels", "class", "category", "target", "sentiment", "intent", "topic", "emotion")
"""Names of a column of classes."""
NUMBER = (
    "labels", "score", "rating", "stars", "value", "target", "similarity", "similarity_score", "relatedness_score",
)  # fmt: skip
"""Names of a column of numbers to predict."""
IMAGE = ("img", "picture", "photo", "file", "file_name", "filename", "path", "image_path", "file_path", "filepath")
"""Names of a column of images, or of their paths."""
ANSWERS = {
    "chosen": ("chosen_response", "accepted", "preferred"),
    "rejected": ("rejected_response", "dispreferred"),
    "prompt": ("question", "instruction"),
}
"""Names of a preferred answer, of one that is not, and of what both answer."""
