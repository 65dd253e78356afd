"""Command-line arguments of `hfexp evaluate`: the model, the data, and the output of the scores."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from hfexp.commands.prediction_settings import check_output
from hfexp.core.bounded_yaml import load
from hfexp.core.errors import ConfigError, did_you_mean, one_of

HELP = """hfexp evaluate: a trained model on another dataset or split.

  hfexp evaluate run=RUN                                        its test split again, with intervals
  hfexp evaluate run=RUN split=validation by=label              the scores of each class
  hfexp evaluate run=RUN dataset=imagefolder dataset.source.data_dir=new_photos
  hfexp evaluate sweep=NAME dataset=table dataset.source.data_files=more.csv by=source,language
  hfexp evaluate run=OWNER/NAME dataset=hub dataset.source.path=OWNER/DATA split=test

which model    run= sweep= output_dir= uri=    as of `hfexp predict`
on what        dataset=... dataset.*           the run's own dataset, unless you say another
               split=test                      train, validation, test or all (the default for another dataset)
               by=COLUMN,COLUMN                scores of the rows of each value as well
how            metrics=... resamples=1000      for the intervals (bootstrap, 95 %); 0: none
               batch_size=32 device= seed=0
what becomes   record=true                     kept with the run in MLflow (false: on the screen only)
of it          name=NAME                       of the record (default: dataset and split)
               output=FILE.json"""
SPLITS = ("train", "validation", "test", "all")


@dataclass
class EvaluationSettings:
    """Parsed arguments of `hfexp evaluate`, except the Hydra overrides."""

    run: str | None = None
    sweep: str | None = None
    split: str | None = None
    by: str | None = None
    resamples: int = 1000
    batch_size: int = 32
    seed: int = 0
    device: str | None = None
    record: bool = True
    name: str | None = None
    output: str | None = None
    output_dir: str = "outputs"
    uri: str | None = None


NAMES = tuple(field.name for field in fields(EvaluationSettings))
COMPOSED = ("task", "model", "transform", "dataset", "metrics", "security")


def parse(words: Sequence[str]) -> tuple[EvaluationSettings, list[str]]:
    """Split the arguments into settings and Hydra overrides.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type or is out of range.
    """
    settings, composed = EvaluationSettings(), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.lstrip("+~").partition(".")[0] in COMPOSED:
            composed.append(word)
            continue
        if not equals or key not in NAMES:
            known = (*NAMES, *COMPOSED)
            raise ConfigError(f"unknown key {key!r}.{did_you_mean(key, known)} There are: {one_of(known)}")
        kind = type(getattr(settings, key))
        parsed = load(value, word) if kind in (int, bool) else value
        if kind in (int, bool) and type(parsed) is not kind:
            needed = "true or false" if kind is bool else "a whole number"
            raise ConfigError(f"{key}={value}: {needed} is needed")
        setattr(settings, key, f"{settings.by},{value}" if key == "by" and settings.by else parsed)
    if settings.split is not None and settings.split not in SPLITS:
        raise ConfigError(f"split={settings.split}: there are {one_of(SPLITS)}")
    if settings.resamples < 0 or settings.batch_size < 1:
        raise ConfigError("resamples must be at least 0 and batch_size at least 1")
    check_output(settings.output)
    if settings.run and settings.sweep:
        raise ConfigError("run and sweep both name a model: give one of them")
    return settings, composed
