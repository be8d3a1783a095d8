"""Devices described by made-up /proc and /sys trees, and this process's memory."""

import mmap
import os
import platform
from pathlib import Path

import psutil
import pytest
from boards import Board

from edgetune.backends.cpu import isa_names
from edgetune.cli.info import describe_device, sensor_reader
from edgetune.errors import FormatError, UsageError, size_text
from edgetune.llamacpp import library as llamacpp
from edgetune.llamacpp.quantizer import quantize_file
from edgetune.machine.device import (
    is_removable,
    match_profile,
    peak_rss,
    profile_named,
    read_device,
    read_profiles,
    reset_peak_rss,
    rss,
    thread_count,
)
from edgetune.machine.toml import read_toml

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


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_raspberry_pi_5(tmp_path):
    found = read_device(tree(tmp_path, PI_5))
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert (found.machine, found.cpu, found.cores) == ("aarch64", "Cortex-A76", 4)
    assert (found.memory_total, found.memory_available) == (8245872 * 1024, 7000000 * 1024)
    assert found.profile == profile_named("Raspberry Pi 5")
    assert found.matched == "the board calls itself 'Raspberry Pi 5 Model B Rev 1.0'"
    assert found.kind == "Raspberry Pi 5, aarch64"
    assert found.overrides() == []


def test_a_pc_counts_cores_not_threads(tmp_path):
    found = read_device(tree(tmp_path, PC))
    assert (found.model, found.cpu, found.cores) == ("ThinkPad", "Fast CPU @ 3 GHz", 4)
    assert found.kind == "x86_64"  # what somebody owns is not said
    assert found.profile is not None
    assert found.profile.name == "generic x86-64"


def test_threads_are_physical_cores_where_none_are_asked_for(tmp_path, monkeypatch):
    """What llama.cpp quantizes with, too, where as many processors as there are would be taken before."""
    root = tree(tmp_path, PC)
    assert (thread_count(0, root), thread_count(7, root)) == (4, 7)
    here = read_device(root)
    monkeypatch.setattr("edgetune.machine.device.read_device", lambda _="/": here)
    asked: list[int] = []

    def quantize(_source, _out, settings):
        asked.append(settings._obj.nthread)
        return 0

    llama = llamacpp.load()
    monkeypatch.setattr(llama, "llama_model_quantize", quantize)
    for threads in (0, 3):
        quantize_file(tmp_path / "a", tmp_path / "b", "Q4_0", threads)
    assert asked == [4, 3]


def affinity(allowed):
    return {"proc/self/status": f"Cpus_allowed_list:\t{allowed}\n"}


