"""The results of a measurement: JSON that is whole at any time, and a page of tables beside it."""

from __future__ import annotations

import contextlib
import datetime
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nml.files import write_bytes, write_json

# Share by which the pace may change between the first part and the last, and the figures still be compared.
DRIFT = 0.02
# Characters of a log that are kept.
_LOG = 4000


class Results:
    """What is known so far, written anew with each value.

    Where the disk is full it goes on in memory, and is printed at the end.

    Args:
        folder: Where results.json and results.md go.
        machine: What :func:`benchmarks.gpu.machine.describe` told.
        tiny: Whether the figures mean nothing.
        parts: Names of the parts that are to come.

    Attributes:
        unwritten: Why the files are not what is known; empty where they are.
    """

    def __init__(
        self, folder: Path, *, machine: dict[str, Any], tiny: bool, parts: Iterable[str] = ()
    ) -> None:
        self.path = folder / "results.json"
        self.record: dict[str, Any] = {
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            "tiny": tiny,
            "machine": machine,
            "warnings": [],
            "parts": {name: {"status": "left out", "told": {}} for name in parts},
        }
        self.unwritten = ""
        self._write()

    def warned(self, lines: list[str]) -> list[str]:
        """Keep warnings, and return them."""
        self.record["warnings"] += lines
        self._write()
        return lines

    def begin(self, part: str) -> None:
        """Keep that a part is at work."""
        self._part(part)["status"] = "running"
        self._write()

    def note(self, part: str, name: str, value: Any) -> None:
        """Keep a value that a part tells."""
        self._part(part)["told"][name] = value
        self._write()

    def end(
        self, part: str, status: str, *, error: str, seconds: float, clocks: dict[str, list[float]]
    ) -> None:
        """Keep how a part ended."""
        ended = {"status": status, "seconds": round(seconds, 1), "clocks": clocks}
        self._part(part).update(ended | ({"error": error} if error else {}))
        self._write()

    def keep_log(self, part: str, log: Path) -> None:
        """Keep the end of what a part printed: this file may be all that leaves the machine."""
        # A part that could not be started has none.
        with contextlib.suppress(OSError):
            self._part(part)["log"] = log.read_text(errors="replace")[-_LOG:]
            self._write()

    def finish(self) -> None:
        """Compare the first part with the last."""
        drift = drift_of(self.record["parts"])
        if drift is not None:
            self.record["drift"] = round(drift, 4)
            if abs(drift) > DRIFT and not self.record["tiny"]:
                self.warned([f"the pace changed by {drift:+.1%} from first to last: measure again"])
        self._write()

    @property
    def whole(self) -> bool:
        """Whether every part is done."""
        return all(part["status"] == "done" for part in self.record["parts"].values())

    def _part(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.record["parts"].setdefault(name, {"status": "running", "told": {}})
        return found

    def _write(self) -> None:
        try:
            write_json(self.path, self.record)
            write_bytes(self.path.with_suffix(".md"), page(self.record).encode())
            self.unwritten = ""
        except OSError as error:
            if not self.unwritten:
                print(f"warning: {self.path}: {error.strerror}; kept in memory", flush=True)
            self.unwritten = str(error)


def drift_of(parts: dict[str, Any]) -> float | None:
    """Return by how much the bare loop became faster between the first part and the last."""
    times = [
        parts.get(name, {}).get("told", {}).get("bare", {}).get("step_ms") for name in ("first", "again")
    ]
    if not all(times):
        return None
    first, again = map(statistics.median, times)
    return first / again - 1


def page(record: dict[str, Any]) -> str:
    """Return the tables of a measurement as Markdown."""
    machine, parts = record["machine"], record["parts"]
    device = parts.get("first", {}).get("told", {}).get("device", {})
    gpu = machine["gpu"].get("name") or device.get("name") or "no GPU"
    lines = [f"# Measured on {gpu}", ""]
    if record["tiny"]:
        lines += ["Tiny, to try every line: the figures mean nothing.", ""]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    lines += [f"{record['date']}, {machine['cores']} cores, Python {machine['python']}, {versions}.", ""]
    lines += [f"- {warning}" for warning in record["warnings"]]
    if "drift" in record:
        lines += [f"- the bare loop at the end against the beginning: {record['drift']:+.1%}"]
    lines += ["", "| part | status | seconds | SM clock, MHz | power, W |", "|---|---|---|---|---|"]
    for name, part in parts.items():
        clocks = part.get("clocks", {})
        told = [_span(clocks.get(field)) for field in ("clocks.sm", "power.draw")]
        status = part["status"] + (f": {part['error']}" if "error" in part else "")
        lines.append(f"| {name} | {_cell(status)} | {part.get('seconds', '')} | {' | '.join(told)} |")
    for name in ("first", "race", "clip", "engines", "again"):
        if name in parts:
            lines += ["", f"## {name}", "", *race_table(parts[name]["told"])]
    for name in ("waits", "run", "heads", "tests"):
        if name in parts:
            lines += ["", f"## {name}", "", *_listed(parts[name]["told"])]
    return "\n".join(lines) + "\n"


def race_table(told: dict[str, Any]) -> list[str]:
    """Return a table of loops that took turns: medians, the spread of the turns, and MFU."""
    others = [f"{name}: {value}" for name, value in told.items() if not _is_loop(value)]
    lines = [f"{', '.join(others)}.", ""] if others else []
    lines += ["| loop | images/s | of its turns | ms a step | MFU | times bare | warm-up, s | memory, MB |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    loops = {name: value for name, value in told.items() if _is_loop(value)}
    base = loops.get("bare", {}).get("step_ms")
    for name, loop in loops.items():
        times = loop["step_ms"]
        if not times or "batch" not in told:
            lines.append(f"| {name} | {_cell(loop.get('error', 'not measured'))} | | | | | | |")
            continue
        rates = [1000 * told["batch"] / time for time in times]
        rate, mfu = statistics.median(rates), ""
        if told.get("peak_flops") and told.get("flops_of_sample"):
            mfu = f"{rate * told['flops_of_sample'] / told['peak_flops']:.1%}"
        # Turn by turn, so that what the machine did meanwhile falls on both.
        ratio = statistics.median(own / its for own, its in zip(base, times, strict=False)) if base else None
        spread, middle = f"{min(rates):,.0f} to {max(rates):,.0f}", f"{statistics.median(times):.1f}"
        rest = [f"{ratio:.3f}" if ratio else "", loop.get("warm_s", ""), loop.get("memory_mb") or ""]
        lines.append(f"| {' | '.join(map(str, [name, f'{rate:,.0f}', spread, middle, mfu, *rest]))} |")
    return lines


def _is_loop(value: Any) -> bool:
    return isinstance(value, dict) and "step_ms" in value and isinstance(value["step_ms"], list)


def _listed(told: dict[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for name, value in told.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * depth}- {name}", *_listed(value, depth + 1)]
        elif isinstance(value, list):
            lines += [f"{'  ' * depth}- {name}"] + [f"{'  ' * (depth + 1)}- {each}" for each in value]
        else:
            lines.append(f"{'  ' * depth}- {name}: {value}")
    return lines


def _span(values: list[float] | None) -> str:
    return f"{values[0]:g} to {values[2]:g}, median {values[1]:g}" if values else ""


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:300]
