"""Makes the folder that parts are noted in."""

from __future__ import annotations

import sys
from pathlib import Path

words = sys.argv[1:]
Path(words[words.index("--out") + 1]).mkdir(parents=True)
