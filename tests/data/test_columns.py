"""Columns under their usual names: of the Hub's well-known datasets, and of people's own tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images

from hfexp.commands import cli
from hfexp.core.config import DatasetConfig
from hfexp.core.errors import ConfigError
from hfexp.core.options import find_option, list_options
from hfexp.data.sources import image_table
from hfexp.data.splits import load_dataset
from hfexp.experiment.choices import task_class
from hfexp.tasks.base import Task
from hfexp.tasks.column_names import usual_columns
from hfexp.tasks.multiple_choice import MultipleChoice
from hfexp.tasks.question_answering import QuestionAnswering
from hfexp.tasks.text import subword_tokenizer
from hfexp.tasks.text_classification import MultiLabelTextClassification, TextClassification, TextPairClassification
from hfexp.tasks.token_classification import TokenClassification

ENDINGS = ["ending0", "ending1", "ending2", "ending3"]
KNOWN = [
    ("text_classification", "sentence label idx", {"text": "sentence"}),  # GLUE SST-2
    ("text_classification", "title content label", {"text": "content"}),  # DBpedia
    ("text_classification", "ID, Text ,Class", {"text": " Text ", "label": "Class"}),
    ("text_classification", "text sentence label", {}),
    ("text_pair_classification", "premise hypothesis label", {"text": "premise", "text_pair": "hypothesis"}),  # SNLI
    ("text_pair_classification", "question sentence label", {"text": "question", "text_pair": "sentence"}),  # QNLI
    ("text_pair_regression", "sentence1 sentence2 score",
     {"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
    ("embedding_similarity", "sentence1 sentence2 score",
     {"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
    ("multi_label_text_classification", "text labels", {"label": "labels"}),  # GoEmotions
    ("text_regression", "review stars", {"text": "review", "label": "stars"}),
    ("token_classification", "id tokens pos_tags chunk_tags ner_tags", {"words": "tokens", "tags": "ner_tags"}),
    ("question_answering", "id title context question answers", {}),  # SQuAD
    ("question_answering", "question passage answer answer_start",
     {"context": "passage", "answers": {"text": "answer", "answer_start": "answer_start"}}),
    ("multiple_choice", f"sent1 sent2 {' '.join(ENDINGS)} label",
     {"text": "sent1", "text_pair": "sent2", "choices": ENDINGS}),  # SWAG
    ("multiple_choice", "question choices answerKey", {"text": "question", "label": "answerKey"}),  # CommonsenseQA
    ("multiple_choice", "question A B C D answer",
     {"text": "question", "choices": ["A", "B", "C", "D"], "label": "answer"}),
    ("summarization", "article highlights id", {"text": "article", "target": "highlights"}),  # CNN/DailyMail
    ("image_classification", "img label", {"image": "img"}),  # CIFAR-10
    ("embedding", "query positive negative", {"anchor": "query"}),
    ("embedding", "question answer", {"anchor": "question", "positive": "answer"}),
    ("chat", "conversations", {"messages": "conversations"}),
    ("preference", "question chosen rejected", {"prompt": "question"}),
    ("reward", "prompt chosen rejected", {}),
    ("fill_mask", "content", {"text": "content"}),
    ("text_generation", "content", {"text": "content"}),
]  # fmt: skip


def task_called(name: str) -> Task:
    option = find_option("task", name)
    kind = task_class(option) if option else None
    assert kind is not None
    return kind.__new__(kind)


@pytest.mark.parametrize(("name", "columns", "expected"), KNOWN)
def test_columns_of_well_known_datasets_are_found(name: str, columns: str, expected: dict[str, Any]) -> None:
    own, task = columns.split("," if "," in columns else None), task_called(name)
    assert usual_columns(own, {}, task.all_columns, task, "dataset.columns") == expected


def test_every_task_knows_usual_names_of_its_own_columns() -> None:
    for option in list_options("task"):
        task = task_called(option.name)
        assert task.usual_names, option.name
        assert set(task.usual_names) <= {*task.all_columns, *task.inference_columns}, option.name
        assert not {n for names in task.usual_names.values() for n in names if n in task.all_columns}, option.name


@pytest.mark.parametrize(
    ("task", "own", "message"),
    [
        (TextClassification(), "sentence review label", "column 'sentence' and column 'review' could each be 'text'"),
        (TextClassification(), "Text TEXT label", "column 'Text' and column 'TEXT' could each be 'text'"),
        (MultipleChoice(), "text A B C D options answer", "'options' and columns 'A', 'B', 'C', 'D' could each be"),
    ],
)
def test_two_candidates_are_one_message(task: Task, own: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{message}.*: set dataset\.columns\.(text|choices)=NAME"):
        usual_columns(own.split(), {}, task.all_columns, task, "dataset.columns")


def test_a_column_that_the_user_names_is_no_candidate() -> None:
    task = TextPairClassification()
    own = ["question", "premise", "hypothesis", "label"]
    assert usual_columns(own, {"text": "question"}, task.all_columns, task, "x") == {"text_pair": "hypothesis"}


def load(task: Task, **rows: list[dict[str, Any]]) -> Any:
    for split, lines in rows.items():
        Path(f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {split: f"{split}.jsonl" for split in rows}
    return load_dataset(DatasetConfig(source={"_target_": "hfexp.data.sources.table", "data_files": files}), task)


def test_a_column_is_made_of_several_usual_ones_and_said_once(place: Path, capsys: Any) -> None:
    quiz = [{"question": "Who?", "A": "Ada", "B": "Bob", "C": None, "D": "Eve", "answer": "B"}] * 9
    found = load(MultipleChoice(), train=quiz, validation=quiz, test=quiz)
    assert found["test"][0] == {"text": "Who?", "text_pair": "", "choices": ["Ada", "Bob", "Eve"], "label": "B"}
    said = capsys.readouterr().err
    assert said.count("columns 'A', 'B', 'C', 'D' are read as 'choices'; dataset.columns.choices=NAME names") == 1
    asked = [{"query": "Who?", "passage": "Ada is.", "answer": "Ada", "answer_start": 0}] * 9
    found = load(QuestionAnswering(), train=asked)
    assert found["train"][0]["answers"] == {"text": "Ada", "answer_start": 0}


def test_paths_of_images_have_usual_names_too(place: Path, capsys: Any) -> None:
    write_images(Path("photos"), count=1)
    names = sorted(str(path) for path in Path("photos").rglob("*.*"))
    Path("rows.csv").write_text("File,label\n" + "".join(f"{name},a\n" for name in names))
    assert set(image_table("csv", "rows.csv")["train"].column_names) == {"image", "label"}
    assert "column 'File' is read as 'image'; dataset.source.image_column=NAME" in capsys.readouterr().err


def test_a_tokenizer_learns_from_the_texts_that_the_task_reads(place: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"Tokens": [["aaab", "aaab"]] * 9, "ner_tags": [["zzzz", "zzzz"]] * 9, "q": ["qqqq"] * 9})
    learnt = subword_tokenizer(rows, vocab_size=270, task=TokenClassification())
    other = subword_tokenizer(rows, vocab_size=270, task=TokenClassification(), columns={"words": "q"})
    merged = [{name for name in made.get_vocab() if len(name) > 1} for made in (learnt, other)]
    assert any("aa" in name for name in merged[0])
    assert not any("zz" in name or "qq" in name for name in merged[0])
    assert any("qq" in name for name in merged[1])


def test_what_seems_to_separate_classes_is_named(place: Path) -> None:
    rows = [{"text": "x", "labels": "price; speed"}, {"text": "y", "labels": ""}] * 9
    with pytest.raises(ConfigError, match=r"set task\.separator=';' if that is what separates 'price; speed'"):
        load(MultiLabelTextClassification(), train=rows)


def test_a_table_to_predict_on_may_have_the_names_of_the_training_data(place: Path, capsys: Any) -> None:
    Path("rows.csv").write_text("Satz,review,Ton\n" + "sun,-,a\nsnow,-,b\n" * 10)
    assert cli.main([
        "task=text_classification", "model=tiny_bert", "trainer=scratch", "tracking=none", "dataset=table",
        "dataset.source.data_files=rows.csv", "dataset.columns={text: Satz, label: Ton}", "debug=fast",
    ]) == 0  # fmt: skip
    (run,) = Path("outputs").glob("*/*/run.json")
    Path("new.csv").write_text("Satz\nsun\nsnow\n")
    capsys.readouterr()
    assert cli.main(["predict", f"run={run.parent}", "new.csv", "record=false"]) == 0
    said = capsys.readouterr()
    assert "column 'Satz' is read as 'text'; columns.text=NAME names another one" in said.err
    assert [line.split()[0] for line in said.out.splitlines()[1:3]] == ["sun", "snow"]


def test_two_candidates_end_a_command_before_weights(place: Path, capsys: Any) -> None:
    Path("rows.csv").write_text("sentence,review,label\n" + "a,b,c\nd,e,f\n" * 9)
    assert cli.main(["task=text_classification", "model=tiny_bert_subwords", "dataset=table",
                     "dataset.source.data_files=rows.csv", "tracking=none"]) == 2  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert "could each be 'text': set dataset.columns.text=NAME" in line


def test_a_missing_column_is_told_once_where_a_tokenizer_learns_from_the_rows(place: Path, capsys: Any) -> None:
    Path("rows.csv").write_text("body text,label\n" + "a,c\nb,d\n" * 9)
    assert cli.main(["task=text_classification", "model=tiny_bert_subwords", "dataset=table",
                     "dataset.source.data_files=rows.csv", "tracking=none"]) == 2  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert "the train split has no column 'text' for the task's 'text'" in line
    assert "model.processor" not in line
