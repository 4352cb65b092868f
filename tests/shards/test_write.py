"""Writing: the user's command, equal bytes whatever the workers, continuing, and mistakes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nml import digits
from nml.errors import UserError
from nml.files import sha256_file
from nml.set_file import SET_FILE
from shards import relabel, write
from shards.bundled import ensure_digits
from shards.layout import ShardLimits, parse_size
from shards.shardset import ShardSet
from shards.verify import verify

Write = Callable[..., ShardSet]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def problems(folder: Path) -> list[str]:
    return [f"{finding.name}: {finding.problem}" for finding in verify(folder) if finding.problem]


def test_the_command_writes_a_set_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data" / "digits"
    write.main(["--source", "digits", "--noise", "0", "0.2", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "n20: asked 0.2, realised 0.200159 (symmetric, 252 flipped)" in printed
    assert printed.splitlines()[-1] == f"set: {out}"
    assert {path.name for path in out.iterdir()} == {
        "index.arrow",
        "manifest.parquet",
        "set.json",
        "shard-000000.tar",
        "stats.json",
    }
    assert problems(out) == []
    manifest = pq.read_table(out / "manifest.parquet").to_pandas()
    clean = dict(zip(digits.load("train").keys, digits.load("train").labels, strict=True))
    assert all(clean[key] == label for key, label in zip(manifest["key"], manifest["label"], strict=True))
    assert (manifest["label"] != manifest["label_n20"]).sum() == round(0.2 * 1259)


def test_the_command_again_finds_it_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--noise", "0.1", "--out", str(tmp_path / "set")]
    write.main(arguments)
    before = hashes(tmp_path / "set")
    capsys.readouterr()
    write.main(arguments)
    assert "nothing to do" in capsys.readouterr().out
    assert hashes(tmp_path / "set") == before


def test_without_a_source_the_bundled_set_stands_in_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write.main(["--out", str(tmp_path / "set")])
    assert digits.NOTICE in capsys.readouterr().out


def test_a_set_written_with_other_options_is_not_overwritten(digits_set: ShardSet) -> None:
    before = hashes(Path(digits_set.path))
    with pytest.raises(UserError, match=r"written with other options .*noise.*shards\.relabel"):
        write.main(["--source", "digits", "--noise", "0.4", "--out", digits_set.path])
    assert hashes(Path(digits_set.path)) == before


def test_members_are_what_every_webdataset_reader_expects(digits_set: ShardSet) -> None:
    with tarfile.open(Path(digits_set.path) / "shard-000003.tar") as tar:
        members = tar.getmembers()
        assert all(member.isreg() and member.mtime == 0 and member.mode == 0o644 for member in members)
        keys = [member.name.split(".")[0] for member in members]
        assert [member.name.split(".")[1] for member in members[:3]] == ["png", "cls", "json"]
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)]
        record = json.load(tar.extractfile(members[2]))
        assert record.keys() == {"key", "label", "label_n10", "label_n20", "label_n30"}
        assert tar.extractfile(members[1]).read() == str(record["label"]).encode()


def test_gnu_tar_reads_the_shards(digits_set: ShardSet) -> None:
    shard = Path(digits_set.path) / "shard-000000.tar"
    listed = subprocess.run(["tar", "-tf", str(shard)], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 600
    assert listed.stderr == ""


def test_the_first_ratio_is_what_stock_loaders_see(
    tmp_path: Path, written: Write, requested: Callable
) -> None:
    shard_set = written(tmp_path / "set", requested("digits", "0.3", "0.1"))
    assert shard_set.info.primary == "n30"
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                record = json.load(tar.extractfile(member))
                label = tar.extractfile(member.name.replace(".json", ".cls")).read()
                assert int(label) == record["label_n30"]


def test_workers_never_change_a_byte(tmp_path: Path, written: Write, requested: Callable) -> None:
    request = requested("digits", "0.05", "0.2")
    for workers in (1, 4):
        written(tmp_path / str(workers), request, workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "4")


def test_shards_keep_to_size_and_count(tmp_path: Path, written: Write, requested: Callable) -> None:
    by_size = written(tmp_path / "size", requested(limits=ShardLimits(500_000, 10_000)))
    assert max(shard.bytes for shard in by_size.info.shards) <= 500_000
    by_count = written(tmp_path / "count", requested(limits=ShardLimits(10**9, 100)))
    assert [shard.samples for shard in by_count.info.shards] == [100] * 12 + [59]


def test_sizes_are_read_with_their_units() -> None:
    assert (parse_size("256MB"), parse_size("1GiB"), parse_size("17")) == (256_000_000, 1 << 30, 17)
    with pytest.raises(UserError, match="--max-shard-size"):
        parse_size("big")


WRITE_DIGITS = [sys.executable, "-m", "shards.write", "--source", "digits", "--noise", "0.05", "0.2"]


def test_a_write_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [*WRITE_DIGITS, "--max-shard-count", "50", "--workers", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = tmp_path / "killed"
    generator = random.Random(0)
    for _ in range(int(os.environ.get("NML_TEST_KILLS", "4"))):
        process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL)
        # Killed as soon as it has made some more files, at whatever it does then.
        enough = entries(killed) + generator.randint(1, 12)
        while process.poll() is None and entries(killed) < enough:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (killed / SET_FILE).exists():
            with pytest.raises(UserError, match=r"interrupted|no shard set there"):
                ShardSet.open(killed)
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert hashes(killed) == hashes(tmp_path / "whole")


def entries(folder: Path) -> int:
    """Count the files below a folder that another process is changing."""
    return sum(len(files) for _, _, files in os.walk(folder))


def test_a_write_that_stops_after_any_shard_continues(
    tmp_path: Path, written: Write, requested: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.packshards import ShardPacker

    written(tmp_path / "whole", requested())
    pack = ShardPacker.__call__
    for stop in range(7):

        def failing(self: ShardPacker, number: int, *, wait: bool, stop: int = stop) -> int | None:
            if number == stop:
                raise KeyboardInterrupt
            return pack(self, number, wait=wait)

        monkeypatch.setattr(ShardPacker, "__call__", failing)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "stopped", requested())
        with pytest.raises(UserError, match="interrupted"):
            ShardSet.open(tmp_path / "stopped")
    monkeypatch.setattr(ShardPacker, "__call__", pack)
    written(tmp_path / "stopped", requested())
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")


def test_no_worker_outlives_a_killed_writer(tmp_path: Path) -> None:
    import psutil

    command = [*WRITE_DIGITS, "--max-shard-count", "20", "--workers", "2", "--out", str(tmp_path / "set")]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    while process.poll() is None and len(children) < 2:
        children = process.children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_another_writer_is_kept_out(tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "set"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is writing there"):
            write.main(["--source", "digits", "--out", str(out)])
    finally:
        os.close(descriptor)


FULL_DISK = """
mount -t tmpfs -o size=1m none "$DISK"
"$@"; echo "status $?" >&2
ls -A "$DISK" >&2
mount -o remount,size=4m "$DISK"
"$@"; echo "status $?" >&2
ls -A "$DISK/set" >&2
mount -o remount,size=64m "$DISK"
"$@" && cp -r "$DISK/set" "$COPY"
"""


def test_a_full_disk_is_one_line_and_can_be_continued(
    tmp_path: Path, written: Write, requested: Callable
) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace of one's own here, so no small disk to fill")
    command = [*WRITE_DIGITS, "--max-shard-count", "200", "--workers", "1", "--out", str(disk / "set")]
    done = subprocess.run(
        [*private, "sh", "-c", FULL_DISK, "sh", *command],
        env={**os.environ, "DISK": str(disk), "COPY": str(copy)},
        capture_output=True,
        text=True,
    )
    full = f"error: {disk / 'set'}: no space left; free some and run the same command again; "
    lines = done.stderr.splitlines()
    # Full while planning: nothing stays. Full while packing: finished shards do, and nothing half made.
    assert lines[:2] == [full + "finished shards are kept", "status 2"]
    assert lines[2:4] == [full + "finished shards are kept", "status 2"]
    assert lines[4] == ".writing"
    assert lines[5:] == [f"shard-{number:06d}.tar" for number in range(len(lines) - 5)] != []
    assert "kept from an interrupted write" in done.stdout
    limits = ShardLimits(parse_size("256MB"), 200)
    whole = written(tmp_path / "whole", requested("digits", "0.05", "0.2", limits=limits))
    assert hashes(copy) == hashes(Path(whole.path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "imagefolder:/nonexistent"], "there is no folder /nonexistent"),
        (["--source", "imagefolder"], "names no folder"),
        (["--source", "parquet:/nonexistent.parquet"], "there is no file /nonexistent.parquet; check"),
        (["--source", "digit"], "did you mean digits"),
        (["--noise", "1.2"], "not a noise ratio"),
        (["--noise", "0.1", "0.10"], "asked for twice"),
        (["--model", "symetric", "--noise", "0.1"], "did you mean symmetric"),
        (["--model", "caption-swap", "--noise", "0.1"], "alters a caption"),
        (["--model", "transition-matrix", "--noise", "0.1"], "needs the matrix"),
        (["--split", "test", "--noise", "0.1"], "must not touch"),
        (["--split", "dev"], "not a split of digits"),
        (["--workers", "0"], "too few"),
        (["--max-shard-size", "huge"], "not a size"),
        (["--image-column", "x"], "has no columns"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write.main([*arguments, "--out", str(tmp_path / "a" / "b")])
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_shows_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards.write", "--source", "imagefolder:/nonexistent", "--out", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --source imagefolder:/nonexistent: there is no folder")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no shard set"):
        write.main(["--source", "digits", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_write_with_other_options_is_named(
    tmp_path: Path, written: Write, requested: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.packshards import ShardPacker

    with monkeypatch.context() as patch:
        patch.setattr(ShardPacker, "__call__", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            written(tmp_path / "set", requested())
    with pytest.raises(UserError, match=r"interrupted write with other options .*seed: 0 there, 5 asked"):
        written(tmp_path / "set", requested(seed=5))


def test_validation_may_be_written_clean_or_by_force(tmp_path: Path) -> None:
    write.main(["--source", "digits", "--split", "test", "--out", str(tmp_path / "clean")])
    # Neither way around: not by adding a level later, nor from a set under a harmless name.
    with pytest.raises(UserError, match="must not touch"):
        relabel.main([str(tmp_path / "clean"), "--noise", "0.2"])
    again = ["--source", f"webdataset:{tmp_path / 'clean'}", "--noise", "0.2", "--out", str(tmp_path / "y")]
    with pytest.raises(UserError, match="must not touch"):
        write.main(again)
    write.main(
        ["--source", "digits", "--split", "test", "--noise", "0.2", "--force", "--out", str(tmp_path / "x")]
    )
    assert ShardSet.open(tmp_path / "x").level(0.2).flipped == round(0.2 * 359)


def test_a_noisy_set_is_noised_again_only_when_the_chain_is_recorded(
    tmp_path: Path, written: Write, requested: Callable
) -> None:
    first = written(tmp_path / "first", requested("digits", "0.1"))
    again = [
        "--source",
        f"webdataset:{tmp_path / 'first'}",
        "--noise",
        "0.2",
        "--out",
        str(tmp_path / "second"),
    ]
    with pytest.raises(UserError, match=r"already noisy \(n10\)"):
        write.main(again)
    write.main([*again, "--chain"])
    second = ShardSet.open(tmp_path / "second")
    assert second.info.parent == {"fingerprint": first.fingerprint, "level": "n10"}
    with pytest.raises(UserError, match=r"already noisy \(n10\)"):
        relabel.main([str(tmp_path / "second"), "--noise", "0.3"])
    relabel.main([str(tmp_path / "second"), "--noise", "0.3", "--chain"])
    assert ShardSet.open(tmp_path / "second").info.parent == second.info.parent


def test_the_bundled_set_is_written_once(tmp_path: Path) -> None:
    first = ensure_digits("n20", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    again = ensure_digits(0.2, tmp_path)
    assert again.path == first.path == str(tmp_path / "digits-n20")
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()} == times


def test_cifar_ten_at_four_levels_is_exact(
    tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = real_data / "cifar10_train.parquet"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    arguments = ["--source", f"parquet:{source}", "--noise", "0.05", "0.1", "0.2", "0.3"]
    for workers in ("1", "4"):
        write.main([*arguments, "--workers", workers, "--out", str(tmp_path / workers)])
    assert "50,000 samples" in capsys.readouterr().out
    assert hashes(tmp_path / "1") == hashes(tmp_path / "4")
    flipped = [level.flipped for level in ShardSet.open(tmp_path / "1").levels.values()]
    assert flipped == [0, 2500, 5000, 10_000, 15_000]
    assert problems(tmp_path / "1") == []
    shutil.rmtree(tmp_path / "4")
