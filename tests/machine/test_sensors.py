"""Readings from made-up device trees, and from this machine."""

import mmap
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from boards import MIB, Board
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.machine.device import read_profiles
from edgetune.machine.sensors import Sensors, gpu_mhz


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def test_a_cool_idle_board(board):
    sensors = Sensors(board.root, ("cpu-thermal",), local=lambda: time.gmtime(13 * 3600 + 5 * 60))
    board.tick()
    r = sensors.read()
    assert (r.minute, r.total, r.available, r.temperature, r.zone) == (785, 8052 * MIB, 7000 * MIB, 50.0, "cpu-thermal")
    assert (r.throttled, r.on_battery, r.battery, r.foreground, r.trip) == ("", False, None, False, None)
    assert (r.processors, r.others_busy, r.cpu_stall, r.memory_stall, r.returned, r.killed) == (4, 0, 0, 0, 0, False)


def test_an_empty_root_says_nothing(tmp_path):
    r = Sensors(tmp_path, ("*",)).read()
    assert (r.total, r.temperature, r.cpu_stall, r.throttled) == (0, None, None, "")
    assert (r.on_battery, r.others_busy, r.processors) == (False, 0, 1)


@pytest.mark.parametrize(("flags", "words"), [
    (0x0, ""), (0x50000, ""), (0x80008, ""), (0x1, "voltage"), (0x50005, "voltage"), (0x2, "caps the clock"),
    (0xE0006, "caps the clock"), (0x4, "throttles the cores")])
def test_what_the_firmware_of_a_raspberry_pi_flags(board, flags, words):
    """Bits 16 and up are of the past; bit 3 is a 3B+ at 1.2 instead of 1.4 GHz."""
    board.throttle(flags)
    throttled = Sensors(board.root).read().throttled
    assert bool(throttled) == bool(words)
    assert words in throttled


def test_alerts_of_a_jetson_count_when_they_rise(board):
    chip = "sys/class/hwmon/hwmon2"
    board.write({f"{chip}/name": "soctherm_oc\n", f"{chip}/oc1_event_cnt": "0\n", f"{chip}/oc3_event_cnt": "37\n"})
    sensors = Sensors(board.root)
    assert sensors.read().throttled == ""
    board.write({f"{chip}/oc3_event_cnt": "38\n"})
    assert sensors.read().throttled == "the board slowed down for over-current"
    assert sensors.read().throttled == ""
    board.write({f"{chip}/oc1_event_cnt": "1\n"})
    assert sensors.read().throttled == "the board slowed down for under-voltage"


VOLTAGE = "sys/class/hwmon/hwmon3"
COOLING = "sys/class/thermal/cooling_device"


@pytest.mark.parametrize(("files", "changed", "says"), [
    ({f"{VOLTAGE}/name": "rpi_volt\n", f"{VOLTAGE}/in0_lcrit_alarm": "0\n"}, {f"{VOLTAGE}/in0_lcrit_alarm": "1\n"},
     "voltage"),
    ({f"{COOLING}0/type": "pwm-fan\n", f"{COOLING}0/cur_state": "4\n", f"{COOLING}1/type": "cpufreq-cpu0\n",
      f"{COOLING}1/cur_state": "0\n"}, {f"{COOLING}1/cur_state": "2\n"}, "the kernel lowers the clock for heat"),
    ({f"{COOLING}3/type": "devfreq-17000000.gpu\n", f"{COOLING}3/cur_state": "0\n"}, {f"{COOLING}3/cur_state": "3\n"},
     "the kernel lowers the clock for heat"),
], ids=["under-voltage by hwmon", "a cooling device that lowers the clock", "a GPU whose clock is lowered"])
def test_what_slows_a_board_down(board, files, changed, says):
    board.write(files)
    sensors = Sensors(board.root)
    assert sensors.read().throttled == ""
    board.write(changed)
    assert says in sensors.read().throttled


@pytest.mark.parametrize("folder", ["sys/devices/gpu.0", "sys/devices/platform/gpu.0",
                                    "sys/class/devfreq/17000000.gpu/device"])
