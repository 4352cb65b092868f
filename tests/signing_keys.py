"""Key pairs for signatures, made as the documents say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_OPENSSL = shutil.which("openssl")


def openssl(folder: Path, *words: str) -> None:
    if _OPENSSL is None:
        pytest.skip("no openssl to make keys with")
    subprocess.run([_OPENSSL, *words], cwd=folder, check=True, capture_output=True)


def make_keys(folder: Path, name: str = "mine") -> None:
    """Write NAME.pem and NAME.pub."""
    openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.pem")
    openssl(folder, "ec", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")
