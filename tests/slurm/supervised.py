"""A job on nodes that are processes of this machine: its real coordinator, agents and ranks, no Slurm.

``srun`` and ``scontrol`` are stand-ins that start an agent a node and answer from files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from slurm.members import Member, Submission

JOB = "12"
# How a rank's script ends well.
DONE = "meet('end')\nPath('DONE.json').touch()\n"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
for ((i = 0; i < nodes; i++)); do
  if [ ! -e "$HERE/without-n$i" ]; then SLURMD_NODENAME=n$i "$@" & echo $! > "$HERE/agent-n$i"; fi
done
wait
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$HERE/asked"
case "$1 $2" in
'show hostnames') cat "$HERE/nodes" ;;
'show node') echo "NodeName=$3 NodeAddr=127.0.0.1" ;;
*) [ ! -s "$HERE/away" ] || { cat "$HERE/away" >&2; exit 1; }
   [ "$1" != show ] || cat "$HERE/job"
   [ ! -s "$HERE/refusal" ] || [ "$1" != requeue ] || { cat "$HERE/refusal" >&2; exit 1; } ;;
esac
"""
SINFO = """#!/bin/bash
for i in 0 1 2 3 4 5 6 7; do echo "n$i idle"; done
"""
# The tests' own patience: on a busy machine nothing here is quick.
DRIVER = """
import sys
from pathlib import Path
from slurm import coordinator, job, nodes, verdict
for setting in ("coordinator.GRACE_SECONDS=0.5", "coordinator.SETTLE_SECONDS=1", *sys.argv[2:]):
    name, value = setting.split("=")
    module, name = name.split(".")
    setattr(globals()[module], name, float(value))
job.KILL_SECONDS = 0
job.JobCommand(sys.argv[1])()
"""


@dataclasses.dataclass
class SupervisedJob:
    """A job of one member, whose ranks run a script.

    Attributes:
        folder: Where everything is.
        snapshot: The code.
    """

    folder: Path
    snapshot: Path
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sinfo", SINFO)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.answers("RUNNING")
        (self.folder / "work").mkdir()

    def answers(self, state: str, refusal: str = "", away: str = "") -> None:
        """Have scontrol answer so."""
        (self.bin / "job").write_text(
            f"JobId={JOB} JobState={state} Partition=main NumNodes=2 ExcNodeList=(null)"
        )
        (self.bin / "refusal").write_text(refusal)
        (self.bin / "away").write_text(away)

    def start(
        self,
        script: str | tuple[str, ...],
        *settings: str,
        nodes: int = 2,
        spare: int = 0,
        tasks: int = 1,
        saves: bool = True,
        most: int = 5,
        attempt: int = 0,
        silence: int = 30,
        delay: int = 120,
        log: IO[str] | None = None,
        **environment: str,
    ) -> None:
        """Start the job; its ranks run ``script``, or Python with those words, in the folder work/."""
        member = Member(
            name="run",
            argv=(sys.executable, *(("-c", script) if isinstance(script, str) else script)),
            record=str(self.folder / "attempts"),
            done=str(self.folder / "work" / "DONE.json"),
            progress=str(self.folder / "work" / "checkpoints") if saves else None,
            distributed=True,
            cwd=str(self.folder / "work"),
        )
        submission = Submission(
            stage="pretrain",
            token="nml-0",
            snapshot=str(self.snapshot),
            members=(member,),
            max_idle_attempts=most,
            nodes=nodes,
            spare_nodes=spare,
            tasks=tasks,
            silence_s=silence,
            signal_delay_s=delay,
        )
        submission.write(self.folder / "nml-0.json")
        names = [f"n{index}" for index in range(nodes + spare)]
        (self.bin / "nodes").write_text("\n".join(names))
        own = {"HERE": str(self.bin), "PATH": f"{self.bin}:{os.environ['PATH']}", "SLURM_JOB_ID": JOB}
        own |= {"SLURM_JOB_NODELIST": "n[0-9]", "SLURM_RESTART_COUNT": str(attempt)}
        own |= {"NML_REQUEUE_RETRY_SECONDS": "0.1", "NML_STANDBY_SECONDS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.folder / "nml-0.json"), *settings],
            cwd=self.snapshot,
            # What a training in this process left behind would be taken for a port that the user keeps.
            env={k: v for k, v in os.environ.items() if k != "MASTER_PORT"} | own | environment,
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> dict[str, Any]:
        """Wait for the end and return the record of it, with the exit status and what was said."""
        assert self.process is not None
        said, _ = self.process.communicate(timeout=120)
        close = sorted(self.folder.glob("attempts/*/close.json"))
        closed: dict[str, Any] = json.loads(close[-1].read_text()) if close else {}
        return {**closed, "exit": self.process.returncode, "said": said}

    def run(self, script: str | tuple[str, ...], *settings: str, **more: Any) -> dict[str, Any]:
        """Start the job and wait for its end."""
        self.start(script, *settings, **more)
        return self.end()

    def restarts(self) -> list[dict[str, Any]]:
        """Return its restarts inside the allocation."""
        files = sorted(self.folder.glob("attempts/*/restarts.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def asked(self, verb: str) -> list[str]:
        """Return what scontrol was asked for, of one verb."""
        asked = self.bin / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line for line in lines if line.startswith(verb)]

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


def python(text: str) -> str:
    """Return a script of a rank, with what most of them need."""
    return (
        "import json, os, signal, sys, time\nfrom pathlib import Path\n"
        "rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])\n"
        "node = os.environ['SLURMD_NODENAME']\n"
        "stops = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}\n"
        "def wait(name):\n"
        "    while not Path(name).exists(): time.sleep(0.01)\n"
        "def once(name):\n"
        "    try: Path(name).touch(exist_ok=False); return True\n"
        "    except FileExistsError: return False\n"
        "def note(**fields):\n"
        "    with open(f'noted-{rank}', 'a') as file: file.write(repr(fields) + '\\n')\n"
        "def beat(**fields): os.write(int(os.environ['NML_BEATS']), json.dumps(fields).encode() + b'\\n')\n"
        "def meet(place):\n"
        "    Path(f'{place}-{rank}').touch()\n"
        "    for other in range(world): wait(f'{place}-{other}')\n" + text
    )
