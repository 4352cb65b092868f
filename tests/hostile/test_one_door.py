"""What comes from elsewhere passes the boundary: no room parses, decodes or unpickles past it."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import psutil
import pytest

from pretrain.world import World, local_store
from slurm.rendezvous import choose_port

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("nml", "shards", "pretrain", "plugins", "probes", "slurm")
# Where each of these calls may stand. torch.load reads tensors alone where it is told to.
DOORS = {
    "json.loads": {"nml/untrusted.py"},
    "json.load": {"nml/untrusted.py"},
    "yaml.safe_load": {"nml/untrusted.py"},
    "yaml.load": set(),
    "Image.open": {"nml/images.py"},
    "pickle.load": set(),
    "pickle.loads": set(),
    "pickle.Unpickler": {"pretrain/engines/plan_reader.py"},
    "dcp.FileSystemReader": {"pretrain/engines/plan_reader.py"},
    "eval": set(),
    "exec": set(),
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_room_reads_past_the_boundary() -> None:
    past = []
    for file in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        where = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            name = dotted(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            if name in DOORS and where not in DOORS[name]:
                past.append(f"{where}:{node.lineno}: {name}")
            if isinstance(node, ast.Call):
                given = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
                if dotted(node.func) == "torch.load" and given.get("weights_only") is not True:
                    past.append(f"{where}:{node.lineno}: torch.load of more than weights")
                if dotted(node.func) == "np.load" and given.get("allow_pickle"):
                    past.append(f"{where}:{node.lineno}: np.load of pickles")
    assert past == []


def test_the_store_of_ranks_on_one_machine_listens_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    port = choose_port("a store alone")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = local_store(World(size=1))
    here = psutil.Process().net_connections("inet")
    listening = {each.laddr.ip for each in here if each.laddr.port == port and each.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    store.set("met", "yes")
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        assert store.get("met") == b"yes"
    monkeypatch.setenv("MASTER_ADDR", "node07")
    assert local_store(World(size=1)) is None
