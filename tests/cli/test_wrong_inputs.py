"""Wrong inputs: exit code 2 (1 when it happened while running), one message, no traceback, nothing left behind."""

import json
from pathlib import Path

import pytest
import transformers
from checkpoints import write_checkpoint
from conftest import SMALL_DIGITS, write_images

from hfexp.commands import cli
from hfexp.experiment import checks
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_classification import TextClassification
from hfexp.tasks.text_generation import TextGeneration

DIGITS = ["dataset=digits", *(word for word in SMALL_DIGITS if word != "experiment=digits_vit")]

RESNET = ["model=local", "model.path=resnet", "trainer.args.activation_checkpointing=true"]
TABLE = [
    # words, what the message says
    (["model=vit_bas"], ["no model=vit_bas", "Did you mean 'vit_base'?", "convnext_tiny"]),
    (["modle=vit_base"], ["unknown key 'modle'", "Did you mean 'model'?"]),
    (["experiment=food"], ["no experiment=food", "digits_vit, embedding_demo, fill_mask_demo"]),
    (["sed=3"], ["unknown key 'sed'", "Did you mean 'seed'?"]),
    (["dataset.validaton_size=0.1"], ["unknown key 'dataset.validaton_size'", "Did you mean 'validation_size'?"]),
    (["dataset.splits.trian=x"], ["unknown key 'dataset.splits.trian'", "test, train, validation"]),
    (["trainer.args.learning_rat=1"], ["unknown key 'trainer.args.learning_rat'", "Did you mean 'learning_rate'?"]),
    (["model.config.hiden_size=3"], ["unknown key 'model.config.hiden_size'", "Did you mean 'hidden_size'?"]),
    (["metrics.top_k.kk=3", "metrics=classification"], ["unknown key 'metrics.top_k.kk'", "Did you mean 'k'?"]),
    (["model=local", "model.path=my model", "dataset=digits"], ["'my model' is neither a local directory nor an id"]),
    (["model=local", f"model.path={'a' * 300}", "dataset=digits"], ["is neither a local directory nor an id"]),
    (["dataset=hub", "dataset.source.path=a/b/c", "model=vit_digits"], ["dataset 'a/b/c' is neither a local"]),
    (["model.pth=x"], ["unknown key 'model.pth'", "Did you mean 'path'?"]),
    (["seed=abc"], ["seed: Value 'abc'", "could not be converted to Integer"]),
    (["dataset.max_train_samples=many"], ["dataset.max_train_samples: Value 'many'"]),
    (["on_existing=maybe"], ["on_existing", "resume", "rerun", "error"]),
    (["trainer.args.learning_rate=fast"], ["trainer.args.learning_rate='fast' (str) must be of type float"]),
    (["trainer.args.num_train_epochs=[3]"], ["trainer.args.num_train_epochs=[3] (list) must be of type float"]),
    (["trainer.args.warmup_ratio=0.1"], ["warmup_ratio is no longer", "use trainer.args.warmup_steps"]),
    (["trainer.args.evaluation_strategy=epoch"], ["evaluation_strategy is no longer", "trainer.args.eval_strategy"]),
    (["trainer.args.output_dir=x"], ["trainer.args.output_dir is set by hfexp", "use output_dir"]),
    (["trainer.args.eval_strategy=sometimes"], ["trainer.args.eval_strategy=sometimes", "Allowed: epoch, no, steps"]),
    (["trainer.args.optim=adamm"], ["trainer.args.optim=adamm is not a valid choice", "adamw_torch_fused"]),
    (
        ["trainer.args.train_sampling_strategy=group_by_lenght"],
        ["train_sampling_strategy=group_by_lenght is not supported", "Did you mean 'group_by_length'?", "sequential"],
    ),
    (["name='a"], ["can't be parsed as key=value"]),
    (["trian"], ["neither a command nor key=value", "Did you mean 'train'?"]),
    (["--config-dir", "nowhere"], ["--config-dir: there is no directory", "nowhere"]),
    (["--config-dir", "own", "model=mine"], ["unknown key 'model.revison'", "Did you mean 'revision'?"]),
    (["dataset=imagefolder"], ["dataset.source.data_dir has no value"]),
    (["dataset=imagefolder", "dataset.source.data_dir=nowhere"], ["data_dir=nowhere: there is no such directory"]),
    (["dataset=imagefolder", "dataset.source.data_dir=empty"], ["data_dir=empty: no image files"]),
    (["dataset=imagefolder", "dataset.source.data_dir=single"], ["data_dir=single: only one class"]),
    (["dataset=csv", "dataset.source.data_files=no.csv"], ["dataset.source.data_files: no.csv", "does not exist"]),
    (["dataset=disk", "dataset.source.path=empty"], ["dataset.source.path=empty: not a directory written by"]),
    (["dataset.columns.image=picture"], ["no column 'picture'", "image, label", "dataset.columns.image=NAME"]),
    (["dataset.columns.imag=picture"], ["dataset.columns.imag: the task reads only: image, label"]),
    (["dataset.labels=[zero,one]"], ["unknown label '", "Labels are: one, zero"]),
    (["dataset.splits.test=tset"], ["dataset.splits.test=tset: no such split", "train"]),
    (["dataset.validation_size=1.5"], ["dataset.validation_size"]),
    (["dataset.max_test_samples=0"], ["dataset.max_test_samples=0 must be at least 1"]),
    (["tracking.uri=ftp://x"], ["tracking.uri=ftp://x: unknown kind of store 'ftp'"]),
    (["tracking.uri=mlruns"], ["tracking.uri=mlruns", "mlflow migrate-filestore"]),
    (["tracking.uri=http://:5000"], ["tracking.uri=http://:5000 is not the address of a server"]),
    (["tracking.uri=mysql+nodriver://h/db"], ["tracking.uri=mysql+nodriver://h/db", "nodriver"]),
    (["tracking.register=a/b"], ["tracking.register=a/b must be 1 to 250 characters without / and :"]),
    (["tracking.uri=http://here:port"], ["not the address of a server; write http://HOST:PORT"]),
    (["tracking.uri=sqlite:///notes.txt"], ["notes.txt is not a SQLite database"]),
    (["tracking.backend=wandb"], ["tracking.backend=wandb; allowed: mlflow, none"]),
    (["output_dir=notes.txt/x"], ["output_dir=notes.txt/x", "not a directory you can write to"]),
    (["trainer.args.metric_for_best_model=acuracy"], ["metric_for_best_model=acuracy", "Did you mean 'accuracy'?"]),
    (["metrics.accuracy._target_=hfexp.tasks.metrics.Acc"], ["hfexp.tasks.metrics has no 'Acc'"]),
    (["model.processor.size.height=12"], ["the model can't take", "(3, 12, 8)", "model.processor"]),
    (["model.config.hidden_size=wide"], ["model.config does not fit ViTConfig", "hidden_size"]),
    (["model.config.patch_size=0"], ["model.config: can't build a model of these sizes"]),
    (["model.config.num_labels=3"], ["model.config.num_labels comes from the dataset"]),
    (["model.model_type=vitt"], ["model.model_type=vitt is unknown", "Did you mean 'vit'?"]),
    (["seed=-1"], ["seed=-1 must be between 0 and"]),
    (["name=${nope}"], ["nope"]),
    (["trainer.callbacks.x={_target_: nope.Nope}"], ["trainer.callbacks.x._target_: nope.Nope is not allowed"]),
    (["trainer.args.dataloader_prefetch_factor=2"], ["trainer.args", "prefetch_factor"]),
    (["trainer.args.prediction_loss_only=true"], ["trainer.args.prediction_loss_only=true is not supported"]),
    (["model.dtype=float33"], ["model.dtype=float33 is not a dtype of torch"]),
    (["model=local", "model.path=turned", "model.processor.image_meen=[0]"], ["Did you mean 'image_mean'?"]),
    (["model=local", "model.path=turned", "model.config.hidden_dropot_prob=0.5"], ["'hidden_dropout_prob'?"]),
    (["trainer.args.fsdp=full_shard"], ["trainer.args.fsdp=full_shard is not supported", "launch=fsdp"]),
    (["trainer.args.deepspeed=ds.json"], ["use launch=fsdp for ZeRO's stage 3, with launch.fsdp.reshard"]),
    (["launch=deepspeed"], ["there is no launch=deepspeed", "launch.fsdp.cpu_offload=true to offload"]),
    (["trainer.args.parallelism_config={tp_size: 2}"], ["use launch=fsdp with launch.parallelism.dp_shard_size=N"]),
    (["trainer.args.auto_find_batch_size=true"], ["auto_find_batch_size=true is not supported"]),
    (["trainer.args.push_to_hub=true"], ["push_to_hub=true is not supported", "hf upload"]),
    (["trainer.args.report_to=wandb"], ["trainer.args.report_to is set by hfexp", "tracking.also=[NAME]"]),
    (["trainer.args.do_train=false"], ["trainer.args.do_train is set by hfexp", "leave it out"]),
    (["trainer.args.per_device_train_batch_size=0"], ["per_device_train_batch_size=0 must be at least 1"]),
    (["trainer.args.optim=adamw_bnb_8bit"], ["trainer.args.optim=adamw_bnb_8bit", "bitsandbytes"]),
    (["trainer.args.lr_scheduler_type=cosine_with_min_lr"], ["lr_scheduler_type=cosine_with_min_lr", "min_lr"]),
    (["trainer.args.dataloader_persistent_workers=true"], ["set trainer.args.dataloader_num_workers"]),
    (["trainer.args.use_liger_kernel=true"], ["pip install liger-kernel"]),
    (RESNET, ["trainer.args.activation_checkpointing=true: ResNetForImageClassification does not support it"]),
    (["model=local", "model.path=bert"], ["no ImageClassification model of the type bert"]),
    (["hydra.job.chdir=true", "hydra.run.dir=elsewhere"], ["hydra.job.chdir=true is not supported"]),
    (["hydra.run.dir=elsewhere"], ["hydra.run.dir=elsewhere", "output_dir=DIR"]),
    (["--config-dir", "own", "+move=there"], ["hydra.job.chdir=true is not supported"]),
    (["model.path=x"], ["exactly one of model.path", "model.model_type"]),
    (["model=local", "model.path=empty"], ["model.path=empty has no config.json"]),
    (["model=local", "model.path=./nowhere/at/all"], ["model.path=./nowhere/at/all: there is no such directory"]),
    (["model.freeze=[nothing]"], ["model.freeze: 'nothing' matches no parameter"]),
    (["model.freeze=['(']"], ["model.freeze: '(' is not a regular expression"]),
    (["trainer.args.save_strategy=steps"], ["load_best_model_at_end needs equal save_strategy (steps)"]),
    (["trainer.args.load_best_model_at_end=false", "trainer.early_stopping_patience=2"], ["early_stopping_patience"]),
    (["trainer.args.per_device_train_batch_size=512"], ["per_device_train_batch_size=512 is more than the 96"]),
    (["trainer.args.fp16=true"], ["trainer.args.fp16=true needs an accelerator"]),
    (["task._target_=os.system"], ["task._target_: os.system is not allowed", "security.allowed_targets"]),
    (["task._target_=hfexp.tasks.nothing.X"], ["hfexp.tasks has no 'nothing'"]),
    (["task.max_length=3"], ["unknown key 'task.max_length'"]),
    (["trainer._target_=transformers.Trainer"], ["must be a subclass of hfexp.training.trainer.Trainer"]),
    (["transform.augment=[{_target_: torchvision.transforms.v2.RandomAffine}]"], ["transform.augment.0.degrees"]),
    (["transform.augment=[flip]"], ["transform.augment.0 must be a mapping with a _target_"]),
    (["model.processor._target_=transformers.ViTImageProcesor"], ["no 'ViTImageProcesor'"]),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that some of the wrong inputs name."""
    place = tmp_path_factory.mktemp("wrong")
    (place / "empty").mkdir()
    (place / "notes.txt").write_text("not a database, and no directory either")
    write_images(place / "single", classes=("cat",))
    (place / "own" / "model").mkdir(parents=True)
    (place / "own" / "model" / "mine.yaml").write_text("path: x\nrevison: main\n")
    (place / "own" / "move").mkdir()
    (place / "own" / "move" / "there.yaml").write_text(
        "# @package _global_\nhydra: {job: {chdir: true}, run: {dir: elsewhere}}\n"
    )
    write_checkpoint("resnet", place / "resnet", num_labels=10)
    transformers.BertConfig(hidden_size=8, num_attention_heads=1, intermediate_size=8).save_pretrained(place / "bert")
    turned = write_checkpoint("vit", place / "turned", num_labels=10)
    config = json.loads((turned / "config.json").read_text())
    config["id2label"] = {str(i): str(9 - i) for i in range(10)}
    config["label2id"] = {str(9 - i): i for i in range(10)}
    (turned / "config.json").write_text(json.dumps(config))
    return place


def complain(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and message; the directory must be as it was."""
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    chosen = {word.partition("=")[0] for word in words}
    own_model = any(word.startswith("model=") for word in words)
    chosen |= {"dataset"} if "experiment" in chosen else set()
    rest = [w for w in DIGITS if w.partition("=")[0] not in chosen and not (own_model and w.startswith("model"))]
    context = [] if words[0].startswith(("-", "tr")) and "=" not in words[0] and words[0] != "--config-dir" else rest
    try:
        code = cli.main([*words, *context])
    except SystemExit as error:
        code = int(error.code or 0)
    assert sorted(place.rglob("*")) == before, "something was left behind"
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), TABLE, ids=[" ".join(words)[:60] for words, _ in TABLE])
def test_wrong_input(
    words: list[str],
    said: list[str],
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, message = complain(words, prepared, monkeypatch, capsys)
    assert code == 2, message
    assert message.startswith("hfexp: error: "), message
    assert "Traceback" not in message
    for part in said:
        assert part in message


def test_all_problems_at_once(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset.columns.image=x", "tracking.uri=ftp://x", "trainer.args.save_strategy=no",
             "metrics.accuracy._target_=hfexp.tasks.metrics.Acc"]  # fmt: skip
    code, message = complain(words, prepared, monkeypatch, capsys)
    assert code == 2
    assert "problems:" in message
    for part in ("no column 'x'", "unknown kind of store", "needs equal save_strategy (no)", "has no 'Acc'"):
        assert part in message


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["experiment=food101_vit"], 1, ["dataset ethz/food101", "could not be reached", "HF_HUB_OFFLINE=1"]),
        (["model=vit_tiny"], 1, ["model WinKawaks/vit-tiny-patch16-224", "could not be reached", "hf download"]),
    ],
)
def test_without_a_network(
    words: list[str],
    code: int,
    said: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    returned, message = complain(words, place, monkeypatch, capsys)
    assert (returned, "Traceback" in message) == (code, False)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", ["model big/secret is gated", "https://huggingface.co/big/secret", "hf auth login"]),
        ("RepositoryNotFoundError", ["no model big/secret on the Hub, or it is private"]),
        ("RevisionNotFoundError", ["model big/secret has no such revision"]),
    ],
)
def test_what_the_hub_refuses(error: str, said: list[str]) -> None:
    import huggingface_hub.errors

    from hfexp.core.errors import ConfigError
    from hfexp.core.hub import explain_hub_errors

    kind = getattr(huggingface_hub.errors, error)
    refused = kind.__new__(kind, "401")
    with pytest.raises(ConfigError) as caught, explain_hub_errors("model", "big/secret"):
        raise OSError("You are trying to access something") from refused
    for part in said:
        assert part in str(caught.value)


def test_a_text_model_for_images_and_a_model_that_reads_ahead_are_refused() -> None:
    task, bert = TextGeneration(), transformers.BertConfig()
    assert "attends in both directions" in checks.check_architecture(bert, task)[0]
    assert checks.check_architecture(transformers.BertConfig(is_decoder=True), task) == []
    assert checks.check_architecture(transformers.LlamaConfig(), task) == []
    assert checks.check_architecture(bert, TextClassification()) == []
    assert "type vit" in checks.check_architecture(transformers.ViTConfig(), TextClassification())[0]
    image, tokenizer = transformers.ViTImageProcessor(), byte_tokenizer()
    assert checks.check_processor(image, ImageClassification()) == checks.check_processor(tokenizer, task) == []
    assert "can't use a ViTImageProcessor" in checks.check_processor(image, task)[0]
    assert f"can't use a {type(tokenizer).__name__}" in checks.check_processor(tokenizer, ImageClassification())[0]


def test_an_architecture_with_several_classes_is_accepted() -> None:
    """DeiT has a class with a teacher and one without, both for the same task."""
    assert checks.check_architecture(transformers.DeiTConfig(), ImageClassification()) == []
