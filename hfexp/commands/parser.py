"""The parser of commands about recorded runs."""

import argparse
from collections.abc import Sequence

URI = "tracking URI, if it is not the one in the output directory"


class StoreParser(argparse.ArgumentParser):
    """Parser with the flags that say where the recorded runs are."""

    def __init__(self, command: str, description: str, uri: str = URI) -> None:
        """Make the parser of `hfexp COMMAND`; `uri` is the help of `--uri`."""
        super().__init__(prog=f"hfexp {command}", description=description)
        self.add_argument("--output-dir", default="outputs")
        self.add_argument("--uri", help=uri)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse words that may name a flag as a training command names its key: `output_dir=x`, `tracking.uri=x`.

        Commands whose own words may look like that (`hfexp tag`, `note` and `rerun`) call `parse_intermixed_args`.
        """
        return self.parse_intermixed_args([self._as_flag(word) for word in argv])

    def _as_flag(self, word: str) -> str:
        key, equals, value = word.partition("=")
        flag = f"--{key.removeprefix('tracking.').replace('_', '-')}"
        action = self._option_string_actions.get(flag)
        return f"{flag}={value}" if equals and action is not None and action.nargs != 0 else word
