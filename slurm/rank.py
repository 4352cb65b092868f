"""``python slurm/rank.py SNAPSHOT MODULE WORDS``: a module as ``python -m`` runs it, of the snapshot alone.

A search path in the environment would not do: a ``:`` in the snapshot's own path would cut it in two. What
is run is checked here, in the process that runs it.

One that stands by imports what its module will (the ``preload`` beside it, if there is one), and begins when
it is told its place among the ranks.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The variable by which it is known to one that stands by.
STAND_BY = "NML_STAND_BY"
_OUT_OF_MEMORY = Path("/proc/self/oom_score_adj")


def main(snapshot: str, module: str, *words: str) -> None:
    """Run ``module``."""
    # Python puts the folder of a script first.
    sys.path[:] = [snapshot, *(path for path in sys.path if Path(path or ".").resolve() != HERE)]
    from slurm.snapshot import check_running_from

    check_running_from(Path(snapshot), module)
    sys.argv[:] = [module, *words]
    if os.environ.pop(STAND_BY, ""):
        _stand_by(module)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _stand_by(module: str) -> None:
    own = _OUT_OF_MEMORY.read_text()
    # The kernel is to kill it before any rank, where memory runs short.
    with contextlib.suppress(OSError):
        _OUT_OF_MEMORY.write_text("1000")
    # What cannot be imported is for the module to tell of, if it comes to that.
    with contextlib.suppress(Exception):
        importlib.import_module(f"{module.rpartition('.')[0]}.preload")
    from nml.untrusted import parse_json

    told = sys.stdin.readline()
    if not told:
        sys.exit(0)
    with contextlib.suppress(OSError):
        _OUT_OF_MEMORY.write_text(own)
    os.environ.update(parse_json(told))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
