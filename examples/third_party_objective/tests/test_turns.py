"""Hold the objective to what every objective promises, by the project's own kit."""

import subprocess
import sys


def test_the_objective_keeps_its_promises():
    subprocess.run([sys.executable, "-m", "pretrain.objectives", "check", "turns"], check=True)
