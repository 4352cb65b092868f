"""What a job asks of Slurm: the defaults here, then a cluster file, then the command line.

A cluster file is YAML with any of the fields of :class:`Resources`, and under ``stages`` with those
that differ for shards, pretrain, probes or report. Examples are in slurm/clusters/.
The user's own file is ``~/.config/noisy-model-learning/cluster.yaml`` (or under XDG_CONFIG_HOME);
``--cluster-file`` names another, or an example by name.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from nml.errors import UserError, unknown_name
from nml.untrusted import parse_yaml
from slurm.container import RUNTIMES
from slurm.members import Container
from slurm.sbatch_words import parse_after, parse_gpus, parse_minutes

EXAMPLES = Path(__file__).resolve().parent / "clusters"
STAGES = ("shards", "pretrain", "probes", "report")
DEFAULT_TIME = "24:00:00"
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
# Options of sbatch that the launcher gives itself, with the field that says the same, if one does. A comment
# is not among them: the launcher adds its token to a user's own.
_OWN_OPTIONS = {
    **dict.fromkeys(("array", "chdir", "dependency", "error", "kill-on-invalid-dep", "no-requeue"), ""),
    **dict.fromkeys(
        ("no-kill", "open-mode", "output", "parsable", "requeue", "test-only", "wait", "wckey", "wrap"), ""
    ),
    **{name: name for name in ("nodes", "time", "partition", "account", "qos", "constraint", "exclude")},
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "mem": "mem_gb",
    "ntasks-per-node": "tasks_per_node",
    "signal": "signal_delay_s",
}

# What YAML has to give for a field of a type, in words, and how that looks.
_KINDS = {
    "int": ("whole number", "8"),
    "float": ("number", "1.5"),
    "str": ("text", "TEXT"),
    "dict": ("mapping", "{NAME: VALUE}"),
    "tuple": ("list", "[ONE, OTHER]"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks for.

    Attributes:
        nodes: Nodes of the job.
        spare_nodes: Further nodes of the job, each of which takes the place of one that fails.
        gpus_per_node: GPUs a node, and ranks a node with it; 0 is one rank a node on the CPU.
        gpu_type: Which GPUs, as ``a100:4`` for ``gpus_per_node`` names them; empty for any.
        tasks_per_node: Ranks a node where that is not the number of GPUs; 0 leaves it to them.
        cpus_per_task: Cores of each rank, its loader workers included.
        mem_gb: Memory a node; 0 leaves it to the cluster.
        time: Time limit, in any of sbatch's words for one (:func:`parse_minutes`). A run that reaches it
            saves, is requeued and goes on.
        partition, account, qos, constraint, exclude: As sbatch takes them; empty leaves them out.
        after: Jobs that have to end well before this one begins: ``12,13``; ``afterany:12`` also badly.
        signal_delay_s: How long before the time limit the ranks are told to save.
        array_parallelism: How many members of a sweep run at once, over all its arrays.
        silence_s: For how long, and three of its own steps, a rank may give no sign of life.
        max_idle_attempts: After how many attempts without a new checkpoint a job is given up.
        env: Environment variables of the job, for example NCCL_SOCKET_IFNAME.
        python: The interpreter on the nodes; empty for the one that launches.
        container: An image that the ranks run in; empty for none.
        container_runtime: How it is entered, one of :data:`slurm.container.RUNTIMES`.
        container_python: The interpreter in it.
        container_mounts: What it shows of the nodes beyond what the run needs, ``SOURCE:PLACE`` each.
        setup: Lines of shell for the batch script, for example ``module load cuda``.
        notify: A command, and its arguments, that is told of the end of a sweep (:mod:`slurm.ending`).
        srun_args: Further arguments of srun.
        sbatch: Further options of sbatch, name without dashes: value, or True for one that takes none.

    Raises:
        UserError: If a value is impossible.
    """

    nodes: int = 1
    spare_nodes: int = 0
    gpus_per_node: int = 0
    gpu_type: str = ""
    tasks_per_node: int = 0
    cpus_per_task: int = 1
    mem_gb: float = 0
    time: str = DEFAULT_TIME
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    after: str = ""
    signal_delay_s: int = 120
    array_parallelism: int = 64
    silence_s: int = 20
    max_idle_attempts: int = 5
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    python: str = ""
    container: str = ""
    container_runtime: str = RUNTIMES[0]
    container_python: str = "python3"
    container_mounts: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    notify: tuple[str, ...] = ()
    srun_args: tuple[str, ...] = ()
    sbatch: dict[str, str | bool] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "array_parallelism", "max_idle_attempts", "signal_delay_s"):
            _at_least(name, getattr(self, name), 1)
        # Ranks tell of themselves every second or two, agents every two.
        _at_least("silence_s", self.silence_s, 10)
        for name in ("spare_nodes", "gpus_per_node", "tasks_per_node", "mem_gb"):
            _at_least(name, getattr(self, name), 0)
        if self.container_runtime not in RUNTIMES:
            raise unknown_name("container_runtime", self.container_runtime, RUNTIMES)
        if self.after:
            parse_after(self.after)
        for option, value in self.sbatch.items():
            name = option.replace("_", "-")
            if not _OPTION.fullmatch(name) or "\n" in str(value):
                raise UserError(f"sbatch: {option}: {value!r} is no option in one line", possible="KEY=VALUE")
            if name in _OWN_OPTIONS:
                field = _OWN_OPTIONS[name]
                raise UserError(
                    f"sbatch: {option}: the launcher sets it",
                    mend=f"use the field {field} of the cluster file" if field else "leave it out",
                )
        if self.minutes * 60 <= self.signal_delay_s:
            raise UserError(
                f"--time {self.time}: no longer than signal_delay_s {self.signal_delay_s}",
                mend="ask for more time, or set a smaller signal_delay_s",
            )

    @property
    def tasks(self) -> int:
        """Ranks a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def after_words(self) -> str:
        """What Slurm is told to wait for, or nothing."""
        return parse_after(self.after) if self.after else ""

    @property
    def in_container(self) -> Container | None:
        """What the ranks run in."""
        if not self.container:
            return None
        return Container(
            image=self.container,
            runtime=self.container_runtime,
            python=self.container_python,
            mounts=self.container_mounts,
            gpus=self.gpus_per_node > 0,
        )

    @property
    def minutes(self) -> int:
        """The time limit in minutes, rounded up."""
        return parse_minutes(self.time)


def _at_least(name: str, value: float, least: int) -> None:
    # NaN is not below anything.
    if not least <= value < math.inf:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {value}: not a possible value", possible=f"{least} and more")


def user_file() -> Path:
    """Return where the user's own cluster file would be."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "noisy-model-learning" / "cluster.yaml"


