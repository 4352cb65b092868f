"""Tells how many samples tasks have: a hundred and two test sets of fifty each."""

import json
import sys

print(json.dumps({name: {"train": 100, "tests": [50, 50]} for name in sys.argv[2:]}))
