"""Made-up device trees: a board's /proc and /sys as a few small files, written and changed by a test."""

from pathlib import Path

MIB = 2**20


class Board:
    """A Raspberry Pi 5 with 8 GB below `root`, cool, idle and on mains. Each method changes what its sensors say."""

    zone = "cpu-thermal"
    cores = 4

    def __init__(self, root: Path) -> None:
        self.root = root
        self.busy_ticks = 0
        self.own_ticks = 0
        self.all_ticks = 0
        self.write({
            "proc/sys/kernel/arch": "aarch64\n", "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/self/cgroup": "0::/\n", "proc/self/status": "Cpus_allowed_list:\t0-3\nRssAnon:\t  51200 kB\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone1/type": "PMIC-Die\n", "sys/class/thermal/thermal_zone1/temp": "100000\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
        self.heat(50)
        self.memory(7000)
        self.pressure()
        self.tick()

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def heat(self, degrees: float) -> None:
        self.write({"sys/class/thermal/thermal_zone0/temp": f"{degrees * 1000:.0f}\n"})

    def memory(self, available_mib: int, total_mib: int = 8052) -> None:
        self.write({"proc/meminfo": f"MemTotal: {total_mib << 10} kB\nMemAvailable: {available_mib << 10} kB\n"})

    def anonymous(self, mib: int) -> None:
        self.write({"proc/self/status": f"Cpus_allowed_list:\t0-3\nRssAnon:\t{mib << 10} kB\n"})

    def pressure(self, some: float = 0.0, full: float = 0.0, cpu: float = 0.0) -> None:
        lines = [f"{kind} avg10={value:.2f} avg60=0.00 avg300=0.00 total=1\n"
                 for kind, value in (("some", some), ("full", full))]
        self.write({"proc/pressure/memory": "".join(lines),
                    "proc/pressure/cpu": f"some avg10={cpu:.2f} avg60=0.00 avg300=0.00 total=1\n"})

    def throttle(self, flags: int) -> None:
        self.write({"sys/devices/platform/soc/soc:firmware/get_throttled": f"{flags:x}\n"})

    def power(self, online: bool, percent: int) -> None:
        supply = "sys/class/power_supply"
        self.write({f"{supply}/AC/type": "Mains\n", f"{supply}/AC/online": f"{online:d}\n",
                    f"{supply}/BAT0/type": "Battery\n", f"{supply}/BAT0/capacity": f"{percent}\n",
                    f"{supply}/BAT0/status": "Charging\n" if online else "Discharging\n",
                    f"{supply}/mouse/type": "Battery\n", f"{supply}/mouse/scope": "Device\n",
                    f"{supply}/mouse/status": "Discharging\n", f"{supply}/mouse/capacity": "3\n"})

    def jetson(self, mode: int, gpu_load: float, gpu_folder: str = "sys/devices/platform/gpu.0") -> None:
        """From now on also what L4T says of a Jetson's power mode, and of its GPU at a load in percent."""
        self.write({"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
                    "var/lib/nvpmodel/status": f"pmode:{mode:04}\n", f"{gpu_folder}/load": f"{gpu_load * 10:.0f}\n",
                    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n"})

    def tick(self, others: float = 0.0, own: float = 0.0) -> None:
        """A second passes, in which so many processors were busy."""
        self.all_ticks += 100 * self.cores
        self.own_ticks += round(100 * own)
        self.busy_ticks += round(100 * (others + own))
        idle = self.all_ticks - self.busy_ticks
        cpus = "".join(f"cpu{i} 0 0 0 0 0 0 0 0 0 0\n" for i in range(self.cores))
        self.write({"proc/stat": f"cpu  {self.busy_ticks - 10} 4 3 {idle - 5} 5 2 1 0 0 0\n{cpus}intr 1\n",
                    "proc/self/stat": f"7 (a b) R 1 1 1 0 -1 4194304 0 0 0 0 {self.own_ticks} 0 0 0 20 0 1 0 0 0\n"})