def cgroup_v2(quota):
    return {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": quota}


def cgroup_v1(quota):
    return {"proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": quota,
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(("files", "cores"), [
    (affinity("0"), 1), (affinity("0,4"), 1), (affinity("0-1,4-5"), 2), (affinity("1,6-7"), 3),
    (cgroup_v2("max 100000"), 4), (cgroup_v2("200000 100000"), 2), (cgroup_v2("150000 100000"), 1),
    (cgroup_v2("50000 100000"), 1), (cgroup_v1("-1"), 4), (cgroup_v1("300000"), 3)])
def test_cores_are_those_that_the_kernel_allows(tmp_path, files, cores):
    assert read_device(tree(tmp_path, PC | files)).cores == cores


def test_memory_is_what_a_cgroup_v2_leaves(tmp_path):
    group = "sys/fs/cgroup/a/b"
    files = PC | {
        "proc/self/cgroup": "0::/a/b\n", f"{group}/memory.max": "max", f"{group}/memory.current": str(300 * MIB),
        "sys/fs/cgroup/a/memory.max": str(512 * MIB), "sys/fs/cgroup/a/memory.high": "max",
        "sys/fs/cgroup/a/memory.current": str(400 * MIB),
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {90 * MIB}\nactive_file {20 * MIB}\n",
    }
    found = read_device(tree(tmp_path, files))
    assert (found.memory_total, found.memory_available) == (512 * MIB, 212 * MIB)
    tree(tmp_path, {"sys/fs/cgroup/a/memory.high": str(256 * MIB)})
    found = read_device(tmp_path)
    assert (found.memory_total, found.memory_available) == (256 * MIB, 0)


def test_memory_is_what_a_cgroup_v1_leaves(tmp_path):
    group = "sys/fs/cgroup/memory/box"
    files = PC | {
        "proc/self/cgroup": "4:memory:/box\n0::/\n", f"{group}/memory.limit_in_bytes": str(512 * MIB),
        f"{group}/memory.usage_in_bytes": str(100 * MIB), f"{group}/memory.stat": f"total_inactive_file {10 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    found = read_device(tree(tmp_path, files))
    assert (found.memory_total, found.memory_available) == (512 * MIB, 422 * MIB)


def test_a_container_that_sees_only_its_own_cgroup(tmp_path):
    """Without a cgroup namespace the path is the host's, but the limit lies at the mount."""
    files = PC | {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/memory.max": str(64 * MIB),
                  "sys/fs/cgroup/memory.current": "0"}
    assert read_device(tree(tmp_path, files)).memory_total == 64 * MIB


def test_an_empty_tree_is_described_too(tmp_path):
    found = read_device(tmp_path)
    assert (found.model, found.cpu, found.cores, found.memory_total) == ("", "", 1, 0)
    assert found.machine == platform.machine()


def test_this_machine_agrees_with_psutil():
    found = read_device()
    assert 1 <= found.cores <= len(psutil.Process().cpu_affinity())
    assert 0 < found.memory_available <= found.memory_total <= psutil.virtual_memory().total
    assert found.machine == platform.machine()


def test_the_longest_fitting_model_wins(tmp_path):
    for i, model in enumerate(["", "Board 5", "Board 5 Plus"]):
        (tmp_path / f"{i}.toml").write_text(f'name = "{i}"\nisa = "neon"\nmachine = "aarch64"\nmodel = "{model}"\n')
    names = []
    for board in ("Board 5 Plus v2", "Board 5", "Other"):
        profile, _ = match_profile(board, "aarch64", folder=tmp_path)
        names.append(profile.name if profile else None)
    assert names == ["2", "1", "0"]
    assert match_profile("Board 5", "riscv64", folder=tmp_path) == (None, "no profile fits")


# What /proc/device-tree/model says on these boards, their cores and memory in MiB.
BOARDS = {
    "Raspberry Pi Zero 2 W Rev 1.0": ("Raspberry Pi Zero 2 W", "Cortex-A53", 4, 426),
    "Raspberry Pi 3 Model B Plus Rev 1.3": ("Raspberry Pi 3 Model B+", "Cortex-A53", 4, 921),
    "Raspberry Pi 4 Model B Rev 1.4": ("Raspberry Pi 4 Model B", "Cortex-A72", 4, 3792),
    "Raspberry Pi 5 Model B Rev 1.0": ("Raspberry Pi 5", "Cortex-A76", 4, 8052),
    "NVIDIA Jetson Nano Developer Kit": ("NVIDIA Jetson Nano", "Cortex-A57", 4, 3964),
    "NVIDIA Jetson Orin Nano Developer Kit": ("NVIDIA Jetson Orin Nano", "Cortex-A78AE", 6, 7620),
    "NVIDIA Jetson AGX Orin Developer Kit": ("NVIDIA Jetson AGX Orin", "Cortex-A78AE", 12, 62841),
}


@pytest.mark.parametrize("model", BOARDS)
def test_a_board_is_known_by_its_name_and_in_a_container_by_what_it_is_made_of(model):
    name, cpu, cores, mib = BOARDS[model]
    profile, why = match_profile(model, "aarch64")
    assert profile is not None
    assert (profile.name, model in why) == (name, True)
    profile, why = match_profile("", "aarch64", cpu, cores, mib * MIB)
    assert profile is not None
    assert profile.name == name
    assert why == f"it has {cores} x {cpu} and {size_text(mib * MIB)} of memory, and no device tree to read"


@pytest.mark.parametrize(("model", "cpu", "cores", "mib"), [
    ("Radxa ROCK 4", "Cortex-A72", 4, 3792),  # another board, made of the same
    ("", "Cortex-A76", 8, 8052), ("", "Cortex-A76", 4, 6000), ("", "", 0, 0)])
def test_what_no_profile_describes_is_a_generic_board(model, cpu, cores, mib):
    profile, why = match_profile(model, "aarch64", cpu, cores, mib * MIB)
    assert profile is not None
    assert profile.name == "generic arm64"
    assert "any aarch64" in why


@pytest.mark.parametrize(("place", "files", "wears"), [
    ("mmc0/block/mmcblk0/mmcblk0p2", {"partition": "2"}, True), ("usb1/block/sda/sda1", {"partition": "1"}, True),
    ("ata1/block/sdb", {}, False), ("pci0/block/nvme0n1/nvme0n1p1", {"partition": "1"}, False), (None, {}, False)])
def test_storage_that_wears_out_is_known(tmp_path, place, files, wears):
    if place:
        block = tmp_path / "sys/devices" / place
        block.mkdir(parents=True)
        disk = block.parent if files else block
        (disk / "removable").write_text(f"{int('usb' in place)}\n")
        for name, content in files.items():
            (block / name).write_text(content)
        number = tmp_path.stat().st_dev
        link = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True)
        link.symlink_to(block)
    assert is_removable(tmp_path, tmp_path) == wears


def test_a_profile_by_name():
    assert profile_named("raspberry-pi-5").name == "Raspberry Pi 5"
    assert profile_named("pi 4").name == "Raspberry Pi 4 Model B"
    assert profile_named("Jetson Nano").name == "NVIDIA Jetson Nano"
    assert profile_named("raspberry-pi-zero-2w").name == "Raspberry Pi Zero 2 W"
    assert profile_named("raspberry-pi-4-2gb").memory_mib == (2048,)
    assert profile_named("pi 4 2 GB").available > profile_named("pi 4").available == profile_named("pi-4-1gb").available
    with pytest.raises(UsageError, match="Raspberry Pi 4 Model B is not sold with 3 GB; it has 1, 2, 4, 8"):
        profile_named("pi 4 3gb")
    with pytest.raises(UsageError, match=r"'pi 6' is not known; choose from .*generic arm64, .*Raspberry Pi 5"):
        profile_named("pi 6")
    with pytest.raises(UsageError, match="'nano' could be NVIDIA Jetson Nano or NVIDIA Jetson Orin Nano;"):
        profile_named("nano")
    with pytest.raises(UsageError, match="is not known"):
        profile_named("")


def test_profiles_are_toml_and_sound():
    folder = Path(__file__).parents[2] / "devices"
    paths = sorted(folder.glob("*.toml"))
    assert len(paths) == len(read_profiles()) >= 9
    for path, p in zip(paths, read_profiles(), strict=True):
        assert p.isa in (*isa_names(), "neon", "dotprod", "avx2"), path  # rows of the other machine are not built here
        assert p.machine in ("aarch64", "x86_64")
        assert not p.critical_temp or 40 < p.throttle_temp < p.critical_temp < 110
        assert p.zones
        assert 0 < p.reserve_mib <= min(p.memory_mib, default=10**6) / 8


@pytest.mark.parametrize("line", ["[table]", "a =", "a = [1, [2]]", "b = 2", "a = " + "[" * 500, "a = 2026-01-01"])
def test_flat_toml_refuses(tmp_path, line):
    """What is no TOML, and what a flat file has not."""
    (tmp_path / "a.toml").write_text(f"b = 1\n{line}\n")
    with pytest.raises(FormatError, match=r"a\.toml .*; write name = value"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(FormatError, match="cannot read"):
        read_toml(tmp_path / "none.toml")


def test_what_overrides_a_profile_is_said(tmp_path, monkeypatch):
    files = PI_5 | {
        "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0", "proc/self/status": "Cpus_allowed_list:\t0-1\n",
        "sys/devices/system/cpu/present": "0-3\n", "var/lib/nvpmodel/status": "pmode:0001\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_1 1\n< POWER_MODEL ID=1 NAME=5W >\n",
        "sys/fs/cgroup/user.slice/session-1.scope/memory.max": str(512 * MIB)}
    monkeypatch.setenv("EDGETUNE_ISA", "scalar")
    facts = describe_device(tree(tmp_path, files))
    assert (facts["profile"], facts["power_mode"], facts["cores"], facts["processors"]) == (
        "NVIDIA Jetson Nano", "5W", 2, 4)
    sentences = facts["overrides"]
    assert [any(word in s for s in sentences) for word in ("2 cores of 4", "512 MiB of memory of 7.86 GiB",
                                                           "power mode 5W", "EDGETUNE_ISA")] == [True] * 4
    assert facts["profile_says"]["throttle_temp"] == 98.5
    with pytest.raises(UsageError, match="no folder proc"):
        describe_device(tmp_path / "sys")


def test_what_is_said_of_a_jetsons_gpu(tmp_path):
    board = Board(tmp_path)
    board.jetson(mode=1, gpu_load=42)
    board.write({"proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0"})
    facts = describe_device(tmp_path)
    assert (facts["profile"], facts["power_mode"]) == ("NVIDIA Jetson Orin NX", "25W")
    assert (facts["gpu_load_percent"], facts["gpu_mhz"]) == (42, 306)
    now = sensor_reader(tmp_path)()
    assert (now["power_mode"], now["gpu_load_percent"], now["gpu_mhz"]) == ("25W", 42, 306)


def written(nbytes):
    """Memory that nothing in this process had before: malloc may hand out what is in memory already."""
    block = mmap.mmap(-1, nbytes)
    block.write(b"\1" * nbytes)
    return block


def test_rss_grows_and_its_peak_stays():
    reset_peak_rss()
    before = rss()
    assert abs(before - psutil.Process().memory_info().rss) < 16 * MIB
    block = written(64 * MIB)
    assert rss() >= before + 60 * MIB
    block.close()
    assert peak_rss() >= before + 60 * MIB
    assert rss() < before + 30 * MIB


def test_the_peak_can_be_reset():
    block = written(64 * MIB)
    high = peak_rss()
    block.close()
    reset_peak_rss()
    if peak_rss() == high:
        pytest.skip("this kernel does not let /proc/self/clear_refs reset the peak")
    assert peak_rss() <= high - 30 * MIB
