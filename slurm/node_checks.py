"""``python -m slurm.node_checks FOLDER``: what ``doctor`` looks at on the nodes, as the ranks of a run would.

Each rank writes what it found into FOLDER, which the launcher reads. It needs nothing but the standard
library until it looks for more: a report of what is missing is the purpose.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nml.errors import UserError
from nml.files import write_json
from nml.locking import byte_lock, is_free
from nml.untrusted import read_object

ASKED = "asked.json"
OK, NOTE, WRONG = "ok", "note", "WRONG"
_SKEW_SECONDS, _LARGE_SKEW_SECONDS = 2.0, 60.0
_MIB, _GIB = 1 << 20, 1 << 30
_WRITTEN_BYTES = 64 * _MIB
_LEAST_BYTES = 2 * _GIB
_LEAST_FILES = 10_000
_GROUP_SECONDS = 90
_REDUCED_NUMBERS = 4 * _MIB
_ANSWER_SECONDS = 30
_REFUSED = 3
_TAKE = f"""
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
except (BlockingIOError, PermissionError):
    sys.exit({_REFUSED})
"""


class Check(NamedTuple):
    """What a check found.

    Attributes:
        name: The check.
        state: ``ok``, ``note`` for what is to be known, ``WRONG`` for what a run would fail of.
        text: What was found.
    """

    name: str
    state: str
    text: str


def check_python(asked: dict[str, Any]) -> Check:
    """Which interpreter runs, and whether it prints as it starts."""
    own = ".".join(map(str, sys.version_info[:3]))
    if list(sys.version_info[:2]) < asked["least_python"]:
        least = ".".join(map(str, asked["least_python"]))
        return Check("python", WRONG, f"{sys.executable} is {own}; {least} or newer is needed")
    said = subprocess.run(
        [sys.executable, "-c", ""], capture_output=True, text=True, timeout=_ANSWER_SECONDS
    ).stdout.strip()
    if said:
        return Check("python", NOTE, f"{own}; it prints as it starts, which is done without: {said[:60]!r}")
    return Check("python", OK, f"{own}, {sys.executable}")


def check_packages(asked: dict[str, Any]) -> Check:
    """Whether the packages of the launching Python are there, in the same versions."""
    missing, other = [], []
    for name, version in sorted(asked["packages"].items()):
        try:
            own = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if own != version:
            other.append(f"{name} {own} (here {version})")
    if missing:
        return Check("packages", WRONG, f"not installed: {', '.join(missing)}")
    if other:
        return Check("packages", NOTE, f"other versions: {', '.join(other)}")
    return Check("packages", OK, f"all {len(asked['packages'])}")


def check_folder(asked: dict[str, Any], folder: Path) -> Check:
    """Whether the working folder is there and can be written."""
    work = Path(asked["cwd"])
    mine = folder / f"written-{os.uname().nodename}-{os.getpid()}"
    try:
        next(work.iterdir(), None)
        mine.write_bytes(b"x")
        mine.rename(mine.with_suffix(".renamed"))
        mine.with_suffix(".renamed").unlink()
    except OSError as error:
        return Check("folder", WRONG, f"{error.filename}: {error.strerror}")
    return Check("folder", OK, str(work))


def check_scontrol(asked: dict[str, Any]) -> Check:
    """Whether Slurm's commands are there and the controller answers, as a requeue needs."""
    if not asked["slurm"]:
        return Check("scontrol", OK, "not needed without Slurm")
    missing = [name for name in ("scontrol", "srun") if shutil.which(name) is None]
    if missing and asked["inside"]:
        return Check("scontrol", NOTE, f"not in the container: {', '.join(missing)}")
    if missing:
        return Check("scontrol", WRONG, f"not on the PATH: {', '.join(missing)} ({os.environ.get('PATH')})")
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    if answer.returncode or " is UP" not in answer.stdout:
        said = " ".join((answer.stderr or answer.stdout).split())
        return Check("scontrol", WRONG, f"the controller does not answer: {said}")
    return Check("scontrol", OK, "the controller answers")


def check_export(asked: dict[str, Any]) -> Check:
    """Whether the environment of the submission arrived."""
    if missing := [name for name in asked["variables"] if name not in os.environ]:
        names = ", ".join(missing)
        return Check(
            "export", NOTE, f"of your environment, jobs lack {names}; env: or setup: gives it to them"
        )
    return Check("export", OK, f"{len(asked['variables'])} variables of yours are there")


def check_clock(folder: Path) -> Check:
    """How far the clock is from that of the file server, which all nodes see."""
    mine = folder / f"clock-{os.uname().nodename}-{os.getpid()}"
    before = time.time()
    mine.write_bytes(b"")
    after = time.time()
    stamped = mine.stat().st_mtime
    mine.unlink()
    # The server's clock may be coarse, and the answer may take its time.
    skew = stamped - min(max(stamped, before), after)
    text = f"{skew:+.1f} s from the file server's"
    if abs(skew) > _LARGE_SKEW_SECONDS:
        return Check("clock", WRONG, text)
    return Check("clock", NOTE if abs(skew) > _SKEW_SECONDS else OK, text if abs(skew) > 0.1 else "right")


