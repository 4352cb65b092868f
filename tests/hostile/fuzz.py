"""Mutate the files that people share, and read each: ``python -m tests.hostile.fuzz --minutes 30 --seed 1``.

Whatever a file became, its reader gives what was written, or one line of error: no traceback, no signal, no
hang and no wrong label. Cases follow from the seed and their number, so one that fails is made again by both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nml.errors import UserError
from nml.untrusted import Untrusted

SECONDS_A_CASE = 60
MEMORY = 1 << 30
# What a mutated text gets in place of a value, beside other values of its own.
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**40,
        1e308,
        float("nan"),
        "",
        "../../x",
        "/etc/passwd",
        "n00",
        "\x1b[2J",
    ),
    *("\ud800", "a\x00b", [], {}, [[]], ["x"], {"x": 1}, "x" * 10_000),
)


class Target(NamedTuple):
    """A file that is mutated, and what reads it.

    Attributes:
        files: What is mutated, one at a time, below the folder.
        read: Reads the folder; raises what the reader raises, and ValueError for what is not as written.
        fit: Makes hashes fit again after a change, for readers that would look no further; None for none.
    """

    files: tuple[str, ...]
    read: Callable[[Path], None]
    fit: Callable[[Path], None] | None = None


class WrongLabelError(Exception):
    """A reader gave something else than was written, without a word."""


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few changes: bits, runs, cuts, copies of other parts, and large numbers."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        start = draw.randrange(len(changed))
        length = min(len(changed) - start, draw.choice((1, 1, 4, 8, 64, 512)))
        kind = draw.randrange(6)
        if kind == 0:
            changed[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[start : start + length] = draw.randbytes(length)
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            other = draw.randrange(len(changed))
            changed[start : start + length] = changed[other : other + length]
        elif kind == 4:
            number = draw.choice((0, -1, 2**31 - 1, 2**31, 2**62, -(2**63)))
            size = draw.choice((4, 8))
            changed[start : start + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        else:
            del changed[start:]
    return bytes(changed)


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """Return a JSON text in which some values are others, have another name, or are gone."""
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(value))
        around, name = draw.choice(places)
        kind = draw.randrange(5)
        if kind < 3:
            other = draw.choice(places)
            around[name] = draw.choice((*VALUES, other[0][other[1]])) if kind else _nudged(around[name], draw)
        elif kind == 3:
            del around[name]
        elif isinstance(around, dict):
            around[draw.choice(("x", "", "name", "format", "__class__"))] = around.pop(name)
        if not value:
            break
    try:
        return json.dumps(value).encode()
    except ValueError:
        # A value that was put into itself.
        return b"[]"


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield every container and key at which a value stands."""
    if depth > 40:
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key], depth + 1)


