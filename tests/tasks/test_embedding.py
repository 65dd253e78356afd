"""Embeddings: trained as by sentence-transformers, scored as by its evaluators, loaded by it with equal vectors."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import trainings
import transformers
from conftest import SMALL_TABLES
from sklearn.metrics import ndcg_score

from hfexp import evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.embedding import Embedding
from hfexp.tasks.embedding_similarity import EmbeddingSimilarity
from hfexp.tasks.metrics import Retrieval
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_groups import TokenizeEach, split
from hfexp.tasks.vectors import document_id, pool, ranks

KINDS = {
    "pairs": ("task=embedding",),
    "triplets": ("task=embedding", "task.loss=TripletLoss", "task.loss_options={triplet_margin: 0.5}"),
    "scores": ("task=embedding_similarity",),
}
LOSSES = {"pairs": "MultipleNegativesRankingLoss", "triplets": "TripletLoss", "scores": "CosineSimilarityLoss"}


def texts(kind: str, numbers: range) -> list[dict[str, Any]]:
    """Rows of texts of many lengths; some have one document in common."""
    rows = []
    for n in numbers:
        anchor, positive = f"what is {n} plus {n}", f"the sum is {2 * (n // 2)} " * (1 + n % 3)
        if kind == "scores":
            rows.append({"text": anchor, "text_pair": positive, "label": (n % 7) / 6})
        else:
            negative = {"negative": f"no, {n} is a number"} if kind == "triplets" else {}
            rows.append({"anchor": anchor, "positive": positive, **negative})
    return rows


def write_place(kind: str) -> None:
    """A checkpoint without dropout, and tables of three splits."""
    config = transformers.AutoConfig.for_model("bert", **{**trainings.CONFIGS["bert"], "vocab_size": 261})
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained("start")
    byte_tokenizer(model_max_length=32).save_pretrained("start")
    for name, numbers in (("train", range(24)), ("validation", range(24, 37)), ("test", range(40, 53))):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts(kind, numbers))))


def losses(result: Any) -> list[float]:
    """The training losses that the last checkpoint has."""
    last = max(result.run_dir.glob("checkpoints/*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return [entry["loss"] for entry in json.loads(last.read_text())["log_history"] if "loss" in entry]


def sentence_model(path: str | Path = "start", modules: bool = True) -> Any:
    """A checkpoint as a `SentenceTransformer`: as it says itself, or with mean pooling and normalised vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    if not modules:
        return SentenceTransformer(str(path), device="cpu")
    encoder = Transformer(str(path))
    return SentenceTransformer(modules=[encoder, Pooling(16), Normalize()], device="cpu")


