"""The processes of a run: ranks from the environment, one process group, decisions taken together."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nml.errors import UserError
from nml.lifeline import MEETING_NAME, tell_agent
from nml.untrusted import printable

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=10)
_PORTS = 1 << 16
# Where rank 0 leaves word of who meets at its port.
_MEETS = "who meets here"
# What a rank does while it waits for the others to come, as its agent is told.
MEETING = "meeting the others"


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 to size - 1.
        size: Number of processes.
        local_rank: Rank on this machine, which names the GPU.
        timeout: How long it waits for any of the others, or for a batch of its loader workers.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    timeout: timedelta = TIMEOUT

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def world_from_environment(timeout: timedelta = TIMEOUT) -> World:
    """Return the rank and world size that torchrun, Slurm's launcher or a user set; alone where none did.

    Args:
        timeout: See :class:`World`.

    Raises:
        UserError: If only some of the variables are set, or they are no numbers in range.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return World(timeout=timeout)
    missing = [name for name in _NAMES if name not in os.environ]
    if missing:
        raise UserError(
            f"environment: {', '.join(missing)} not set, but RANK or WORLD_SIZE is",
            mend="set all of them, or none for a single process",
        )
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise UserError(f"environment: RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error})") from error
    if not 0 <= rank < size:
        raise UserError(f"environment: RANK {rank} of WORLD_SIZE {size}", possible=f"0 to {size - 1}")
    port = os.environ["MASTER_PORT"]
    # A process alone meets nobody there.
    if size > 1 and not (port.isascii() and port.isdigit() and 0 < int(port) < _PORTS):
        raise UserError(f"environment: MASTER_PORT {port!r}: no port", possible=f"1 to {_PORTS - 1}")
    return World(rank, size, local, timeout)


def join(world: World, run: str = "") -> None:
    """Make the process group, of one process too: engines need not tell the cases apart.

    Args:
        world: This process.
        run: What its others train as well; tells those that no launcher has given a name from another job's.

    Raises:
        UserError: If another job meets at its port.
    """
    import torch
    import torch.distributed as dist

    if world.size == 1:
        # A process alone has nobody to meet, and needs no port for it.
        dist.init_process_group(_backend(), store=dist.HashStore(), rank=0, world_size=1)
        # Some libraries ask the environment rather than the group.
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        for name, value in {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
            os.environ.setdefault(name, value)
        return
    tell_agent(phase=MEETING)
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        _backend(),
        store=_meeting_place(world, run),
        timeout=world.timeout,
        rank=world.rank,
        world_size=world.size,
    )


