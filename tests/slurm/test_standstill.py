"""Ranks that are frozen or hang, as their agents and the coordinator of their job see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from slurm.agent import BEAT_SECONDS
from slurm.cluster import Resources
from slurm.coordinator import GRACE_SECONDS
from tests.slurm.supervised import DONE, SupervisedJob, python

# In the first round, as one, and in the second one to the end.
ONCE = "again = Path('again').exists()\nmeet('second' if again else 'first')\nPath('again').touch()\n"
# Three seconds without a step.
SOON = "verdict.HUNG_SILENCES=0.1"
OWN_SCORE = Path("/proc/self/oom_score_adj").read_text().strip()


def test_a_frozen_rank_is_told_of_and_started_again(job: SupervisedJob, waiting: Callable[..., None]) -> None:
    job.start(
        python("meet('start')\nif rank and once('frozen'): os.kill(os.getpid(), signal.SIGSTOP)\n" + DONE),
        silence=3,
    )
    stalled = job.folder / "attempts" / "12-000" / "stalled.json"
    waiting(stalled.exists, "the word of who stalls")
    [(rank, (node, _, _))] = json.loads(stalled.read_text())["ranks"].items()
    assert (rank, node) == ("1", "n1")
    ended = job.end()
    assert ended["outcome"] == "done", ended
    [again] = job.restarts()
    assert again["reason"].startswith("rank 1 was frozen on n1: no sign of life for ")
    assert not stalled.exists()


def test_a_rank_whose_beats_stop_while_it_works_is_not_frozen(job: SupervisedJob) -> None:
    beat = "os.write(int(os.environ['NML_BEATS']), b'{\"step\": 1}\\n')\n"
    work = "end = time.monotonic() + 5\nwhile time.monotonic() < end: pass\n"
    script = python("meet('start')\n" + beat + work + beat + DONE)
    ended = job.run(script, silence=3, nodes=1)
    assert ended["outcome"] == "done", ended
    assert not job.restarts()


def test_by_default_half_a_minute_is_left_for_the_new_start_of_a_frozen_rank() -> None:
    assert Resources().silence_s + BEAT_SECONDS + GRACE_SECONDS + 30 <= 60


def test_ranks_that_beat_but_make_no_step_start_again(job: SupervisedJob) -> None:
    told = "beat(step=9, pace=0.05, since=time.monotonic() - began, phase=('waiting', 'computing')[rank])"
    hang = f"began = time.monotonic()\nwhile not again: {told}; time.sleep(0.2)\n"
    ended = job.run(python(ONCE + hang + DONE), SOON)
    assert ended["outcome"] == "done", ended
    [again] = job.restarts()
    assert again["reason"].startswith("no step for ")
    assert again["reason"].endswith(" s: rank 1 hangs on n1 (computing)")


def test_a_rank_that_hangs_before_its_first_beat_is_found(job: SupervisedJob) -> None:
    hang = "if not rank: beat(phase='meeting the others')\nif not again: time.sleep(600)\n"
    ended = job.run(python(ONCE + hang + DONE), SOON)
    assert ended["outcome"] == "done", ended
    [again] = job.restarts()
    assert again["reason"].endswith(" s: rank 1 hangs on n1 (starting)")


def test_beats_that_are_none_disturb_nobody(job: SupervisedJob) -> None:
    beats = ["3", "[1]", '{"pace": null}', '{"phase": 1}', "{", '{"pace": 1e999}', '{"pace": "x"}']
    tell = "".join(f"os.write(int(os.environ['NML_BEATS']), b'{beat}\\n')\n" for beat in beats)
    # Until its agent has told of it.
    ended = job.run(python(f"meet('start')\n{tell}time.sleep(2.5)\n" + DONE), nodes=1)
    assert ended["outcome"] == "done", ended


def test_what_stands_by_takes_the_place_of_its_rank_and_where_it_is_gone_a_new_one_does(
    job: SupervisedJob, tmp_path: Path
) -> None:
    toy = tmp_path / "site" / "toy"
    toy.mkdir(parents=True)
    (toy / "__init__.py").touch()
    spared = "Path('/proc/self/oom_score_adj').read_text().strip()"
    (toy / "preload.py").write_text(
        f"import os\nfrom pathlib import Path\nPath(f'standby-{{os.getpid()}}').write_text({spared})\n"
    )
    first = (
        "if not again:\n"
        "    beat(step=9, pace=0.1, since=0, phase='computing')\n"
        "    while sum(bool(one.read_text()) for one in Path().glob('standby-*')) < 2: time.sleep(0.01)\n"
        "    meet('ready')\n"
        "    if not rank: os.kill(int(min(Path().glob('standby-*')).name.split('-')[1]), 9)\n"
        "    meet('struck')\n"
        "    os.kill(os.getpid(), 9) if rank else time.sleep(600)\n"
        f"note(pid=os.getpid(), node=node, spared={spared})\n"
    )
    (toy / "run.py").write_text(python(ONCE + first + DONE))
    ended = job.run(("-m", "toy.run"), PYTHONPATH=str(tmp_path / "site"))
    assert ended.get("outcome") == "done", ended
    ready = {
        int(file.name.split("-")[1]): file.read_text() for file in (job.folder / "work").glob("standby-*")
    }
    # Where memory runs short, the kernel takes them first; as ranks they are as any other.
    assert {*ready.values()} == {"1000"}
    noted = [eval((job.folder / "work" / f"noted-{rank}").read_text()) for rank in range(2)]
    assert [(one["node"], one["spared"]) for one in noted] == [("n0", OWN_SCORE), ("n1", OWN_SCORE)]
    assert [one["pid"] in ready for one in noted].count(True) == 1