# The same training


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """In its directory: a kind of rows, and a training of a batch an epoch with all rows; tests leave it as it is."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_place(request.param)
        yield request.param, train(*SMALL_TABLES, *KINDS[request.param], "trainer.args.per_device_train_batch_size=24")


def test_a_training_is_that_of_sentence_transformers(trained: tuple[str, Any]) -> None:
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses as theirs

    kind, result = trained
    model = sentence_model()
    options = {"triplet_margin": 0.5} if kind == "triplets" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                "theirs", num_train_epochs=3, per_device_train_batch_size=24, learning_rate=0.01, warmup_steps=0.1,
                logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(texts(kind, range(24))),
            loss=getattr(theirs, LOSSES[kind])(model, **options),
        )  # fmt: skip
        trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(result) == pytest.approx(found, rel=2e-4)
    assert found[2] < found[0]
    if result.best_step == 3:  # the saved model is the last one
        ours = result.model.state_dict()
        for name, value in model[0].auto_model.state_dict().items():
            assert torch.allclose(value, ours[name], atol=1e-4), name


def test_the_saved_model_is_a_sentence_transformer_with_equal_vectors(trained: tuple[str, Any]) -> None:
    kind, result = trained
    asked = [row.get("anchor", row.get("text")) for row in texts(kind, range(60, 70))] + ["long " * 20]
    ours = np.array(list(predict(run=result.run_dir, inputs=asked)["vector"]))
    loaded = sentence_model(result.run_dir / "model", modules=False)
    assert np.allclose(ours, loaded.encode(asked), atol=1e-6)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1)
    assert "\n" in next(result.run_dir.glob("artifacts/samples.txt")).read_text()


def test_scores_are_those_of_sentence_transformers_and_of_the_saved_model(trained: tuple[str, Any]) -> None:
    from sentence_transformers.sentence_transformer.evaluation import (
        EmbeddingSimilarityEvaluator,
        InformationRetrievalEvaluator,
    )

    kind, result = trained
    rows, model = texts(kind, range(40, 53)), sentence_model(result.run_dir / "model", modules=False)
    if kind == "scores":
        given = [[row[name] for row in rows] for name in ("text", "text_pair", "label")]
        found = EmbeddingSimilarityEvaluator(*given)(model)
        assert result.metrics["test_spearman"] == pytest.approx(found["spearman_cosine"], abs=1e-6)
    else:
        documents = [row[name] for row in rows for name in ("positive", "negative") if name in row]
        numbers = {text: str(place) for place, text in enumerate(dict.fromkeys(documents))}
        found = InformationRetrievalEvaluator(
            {str(n): row["anchor"] for n, row in enumerate(rows)},
            {number: text for text, number in numbers.items()},
            {str(n): {numbers[row["positive"]]} for n, row in enumerate(rows)},
            mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[1, 10],
        )(model)  # fmt: skip
        for name in ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg_at_10"):
            assert result.metrics[f"test_{name}"] == pytest.approx(
                found[f"cosine_{name.replace('_at_', '@')}"], abs=1e-6
            )
    scores = evaluate(run=result.run_dir, resamples=20, record=False)
    name = result.task_metric
    assert dict(zip(scores["metric"], scores["value"], strict=True))[name] == pytest.approx(
        result.metrics[f"test_{name}"], abs=1e-6
    )
    assert result.metrics[f"final_eval_{name}"] == result.metrics[f"best_eval_{name}"]


def test_vectors_are_written_to_files_and_served(trained: tuple[str, Any], tmp_path: Path) -> None:
    import mlflow.pyfunc

    kind, result = trained
    if kind != "pairs":
        return
    table = tmp_path / "asked.csv"
    table.write_text("text\nwhat is 3\nwhat is 4\n")
    ours = np.array(list(predict(run=result.run_dir, inputs=["what is 3", "what is 4"])["vector"]))
    for suffix in ("jsonl", "parquet", "csv"):
        output = tmp_path / f"vectors.{suffix}"
        assert cli.main(["predict", f"run={result.run_dir}", str(table), f"output={output}", "record=false"]) == 0
        read = {
            "jsonl": lambda path: pandas.read_json(path, lines=True), "parquet": pandas.read_parquet,
            "csv": lambda path: pandas.read_csv(path, converters={"vector": json.loads}),
        }[suffix]  # fmt: skip
        assert np.allclose(np.array([list(vector) for vector in read(output)["vector"]]), ours, atol=1e-6)
    served = mlflow.pyfunc.load_model(str(next(result.run_dir.glob("**/MLmodel")).parent))
    answers = served.predict(pandas.DataFrame({"text": ["what is 3", "what is 4"]}))
    assert np.allclose(np.array(list(answers["vector"])), ours, atol=1e-6)


# Parts


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_pooling_is_that_of_sentence_transformers(mode: Any) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    theirs = Pooling(4, mode)({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    assert torch.allclose(pool(hidden, mask, mode), theirs)


def test_ranks_count_each_document_once_and_equal_vectors_earn_nothing() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((50, 3, 8)).astype(np.float32)
    ids = np.arange(100).reshape(50, 2)
    ids[7], vectors[7, 1:] = ids[3], vectors[3, 1:]  # the same two documents
    found = ranks(vectors, ids)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    for row in range(50):
        others = [(other, place) for other in range(50) if other != 7 for place in (1, 2)]
        own = unit[row, 0] @ unit[row, 1]
        above = sum(float(unit[row, 0] @ unit[other, place]) > own + 1e-6 for other, place in others)
        assert found[row] == 1 + above
    assert (ranks(np.ones((5, 2, 3), np.float32), np.arange(5)[:, None]) == 5).all()
    assert (ranks(np.ones((5, 2, 3), np.float32), np.zeros((5, 1), np.int64)) == 1).all()
    assert document_id([1, 2]) != document_id([12]) != document_id([2, 1])


def test_the_discounted_gain_is_that_of_scikit_learn() -> None:
    scores = np.random.default_rng(0).standard_normal((30, 20))
    truth = np.eye(20)[np.arange(30) % 20]
    found = (scores >= (scores * truth).sum(1, keepdims=True)).sum(1)
    values: Any = Retrieval().compute(ranks=found)
    assert values["ndcg_at_10"] == pytest.approx(ndcg_score(truth, scores, k=10))
    assert values["recall_at_1"] == pytest.approx((scores.argmax(1) == truth.argmax(1)).mean())


def test_each_text_is_tokenized_by_itself() -> None:
    tokenizer = byte_tokenizer()
    row = TokenizeEach(tokenizer, ["a", "b", "c"], 5)({"c": "long text", "a": "x", "kept": 1})
    assert [tokenizer.decode(text) for text in split(row)] == ["[CLS]x[SEP]", "[CLS]lon[SEP]"]
    assert row["kept"] == 1


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(kind: str, place: Path) -> None:
    """In-batch negatives come from both of them; the last batch is uneven: one process has a row, the other none."""
    write_place(kind)
    Path("train.jsonl").write_text("\n".join(map(json.dumps, texts(kind, range(17)))))
    words = [*SMALL_TABLES, *KINDS[kind], "tracking=none", "trainer.args.optim=sgd", "trainer.args.learning_rate=0.1"]
    one = train(*words, "output_dir=one")
    two = train(
        *words, "output_dir=two", "launch=ddp", "launch.num_processes=2", "launch.num_threads=1",
        "trainer.args.per_device_train_batch_size=4",
    )  # fmt: skip
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    name = f"test_{one.task_metric}"
    assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4)
    if kind != "pairs":  # in-batch negatives are those of a batch
        parts = train(
            *words, "output_dir=parts", "trainer.args.per_device_train_batch_size=4",
            "trainer.args.gradient_accumulation_steps=2",
        )  # fmt: skip
        assert losses(parts) == pytest.approx(losses(one), rel=1e-4)


# Wrong inputs


WRONG = [
    ("task.pooling=max", "task.pooling=max is unknown"),
    ("task.loss=TripletLos", "task.loss=TripletLos is unknown. Did you mean 'TripletLoss'?"),
    ("task.loss=TripletLoss", "task.loss=TripletLoss needs a column 'negative'"),
    ("task.loss=CosineSimilarityLoss", "task.loss=CosineSimilarityLoss is unknown"),
    ("task.loss_options={scal: 3}", "task.loss_options: MultipleNegativesRankingLoss does not take them"),
    ("task.max_length=99", "max_length=99 must be from 1 to 32"),
    ("dataset.columns.positive=answer", "no column 'answer' for the task's 'positive'"),
    ("trainer.args.label_smoothing_factor=0.1", "has no effect on Embedding"),
    ("metrics.retrieval.k=[0]", "k=[0] must be a list of whole numbers from 1 on"),
]


@pytest.mark.parametrize(("word", "message"), WRONG)
def test_a_wrong_setting_is_one_message(
    place: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_place("pairs")
    assert cli.main([*SMALL_TABLES, "task=embedding", word]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "outputs").exists()


def test_a_negative_in_one_split_only_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_place("pairs")
    Path("train.jsonl").write_text("\n".join(map(json.dumps, texts("triplets", range(24)))))
    assert cli.main([*SMALL_TABLES, "task=embedding"]) == 2
    assert "the train split has a column 'negative', but the validation split has none" in capsys.readouterr().err


def test_rows_that_can_not_be_learnt_are_refused() -> None:
    with pytest.raises(DataError, match="column 'positive' holds an empty text"):
        Embedding("TripletLoss").decode({"anchor": "a", "positive": " "})
    with pytest.raises(DataError, match="column 'negative' holds 3, expected a string"):
        Embedding("TripletLoss").decode({"anchor": "a", "positive": "b", "negative": 3})
    task = EmbeddingSimilarity("CosineSimilarityLoss")
    assert task.decode({"text": "a", "text_pair": "b", "label": "0.5"})["label"] == 0.5
    with pytest.raises(DataError, match=r"column 'label' holds 5, but a cosine is from -1 to 1: divide the labels"):
        task.decode({"text": "a", "text_pair": "b", "label": 5})
    assert EmbeddingSimilarity("CoSENTLoss").decode({"text": "a", "text_pair": "b", "label": 5})["label"] == 5
    with pytest.raises(ConfigError, match=r"task\.pooling=x is unknown"):
        Embedding("TripletLoss", pooling="x")