def _meeting_place(world: World, run: str) -> Any:
    """Return the store in which the ranks of one start meet, and no others.

    Two jobs may take the same port at the same moment. Rank 0 of one then fails, but its other ranks reach
    the store of the other job, whose rank 0 would take them for its own. Ranks that a launcher has started
    have a name of their start, and it ends them with the first that fails. Others have what they train.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    name, by_hand = os.environ.get(MEETING_NAME, ""), MEETING_NAME not in os.environ and not _is_torchruns()
    port = os.environ["MASTER_PORT"]
    try:
        store = local_store(world)
        if store is None:
            store, *_ = next(rendezvous("env://", world.rank, world.size, timeout=world.timeout))
    except (OSError, dist.DistError) as error:
        # A launcher chooses another port itself, and knows which rank did not come.
        if by_hand and world.is_main and "address already in use" in str(error).lower():
            raise UserError(
                f"environment: MASTER_PORT {port}: another process listens there", mend="choose another port"
            ) from error
        if by_hand and "timed out" in str(error).lower():
            raise _not_all_came(world, "some ranks" if world.is_main else "rank 0") from error
        raise
    if by_hand:
        name = f"{world.size} processes of {run}"
        if world.is_main:
            store.set(_MEETS, name)
        elif (there := store.get(_MEETS).decode(errors="replace")) != name:
            raise UserError(
                f"environment: MASTER_PORT {port}: {printable(there)} meet there, and this is one of {name}",
                mend="give each job a port of its own, and all its ranks the same WORLD_SIZE and run folder",
            )
        _wait_for_all(world, store)
    return dist.PrefixStore(f"ranks {name}", store)


def _wait_for_all(world: World, store: Any) -> None:
    """Wait until each rank has come, and come once, which the group itself would not tell."""
    import torch.distributed as dist

    places = [f"came {rank}" for rank in range(world.size)]
    if store.add(places[world.rank], 1) > 1:
        raise UserError(
            f"environment: RANK {world.rank}: a process with that one has come already",
            mend="give each process a RANK of its own",
        )
    try:
        store.wait(places, world.timeout)
    except dist.DistError as error:
        # Rank 0 has the store; without it the others cannot look.
        absent = [
            str(rank) for rank, place in enumerate(places) if world.is_main and not store.check([place])
        ]
        raise _not_all_came(world, f"RANK {', '.join(absent)}" if absent else "some ranks") from error


def _not_all_came(world: World, who: str) -> UserError:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return UserError(
        f"environment: {who} of WORLD_SIZE {world.size} did not come to {place} within "
        f"{world.timeout.total_seconds():.0f} s (--timeout)",
        mend=f"start a process for each RANK, 0 to {world.size - 1}",
    )


def _is_torchruns() -> bool:
    return "TORCHELASTIC_USE_AGENT_STORE" in os.environ


def local_store(world: World) -> Any:
    """Return the place where ranks meet that are all of this machine; None for torch's own.

    Torch's listens on every interface, and what is put there by anybody is unpickled by the ranks.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    # Under torchrun it is torchrun's.
    if not _is_loopback(host) or not port.isdigit() or _is_torchruns():
        return None
    listener = None
    if world.is_main:
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, int(port)))
            bound.listen(world.size)
            # The store closes it.
            listener = bound.detach()
    return dist.TCPStore(host, int(port), world.size, world.is_main, world.timeout, master_listen_fd=listener)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _backend() -> str:
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def wait_no_longer(world: World) -> None:
    """Hold every process group to the world's time-out: also those that libraries made with their own."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    # torch 2.15 made it public.
    limit = getattr(dist, "set_timeout", None) or c10d._set_pg_timeout
    for group in list(c10d._world.pg_map):
        limit(world.timeout, group)


def leave() -> None:
    """Take the process group down."""
    import torch.distributed as dist

    if dist.is_initialized():
        deepspeed: Any = sys.modules.get("deepspeed.comm")
        if deepspeed is not None and deepspeed.is_initialized():
            # It forgets the groups that it has made, too: a process may join again.
            deepspeed.destroy_process_group()
        else:
            dist.destroy_process_group()


def from_main(value: Any) -> Any:
    """Return rank 0's value on every rank: whatever depends on files is decided once."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def decided_by_main(world: World, decide: Callable[[], Any]) -> Any:
    """Let rank 0 alone decide, and return its answer on every rank. Collective.

    Raises:
        UserError: On every rank, if rank 0 met one, or a full or failing disk.
    """
    return _as_told(_decided(decide) if world.is_main else _UNDECIDED)


def decided_by_all(decide: Callable[[], Any]) -> Any:
    """Let every rank decide, for which it may ask the others, and return rank 0's answer on each. Collective.

    Raises:
        UserError: On every rank, if rank 0 met one, or a full or failing disk.
    """
    return _as_told(_decided(decide))


_UNDECIDED = (None, None)


def _decided(decide: Callable[[], Any]) -> tuple[Any, tuple[str, str, str] | None]:
    try:
        return decide(), None
    except UserError as error:
        return None, (error.what, error.possible, error.mend)
    except OSError as error:
        return None, (str(error), "", "")


def _as_told(own: tuple[Any, tuple[str, str, str] | None]) -> Any:
    answer, mistake = from_main(own)
    if mistake is not None:
        what, possible, mend = mistake
        raise UserError(what, possible=possible, mend=mend)
    return answer
