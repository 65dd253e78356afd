"""A rehearsal of a run's checks in the fork server, so that no job has to do what libraries do at their first use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hfexp.core.compose import compose
from hfexp.core.config import to_config
from hfexp.core.console import silent
from hfexp.core.machine import CPUS_VARIABLE
from hfexp.core.outside import prepare_to_read
from hfexp.core.process import variables
from hfexp.core.targets import instantiate
from hfexp.data.prepare import LIBRARIES, version_of
from hfexp.data.splits import load_dataset
from hfexp.data.threads import threads_given_back
from hfexp.data.transforms import build_transforms
from hfexp.experiment.preflight import build_skeleton, check_fit, check_metrics
from hfexp.tasks.metrics import build_metrics
from hfexp.tracking.membership import SweepInfo
from hfexp.training.model import load_model_config
from hfexp.training.processor import load_processor


def prepare_for_forks() -> None:
    """Read the data of the default experiment, and try its metrics and its model as each job does with its own.

    That fills caches of Hydra, Transformers, scikit-learn and torch, and saves a small job a quarter of a second.
    It makes no `TrainingArguments`: these choose a device, which must wait until the process is forked.
    """
    prepare_to_read(SweepInfo)
    for library in LIBRARIES:
        version_of(library)
    with silent(), _one_thread():
        composed, _ = compose("experiment=digits_vit", "debug=fast", "seed=1", "trainer.args.learning_rate=1e-3")
        config = to_config(composed)
        task = instantiate(config.task, "task")
        dataset = load_dataset(config.dataset, task)
        id2label = task.id2label(dataset)
        task.set_classes(id2label)
        check_metrics(config, task, dataset, build_metrics(config.metrics, []), id2label)
        skeleton = build_skeleton(config, task, load_model_config(config.model, task, []))
        processor = load_processor(config.model, task, [])
        transforms = build_transforms(config.transform, processor, id2label, [])
        check_fit(config, task, dataset, processor, transforms, skeleton)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch and hfexp's decoders from starting threads, which a forked process would wait for in vain."""
    with threads_given_back(), variables({CPUS_VARIABLE: "1"}):
        torch.set_num_threads(1)
        yield
