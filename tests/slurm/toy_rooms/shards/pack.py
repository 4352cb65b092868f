"""Notes its part in the folder of a plan."""

from __future__ import annotations

import sys
from pathlib import Path

out, flag, part = sys.argv[1:4]
if flag != "--part" or not Path(out).is_dir():
    sys.exit(f"{sys.argv}: there is no plan")
Path(out, part.replace("/", " of ")).touch()
