"""Keys and options that users know from scripts, templates and other tools, and what hfexp takes instead."""

ARGS = "trainer.args."
AUTOMATIC_DEVICE = "nothing: an accelerator is used when there is one; trainer.args.use_cpu=true selects the CPU"
CONTINUES = "nothing: the same command continues the run; on_existing=rerun starts it anew"
MODEL, DATA = "model.path=OWNER/NAME (on the Hub) or model=NAME", "dataset=NAME dataset.source.KEY=..."
HABITS = {
    "accelerator": AUTOMATIC_DEVICE,
    "ckpt_path": CONTINUES,
    "data": DATA,
    "data_dir": "dataset=imagefolder dataset.source.data_dir=DIR",
    "data_files": "dataset=table dataset.source.data_files=FILE",
    "dataset_config_name": "dataset.source.name=NAME",
    "dataset_name": "dataset=hub dataset.source.path=OWNER/NAME",
    "datamodule": DATA,
    "device": AUTOMATIC_DEVICE,
    "devices": "launch=ddp launch.num_processes=N",
    "gpus": "launch=ddp launch.num_processes=N",
    "early_stopping": "trainer.early_stopping_patience=N",
    "experiment_name": "tracking.experiment=NAME",
    "hparams_search": "hfexp -m search=tpe search.trials=N and a range for each key, e.g. "
    "'trainer.args.learning_rate=interval(1e-5,1e-3)'",
    "logger": "tracking=mlflow or tracking=none",
    "max_length": "transform.prepare (conf/transform/tokenize.yaml), which truncates texts",
    "max_seq_length": "transform.prepare (conf/transform/tokenize.yaml), which truncates texts",
    "model_name": MODEL,
    "model_name_or_path": MODEL,
    "n_trials": "search.trials=N",
    "optimizer": "trainer.args.optim=NAME",
    "optimized_metric": "search.metrics=[NAME]",
    "paths": "output_dir=DIR",
    "precision": "trainer.args.bf16=true, or nothing for float32",
    "pretrained_model_name_or_path": MODEL,
    "project": "tracking.experiment=NAME",
    "project_name": "tracking.experiment=NAME",
    "report_to": "tracking=mlflow or tracking=none: hfexp records in MLflow only",
    "resume": CONTINUES,
    "resume_from_checkpoint": CONTINUES,
    "scheduler": "trainer.args.lr_scheduler_type=NAME",
    "strategy": "launch=ddp",
    "train_file": "dataset=table dataset.source.data_files=FILE",
    "trainer=cpu": "trainer.args.use_cpu=true",
    "trainer=ddp": "launch=ddp",
    "trainer=gpu": "nothing: an accelerator is used when there is one",
    "validation_file": "dataset=table 'dataset.source.data_files={train: FILE, validation: FILE}'",
    "wandb": "tracking=mlflow or tracking=none: hfexp records in MLflow only",
    "hydra/sweeper": "search=tpe search.trials=N (hfexp has its own sweeper: random, tpe, gp, cmaes, nsga2, grid)",
}
"""Advice by `key=value`, by key, or by the last part of a key."""