def check_disk(asked: dict[str, Any], folder: Path) -> Check:
    """Whether there is room, for this user: a quota shows only where something is written."""
    found = os.statvfs(folder)
    free, files = found.f_bavail * found.f_frsize, found.f_favail
    large = folder / f"large-{os.uname().nodename}-{os.getpid()}"
    try:
        with large.open("wb") as file:
            for _ in range(_WRITTEN_BYTES // _MIB):
                file.write(bytes(_MIB))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = "your quota is used up" if error.errno == errno.EDQUOT else error.strerror
        return Check("disk", WRONG, f"{asked['cwd']}: {what}")
    finally:
        large.unlink(missing_ok=True)
    text = f"{free / _GIB:.0f} GiB free, {_WRITTEN_BYTES // _MIB} MiB written"
    # Some file systems do not count files.
    few = found.f_files > 0 and files < _LEAST_FILES
    if few or free < _LEAST_BYTES:
        return Check("disk", WRONG, f"{asked['cwd']}: {free / _GIB:.1f} GiB and {files} files are left")
    return Check("disk", OK, text)


def check_locks(folder: Path) -> Check:
    """Whether a file lock keeps another process out."""
    path = folder / f"lock-{os.uname().nodename}-{os.getpid()}"
    try:
        with byte_lock(path, 0, wait=False):
            other = [sys.executable, "-c", _TAKE, str(path)]
            held = subprocess.run(other, timeout=_ANSWER_SECONDS).returncode == _REFUSED
    except UserError as error:
        return Check("locks", WRONG, error.what)
    finally:
        path.unlink(missing_ok=True)
    if not held:
        return Check("locks", WRONG, "two processes hold the same lock at once")
    return Check("locks", OK, "keep a second process out")


def check_gpus(asked: dict[str, Any]) -> Check:
    """Whether the GPUs that were asked for are there and compute."""
    wanted = asked["gpus"]
    if not wanted:
        return Check("gpus", OK, "none asked for")
    import torch

    count = torch.cuda.device_count()
    if count < (1 if asked["one_each"] else wanted):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return Check("gpus", WRONG, f"torch, {built}, sees {count} of {wanted} GPUs")
    one = torch.ones(256, 256, device="cuda")
    if float((one @ one).sum()) != 256.0**3:
        return Check("gpus", WRONG, f"{torch.cuda.get_device_name()} computes wrongly")
    memory = torch.cuda.get_device_properties(0).total_memory / _GIB
    return Check("gpus", OK, f"{torch.cuda.get_device_name()}, {memory:.0f} GiB")


def check_together(asked: dict[str, Any], folder: Path) -> list[Check]:
    """Whether the ranks find each other and add up, and a lock that one holds keeps all others out."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = bool(asked["gpus"]) and torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    device = "cpu"
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local if torch.cuda.device_count() > local else 0)
        device = "cuda"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=_GROUP_SECONDS))
    try:
        numbers = torch.ones(_REDUCED_NUMBERS, device=device)
        dist.all_reduce(numbers)
        right = float(numbers[0]) == world
        began = time.perf_counter()
        dist.all_reduce(numbers)
        float(numbers[0])
        seconds = time.perf_counter() - began
        size = f"{numbers.nbytes / _MIB:.0f} MiB in {seconds * 1000:.0f} ms"
        checks = []
        if not right:
            checks.append(Check("all-reduce", WRONG, f"{backend}: a wrong sum"))
        elif not rank:
            checks.append(Check("all-reduce", OK, f"{backend}, world size {world}: {size}"))
        with contextlib.ExitStack() as held:
            path = folder / "lock-of-all"
            if not rank:
                held.enter_context(byte_lock(path, 0, wait=False))
            dist.all_reduce(numbers)
            float(numbers[0])
            if rank and is_free(path):
                checks.append(Check("locks", WRONG, "a lock that another node holds is not seen here"))
            dist.all_reduce(numbers)
            float(numbers[0])
        return checks
    finally:
        dist.destroy_process_group()


def main(place: str) -> int:
    """Look, and write what was found, first of this node and then of all together."""
    folder = Path(place)
    asked = read_object(folder / ASKED)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    checks: list[Check] = []

    def look(name: str, check: Callable[[], Check | list[Check]]) -> None:
        try:
            found = check()
        except Exception as error:
            found = Check(name, WRONG, f"{type(error).__name__}: {error}")
        checks.extend([found] if isinstance(found, Check) else found)

    def tell() -> None:
        report = {"node": os.environ.get("SLURMD_NODENAME") or os.uname().nodename, "checks": checks}
        write_json(folder / f"rank-{rank:05d}.json", report)

    look("gpus", lambda: check_gpus(asked))
    if not local:
        look("python", lambda: check_python(asked))
        look("packages", lambda: check_packages(asked))
        look("folder", lambda: check_folder(asked, folder))
        look("scontrol", lambda: check_scontrol(asked))
        look("export", lambda: check_export(asked))
        look("clock", lambda: check_clock(folder))
        look("disk", lambda: check_disk(asked, folder))
        look("locks", lambda: check_locks(folder))
    tell()
    look("all-reduce", lambda: check_together(asked, folder))
    tell()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
