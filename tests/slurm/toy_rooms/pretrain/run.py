"""Pre-training without a model: every rank adds to a hash chain, and the chain is the weights.

The ranks meet over TCP as torch's would, each has a forked loader worker, stop signals are agreed
on, and a run that was disturbed ends with the weights of one that was not, or not at all. At step
HOLD it waits for the file ``go`` in the run's folder, so that a test can disturb it in mid-run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
VERSION = "v1"
stopped = False


class Ring:
    """All ranks sum their numbers over rank 0."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world == 1:
            return
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if self.rank == 0:
            server = socket.create_server(address)
            self.peers = [server.accept()[0].makefile("rw") for _ in range(self.world - 1)]
        else:
            for _ in range(600):
                try:
                    self.peers = [socket.create_connection(address).makefile("rw")]
                    return
                except ConnectionRefusedError:
                    time.sleep(0.05)
            raise TimeoutError("rank 0 did not come")

    def sum(self, *values: int) -> list[int]:
        if self.world == 1:
            return list(values)
        if self.rank == 0:
            rows = [list(values), *(self._read(peer) for peer in self.peers)]
            total = [sum(column) for column in zip(*rows, strict=True)]
            for peer in self.peers:
                self._write(peer, total)
            return total
        self._write(self.peers[0], list(values))
        return self._read(self.peers[0])

    def _read(self, peer) -> list[int]:
        line = peer.readline()
        if not line:
            raise ConnectionError("Connection closed by peer")
        return json.loads(line)

    def _write(self, peer, values: list[int]) -> None:
        peer.write(json.dumps(values) + "\n")
        peer.flush()


def note_stop(number: int, frame: object) -> None:
    global stopped
    stopped = True


def start_loader_worker() -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(0)
    return pid


def newest(run: Path) -> tuple[int, str]:
    steps = sorted(run.glob("checkpoints/step-*/COMPLETE.json"))
    if not steps:
        return 0, "seed"
    state = json.loads(steps[-1].read_text())
    return state["step"], state["weights"]


def save(run: Path, step: int, weights: str) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "half").write_text(json.dumps({"step": step, "weights": weights}))
    (folder / "half").replace(folder / "COMPLETE.json")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--noise", default="0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="ddp")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--shards", type=json.dumps)
    parser.add_argument("--recipe.steps", type=int, default=12, dest="steps")
    parser.add_argument("--recipe.data.workers", type=int, default=0, dest="workers")
    parser.add_argument("--recipe.hold", type=int, default=-1, dest="hold")
    parser.add_argument("--recipe.refuse", type=int, default=0, dest="refuse")
    parser.add_argument("--recipe.fail", type=int, default=-1, dest="fail")
    options, rest = parser.parse_known_args()
    config = (
        f"recipe: {{epochs: {options.epochs}, steps: {options.steps}, global_batch: 10, "
        "checkpoints: {every_epochs: 1, every_steps: 0, keep_last: 2, keep_every: 0}, "
        f"data: {{workers: {options.workers}}}, engine: {{dtype: bf16}}}}\n"
        f"noise: '{options.noise}'\nseed: {options.seed}\nengine: {options.engine}\n"
        f"shards: {options.shards}\n"
    )
    if "--print_config" in rest:
        print(config, end="")
        return 0
    if options.refuse:
        print("error: the toy was told to refuse", file=sys.stderr)
        return 2
    for number in STOP_SIGNALS:
        signal.signal(number, note_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    worker = start_loader_worker()
    ring = Ring()
    run = options.run_dir
    run.mkdir(parents=True, exist_ok=True)
    step, weights = newest(run)
    (run / "config.yaml").write_text(config)
    print(f"{VERSION} from {Path(__file__).parent} at step {step}", flush=True)
    while step < options.steps:
        total, stops, go = ring.sum(
            (step + 1) * (ring.rank + 1), int(stopped), int(step != options.hold or (run / "go").exists())
        )
        if stops:
            if ring.rank == 0:
                save(run, step, weights)
            ring.sum(0)
            return 75
        if go < ring.world:
            time.sleep(0.05)
            continue
        if step == options.fail and ring.rank == ring.world - 1:
            raise ValueError("the toy was told to fail")
        weights = hashlib.sha256(f"{weights} {step} {total} {options.noise}".encode()).hexdigest()
        step += 1
        if ring.rank == 0:
            with (run / "metrics.jsonl").open("a") as file:
                line = {"event": "step", "step": step, "epoch": step / options.steps, "loss": 1 / step}
                file.write(json.dumps({**line, "time": time.time()}) + "\n")
            if step % 4 == 0:
                save(run, step, weights)
    if ring.rank == 0:
        (run / "export").mkdir(exist_ok=True)
        (run / "export" / "model.safetensors").write_text(weights)
        with_secret = sorted(json.loads(os.environ.get("NML_URL_SECRETS") or "{}"))
        (run / "DONE.json").write_text(json.dumps({"step": step, "with_secret": with_secret}))
    ring.sum(0)
    os.kill(worker, signal.SIGKILL)
    if ring.rank == 0:
        print(f"run: {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
