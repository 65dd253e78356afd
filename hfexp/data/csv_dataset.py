"""CSV files as datasets, which `datasets` caches or streams.

The builder needs a module of its own: `datasets` patches `open`, `gzip` and path functions in a builder's module.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import pyarrow as pa
from datasets.builder import Key

from hfexp.data.csv_files import CsvFile, Dialect


@dataclass
class CsvConfig(datasets.BuilderConfig):
    """Config of the builder `Csv`."""

    dialect: Dialect = Dialect()
    columns: tuple[str, ...] = ()


class Csv(datasets.ArrowBasedBuilder):
    """Builder for the rows of CSV files, which `datasets` caches until a file changes."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS: ClassVar[type] = CsvConfig
    config: CsvConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=features_of(self.config.columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(split, {"files": list(files)})
            for split, files in (self.config.data_files or {}).items()
        ]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        for place, file in enumerate(files):
            for part, table in enumerate(CsvFile(file, self.config.dialect).tables(list(self.config.columns))):
                yield Key(place, part), table


def features_of(columns: tuple[str, ...]) -> datasets.Features:
    """Return the features of a table whose columns all hold text."""
    return datasets.Features({name: datasets.Value("large_string") for name in columns})


def stream(files: list[str], dialect: Dialect) -> Iterator[dict[str, str | None]]:
    """Yield the rows of files one by one."""
    for file in files:
        yield from CsvFile(file, dialect).rows()
