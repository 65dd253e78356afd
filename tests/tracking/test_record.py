"""docs/record.md says what a run records, and nothing else."""

from pathlib import Path

from benchmarks.record import TARGET, describe, names, render
from hfexp.commands import api


def test_the_documented_record_is_that_of_a_run(place: Path) -> None:
    result = api.train(
        "experiment=digits_vit",
        "trainer.args.num_train_epochs=2",
        "trainer.args.logging_steps=1",
        "dataset.max_train_samples=96",
        "dataset.max_validation_samples=60",
        "dataset.max_test_samples=60",
    )
    found = names(render(describe(str(result.tracking_uri), str(result.run_id), result.run_dir), str(place)))
    documented = names(TARGET.read_text())
    tags = {name for name in found["Tags"] | documented["Tags"] if "git" in name}  # tests run outside a repository
    for section in documented:
        assert found[section] - tags == documented[section] - tags, section
    assert found.keys() == documented.keys()
