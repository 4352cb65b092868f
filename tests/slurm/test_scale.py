"""What a thousand ranks ask of the shared file system: counted, with ranks that are numbers or do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.supervised import SupervisedJob, python

ROOT = Path(__file__).resolve().parents[2]
NODES, TASKS, BEATS = 128, 8, 10
# The coordinator of a job whose agents are simulated; every call that goes to a file system is counted.
COUNTED = """
import json, os, sys, time
from pathlib import Path
from slurm import job
from slurm.attempt import Attempt
from slurm.coordinator import Coordinator
from slurm.members import Submission

folder, nodes, beats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
counts, counting = {"calls": 0}, [False]
EVENTS = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.truncate")
def note(event, arguments):
    if counting[0] and event in EVENTS and not str(arguments[0]).startswith("/proc"):
        counts["calls"] += 1
sys.addaudithook(note)
for name in ("stat", "lstat"):
    def counted(*words, real=getattr(os, name), **more):
        counts["calls"] += counting[0]
        return real(*words, **more)
    setattr(os, name, counted)

submission = Submission.read(folder / "job.json")
member = submission.members[0]
marks = []
def mark(what):
    marks.append([what, counts["calls"], time.monotonic()])
counting[0] = True
mark("begun")
attempt = Attempt(member)
attempt.open("n0")
def restart(verdict):
    mark("lost")
    attempt.restart(verdict.reason, verdict.nodes)
    return job._given_up(submission, attempt, "")
class Watched(Coordinator):
    def _start(self):
        super()._start()
        mark("started")
    def _end(self):
        mark("ended")
        super()._end()
coordinator = Watched(submission, member, names=[f"n{i}" for i in range(nodes)], failures=attempt.failures(),
                      address="127.0.0.1", restarts=restart, tell_stalls=attempt.stall)
crowd = (f"echo ${{NML_COORDINATOR/:/ }} $NML_JOB_TOKEN > '{folder}/where'; "
         f"exec '{sys.executable}' -m tests.slurm.crowd '{folder}/where' {nodes} {beats}")
verdict = coordinator.run(["bash", "-c", crowd])
attempt.close(*verdict[:2], 0, coordinator.failed_ranks[:16])
mark("closed")
(folder / "counts.json").write_text(json.dumps({"verdict": verdict[:2], "marks": marks}))
"""


def test_a_thousand_ranks_ask_nothing_of_the_file_system_while_they_run_and_little_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slurm.members import Member, Submission

    # An exit status of 0 says enough.
    member = Member(name="run", argv=("true",), record=str(tmp_path / "attempts"), cwd=str(tmp_path))
    Submission(
        stage="pretrain",
        token="nml-0",
        snapshot=str(tmp_path),
        members=(member,),
        max_idle_attempts=5,
        nodes=NODES,
        tasks=TASKS,
    ).write(tmp_path / "job.json")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    said = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path), str(NODES), str(BEATS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["verdict"] == ["done", "complete"]
    names = [name for name, _, _ in counts["marks"]]
    assert names == ["begun", "started", "ended", "lost", "started", "ended", "closed"]
    calls = [calls for _, calls, _ in counts["marks"]]
    print(counts["marks"])
    start, steady, failure = calls[1] - calls[0], calls[2] - calls[1], calls[4] - calls[2]
    again, end = calls[5] - calls[4], calls[6] - calls[5]
    assert steady == again == 0
    assert max(start, failure, end) < 50


# In each agent: what it opens below the job's folder.
SITE = """
import atexit, json, os, sys
if "slurm.agent" in sys.orig_argv:
    opened, folder = [], os.environ["COUNTED"]
    def note(event, arguments):
        if event in ("open", "os.scandir", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
            opened.append(os.path.basename(str(arguments[0])))
    sys.addaudithook(note)
    def write():
        with open("/dev/fd/1", "w") as out:
            print("OPENED " + json.dumps(opened), file=out)
    atexit.register(write)
"""


def test_an_agent_opens_a_log_for_each_start_of_a_rank_and_nothing_else(
    job: SupervisedJob, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    script = python(
        "meet('again' if Path('killed').exists() else 'start')\ntime.sleep(3)\n"
        "if rank == 2 and once('killed'): os.kill(os.getpid(), 9)\n"
        "meet('end')\nPath('DONE.json').touch()\n"
    )
    ended = job.run(script, tasks=2, PYTHONPATH=str(tmp_path / "site"), COUNTED=str(job.folder))
    assert ended["outcome"] == "done", ended
    opened = [json.loads(line[7:]) for line in ended["said"].splitlines() if line.startswith("OPENED ")]
    assert len(opened) == 2
    for names in opened:
        own = [name for name in names if not name.endswith((".py", ".pyc"))]
        assert own.count("nml-0.json") == 1
        assert len([name for name in own if name.endswith("_log.out")]) == 4
        assert len(own) == 5