def test_load_and_clock_of_a_jetsons_gpu(board, folder):
    sensors = Sensors(board.root)
    assert (sensors.read().gpu_load, gpu_mhz(board.root)) == (None, None)
    board.jetson(mode=0, gpu_load=98.7, gpu_folder=folder)  # the driver may be loaded later
    assert (sensors.read().gpu_load, gpu_mhz(board.root)) == (98.7, 306)


def test_the_power_mode_of_a_jetson_may_change(board):
    sensors = Sensors(board.root)
    assert sensors.read().power_mode == ""
    board.jetson(mode=0, gpu_load=0)
    assert sensors.read().power_mode == "15W"
    board.jetson(mode=1, gpu_load=0)
    assert sensors.read().power_mode == "25W"


@pytest.mark.parametrize("names", [("cpu-thermal", "gpu-thermal", "tj-thermal"),
                                   ("CPU-therm", "GPU-therm", "tj-therm")])
def test_a_jetsons_gpu_is_a_sensor_that_may_sleep(tmp_path, names):
    """JetPack 6's and 5's names. While the GPU sleeps, its zone cannot be read: here it is a folder."""
    zones = [tmp_path / f"sys/class/thermal/thermal_zone{i}" for i in range(3)]
    for zone, name, degrees in zip(zones, names, (50, 71, 60), strict=True):
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{name}\n")
        (zone / "temp").write_text(f"{degrees}000\n")
    for board in (profile for profile in read_profiles() if "Orin" in profile.name):
        readings = Sensors(tmp_path, board.zones).read()
        assert (readings.temperature, readings.zone) == (71, names[1])
    (zones[1] / "temp").unlink()
    (zones[1] / "temp").mkdir()
    readings = Sensors(tmp_path, board.zones).read()
    assert (readings.temperature, readings.zone) == (60, names[2])


def test_trip_points_of_the_kernel(board):
    zone = "sys/class/thermal/thermal_zone0"
    for i, (kind, temp) in enumerate([("active", 50000), ("passive", 95000), ("hot", 99000), ("critical", 105000),
                                      ("passive", -274000)]):
        board.write({f"{zone}/trip_point_{i}_type": f"{kind}\n", f"{zone}/trip_point_{i}_temp": f"{temp}\n"})
    assert Sensors(board.root, ("cpu*",)).read().trip == 95


def test_the_hottest_zone_or_chip_counts(board):
    board.write({"sys/class/hwmon/hwmon0/name": "k10temp\n", "sys/class/hwmon/hwmon0/temp1_input": "61500\n"})
    r = Sensors(board.root, ("cpu-thermal", "k10temp")).read()
    assert (r.temperature, r.zone) == (61.5, "k10temp")


def test_every_profile_sees_a_zone_of_its_board(tmp_path):
    """The types that these boards' kernels register; a Jetson Nano's PMIC-Die is stuck at 100 degrees."""
    kinds = {"Raspberry": ["cpu-thermal"], "NVIDIA Jetson Nano": ["AO-therm", "CPU-therm", "GPU-therm", "PMIC-Die"],
             "NVIDIA Jetson Orin": ["cpu-thermal", "gpu-thermal", "soc0-thermal", "tj-thermal"],
             "NVIDIA Jetson AGX": ["cpu-thermal", "gpu-thermal", "soc0-thermal", "tj-thermal"],
             "generic arm64": ["soc_thermal", "bigcore0-thermal"], "generic x86": ["acpitz", "x86_pkg_temp"]}
    for i, profile in enumerate(read_profiles()):
        root = tmp_path / str(i)
        for n, kind in enumerate(next(kinds[name] for name in kinds if profile.name.startswith(name))):
            temp = 100000 if kind == "PMIC-Die" else 40000 + n
            folder = root / f"sys/class/thermal/thermal_zone{n}"
            folder.mkdir(parents=True)
            (folder / "type").write_text(kind)
            (folder / "temp").write_text(str(temp))
        temperature = Sensors(root, profile.zones).read().temperature
        assert temperature is not None
        assert 40 <= temperature < 41


def test_power(board):
    sensors = Sensors(board.root)
    board.power(online=True, percent=80)
    assert (sensors.read().on_battery, sensors.read().battery) == (False, 80)
    board.power(online=False, percent=79)
    assert (sensors.read().on_battery, sensors.read().battery) == (True, 79)


