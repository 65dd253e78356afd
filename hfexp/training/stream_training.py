"""Trainer mixin that reads streams."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.core.outside import read_record
from hfexp.data.streaming import EvaluationStream, TrainingStream, as_it_is

if TYPE_CHECKING:
    import transformers

    _Base = transformers.Trainer
else:
    _Base = object


@dataclass
class _Facts:
    """State of a stream that a checkpoint keeps beside the Trainer's own."""

    batches_per_epoch: int | None


class StreamTraining(_Base):
    """Mixin for a Transformers `Trainer` that reads streams, and resumes at the batch where training stopped."""

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, **kwargs: Any) -> Any:
        from accelerate.data_loader import DataLoaderShard

        if isinstance(dataset, TrainingStream):
            collate = self._get_collator_with_removed_columns(self.data_collator, description=description)
            dataset.configure(self.args, batch_size, collate)
            # Accelerate's `prepare` is left out: it would divide the stream among the processes once more.
            return DataLoaderShard(dataset, self.accelerator.device, batch_size=None, collate_fn=as_it_is)
        if isinstance(dataset, EvaluationStream):
            if self.args.world_size > 1:
                return self._dealt_out(dataset, description, batch_size * self.args.world_size)
            dataset.batch_size = batch_size
        return super()._get_dataloader(dataset, description, batch_size, **kwargs)

    def _dealt_out(self, dataset: EvaluationStream, description: str, batch_size: int) -> Any:
        """Return a data loader in which the first process makes whole batches, and each process gets its part of them.

        By default Accelerate makes one batch per process in the first one and concatenates them, which fails for
        texts of different lengths (`accelerate` 1.15, `DataLoaderDispatcher._fetch_batches`).
        """
        from accelerate.data_loader import prepare_data_loader
        from torch.utils.data import DataLoader

        dataset.batch_size = batch_size
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description=description),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
            split_batches=True,
            put_on_device=self.accelerator.device_placement,
            dispatch_batches=True,
        )

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        stream = self.train_dataset
        if isinstance(stream, TrainingStream) and resume_from_checkpoint is not None:
            stream.had = position[1]
            path = Path(str(resume_from_checkpoint), self._stream_file)
            if path.is_file():
                stream.batches_per_epoch = read_record(path, _Facts).batches_per_epoch
        return position

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, TrainingStream):
            facts = _Facts(self.train_dataset.batches_per_epoch)
            Path(output_dir, self._stream_file).write_text(json.dumps(asdict(facts)))

    @property
    def _stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"
