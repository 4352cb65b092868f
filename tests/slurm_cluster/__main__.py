"""Start a real Slurm on this machine for as long as you need it.

    python -m tests.slurm_cluster --nodes 8 --accounting

prints the line to export in another terminal; Ctrl-C stops the cluster whole.
"""

from __future__ import annotations

import argparse
import signal
import sys

from tests.slurm_cluster.slurm_daemons import missing, running_cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm_cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd, so that sacct answers")
    options = parser.parse_args()
    reason = missing(accounting=options.accounting)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    # SIGINT too: a shell that starts this in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with running_cluster(nodes=options.nodes, accounting=options.accounting) as cluster:
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