def test_load_of_others_is_all_load_but_ours(board):
    sensors = Sensors(board.root)
    for _ in range(20):
        board.tick(others=1.5, own=2.0)
        r = sensors.read()
    assert r.others_busy == pytest.approx(1.5, abs=0.01)
    for _ in range(20):
        board.tick(own=4.0)
        r = sensors.read()
    assert r.others_busy < 0.01


def test_memory_of_cgroups(board):
    group = "sys/fs/cgroup/app"
    board.write({"proc/self/cgroup": "0::/app\n", f"{group}/memory.max": str(400 * MIB),
                 f"{group}/memory.current": str(300 * MIB),
                 f"{group}/memory.events": "low 0\nhigh 9\nmax 7\noom_kill 1\n",
                 f"{group}/memory.pressure": "some avg10=33.00 avg60=0 total=1\nfull avg10=11.00 avg60=0 total=1\n"})
    sensors = Sensors(board.root)
    r = sensors.read()
    assert (r.total, r.available, r.killed) == (400 * MIB, 100 * MIB, False)
    assert (r.memory_stall, r.memory_stall_full) == (33, 11)
    board.write({f"{group}/memory.events": "low 0\nhigh 10\nmax 20\noom_kill 2\n"})
    assert sensors.read().killed
    assert not sensors.read().killed


def test_memory_given_back_is_what_the_process_held_before(board):
    sensors = Sensors(board.root)
    for mib, returned in ((300, 0), (120, 180), (310, 0), (10, 300)):
        board.anonymous(mib)
        assert sensors.read().returned == returned * MIB


def test_a_busy_file_counts_while_its_process_lives(board):
    says: list[bool] = [False]
    sensors = Sensors(board.root, busy_file="/run/busy", busy=lambda: says[0])
    assert not sensors.read().foreground
    board.write({"run/busy": ""})
    assert sensors.read().foreground
    board.write({"run/busy": "4711\n"})
    assert not sensors.read().foreground
    board.write({"proc/4711/stat": ""})
    assert sensors.read().foreground
    board.write({"run/busy": "4712\n4711\n"})  # of two that answer one lives
    assert sensors.read().foreground
    board.write({"run/busy": "4712\n471\n"})
    assert not sensors.read().foreground
    (board.root / "run/busy").unlink()
    assert not sensors.read().foreground
    says[0] = True
    assert sensors.read().foreground


def test_this_machine_agrees_with_psutil():
    sensors = Sensors()
    r = sensors.read()
    assert 0 < r.available <= r.total <= psutil.virtual_memory().total
    assert r.processors == psutil.cpu_count()
    assert 0 <= r.others_busy <= r.processors
    held = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE)  # not malloc's: what it frees may stay with the process
    held[::4096] = b"1" * (len(held) // 4096)
    sensors.read()
    held.close()
    assert sensors.read().returned >= 60 * MIB


@examples(25)
@given(st.data())
def test_garbage_in_any_file_ends_no_run(data):
    """Whatever these files hold, a look gives readings: a sensor that fails must not end a training of days."""
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder))
        board.power(online=False, percent=50)
        board.write({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/memory.max": str(400 * MIB),
                     "sys/fs/cgroup/app/memory.events": "oom_kill 1\n",
                     "sys/fs/cgroup/app/memory.stat": "active_file 7\n"})
        sensors = Sensors(board.root, ("cpu-thermal",))
        files = sorted(path for path in board.root.rglob("*") if path.is_file())
        garbage = st.binary(max_size=30) | st.sampled_from([b"", b"\n", b"cpu  1 x\n", b"-1", b"some avg10="])
        before = sensors.read()
        broken = data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=5))
        for path in broken:
            path.write_bytes(data.draw(garbage))
        after = sensors.read()  # and a broken file spoils no other reading
        for part, names in {"thermal": ("temperature", "zone"), "power_supply": ("battery", "on_battery")}.items():
            if not any(part in str(path) for path in broken):
                assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
        Sensors(board.root, ("cpu-thermal",)).read()
