"""Launch pre-training, sweeps and probes: ``python slurm/launch.py pretrain --noise 0.2 --nodes 8``.

Only the search path is mended here. Python puts the folder of a script first on it, which would
hide the packages beside this one and shadow every library named like a module in here.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]
    from nml import cli
    from slurm.entry import main

    cli.run(main)
