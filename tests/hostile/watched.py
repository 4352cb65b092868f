"""A command under watch: ``python -m tests.hostile.watched MODULE WORDS``, in the folder it may write to.

It ends with status 77 where it would start another process or open a file for writing elsewhere, and cannot
take more than a gigabyte or ten seconds of a processor beyond what it has at the start.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
SECONDS = 10
CAUGHT = 77
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")
# The process that ends ranks whose parent has died, which pre-training starts whatever it reads.
_OWN = "lifeline.py"


def watch(here: Path) -> None:
    """End this process at the first thing that no command may do with what a stranger sent."""

    def caught(what: str) -> None:
        os.write(2, f"CAUGHT {what}\n".encode(errors="replace"))
        os._exit(CAUGHT)

    def is_elsewhere(path: Any, *, follow: bool = True) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        named = Path(os.fsdecode(path))
        place = str(named.resolve() if follow else named.parent.resolve() / named.name)
        return not place.startswith((f"{here}/", "/dev/null", "/proc/self/")) and place != str(here)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS and _OWN not in str(arguments):
            caught(f"{event} {arguments[:2]}")
        if event == "open":
            path, _, flags = arguments
            if (
                isinstance(flags, int)
                and flags & _WRITES
                and is_elsewhere(path, follow=not flags & os.O_NOFOLLOW)
            ):
                caught(f"a file opened for writing: {path}")
        elif event in _CHANGES and any(is_elsewhere(path) for path in arguments[:2]):
            caught(f"{event} {arguments[:2]}")

    sys.addaudithook(hook)


def limit() -> int:
    """Allow ten seconds more than this process has taken until now; return the kilobytes that it has."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # What would take all memory fails, before the machine does.
    most = (status("VmData") << 10) + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return status("VmRSS")


def status(name: str) -> int:
    """Return the kilobytes that the kernel tells of this process under a name."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def main() -> None:
    """Run the command."""
    module = sys.argv[1]
    del sys.argv[1]
    sys.dont_write_bytecode = True
    # Where the process that this one was forked from puts its own.
    tempfile.tempdir = None
    before = limit()
    watch(Path.cwd().resolve())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        taken = status("VmHWM") - before << 10
        if taken > MEMORY:
            os.write(2, f"CAUGHT {taken:,} bytes taken\n".encode())
            os._exit(CAUGHT)


if __name__ == "__main__":
    main()
