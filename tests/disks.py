"""A slow disk: a file mounted through a loop device that takes few writes a second (cgroup v1, as root)."""

import os
import subprocess
from pathlib import Path

import pytest

WRITES = 20
"""A second: an `fsync` takes a fifth of a second."""


class SlowDisk:
    """Slow for the processes of a cgroup, and what these start."""

    def __init__(self) -> None:
        self.group = Path(f"/sys/fs/cgroup/blkio/hfexp-{os.getpid()}")
        self._undo: list[list[str]] = []

    def mount(self, place: Path) -> Path:
        """Make a disk at a place that does not exist yet, and return the cgroup."""
        place.mkdir(parents=True)
        image = place.with_name("image")
        with image.open("wb") as file:
            file.truncate(2**28)
        _run("mkfs.ext4", "-q", "-O", "^has_journal", str(image))  # whose own process would write unthrottled
        device = _run("losetup", "-f", "--show", str(image))
        self._undo.append(["losetup", "-d", device])
        _run("mount", device, str(place))
        self._undo.append(["umount", "-l", str(place)])
        _run("mkdir", "-p", str(self.group))
        number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
        limit = self.group / "blkio.throttle.write_iops_device"
        if not limit.exists():
            pytest.skip("no slow disk can be made here: there is no blkio cgroup")
        limit.write_text(f"{number} {WRITES}")
        return self.group

    def close(self) -> None:
        for words in reversed(self._undo):
            subprocess.run(words, check=True)
        if self.group.is_dir():
            self.group.rmdir()


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no slow disk can be made here: {done.stderr.strip()}")
    return done.stdout.strip()
