"""A job whose ranks are killed, stopped, frozen or fail, with its real coordinator, agents and ranks."""

from __future__ import annotations

import ast
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slurm import wire
from tests.slurm.supervised import DONE, SupervisedJob, python


def test_a_killed_rank_starts_again_in_place_with_all_others(job: SupervisedJob) -> None:
    script = python(
        "note(rank=rank, node=node, world=world)\nmeet('start')\n"
        "if rank == 1 and once('killed'): os.kill(os.getpid(), 9)\n"
        # As its peers do, it ends with an error that is an echo.
        "if not Path('again-1').exists() and rank == 0: sys.exit('Connection closed by peer')\n"
        "time.sleep(0)\n" + DONE
    )
    ended = job.run(script.replace("meet('start')", "meet('again' if Path('killed').exists() else 'start')"))
    assert (ended["outcome"], ended["exit"]) == ("done", 0)
    [again] = job.restarts()
    assert again["reason"] == "rank 1 was killed on n1 (SIGKILL)"
    assert again["nodes"] == ["n1"]
    noted = (job.folder / "work" / "noted-1").read_text().splitlines()
    assert noted == ["{'rank': 1, 'node': 'n1', 'world': 2}"] * 2
    assert not job.asked("requeue")


def test_an_exception_of_any_kind_is_a_failure_with_its_text(job: SupervisedJob) -> None:
    ended = job.run(python("meet('start')\nif rank: import no_such_module\ntime.sleep(600)"))
    assert (ended["outcome"], ended["exit"]) == ("failed", 1)
    last = "ModuleNotFoundError: No module named 'no_such_module'"
    assert ended["reason"] == f"rank 1 on n1: exit status 1: {last}"
    [[rank, node, status, words]] = ended["ranks"]
    assert (rank, node, status) == (1, "n1", 1)
    assert words.startswith("Traceback")
    assert last in (job.folder / "12_1_log.out").read_text()


def test_the_rank_that_caused_a_failure_is_named_before_its_echoes(job: SupervisedJob) -> None:
    ended = job.run(
        python(
            "meet('start')\n"
            "if rank == 2: wait('echo'); time.sleep(0.5); sys.exit('ValueError: the cause')\n"
            "Path('echo').touch(); sys.exit('RuntimeError: [gloo] Connection closed by peer')"
        ),
        tasks=2,
    )
    assert ended["reason"] == "rank 2 on n1: exit status 1: ValueError: the cause"


def signal_the_step(job: SupervisedJob, number: signal.Signals) -> None:
    """Send a signal to every process of the agents and below them, as Slurm does."""
    for file in job.bin.glob("agent-n*"):
        agent = psutil.Process(int(file.read_text()))
        for process in (agent, *agent.children(recursive=True)):
            os.kill(process.pid, number)


LISTEN = "heard = []\nfor one in stops: signal.signal(one, lambda number, _: heard.append(number))\n"
TELL = "signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)\n"
SAVE = "while not heard: time.sleep(0.01)\ntime.sleep(1)\nnote(heard=heard)\nsys.exit(75)\n"


@pytest.mark.parametrize("early", [True, False], ids=["while it starts", "while it runs"])
def test_a_stop_reaches_each_command_once(
    job: SupervisedJob, waiting: Callable[..., None], early: bool
) -> None:
    middle = "meet('ready')\nwait('go')\n"
    # A command that is still starting has no handlers yet.
    script = python((middle + LISTEN + TELL if early else LISTEN + TELL + middle) + SAVE)
    job.start(script)
    waiting(lambda: (job.folder / "work" / "ready-1").exists(), "the ranks")
    signal_the_step(job, signal.SIGUSR2)
    (job.folder / "work" / "go").touch()
    ended = job.end()
    heard = [(job.folder / "work" / f"noted-{rank}").read_text() for rank in range(2)]
    assert heard == ["{'heard': [12]}\n"] * 2
    # Asked for, it is not granted here, where nothing ends the script.
    assert ended["reason"].startswith("stopped by SIGUSR2; the requeue was granted")
    assert len(job.asked("requeue")) == 1


