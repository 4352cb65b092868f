"""``python slurm/rank.py SNAPSHOT MODULE WORDS``: a module as ``python -m`` runs it, of the snapshot alone.

A search path in the environment would not do: a ``:`` in the snapshot's own path would cut it in two. What
is run is checked here, in the process that runs it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(snapshot: str, module: str, *words: str) -> None:
    """Run ``module``."""
    # Python puts the folder of a script first.
    sys.path[:] = [snapshot, *(path for path in sys.path if Path(path or ".").resolve() != HERE)]
    from slurm.snapshot import check_running_from

    check_running_from(Path(snapshot), module)
    sys.argv[:] = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