def load_resources(
    named: str | None, given: dict[str, Any], stage: str = "pretrain", *, cores: int | None = None
) -> Resources:
    """Merge the defaults, a cluster file, its part for a stage and what the command line gave.

    Args:
        named: A cluster file's path, the name of an example, or None for the user's own file.
        given: Fields from the command line; None and "" count as not given.
        stage: The stage that the job belongs to.
        cores: Of a rank, where neither says; None for the default.

    Raises:
        UserError: If a file is missing or malformed, or a value is impossible.
    """
    fields: dict[str, Any] = {} if cores is None else {"cpus_per_task": cores}
    fields |= _read(_find(named), stage)
    # What is written with a line below in the one may be written with a dash in the other.
    own = {name.replace("_", "-") for name in given.get("sbatch", {})}
    kept = {
        name: value for name, value in fields.get("sbatch", {}).items() if name.replace("_", "-") not in own
    }
    options = kept | given.get("sbatch", {})
    fields |= {name: value for name, value in given.items() if value is not None and value != ""}
    fields["sbatch"] = options
    return Resources(**fields)


def _find(named: str | None) -> Path | None:
    if named is None:
        own = user_file()
        return own if own.exists() else None
    if Path(named).is_file():
        return Path(named)
    examples = {file.stem: file for file in EXAMPLES.glob("*.yaml")}
    if named not in examples:
        raise unknown_name("--cluster-file", named, examples, mend="or name a YAML file")
    return examples[named]


def _read(file: Path | None, stage: str) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = parse_yaml(file.read_text()) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"cluster file {file}: does not read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"cluster file {file}: holds no fields", possible="lines such as `partition: gpu`")
    stages = content.pop("stages", None) or {}
    for name in stages:
        if name not in STAGES:
            raise unknown_name(f"cluster file {file}: stages", str(name), STAGES)
    own = stages.get(stage) or {}
    if not isinstance(own, dict):
        raise UserError(f"cluster file {file}: stages: {stage}: holds no fields")
    kinds = {field.name: field for field in dataclasses.fields(Resources)}
    fields = {name: _convert(file, name, value, kinds) for name, value in {**content, **own}.items()}
    return fields | (parse_gpus(fields["gpus_per_node"]) if "gpus_per_node" in fields else {})


def _convert(file: Path, name: str, value: Any, kinds: dict[str, Any]) -> Any:
    """Check one field of a cluster file and bring it into its type."""
    if name not in kinds:
        raise unknown_name(f"cluster file {file}", str(name), kinds)
    kind = str(kinds[name].type)
    what, like = _KINDS[kind.split("[")[0]]
    wrong = UserError(f"cluster file {file}: {name}: {value!r} is no {what}", possible=f"{name}: {like}")
    if name == "gpus_per_node" and isinstance(value, str):
        return value
    if kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
            raise wrong
        return value
    if kind == "str":
        # YAML reads 12:30:00 as a number in base 60, 12_3 as 123 and 0123 as 83.
        if isinstance(value, int | float) and not isinstance(value, bool):
            like = DEFAULT_TIME if name == "time" else "12_3" if name == "after" else "0123"
            raise UserError(f"cluster file {file}: {name}: write it in quotes, '{like}'")
        if not isinstance(value, str):
            raise wrong
        return value
    if kind.startswith("dict"):
        if not isinstance(value, dict):
            raise wrong
        for key, item in value.items():
            if isinstance(item, list | dict):
                raise UserError(f"cluster file {file}: {name}: {key}: {item!r} is no text")
        if name == "sbatch":
            # An option that takes no value is there (`exclusive: true`, or nothing after the colon) or not.
            flags = {str(key): True if item is None else item for key, item in value.items()}
            return {
                key: item if item is True else str(item) for key, item in flags.items() if item is not False
            }
        return {str(key): "" if item is None else str(item) for key, item in value.items()}
    if not isinstance(value, list) or any(isinstance(item, list | dict) or item is None for item in value):
        raise wrong
    return tuple(str(item) for item in value)
