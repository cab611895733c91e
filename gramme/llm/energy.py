"""What the machine draws at work: read from its energy counters where it has some, else as the user declared it.

RAPL (kernel.org/doc/html/latest/power/powercap/powercap.html) counts whole processor packages and their memory, NVML
(docs.nvidia.com/deploy/nvml-api) a whole card: whoever else works on them is counted too. Knows no request.
"""
from collections.abc import Callable
from pathlib import Path

from gramme.config import ConfigError, Plan
from gramme.plan.driver import energy
from gramme.plan.receipts import Power

POWERCAP = Path("/sys/class/powercap")
LEAST_S, WINDOW_S = 0.05, 0.5  # NVML's counter moves every 20 to 100 ms

Counter = Callable[[], float]  # joules, from an arbitrary beginning


class PowerMeter:
    """`power` is the mean of the last window of work; before the first one has passed, of nothing: unknown."""

    def __init__(self, power: Power, counter: Counter | None = None):
        self.power, self._counter = power, counter
        self._since_s = self._joules = 0.0

    def restart(self, now_s: float) -> None:
        """Work begins: what was drawn until now does not count."""
        if self._counter is not None:
            self._since_s, self._joules = now_s, self._counter()

    def read(self, now_s: float, last: bool) -> None:
        """Close the window when it is long enough; `last`: work ends, so a shorter one will do."""
        passed_s = now_s - self._since_s
        if self._counter is None or passed_s < (LEAST_S if last else WINDOW_S):
            return
        joules = self._counter()
        self.power = Power(watts=(joules - self._joules) / passed_s, source=self.power.source)
        self._since_s, self._joules = now_s, joules


def power(plan: Plan, powercap: Path = POWERCAP) -> PowerMeter:
    """A declared power goes before a counter. Raises ConfigError when a price for energy could never be applied."""
    if plan.watts is not None:
        return PowerMeter(Power(watts=plan.watts, source="declared"))
    name, counter = ("NVML", energy()) if plan.backend == "cuda" else ("RAPL", rapl(powercap))
    if counter is not None:
        return PowerMeter(Power(source=name), counter)
    if plan.price is not None and plan.price.unit == "kWh":
        raise ConfigError(f"--price a kWh needs --power: this machine's energy counter ({name}) cannot be read")
    return PowerMeter(Power())


def rapl(powercap: Path = POWERCAP) -> Counter | None:
    """The sum of all packages and of the memory zones below them; None where none can be read."""
    zones = [_Zone(p) for p in sorted(powercap.glob("intel-rapl:*")) if _counts(p)]
    try:
        for zone in zones:
            zone.joules()
    except (OSError, ValueError):  # for root only, on most systems
        return None
    return (lambda: sum(zone.joules() for zone in zones)) if zones else None


class _Zone:
    """One counter of microjoules, which begins again at its range."""

    def __init__(self, path: Path):
        self._file, self._range = path / "energy_uj", path / "max_energy_range_uj"
        self._last, self._turns = 0, 0

    def joules(self) -> float:
        now = int(self._file.read_text())
        if now < self._last:
            self._turns += int(self._range.read_text())
        self._last = now
        return (now + self._turns) / 1e6


def _counts(zone: Path) -> bool:
    """Packages, and memory, which is not part of them; cores are."""
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"
