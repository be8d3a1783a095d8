"""Devices described by made-up /proc and /sys trees, and this process's memory."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgetune.device import Profile, match_profile, peak_rss, read_device, read_profiles, reset_peak_rss, rss

MIB = 2**20
PI_5 = {
    "proc/sys/kernel/arch": "aarch64\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": "MemTotal:        8245872 kB\nMemFree:         5000000 kB\nMemAvailable:    7000000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nModel\t\t: Raspberry Pi 5\n",
    "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-3\n",
    "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
}
PC = {
    "proc/sys/kernel/arch": "x86_64",
    "sys/class/dmi/id/product_name": "ThinkPad\n",
    "proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nflags\t\t: avx2\n",
    "proc/self/status": "Cpus_allowed_list:\t0-7\n",
    "proc/self/cgroup": "",
} | {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n" for i in range(8)}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    found = read_device(tree(tmp_path, PI_5))
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert (found.machine, found.cpu, found.cores) == ("aarch64", "Cortex-A76", 4)
    assert (found.memory_total, found.memory_available) == (8245872 * 1024, 7000000 * 1024)
    assert found.profile == Profile("Raspberry Pi 5", "dotprod", "aarch64", "Raspberry Pi 5")


def test_a_pc_counts_cores_not_threads(tmp_path: Path) -> None:
    found = read_device(tree(tmp_path, PC))
    assert (found.model, found.cpu, found.cores) == ("ThinkPad", "Fast CPU @ 3 GHz", 4)
    assert found.profile is not None
    assert found.profile.name == "generic x86-64"


@pytest.mark.parametrize(("allowed", "cores"), [("0", 1), ("0,4", 1), ("0-1,4-5", 2), ("1,6-7", 3)])
def test_cores_are_those_that_affinity_allows(tmp_path: Path, allowed: str, cores: int) -> None:
    files = PC | {"proc/self/status": f"Cpus_allowed_list:\t{allowed}\n"}
    assert read_device(tree(tmp_path, files)).cores == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_cores_are_those_that_a_cgroup_v2_allows(tmp_path: Path, quota: str, cores: int) -> None:
    files = PC | {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                  "sys/fs/cgroup/a/cpu.max": quota}  # fmt: skip
    assert read_device(tree(tmp_path, files)).cores == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("300000", 3)])
def test_cores_are_those_that_a_cgroup_v1_allows(tmp_path: Path, quota: str, cores: int) -> None:
    files = PC | {"proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": quota,
                  "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}  # fmt: skip
    assert read_device(tree(tmp_path, files)).cores == cores


def test_memory_is_what_a_cgroup_v2_leaves(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/a/b"
    files = PC | {
        "proc/self/cgroup": "0::/a/b\n", f"{group}/memory.max": "max", f"{group}/memory.current": str(300 * MIB),
        "sys/fs/cgroup/a/memory.max": str(512 * MIB), "sys/fs/cgroup/a/memory.high": "max",
        "sys/fs/cgroup/a/memory.current": str(400 * MIB),
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {100 * MIB}\nactive_file 7\n",
    }  # fmt: skip
    found = read_device(tree(tmp_path, files))
    assert (found.memory_total, found.memory_available) == (512 * MIB, 212 * MIB)
    tree(tmp_path, {"sys/fs/cgroup/a/memory.high": str(256 * MIB)})
    found = read_device(tmp_path)
    assert (found.memory_total, found.memory_available) == (256 * MIB, 0)


def test_memory_is_what_a_cgroup_v1_leaves(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/box"
    files = PC | {
        "proc/self/cgroup": "4:memory:/box\n0::/\n", f"{group}/memory.limit_in_bytes": str(512 * MIB),
        f"{group}/memory.usage_in_bytes": str(100 * MIB), f"{group}/memory.stat": f"total_inactive_file {10 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }  # fmt: skip
    found = read_device(tree(tmp_path, files))
    assert (found.memory_total, found.memory_available) == (512 * MIB, 422 * MIB)


def test_a_container_that_sees_only_its_own_cgroup(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's, but the limit lies at the mount."""
    files = PC | {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/memory.max": str(64 * MIB),
                  "sys/fs/cgroup/memory.current": "0"}  # fmt: skip
    assert read_device(tree(tmp_path, files)).memory_total == 64 * MIB


def test_an_empty_tree_is_described_too(tmp_path: Path) -> None:
    found = read_device(tmp_path)
    assert (found.model, found.cpu, found.cores, found.memory_total) == ("", "", 1, 0)
    assert found.machine == platform.machine()


def test_this_machine_agrees_with_psutil() -> None:
    found = read_device()
    assert 1 <= found.cores <= len(psutil.Process().cpu_affinity())
    assert 0 < found.memory_available <= found.memory_total <= psutil.virtual_memory().total
    assert found.machine == platform.machine()


def test_the_longest_fitting_model_wins(tmp_path: Path) -> None:
    for i, model in enumerate(["", "Board 5", "Board 5 Plus"]):
        (tmp_path / f"{i}.toml").write_text(f'name = "{i}"\nisa = "neon"\nmachine = "aarch64"\nmodel = "{model}"\n')
    matched = {board: match_profile(board, "aarch64", tmp_path) for board in ("Board 5 Plus v2", "Board 5", "Other")}
    assert [p.name if p else None for p in matched.values()] == ["2", "1", "0"]
    assert match_profile("Board 5", "riscv64", tmp_path) is None


def test_profiles_are_toml() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    folder = Path(__file__).parents[1] / "devices"
    paths = sorted(folder.glob("*.toml"))
    assert len(paths) >= 3
    assert read_profiles() == [Profile(**tomllib.loads(path.read_text())) for path in paths]


def test_rss_grows_and_its_peak_stays() -> None:
    reset_peak_rss()
    before = rss()
    assert abs(before - psutil.Process().memory_info().rss) < 16 * MIB
    block = np.ones(64 * MIB, np.uint8)
    assert rss() >= before + 60 * MIB
    del block
    assert peak_rss() >= before + 60 * MIB
    assert rss() < before + 30 * MIB


def test_the_peak_can_be_reset() -> None:
    block = np.ones(64 * MIB, np.uint8)
    high = peak_rss()
    del block
    reset_peak_rss()
    if peak_rss() == high:
        pytest.skip("this kernel does not let /proc/self/clear_refs reset the peak")
    assert peak_rss() <= high - 30 * MIB
