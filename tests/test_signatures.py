"""Sets and exports with a signature of OpenSSF's tool: made offline, and held to what it covers."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from model_signing import hashing, verifying

from nml import layout
from nml.errors import UserError
from nml.signatures import BadSignature, check_signature
from nml.signatures import sign as sign_files
from probes.encoders import Settings, open_checkpoint
from shards import relabel, sign, verify, write
from shards.shardset import ShardSet
from tests.probes.conftest import write_export
from tests.served import PASSWORD, USER, served
from tests.signing_keys import make_keys, openssl


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``mine.pem``, ``mine.pub`` and those of somebody else, made as the documents say."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        make_keys(folder, name)
    return folder


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        place = address[0] if isinstance(address, tuple) else "localhost"
        assert place in ("127.0.0.1", "::1", "localhost"), f"connects to {address!r}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "set"
    write.main(["--source", "digits", "--noise", "0.2", "--max-shard-count", "200", "--out", str(folder)])
    return folder


@pytest.fixture
def signed(written: Path, keys: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "set"
    shutil.copytree(written, folder)
    sign.main([str(folder), "--key", str(keys / "mine.pem")])
    return folder


def test_a_signed_set_passes_with_its_key_and_with_the_tool_of_the_format(signed: Path, keys: Path) -> None:
    assert verify.main([str(signed), "--quick", "--key", str(keys / "mine.pub")]) == 0
    tool = verifying.Config().use_elliptic_key_verifier(public_key=keys / "mine.pub")
    tool.set_ignore_unsigned_files(True).verify(signed, signed / "set.sig")


def test_a_relabelled_set_needs_a_new_signature(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relabel.main([str(signed), "--noise", "0.3"])
    assert verify.main([str(signed), "--quick", "--key", str(keys / "mine.pub")]) == 1
    said = capsys.readouterr().out
    assert "set.sig no longer holds" in said
    assert "WRONG signature:" in said
    assert "set.json is not what was signed" in said
    sign.main([str(signed), "--key", str(keys / "mine.pem")])
    assert verify.main([str(signed), "--quick", "--key", str(keys / "mine.pub")]) == 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder, _: (folder / "set.sig").unlink(), r"has no signature \(set.sig\)"),
        (lambda folder, _: (folder / "set.sig").write_text("{}"), "its signature does not hold"),
        (lambda folder, _: (folder / "set.sig").write_text("[" * 100_000), "its signature does not hold"),
        (lambda folder, keys: sign.main([str(folder), "--key", str(keys / "other.pem")]), "Key mismatch"),
        (
            lambda folder, keys: sign_files(folder, ["stats.json"], "set.sig", keys / "mine.pem"),
            "it does not cover set.json",
        ),
    ],
)
def test_a_reader_that_wants_a_signature_refuses_a_set_without_a_good_one(
    signed: Path, keys: Path, spoil: Callable[[Path, Path], object], told: str
) -> None:
    ShardSet.open(signed, signed_by=keys / "mine.pub")
    spoil(signed, keys)
    with pytest.raises(BadSignature, match=told):
        ShardSet.open(signed, signed_by=keys / "mine.pub")


def test_a_set_at_a_url_is_held_to_its_signature(signed: Path, keys: Path, tmp_path: Path) -> None:
    with served(tmp_path / "served") as server:
        url = f"http://{USER}:{PASSWORD}@{server.place}/set"
        ShardSet.open(url, cache=tmp_path / "cache", signed_by=keys / "mine.pub")
        with pytest.raises(BadSignature, match="Key mismatch"):
            ShardSet.open(url, cache=tmp_path / "cache", signed_by=keys / "other.pub")
        (signed / "set.sig").unlink()
        with pytest.raises(BadSignature, match="has no signature"):
            ShardSet.open(url, cache=tmp_path / "cache", signed_by=keys / "mine.pub")


@pytest.mark.parametrize("name", ["no-such.pem", "mine.pub", "set.json", "pipe", "ed25519.pem"])
def test_a_key_that_cannot_sign_is_told_in_one_line(signed: Path, keys: Path, name: str) -> None:
    shutil.copy(signed / "set.json", keys)
    if name == "pipe":
        os.mkfifo(keys / name)
    elif name == "ed25519.pem":
        openssl(keys, "genpkey", "-algorithm", "ed25519", "-out", name)
    with pytest.raises(UserError, match=f"{name}: cannot be used for signing: .*PEM") as refused:
        sign.main([str(signed), "--key", str(keys / name)])
    assert "\n" not in str(refused.value)
    assert "attribute" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be used to check signatures"):
        ShardSet.open(signed, signed_by=keys / "mine.pem")


def test_a_folder_may_be_called_as_a_signature_is(tmp_path: Path, keys: Path) -> None:
    folder = tmp_path / "signature"
    folder.mkdir()
    (folder / "set.json").write_text("{}")
    sign_files(folder, ["set.json"], "set.sig", keys / "mine.pem")
    check_signature(folder, ["set.json"], "set.sig", keys / "mine.pub")


def test_a_key_with_a_password_signs_with_it(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl(keys, "ec", "-in", "mine.pem", "-aes256", "-passout", "pass:abc", "-out", "locked.pem")
    with pytest.raises(UserError, match="NML_SIGNING_PASSWORD"):
        sign.main([str(signed), "--key", str(keys / "locked.pem")])
    monkeypatch.setenv("NML_SIGNING_PASSWORD", "abc")
    sign.main([str(signed), "--key", str(keys / "locked.pem")])
    ShardSet.open(signed, signed_by=keys / "mine.pub")


def test_an_export_that_was_changed_after_it_was_signed_is_refused(tmp_path: Path, keys: Path) -> None:
    export = write_export(tmp_path / "run") / layout.EXPORT
    settings = Settings(device="cpu", signed_by=str(keys / "mine.pub"))
    with pytest.raises(BadSignature, match=r"has no signature \(model\.sig\)"):
        open_checkpoint(export, settings)
    sign_files(export, layout.SIGNED, layout.SIGNATURE, keys / "mine.pem")
    open_checkpoint(export, settings)
    # All of it is covered, so the tool itself needs no word about the rest.
    tool = verifying.Config().use_elliptic_key_verifier(public_key=keys / "mine.pub")
    ignoring = hashing.Config().set_ignored_paths(paths=[export / layout.SIGNATURE])
    tool.set_hashing_config(ignoring).verify(export, export / layout.SIGNATURE)
    meta = export / layout.META
    meta.write_text(meta.read_text().replace('"n00"', '"n20"'))
    with pytest.raises(BadSignature, match=r"hold: meta\.json is not what was signed"):
        open_checkpoint(export, settings)
