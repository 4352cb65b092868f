"""Commands under watch: ``python -m tests.hostile.watched FOLDER COMMAND FOLDER COMMAND ...``, one by one.

Each runs in its folder, the only one it may write to. The process ends with status 77 where one would start
another process or open a file for writing elsewhere; none can take more than a gigabyte or ten seconds of a
processor. What a command said is in ``FOLDER.stdout`` and ``FOLDER.stderr``, its status in ``FOLDER.status``.
"""

from __future__ import annotations

import os
import resource
import runpy
import shlex
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

MEMORY = 1 << 30
SECONDS = 10
CAUGHT = 77
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")
# The process that ends ranks whose parent has died, which pre-training starts whatever it reads.
_OWN = "lifeline.py"
_end = os._exit


class Ended(BaseException):
    """A command ended its process at once."""


def caught(what: str) -> NoReturn:
    """End this process, as what it ran has done what no command may do with what a stranger sent."""
    os.write(2, f"CAUGHT {what}\n".encode(errors="replace"))
    _end(CAUGHT)


class Watch:
    """What may be written to, for the whole of this process.

    Attributes:
        here: The folder; None while no command runs.
    """

    here: Path | None = None

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See what Python is about to do."""
        if self.here is None:
            return
        if event in _STARTS and _OWN not in str(arguments):
            if arguments[0] in ("squeue", "sacct"):
                # Whose jobs they are, a cluster would tell; there is none.
                raise FileNotFoundError(arguments[0])
            if arguments[1:] and arguments[1][0] == sys.executable and "pretrain.run" in arguments[1]:
                # What the launcher hands on to is watched as a command of its own.
                raise Ended(0)
            caught(f"{event} {arguments[:2]}")
        if event == "open":
            path, _, flags = arguments
            if (
                isinstance(flags, int)
                and flags & _WRITES
                and self._is_elsewhere(path, follow=not flags & os.O_NOFOLLOW)
            ):
                caught(f"a file opened for writing: {path}")
        elif event in _CHANGES and any(self._is_elsewhere(path) for path in arguments[:2]):
            caught(f"{event} {arguments[:2]}")

    def _is_elsewhere(self, path: Any, *, follow: bool = True) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        named = Path(os.fsdecode(path))
        place = str(named.resolve() if follow else named.parent.resolve() / named.name)
        return not place.startswith((f"{self.here}/", "/dev/null", "/proc/self/")) and place != str(self.here)


def limit() -> int:
    """Allow ten seconds more than this process has taken until now; return the kilobytes that it has."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    # What would take all memory fails, before the machine does.
    most = (status("VmData") << 10) + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    # The most that was in memory at a time is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    """Return the kilobytes that the kernel tells of this process under a name."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def be(command: str) -> int:
    """Be a command; return the status that it ends with."""
    module, *sys.argv[1:] = shlex.split(command)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (SystemExit, Ended) as ended:
        return ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else ended.args[0]
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Run the commands."""
    words = sys.argv[1:]
    sys.dont_write_bytecode = True

    def ended(code: int) -> NoReturn:
        raise Ended(code)

    os._exit = ended
    watch = Watch()
    sys.addaudithook(watch.hook)
    environment = dict(os.environ)
    for folder, command in zip(words[::2], words[1::2], strict=True):
        here = Path(folder).resolve()
        os.environ.clear()
        os.environ.update(environment | {name: str(here) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")})
        os.environ["XDG_CACHE_HOME"] = f"{here}/cache"
        os.chdir(here)
        tempfile.tempdir = None
        before = limit()
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(f"{here}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        watch.here = here
        code = be(command)
        watch.here = None
        sys.stdout.flush()
        sys.stderr.flush()
        if (taken := status("VmHWM") - before << 10) > MEMORY:
            caught(f"{taken:,} bytes taken")
        Path(f"{here}.status").write_text(str(code))
    os._exit = _end


if __name__ == "__main__":
    main()
