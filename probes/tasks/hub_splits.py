"""Splits of data sets on the Hugging Face hub, at a commit."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from nml.cli import is_interactive
from nml.errors import UserError, import_extra
from nml.hub import unreachable

MAIN = "main"
# Where the hub keeps the Parquet form of data sets that are a loading script, which datasets >= 4 refuses.
CONVERTED = "refs/convert/parquet"

_FULL_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSplits:
    """One or more splits of a data set, one after the other.

    Attributes:
        repository: Data set on the hub, or the folder of a local clone.
        splits: Names of the splits.
        config: Configuration; None for the only one.
        revision: A commit (the first seven digits do), or a branch, whose commit is then looked up and
            recorded when the data is fetched.
    """

    repository: str
    splits: tuple[str, ...]
    config: str | None = None
    revision: str = MAIN

    def commit(self) -> str | None:
        """Return the full commit; None for a local clone.

        Raises:
            UserError: If the hub does not answer, or has no such revision.
        """
        if Path(self.repository).is_dir():
            return None
        if _FULL_COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            return _look_up(self.repository, self.revision)
        # The hub's client and its HTTP library raise types of their own, which change with their versions.
        except Exception as error:
            raise self._not_fetched(error) from error

    def load(self) -> Any:
        """Return the rows of all splits, a ``datasets.Dataset``; images are left encoded.

        Raises:
            UserError: If the library is missing or the data cannot be had.
        """
        datasets = import_extra("datasets", "huggingface", self.repository)
        if not is_interactive():
            datasets.disable_progress_bars()
        if not Path(self.repository).is_dir():
            # Without an answer, what the cache holds is taken at once.
            unreachable()
        commit = self.commit()
        revision = {"revision": commit} if commit else {}
        try:
            parts = [
                datasets.load_dataset(self.repository, self.config, split=split, **revision)
                for split in self.splits
            ]
        except Exception as error:
            raise self._not_fetched(error) from error
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]

    def describe(self) -> dict[str, Any]:
        """Return what to record of the source."""
        return {
            "source": self.repository,
            "config": self.config,
            "splits": list(self.splits),
            "revision": self.commit(),
        }

    def _not_fetched(self, error: Exception) -> UserError:
        reason = unreachable() or f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return UserError(
            f"{self.repository} could not be fetched: {reason}",
            mend="prepare it on a machine with network and copy its folder here",
        )


@functools.cache
def _look_up(repository: str, revision: str) -> str:
    from huggingface_hub import HfApi

    reason = unreachable()
    if reason:
        raise OSError(reason)
    if _SHORT_COMMIT.fullmatch(revision):
        for commit in HfApi().list_repo_commits(repository, repo_type="dataset"):
            if commit.commit_id.startswith(revision):
                return str(commit.commit_id)
        raise LookupError(f"no commit {revision}")
    sha = HfApi().dataset_info(repository, revision=revision).sha
    if sha is None:
        raise LookupError("the hub names no commit")
    return str(sha)