def _nudged(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + draw.choice((-1, 1, 1000, 0.5))
    if isinstance(value, str) and value:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice("0a/.\x07 é") + value[place + 1 :]
    return [value]


def case(target: Target, source: Path, folder: Path, draw: random.Random) -> None:
    """Make one mutated copy and read it; what its reader says of it is its own affair."""
    shutil.copytree(source, folder)
    path = folder / draw.choice(target.files)
    data = path.read_bytes()
    as_json = path.suffix in (".json", ".jsonl", ".yaml") and draw.random() < 0.7
    if as_json and path.suffix == ".yaml":
        data = json.dumps(yaml.safe_load(data)).encode()
    # Of lines, one is another.
    first, last, rest = data.partition(b"\n") if path.suffix == ".jsonl" else (data, b"", b"")
    path.write_bytes(mutated_json(first, draw) + last + rest if as_json else mutated(data, draw))
    if target.fit is not None and draw.random() < 0.5:
        with contextlib.suppress(Exception):
            target.fit(folder)
    with contextlib.suppress(UserError, Untrusted, OSError), contextlib.redirect_stderr(io.StringIO()):
        target.read(folder)


class Outcome(NamedTuple):
    """What came of some cases.

    Attributes:
        cases: How many of each target were read.
        failures: A line for each that failed.
    """

    cases: Counter[str]
    failures: list[str]


def fuzz(targets: dict[str, tuple[Target, Path]], *, seed: int, cases: int, until: float) -> Outcome:
    """Read ``cases`` mutated files, or as many as there is time for, in turn of each target.

    Args:
        targets: Each with the folder whose files are mutated.
        seed: What is drawn follows from it.
        cases: Most cases.
        until: Time by ``time.monotonic`` at which no other case is begun.
    """
    done: Counter[str] = Counter()
    failures: list[str] = []
    number = 0
    while number < cases and time.monotonic() < until:
        number = _some(targets, seed, number, min(cases, number + 200), until, done, failures)
    return Outcome(done, failures)


def _some(
    targets: dict[str, tuple[Target, Path]],
    seed: int,
    first: int,
    last: int,
    until: float,
    done: Counter[str],
    failures: list[str],
) -> int:
    """Read cases in a process of their own, as far as it comes; return the number of the next one."""
    names = sorted(targets)
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        _read_cases(targets, names, seed, range(first, last), until, writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = told.read().splitlines()
    _, status = os.waitpid(process, 0)
    number = first
    for line in lines:
        number = int(line.split(" ", 1)[0])
        done[names[number % len(names)]] += line.endswith(" begun")
        if not line.endswith(" begun"):
            failures.append(f"{names[number % len(names)]}, seed {seed}, case {line}")
    if status:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        died = f"signal {signal.Signals(ended).name}" if ended else f"status {status}"
        failures.append(f"{names[number % len(names)]}, seed {seed}, case {number}: {died}")
    return number + 1


def _read_cases(
    targets: dict[str, tuple[Target, Path]],
    names: list[str],
    seed: int,
    numbers: range,
    until: float,
    writer: int,
) -> None:
    soft = _data_bytes() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
    with tempfile.TemporaryDirectory() as scratch:
        for number in numbers:
            if time.monotonic() > until:
                break
            target, source = targets[names[number % len(names)]]
            os.write(writer, f"{number} begun\n".encode())
            # A reader that hangs is ended by the alarm, and seen by its parent.
            signal.alarm(SECONDS_A_CASE)
            folder = Path(scratch, "case")
            try:
                case(target, source, folder, random.Random(f"{seed} {number}"))
            except Exception:
                said = traceback.format_exc(limit=-3).replace("\n", " | ")
                os.write(writer, f"{number} {said}\n".encode(errors="replace"))
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _data_bytes() -> int:
    fields = Path("/proc/self/status").read_text().split("VmData:")[1].split()
    return int(fields[0]) * 1024


def make_targets(folder: Path) -> dict[str, tuple[Target, Path]]:
    """Write one good folder of each kind, and say how it is read."""
    from tests.hostile import good

    digits = good.digits_set(folder / "set")
    labels = dict(good.read_labels(digits))

    def read_set(place: Path) -> None:
        for number, found in good.read_labels(place):
            if found != labels[number]:
                raise WrongLabelError(f"sample {number}: {found}, not {labels[number]}")

    def read_any(place: Path) -> None:
        for _ in good.read_labels(place):
            pass

    plain = good.without_digest(digits, folder / "plain")
    trained = good.run_folder(folder / "trained", digits)
    command = (trained / "config.yaml").read_text()
    records = good.launched(folder / "launched")
    launched = tuple(str(path.relative_to(records)) for path in records.rglob("*.json*") if path.is_file())
    return {
        "set.json": (Target(("set.json",), read_set), digits),
        "set.json without its own hash": (Target(("set.json",), read_any), plain),
        "index": (Target(("index.arrow",), read_set), digits),
        "index, its hashes made to fit": (Target(("index.arrow",), read_any, good.fit_index), digits),
        "tar of a set": (Target((next(digits.glob("*.tar")).name,), read_set), digits),
        "tar, foreign": (Target(("x.tar",), good.index_tar), good.foreign_tar(folder / "tar")),
        "meta.json": (Target(("export/meta.json",), good.read_export), good.export(folder / "run")),
        "head.json": (
            Target(("head.json", "head.safetensors"), good.read_head, good.fit_head),
            good.head(folder / "head"),
        ),
        "rows": (Target(("rows/r.parquet",), good.report), good.rows(folder / "rows")),
        "rows, their values": (
            Target(("rows.json",), good.report_values),
            good.row_values(folder / "values"),
        ),
        "checkpoint": (
            Target(("COMPLETE.json", "state/.metadata"), good.read_checkpoint, good.fit_checkpoint),
            good.checkpoint(folder / "checkpoint"),
        ),
        "run folder": (
            Target(
                (
                    *("metrics.jsonl", "config.yaml", "data.json", "DONE.json"),
                    *(f"checkpoints/step-00000002/{name}" for name in ("COMPLETE.json", "export/meta.json")),
                ),
                lambda place: good.read_run(place, digits, command),
                lambda place: good.fit_checkpoint(place / "checkpoints/step-00000002"),
            ),
            trained,
        ),
        "launch folder": (Target(launched, good.read_launched), records),
        "recipe": (Target(("recipe.yaml",), good.read_recipe), good.recipe(folder / "recipe")),
    }


def main() -> None:
    """Run for some minutes and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        targets = make_targets(Path(scratch))
        begun = time.monotonic()
        until = begun + 60 * arguments.minutes
        found = fuzz(targets, seed=arguments.seed, cases=arguments.cases, until=until)
    for name, count in sorted(found.cases.items()):
        print(f"{count:8,}  {name}")
    seconds = time.monotonic() - begun
    print(f"{sum(found.cases.values()):,} cases in {seconds:.0f} s, {len(found.failures)} failed")
    for line in found.failures:
        print(line)
    sys.exit(bool(found.failures))


if __name__ == "__main__":
    main()
