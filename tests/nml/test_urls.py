"""Passwords and signatures in URLs are handed to the server that they are for, and shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from nml import urls
from nml.errors import UserError
from nml.set_file import open_file_system, read_set_bytes
from tests.served import PASSWORD, SIGNATURE, USER, served


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Set, so that it is put back as it was; the other tests know of no secret.
    monkeypatch.setenv(urls.VARIABLE, "")
    monkeypatch.setenv(urls.NETRC, str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("given", "shown", "asked"),
    [
        ("http://me:hunter2@host:8080/set", "http://host:8080/set", "http://me:hunter2@host:8080/set/set.json"),
        ("https://TOKEN@host/set/", "https://host/set/", "https://TOKEN@host/set/set.json"),
        ("https://host/set?Date=1&Signature=2#part", "https://host/set", "https://host/set/set.json?Date=1&Signature=2"),
        ("HTTPS://me:a@b:c@host/set", "HTTPS://host/set", "HTTPS://me:a@b:c@host/set/set.json"),
        ("http://me:hunter2@[::1]:80/set", "http://[::1]:80/set", "http://me:hunter2@[::1]:80/set/set.json"),
        ("simplecache::https://me:a@host/set", "simplecache::https://host/set", "simplecache::https://me:a@host/set/set.json"),
        ("sftp://me:hunter2@host/set", "sftp://me@host/set", "sftp://me:hunter2@host/set/set.json"),
        ("abfs://box@host/set?sv=1&sig=2", "abfs://box@host/set", "abfs://box@host/set/set.json?sv=1&sig=2"),
        ("s3://bucket/is it?/set#1", "s3://bucket/is it?/set#1", "s3://bucket/is it?/set#1/set.json"),
        ("github://org:repo@main/set", "github://org:repo@main/set", "github://org:repo@main/set/set.json"),
        ("bucket:///tmp/set", "bucket:///tmp/set", "bucket:///tmp/set/set.json"),
        ("file:///data/a?token=b", "file:///data/a?token=b", "file:///data/a?token=b/set.json"),
        ("data/a:b@c/set", "data/a:b@c/set", "data/a:b@c/set/set.json"),
    ],
)  # fmt: skip
def test_a_server_is_asked_with_what_is_shown_nowhere(given: str, shown: str, asked: str) -> None:
    assert urls.take_secret(given) == shown
    assert urls.with_secret(f"{shown.rstrip('/')}/set.json") == asked


def test_a_secret_is_put_into_no_other_url() -> None:
    urls.take_secret("https://me:hunter2@host/set")
    urls.take_secret("https://host/other?sig=1")
    assert urls.with_secret("https://host/set2/set.json") == "https://host/set2/set.json"
    assert urls.with_secret("https://host.other/set") == "https://host.other/set"
    assert urls.with_secret("https://host/set/set.json") == "https://me:hunter2@host/set/set.json"


@pytest.mark.parametrize(("before", "after"), [("me:hunter2@", ""), ("", "?sig=1")])
def test_the_files_of_a_pattern_are_asked_for_with_its_secret(before: str, after: str) -> None:
    assert urls.take_secret(f"https://{before}host/a/x-*/*.tar{after}") == "https://host/a/x-*/*.tar"
    assert urls.with_secret("https://host/a/x-*/*.tar") == f"https://{before}host/a/x-*/*.tar{after}"
    assert urls.with_secret("https://host/a/x-1/1.tar") == f"https://{before}host/a/x-1/1.tar{after}"
    assert urls.with_secret("https://host/b/x-1/1.tar") == "https://host/b/x-1/1.tar"


def test_a_later_signature_takes_the_place_of_an_earlier_one() -> None:
    shown = {urls.take_secret(f"https://host/set?sig={number}") for number in (1, 2)}
    assert shown == {"https://host/set"}
    assert urls.with_secret("https://host/set/a.tar") == "https://host/set/a.tar?sig=2"


def test_a_password_that_does_not_read_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="%2F") as caught:
        urls.take_secret("https://me:hun/ter2@host/set")
    assert "ter2" not in str(caught.value)
    assert "me:hun" not in urls.redacted("cannot open https://me:hun/ter2@host/set: gone")


def test_messages_of_others_lose_what_is_secret_in_them() -> None:
    urls.take_secret("https://me:hunter%32@host/set?sig=5ec2e7")
    said = "401 for 'https://me:hunter%32@host/set?sig=5ec2e7', BasicAuth(login='me', password='hunter2')"
    assert urls.redacted(said) == "401 for 'https://host/set', BasicAuth(login='me', password='***')"


def test_a_netrc_file_gives_a_password_to_the_hosts_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine host login me password a/b\ndefault login you password all\n")
    assert urls.with_secret("https://host:1/set/a.tar") == "https://me:a%2Fb@host:1/set/a.tar"
    assert urls.with_secret("https://other/set/a.tar") == "https://other/set/a.tar"
    assert urls.with_secret("s3://host/set/a.tar") == "s3://host/set/a.tar"


def test_a_server_gets_the_password_or_the_signature_of_its_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").write_text("{}")
    with served(tmp_path) as server:
        with pytest.raises(UserError, match=r"401.*netrc"):
            read_set_bytes(f"http://{server.place}/set")
        assert read_set_bytes(f"http://{USER}:{PASSWORD}@{server.place}/set") == b"{}"
        os.environ[urls.VARIABLE] = ""
        assert read_set_bytes(f"http://{server.place}/set?{SIGNATURE}") == b"{}"
        with pytest.raises(UserError, match="no shard set there") as caught:
            read_set_bytes(f"http://{USER}:{PASSWORD}@{server.place}/none")
        assert PASSWORD not in repr(caught.value)
        # Printed with the error they would show the URL as it was asked for.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_server_that_sends_elsewhere_does_not_send_the_password_there(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{}")
    with served(tmp_path) as first, served(tmp_path) as second:
        first.elsewhere = f"http://{second.place}"
        with pytest.raises(UserError, match="401"):
            read_set_bytes(f"http://{USER}:{PASSWORD}@{first.place}")
        assert "Authorization" in first.heads[0][1]
        assert second.heads
        assert not any("Authorization" in head for _, head in second.heads)


def test_what_a_file_system_says_as_it_opens_is_shown_without_the_password() -> None:
    class Talkative(fsspec.AbstractFileSystem):
        protocol = "talkative"

        def __init__(self, host: str = "", password: str = "", **options: object) -> None:
            raise OSError(f"no route to {host} for {password}")

        @staticmethod
        def _get_kwargs_from_urls(path: str) -> dict[str, str]:
            return {"host": "host", "password": PASSWORD}

    fsspec.register_implementation("talkative", Talkative, clobber=True)
    with pytest.raises(UserError, match="no route to host") as caught:
        open_file_system(f"talkative://me:{PASSWORD}@host/set")
    assert PASSWORD not in str(caught.value)
