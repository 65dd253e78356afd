"""The processors that a process may use: its affinity, and the quotas of its container."""

import os
from pathlib import Path

import pytest

from hfexp.core import machine


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "350000 100000"}, 4),
        ("0::/job/step", {"job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"}, 2),
        ("0::/job/step", {"cpu.max": "800000 100000", "job/step/cpu.max": "50000 100000"}, 1),
        ("0::/of/the/host", {"cpu.max": "300000 100000"}, 3),  # a container that sees its own group as the top one
        ("2:cpu,cpuacct:/a\n1:name=systemd:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
                                                "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 16),
        ("2:cpuset:/\n1:cpu:/a/b\n0::/", {"cpu/a/cpu.cfs_quota_us": "250000\n",
                                         "cpu/a/cpu.cfs_period_us": "50000\n"}, 5),
        ("3:cpuacct:/", {"cpuacct/cpu.cfs_quota_us": "1", "cpuacct/cpu.cfs_period_us": "1"}, 16),
        ("0::/", {"cpu.max": "nonsense"}, 16),
        ("", {}, 16),
    ],
)  # fmt: skip
def test_a_quota_limits_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = tmp_path / "own"
    own.write_text(groups)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", own)
    monkeypatch.setattr(machine, "affinity", lambda: 16)
    monkeypatch.delenv("HFEXP_CPUS", raising=False)
    assert machine.cpus() == expected
    monkeypatch.setenv("HFEXP_CPUS", "1")
    assert machine.cpus() == 1


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "missing")
    monkeypatch.delenv("HFEXP_CPUS", raising=False)
    assert machine.cpus() == machine.affinity() <= (os.cpu_count() or 1)