def test_a_command_that_does_not_save_is_ended_by_the_signal(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    job.start(python("meet('ready')\ntime.sleep(600)"), saves=False)
    waiting(lambda: (job.folder / "work" / "ready-1").exists(), "the ranks")
    signal_the_step(job, signal.SIGTERM)
    assert job.end()["reason"].startswith("stopped by SIGTERM")


def test_a_node_that_failed_twice_gives_its_place_to_a_spare_one(job: SupervisedJob) -> None:
    ended = job.run(python("note(node=node)\nif node == 'n0': os.kill(os.getpid(), 9)\n" + DONE), spare=1)
    assert ended["outcome"] == "done", ended
    assert [one["nodes"] for one in job.restarts()] == [["n0"], ["n0"]]
    nodes = (job.folder / "work" / "noted-0").read_text().splitlines()
    assert nodes == ["{'node': 'n0'}", "{'node': 'n0'}", "{'node': 'n2'}"]


def test_without_a_spare_one_it_is_left_out_of_the_next_attempt(job: SupervisedJob) -> None:
    script = python("if node == 'n0': os.kill(os.getpid(), 9)\ntime.sleep(600)")
    ended = job.run(script)
    assert ended["reason"].startswith("rank 0 was killed on n0 (SIGKILL); no spare node")
    assert job.asked("requeue") == ["requeue 12"]
    assert job.asked("update") == ["update JobId=12 ExcNodeList=n0"]


def test_a_lost_agent_is_a_lost_node(job: SupervisedJob, waiting: Callable[..., None]) -> None:
    job.start(python("meet('again' if Path('lost').exists() else 'start')\nwait('lost')\n" + DONE), spare=1)
    waiting(lambda: (job.folder / "work" / "start-1").exists(), "the ranks")
    agent = psutil.Process(int((job.bin / "agent-n1").read_text()))
    below = agent.children(recursive=True)
    agent.kill()
    ended_ones = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    waiting(
        lambda: not any(one.is_running() and one.status() not in ended_ones for one in below), "its ranks"
    )
    (job.folder / "work" / "lost").touch()
    ended = job.end()
    assert ended["outcome"] == "done", ended
    assert job.restarts()[0]["reason"].startswith("lost node n1: its agent is gone")


def test_ranks_save_and_end_when_their_coordinator_is_killed(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    job.start(python(LISTEN + TELL + "meet('ready')\n" + SAVE))
    waiting(lambda: (job.folder / "work" / "ready-1").exists(), "the ranks")
    agents = [psutil.Process(int(file.read_text())) for file in job.bin.glob("agent-n*")]
    assert job.process is not None
    job.process.kill()
    waiting(lambda: not any(agent.is_running() for agent in agents), "the end of the agents")
    assert [(job.folder / "work" / f"noted-{rank}").exists() for rank in range(2)] == [True, True]
    # The script may be gone with its node, and Slurm would not tell.
    assert "requeue 12" in job.asked("requeue")


def test_starts_without_a_new_checkpoint_are_bounded(job: SupervisedJob) -> None:
    ended = job.run(python("os.kill(os.getpid(), 9)"), nodes=1, spare=3, most=3)
    assert ended["outcome"] == "failed"
    assert ended["reason"].startswith("given up after 3 attempts in a row without a new checkpoint (step 0)")
    assert "rank 0 was killed on n1 (SIGKILL)" in ended["reason"]


def test_a_port_that_another_program_took_costs_no_attempt(job: SupervisedJob) -> None:
    ended = job.run(
        python(
            "import socket\nport = int(os.environ['MASTER_PORT'])\n"
            "note(at=[port, os.environ['NML_MEETING']])\n"
            "if not rank:\n"
            "    taken = socket.create_server(('127.0.0.1', port)) if once('taken') else None\n"
            "    socket.create_server(('127.0.0.1', port))\n" + DONE
        ),
        most=1,
    )
    assert ended["outcome"] == "done", ended
    assert not job.restarts()
    noted = [(job.folder / "work" / f"noted-{rank}").read_text().splitlines() for rank in range(2)]
    # The ranks of a start meet at one port under one name, and those of the next at others.
    assert noted[0][-1] == noted[1][-1]
    first, second = (ast.literal_eval(line)["at"] for line in noted[0])
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize("program", ["srun", "scontrol"])
def test_what_is_missing_on_the_node_is_the_cause(job: SupervisedJob, program: str) -> None:
    (job.bin / program).unlink()
    ended = job.run("", PATH=f"{job.bin}:/nonexistent")
    assert (ended["outcome"], ended["exit"]) == ("failed", 1)
    assert f"{program} not on the PATH of " in ended["reason"]


def test_a_full_disk_is_the_cause_also_where_nothing_can_be_written(full_disk: Path, snapshot: Path) -> None:
    job = SupervisedJob(full_disk, snapshot)
    fill = "with open('rest', 'wb') as file:\n    while True: file.write(bytes(4096)); file.flush()"
    ended = job.run(python(f"meet('start')\n{fill}"))
    assert ended["outcome"] == "failed", ended
    assert ended["reason"].endswith("OSError: [Errno 28] No space left on device")
    assert not job.restarts()


def test_a_working_folder_that_is_gone_is_the_cause(job: SupervisedJob) -> None:
    (job.folder / "work").rmdir()
    ended = job.run("")
    assert (ended["outcome"], ended["exit"]) == ("failed", 127)
    assert ended["reason"].endswith(f"cannot start: No such file or directory: {job.folder}/work")


def test_a_node_that_cannot_run_an_agent_is_the_cause(job: SupervisedJob) -> None:
    text = (job.bin / "srun").read_text()
    said = "slurmstepd: error: execve(): /gone/python: No such file or directory"
    (job.bin / "srun").write_text(text.replace("\nwait\n", f"\necho '{said}' >&2\nwait\n"))
    (job.bin / "without-n1").touch()
    text = (job.bin / "srun").read_text()
    failed = "echo 'srun: error: n1: task 1: Exited with exit code 2' >&2"
    (job.bin / "srun").write_text(text.replace("\nwait\n", f"\n{failed}\nwait\n"))
    ended = job.run("")
    assert (ended["outcome"], ended["reason"]) == ("failed", f"no agent on n1: {said}")


def hung_up(line: socket.socket) -> bool:
    line.settimeout(0.01)
    try:
        while line.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_strangers_and_nonsense_do_not_disturb_a_job(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    job.start(python("meet('ready')\nPath('at').touch()\nwait('go')\n" + DONE))
    waiting(lambda: (job.folder / "work" / "at").exists(), "the ranks")
    agent = psutil.Process(int((job.bin / "agent-n0").read_text()))
    address, port = agent.environ()[wire.COORDINATOR].split(":")
    answer = b'{"proof": "%s", "node": "n0", "address": "1.2.3.4"}\n'
    told = [
        b"",
        b"{}\n",
        b"x" * 100_000,
        *(answer % proof for proof in (b"0", b"\\u00e9", b"\\ud800")),
        b"\xff\n",
    ]
    strangers = []
    for words in told:
        stranger = socket.create_connection((address, int(port)))
        stranger.sendall(words)
        strangers.append(stranger)
    # Hung up on, all but the one that says nothing yet.
    waiting(lambda: all(hung_up(one) for one in strangers[1:]), "the end of their lines")
    (job.folder / "work" / "go").touch()
    assert job.end()["outcome"] == "done"
    assert wire.TOKEN not in psutil.Process().environ()


def test_a_rank_that_dies_after_a_stop_does_not_keep_the_job_from_its_requeue(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    killed = "while not heard: time.sleep(0.01)\nif rank: os.kill(os.getpid(), 9)\ntime.sleep(600)"
    job.start(python(LISTEN + TELL + "meet('ready')\n" + killed), "coordinator.BROKEN_SECONDS=1")
    waiting(lambda: (job.folder / "work" / "ready-1").exists(), "the ranks")
    signal_the_step(job, signal.SIGTERM)
    assert job.end()["reason"].startswith("stopped by SIGTERM; the requeue was granted")
    assert len(job.asked("requeue")) == 1


def test_ranks_that_do_not_save_before_the_time_limit_do_not_cost_the_job(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    job.start(python("meet('ready')\ntime.sleep(600)"), delay=2)
    waiting(lambda: (job.folder / "work" / "ready-1").exists(), "the ranks")
    signal_the_step(job, signal.SIGUSR2)
    assert job.end()["reason"].startswith("stopped by SIGUSR2; the requeue was granted")
    assert len(job.asked("requeue")) == 1


def test_a_node_that_comes_back_when_it_was_given_up_leaves_the_job_alone(
    job: SupervisedJob, waiting: Callable[..., None]
) -> None:
    place = "'again' if Path('lost').exists() else 'start'"
    script = "note(pid=os.getpid())\nmeet(" + place + ")\nwait('lost')\nwait('go')\n" + DONE
    job.start(python(script), "nodes.SILENCE_SECONDS=4", spare=1)
    waiting(lambda: (job.folder / "work" / "start-1").exists(), "the ranks")
    agent = psutil.Process(int((job.bin / "agent-n1").read_text()))
    below = agent.children(recursive=True)
    agent.suspend()
    (job.folder / "work" / "lost").touch()
    waiting(job.restarts, "the restart elsewhere")
    agent.resume()
    waiting(lambda: not any(one.is_running() for one in (agent, *below)), "the end of the agent")
    (job.folder / "work" / "go").touch()
    ended = job.end()
    assert ended["outcome"] == "done", ended
    assert job.asked("requeue") == []


def test_a_rank_that_says_much_does_not_wait_for_its_agent(job: SupervisedJob) -> None:
    flood = "began = time.monotonic()\nfor _ in range(320): os.write(2, bytes(65536))\n"
    ended = job.run(python(flood + "note(took=time.monotonic() - began)\n" + DONE), nodes=1)
    assert ended["outcome"] == "done"
    assert (job.folder / "12_0_log.out").stat().st_size >= 320 * 65536


def test_a_complete_run_is_no_failure_where_its_log_has_no_room(job: SupervisedJob) -> None:
    with Path("/dev/full").open("w") as full:
        job.start(python(DONE), log=full)
        ended = job.end()
    assert (ended["outcome"], ended["exit"]) == ("done", 0), ended


def test_fewer_nodes_than_the_job_has_are_no_job(job: SupervisedJob) -> None:
    text = (job.bin / "scontrol").read_text()
    (job.bin / "scontrol").write_text(text.replace('cat "$HERE/nodes"', "exit 1"))
    ended = job.run(python(DONE), SLURMD_NODENAME="n0")
    assert "names 1 of its 2 nodes: n0" in ended["reason"]
    assert len(job.asked("requeue")) == 1


def test_a_node_that_dies_before_its_agent_is_there_costs_no_job(job: SupervisedJob) -> None:
    said = "srun: error: Task launch for StepId=12.0 failed on node n1: Communication connection failure"
    (job.bin / "srun").write_text(f"#!/bin/bash\necho '{said}' >&2\nexit 1\n")
    ended = job.run("")
    assert ended["reason"].startswith(f"no agent on n0, n1: {said}")
    assert len(job.asked("requeue")) == 1


# Proves in two pieces that it is of the job, with more behind it, and is gone once its ranks were to start.
AGENT = """
import json, os, socket, struct, time
import psutil
from slurm import wire
address, _, port = os.environ[wire.COORDINATOR].rpartition(':')
line = socket.create_connection((address, int(port)))
heard = line.makefile()
proof = wire.proof(os.environ[wire.TOKEN], json.loads(heard.readline())['nonce'])
said = json.dumps({'proof': proof, 'node': 'n1', 'address': '127.0.0.1'}).encode()
line.sendall(said[:20])
time.sleep(0.5)
line.sendall(said[20:] + b'\\n{"beats": [], "round": 0}\\n')
while 'start' not in json.loads(heard.readline()):
    pass
line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
coordinator = psutil.Process().parent().parent()
coordinator.suspend()
line.sendall(b'{"beats": [], "round": 1}\\n' * 2)
heard.close()
line.close()
coordinator.resume()
"""


def test_an_agent_that_speaks_in_pieces_is_one_and_if_it_dies_in_mid_speech_a_lost_node(
    job: SupervisedJob,
) -> None:
    (job.bin / "agent.py").write_text(AGENT)
    other = 'if [ $i = 1 ]; then PYTHONPATH=. "$1" "$HERE/agent.py" & else SLURMD_NODENAME=n$i "$@" & fi;'
    text = (job.bin / "srun").read_text()
    (job.bin / "srun").write_text(text.replace('SLURMD_NODENAME=n$i "$@" &', other))
    ended = job.run(python("note(node=node)\n" + DONE), spare=1)
    assert ended["outcome"] == "done", ended
    [again] = job.restarts()
    assert again["reason"].startswith("lost node n1: its agent ")
    assert (job.folder / "work" / "noted-1").read_text() == "{'node': 'n2'}\n"
