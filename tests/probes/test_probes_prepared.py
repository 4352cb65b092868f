"""Published tasks, prepared from small files in the formats of their sources."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from probes.spec import split_spec
from probes.tasks import Task, glue, vision
from probes.tasks.prepared import Part, PreparedTask
from probes.tasks.registry import TASKS

pytest.importorskip("datasets")


def image_bytes(value: int, kind: str = "PNG", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, value % 256, 0)).save(file, kind)
    return file.getvalue()


def write_repository(folder: Path, splits: dict[tuple[str, str], pa.Table]) -> None:
    """Write a clone of a data set on the hub: Parquet by configuration and split, named in its card."""
    configs: dict[str, list[str]] = {}
    for (config, split), table in splits.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
        configs.setdefault(config, []).append(split)
    lines = ["---", "configs:"]
    for config, names in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for name in names:
            lines += [f"  - split: {name}", f"    path: {config}/{name}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def from_clones(task: PreparedTask, clones: Path) -> PreparedTask:
    """Return the task with every repository that has a clone read from it."""
    parts = {}
    for name, part in task.parts.items():
        clone = clones / part.hub.repository.replace("/", "--") if part.hub else clones
        if part.hub and clone.is_dir():
            part = dataclasses.replace(part, hub=dataclasses.replace(part.hub, repository=str(clone)))
        parts[name] = part
    return dataclasses.replace(task, parts=parts)


def opened(task: PreparedTask, root: Path) -> Task:
    return task.open(split_spec(task.record.name), root)


def texts(task: Task, name: str) -> list[tuple[object, int]]:
    samples = next(test.samples for test in task.evaluations if test.name == name)
    return [(samples.read(row), int(label)) for row, label in enumerate(samples.labels)]


# ---- the hub ----


def test_a_repository_of_tars_is_prepared(tmp_path: Path) -> None:
    clone = tmp_path / "clip-benchmark--wds_cars"
    for split in ("train", "test"):
        (clone / split).mkdir(parents=True)
        with tarfile.open(clone / split / "0.tar", "w") as tar:
            for number in range(20):
                for suffix, data in (
                    ("webp", image_bytes(number, "WEBP")),
                    ("cls", str(number % 10).encode()),
                ):
                    member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    task = from_clones(vision.CARS, tmp_path)
    assert task.prepare(tmp_path / "tasks") == {}
    result = opened(task, tmp_path / "tasks")
    assert len(result.classes) == 10
    assert result.train.labels.tolist() == [number % 10 for number in range(20)]
    assert isinstance(result.train.read(3), Image.Image)
    file = tmp_path / "tasks" / "cars" / "test.parquet"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="not what was prepared"):
        opened(task, tmp_path / "tasks")


def cifar_table(count: int) -> pa.Table:
    images = [{"bytes": image_bytes(number), "path": None} for number in range(count)]
    label = {"names": ["airplane", "bird"], "_type": "ClassLabel"}
    features = {"img": {"_type": "Image"}, "label": label}
    table = pa.table({"img": images, "label": [number % 2 for number in range(count)]})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_cifar(clones: Path) -> PreparedTask:
    splits = {("plain_text", "train"): cifar_table(6), ("plain_text", "test"): cifar_table(2)}
    write_repository(clones / "uoft-cs--cifar10", splits)
    return from_clones(vision.CIFAR10, clones)


def test_class_names_and_encoded_images_are_kept(tmp_path: Path) -> None:
    task = write_cifar(tmp_path)
    task.prepare(tmp_path / "tasks")
    result = opened(task, tmp_path / "tasks")
    assert result.classes == ("airplane", "bird")
    table = pq.read_table(tmp_path / "tasks" / "cifar10" / "train.parquet")
    assert table["img"][3].as_py()["bytes"] == image_bytes(3)
    assert [test.domain for test in result.evaluations] == ["id", "ood", "ood", "ood", "ood"]


def test_a_stopped_preparation_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_cifar(tmp_path)
    root = tmp_path / "tasks"
    written: list[str] = []
    write = PreparedTask._write

    def stop_at_test(self: PreparedTask, folder: Path, name: str, torchvision: Path | None) -> object:
        if name == "test" and not written.count("test"):
            written.append("test")
            raise KeyboardInterrupt
        written.append(name)
        return write(self, folder, name, torchvision)

    monkeypatch.setattr(PreparedTask, "_write", stop_at_test)
    with pytest.raises(KeyboardInterrupt):
        task.prepare(root)
    # As a killed process leaves it.
    (root / "cifar10" / ".test.parquet.123-abcd.tmp").write_bytes(b"half")
    # Half a task is none.
    with pytest.raises(UserError, match="not prepared"):
        opened(task, root)
    task.prepare(root)
    assert written == ["train", "test", "test"]
    facts = json.loads((root / "cifar10" / "task.json").read_text())
    assert {file: entry["rows"] for file, entry in facts["files"].items()} == {
        "train.parquet": 6,
        "test.parquet": 2,
    }
    assert sorted(path.name for path in (root / "cifar10").iterdir()) == [
        ".lock",
        "task.json",
        "test.parquet",
        "train.parquet",
    ]
    task.prepare(root)
    assert written == ["train", "test", "test"]


def test_a_machine_without_network_is_told_in_one_line(tmp_path: Path) -> None:
    # A proxy that nothing listens on: the same on a machine with network and on one without.
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    environment = dict.fromkeys(proxies, "http://127.0.0.1:9") | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HF_HOME": str(tmp_path / "hub"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "probes.tasks", "prepare", "glue-sst2"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: task glue-sst2: nyu-mll/glue could not be fetched: https://")
    assert "does not answer" in done.stderr
    assert not list(tmp_path.glob("data/tasks/*/task.json"))


def test_commits_are_full_short_or_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from probes.tasks import hub_splits

    class Api:
        def list_repo_commits(self, repository: str, repo_type: str) -> list[object]:
            commit = type("Commit", (), {})
            first, second = commit(), commit()
            first.commit_id, second.commit_id = "f" * 40, "25cfe61" + "0" * 33  # type: ignore[attr-defined]
            return [first, second]

        def dataset_info(self, repository: str, revision: str) -> object:
            info = type("Info", (), {})()
            info.sha = {"main": "a" * 40}.get(revision)
            return info

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(hub_splits, "unreachable", lambda: "")
    hub_splits._look_up.cache_clear()

    def commit(revision: str) -> str | None:
        return hub_splits.HubSplits(repository="a/b", splits=("train",), revision=revision).commit()

    assert commit("c" * 40) == "c" * 40
    assert commit("25cfe61") == "25cfe61" + "0" * 33
    assert commit("main") == "a" * 40
    with pytest.raises(UserError, match="no commit 1234567"):
        commit("1234567")
    hub_splits._look_up.cache_clear()


# ---- GLUE and GLUE-X ----


def write_glue(clones: Path) -> None:
    single = pa.table({"sentence": ["good", "bad"], "label": [1, 0], "idx": [0, 1]})
    pair = pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0], "idx": [0, 1]})
    questions = pair.rename_columns(["question1", "question2", "label", "idx"])
    answers = pair.rename_columns(["question", "sentence", "label", "idx"])
    scores = pa.table({"sentence1": list("abcdef"), "sentence2": list("ghijkl"), "idx": range(6)})
    scores = scores.append_column("label", pa.array([0.2, 1.0, 1.9, 3.2, 4.4, 5.0], pa.float32()))
    mnli = pa.table({"premise": list("abc"), "hypothesis": list("def"), "label": [0, 1, 2], "idx": range(3)})
    tables = {"sst2": single, "cola": single, "mrpc": pair, "rte": pair, "qqp": questions, "qnli": answers}
    splits = {(config, split): table for config, table in tables.items() for split in ("train", "validation")}
    splits |= {("stsb", split): scores for split in ("train", "validation")}
    splits |= {("mnli", split): mnli for split in ("train", "validation_matched", "validation_mismatched")}
    write_repository(clones / "nyu-mll--glue", splits)


def write_reviews(clones: Path) -> None:
    for repository, config, column in (
        ("stanfordnlp--imdb", "plain_text", "text"),
        ("fancyzhx--yelp_polarity", "plain_text", "text"),
        ("fancyzhx--amazon_polarity", "amazon_polarity", "content"),
    ):
        train = pa.table({column: ["fine", "awful"], "label": [1, 0], "title": ["t", "u"]})
        test = pa.table({column: ["so so"], "label": [0], "title": ["v"]})
        write_repository(clones / repository, {(config, "train"): train, (config, "test"): test})


def test_sst2_with_its_reviews(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_glue(tmp_path)
    write_reviews(tmp_path)
    task = from_clones(glue.SST2, tmp_path)
    missing = task.prepare(tmp_path / "tasks")
    assert list(missing) == ["flipkart"]
    assert "niraliivaghani/flipkart-product-customer-reviews-dataset" in missing["flipkart"]
    result = opened(task, tmp_path / "tasks")
    assert "without flipkart" in capsys.readouterr().err
    assert [test.name for test in result.evaluations] == [
        "glue-sst2",
        "glue-sst2-imdb",
        "glue-sst2-yelp",
        "glue-sst2-amazon",
    ]
    assert texts(result, "glue-sst2-amazon") == [("fine", 1), ("awful", 0), ("so so", 0)]
    limited = task.open(split_spec("glue-sst2:ood_limit=1"), tmp_path / "tasks")
    assert [len(test.samples.keys) for test in limited.evaluations] == [2, 1, 1, 1]
    # Placed by hand, the last one joins; the others are not fetched again.
    place = tmp_path / "tasks" / "glue-sst2" / "sources" / "flipkart"
    place.mkdir(parents=True)
    (place / "Dataset-SA.csv").write_text(
        "product_name,product_price,Rate,Review,Summary,Sentiment\n"
        'Cooler,"3,999",5,super!,"great, cooler",positive\n'
        "Cooler,3999,3,fair,ok,neutral\n"
        "Cooler,3999,1,useless,,negative\n"
    )
    before = (tmp_path / "tasks" / "glue-sst2" / "imdb.parquet").stat().st_mtime_ns
    assert task.prepare(tmp_path / "tasks") == {}
    assert (tmp_path / "tasks" / "glue-sst2" / "imdb.parquet").stat().st_mtime_ns == before
    result = opened(task, tmp_path / "tasks")
    assert texts(result, "glue-sst2-flipkart") == [("great, cooler", 1), ("ok", 0)]


def place(root: Path, task: PreparedTask, part: str, **files: str) -> None:
    folder = root / task.record.name / "sources" / part
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")


def test_paraphrases_with_tweets_by_vote(tmp_path: Path) -> None:
    write_glue(tmp_path)
    root = tmp_path / "tasks"
    for task in (glue.MRPC, glue.QQP):
        voted = "".join(
            f"31\ttopic\tone {votes}\ttwo\t({votes}, {5 - votes})\ttags\ttags\n" for votes in range(6)
        )
        judged = "".join(f"31\ttopic\tone {digit}\ttwo\t{digit}\ttags\ttags\n" for digit in range(6))
        place(root, task, "twitter", train__data=voted, dev__data=voted, test__data=judged)
        task = from_clones(task, tmp_path)
        assert task.prepare(root) == {}
        result = opened(task, root)
        tweets = texts(result, f"{task.record.name}-twitter")
        assert len(tweets) == 5 + 5 + 5
        by_text = [(content[0], label) for content, label in tweets]  # type: ignore[index]
        # dev, test, train
        assert by_text[:5] == [("one 0", 0), ("one 1", 0), ("one 3", 1), ("one 4", 1), ("one 5", 1)]
        assert by_text[5:10] == [("one 0", 0), ("one 1", 0), ("one 2", 0), ("one 4", 1), ("one 5", 1)]
    assert texts(result, "glue-qqp-mrpc") == [(("a", "c"), 1), (("b", "d"), 0)] * 2


SICK = (
    "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tentailment_AB\tentailment_BA\t"
    "sentence_A_original\tsentence_B_original\tsentence_A_dataset\tsentence_B_dataset\tSemEval_set\n"
    '1\tA "kid" runs\tA kid moves\tENTAILMENT\t4.5\tx\ty\to\tp\tFLICKR\tFLICKR\tTRAIN\n'
    "2\tA dog\tA cat\tNEUTRAL\t2.4\tx\ty\to\tp\tFLICKR\tFLICKR\tTEST\n"
    "3\tYes\tNo\tCONTRADICTION\t1.0\tx\ty\to\tp\tFLICKR\tFLICKR\tTRIAL\n"
)


def test_inference_with_snli_and_sick(tmp_path: Path) -> None:
    write_glue(tmp_path)
    snli = pa.table({"premise": list("pqr"), "hypothesis": list("stu"), "label": [2, -1, 0]})
    splits = {("plain_text", split): snli for split in ("train", "validation", "test")}
    write_repository(tmp_path / "stanfordnlp--snli", splits)
    root = tmp_path / "tasks"
    place(root, glue.MNLI, "sick", SICK__txt=SICK)
    task = from_clones(glue.MNLI, tmp_path)
    assert task.prepare(root) == {}
    result = opened(task, root)
    assert [test.name for test in result.evaluations] == [
        "glue-mnli",
        "glue-mnli-mismatched",
        "glue-mnli-snli",
        "glue-mnli-sick",
    ]
    assert result.train.read(1) == ("b", "e")
    assert texts(result, "glue-mnli-snli") == [(("p", "s"), 2), (("r", "u"), 0)] * 3
    assert texts(result, "glue-mnli-sick")[0] == (('A "kid" runs', "A kid moves"), 0)
    assert [label for _, label in texts(result, "glue-mnli-sick")] == [0, 1, 2]


def test_scores_are_five_steps_here_and_in_sick(tmp_path: Path) -> None:
    write_glue(tmp_path)
    # As the hub converted it: a folder a configuration and split, no card.
    rows = pa.table(
        {
            "id": ["1", "2"],
            "sentence_A": ["a", "b"],
            "sentence_B": ["c", "d"],
            "label": [0, 1],
            "relatedness_score": pa.array([5.0, 2.4], pa.float32()),
        }
    )
    for split in ("train", "validation", "test"):
        folder = tmp_path / "RobZamp--sick" / "default" / split
        folder.mkdir(parents=True)
        pq.write_table(rows, folder / "0000.parquet")
    task = from_clones(glue.STSB, tmp_path)
    assert task.prepare(tmp_path / "tasks") == {}
    result = opened(task, tmp_path / "tasks")
    assert result.train.labels.tolist() == [0, 1, 2, 3, 4, 4]
    assert len(result.classes) == 5
    assert result.train.read(0) == ("a", "g")
    assert texts(result, "glue-stsb-sick") == [(("a", "c"), 4), (("b", "d"), 1)] * 3


def test_entailment_with_scitail_and_hans(tmp_path: Path) -> None:
    write_glue(tmp_path)
    scitail = pa.table({"premise": ["p", "q"], "hypothesis": ["r", "s"], "label": ["entails", "neutral"]})
    splits = {("tsv_format", split): scitail for split in ("train", "validation", "test")}
    write_repository(tmp_path / "allenai--scitail", splits)
    hans = (
        "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
        "sentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate\n"
        "non-entailment\t( x )\t( y )\t(ROOT)\t(ROOT)\tThe doctor saw .\tThe lawyer saw .\tex0\t"
        "lexical_overlap\tln_subject\ttemp1\n"
        "entailment\t( x )\t( y )\t(ROOT)\t(ROOT)\tA and B .\tA .\tex1\tlexical_overlap\tle\ttemp2\n"
    )
    root = tmp_path / "tasks"
    place(root, glue.RTE, "hans", heuristics_evaluation_set__txt=hans, heuristics_train_set__txt=hans)
    task = from_clones(glue.RTE, tmp_path)
    assert task.prepare(root) == {}
    result = opened(task, root)
    assert texts(result, "glue-rte-scitail") == [(("p", "r"), 0), (("q", "s"), 1)] * 3
    assert [label for _, label in texts(result, "glue-rte-hans")] == [1, 0, 1, 0]


def test_sets_that_are_in_glue_xs_folder_alone(tmp_path: Path) -> None:
    import datasets

    write_glue(tmp_path)
    root = tmp_path / "tasks"
    newsqa = {"question": ["who"], "sentence": ["she"], "label": ["not_entailment"], "idx": [0]}
    datasets.Dataset.from_dict(newsqa).save_to_disk(root / "glue-qnli" / "sources" / "newsqa" / "qnli_ood")
    grammar = {"sentence": ["He go .", "He goes ."], "label": [0, 1]}
    datasets.Dataset.from_dict(grammar).save_to_disk(root / "glue-cola" / "sources" / "grammar-test")
    for definition, name, expected in (
        (glue.QNLI, "glue-qnli-newsqa", [(("who", "she"), 1)]),
        (glue.COLA, "glue-cola-grammar-test", [("He go .", 0), ("He goes .", 1)]),
    ):
        task = from_clones(definition, tmp_path)
        assert task.prepare(root) == {}
        assert texts(opened(task, root), name) == expected


def test_a_file_by_hand_of_another_kind_is_named(tmp_path: Path) -> None:
    write_glue(tmp_path)
    root = tmp_path / "tasks"
    place(root, glue.QNLI, "newsqa", wrong__tsv="title\tbody\na\tb\n")
    missing = from_clones(glue.QNLI, tmp_path).prepare(root)
    assert missing["newsqa"] == "no column label; possible: title, body"
    place(root, glue.COLA, "grammar-test", wrong__tsv="sentence\tlabel\na\tmaybe\n")
    missing = from_clones(glue.COLA, tmp_path).prepare(root)
    assert missing["grammar-test"].startswith("label 'maybe'")
    place(root, glue.MRPC, "twitter", train__data="1\ttopic\ta\tb\tmany\tx\ty\n")
    missing = from_clones(glue.MRPC, tmp_path).prepare(root)
    assert missing["twitter"] == "label 'many'; possible: a score, or votes like (3, 2)"


# ---- torchvision ----


def write_files(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, "JPEG" if path.suffix == ".jpg" else "PNG"))


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in content))


def write_cifar_batches(folder: Path, files: tuple[str, ...], meta: str, names: str, labels: str) -> None:
    folder.mkdir(parents=True)
    pixels = np.arange(4 * 3072, dtype=np.int64).reshape(4, 3072).astype(np.uint8)
    for file in files:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, labels: [0, 1, 0, 1]}))
    (folder / meta).write_bytes(pickle.dumps({names: ["cat", "dog"]}))


def cifar10(root: Path) -> None:
    batches = tuple(f"data_batch_{n}" for n in range(1, 6))
    folder = root / "cifar-10-batches-py"
    write_cifar_batches(folder, (*batches, "test_batch"), "batches.meta", "label_names", "labels")


def cifar100(root: Path) -> None:
    write_cifar_batches(
        root / "cifar-100-python", ("train", "test"), "meta", "fine_label_names", "fine_labels"
    )


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    write_files(folder / "jpg", *(f"image_{n:05d}.jpg" for n in range(1, 7)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})


def food101(root: Path) -> None:
    folder = root / "food-101"
    write_files(folder / "images", *(f"{kind}/{n}.jpg" for kind in ("pie", "soup") for n in range(3)))
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        content = {kind: [f"{kind}/{n}" for n in numbers] for kind in ("pie", "soup")}
        lines(folder / "meta" / f"{split}.json", json.dumps(content))


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    write_files(folder / "images", "Abyssinian_1.jpg", "beagle_1.jpg", "Abyssinian_2.jpg", "beagle_2.jpg")
    lines(folder / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "beagle_1 2 2 1")
    lines(folder / "annotations" / "test.txt", "Abyssinian_2 1 1 1", "beagle_2 2 2 1")


def cars(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    kind = [("fname", object), ("class", object)]
    annotations = np.array([("00001.jpg", 1), ("00002.jpg", 2)], dtype=kind)
    for part in ("cars_train", "cars_test"):
        write_files(folder / part, "00001.jpg", "00002.jpg")
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write_files(data / "images", *(f"{n:07d}.jpg" for n in range(6)))
    lines(data / "variants.txt", "707-320", "A300B4")
    for split, first in (("train", 0), ("val", 2), ("test", 4)):
        labels = (f"{first:07d} 707-320", f"{first + 1:07d} A300B4")
        lines(data / f"images_variant_{split}.txt", *labels)


def svhn(root: Path) -> None:
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(32 * 32 * 3 * 2, dtype=np.int64).reshape(32, 32, 3, 2).astype(np.uint8)
    for split in ("train", "test"):
        # The digit 0 is class 10 in the authors' files.
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.array([[10], [1]])})


def dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    write_files(folder / "images", *(f"{k}/{k}_{n}.jpg" for k in ("banded", "lined") for n in range(3)))
    for number, split in enumerate(("train", "val", "test")):
        lines(folder / "labels" / f"{split}1.txt", *(f"{k}/{k}_{number}.jpg" for k in ("banded", "lined")))


def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    names = [f"{k}/image_{n:04d}.jpg" for k in ("ant", "chair", "BACKGROUND_Google") for n in range(1, 34)]
    write_files(folder, *names)


def eurosat(root: Path) -> None:
    names = [f"{k}/{k}_{n}.jpg" for k in ("Forest", "River") for n in range(1603)]
    write_files(root / "eurosat" / "2750", *names)


def rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_files(root / "rendered-sst2" / split, "negative/0.png", "positive/0.png")


LAYOUTS = {
    layout.__name__.replace("_", "-"): layout
    for layout in (
        cifar10,
        cifar100,
        flowers102,
        food101,
        pets,
        cars,
        aircraft,
        svhn,
        dtd,
        caltech101,
        eurosat,
        rendered_sst2,
    )
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sets_are_read_from_torchvisions_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The small files do not have the hashes of the real ones.
    for module in ("cifar", "svhn", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *arguments: True)
    layout: Callable[[Path], None] = LAYOUTS[name]
    layout(tmp_path / "torchvision")
    task: PreparedTask = TASKS.load(name)
    assert task.prepare(tmp_path / "tasks", torchvision=tmp_path / "torchvision") == {}
    result = opened(task, tmp_path / "tasks")
    # Of flowers, torchvision names all classes whatever is there.
    assert len(result.classes) in ((102, 2) if name == "flowers102" else (2,))
    assert set(result.train.labels.tolist()) == {0, 1}
    assert (result.validation is not None) == ("validation" in task.torchvision.splits)  # type: ignore[union-attr]
    assert isinstance(result.train.read(0), Image.Image)
    assert result.revision.startswith("torchvision-")
    expected = {"caltech101": (60, 6), "eurosat": (3200, 6), "cifar10": (20, 4), "cifar100": (4, 4)}
    train, test = expected.get(name, (4 if name == "food101" else 2, 2))
    assert (len(result.train.keys), len(result.evaluations[0].samples.keys)) == (train, test)


def test_torchvision_copies_files_byte_by_byte(tmp_path: Path) -> None:
    dtd(tmp_path)
    vision.DTD.prepare(tmp_path / "tasks", torchvision=tmp_path)
    table = pq.read_table(tmp_path / "tasks" / "dtd" / "train.parquet")
    original = (tmp_path / "dtd" / "dtd" / "images" / "banded" / "banded_0.jpg").read_bytes()
    assert table["image"][0].as_py()["bytes"] == original
    assert opened(vision.DTD, tmp_path / "tasks").classes == ("banded", "lined")


def test_training_and_test_data_never_come_from_two_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    cifar10(tmp_path / "torchvision")
    task, root = write_cifar(tmp_path), tmp_path / "tasks"
    without_test = dataclasses.replace(task, parts=task.parts | {"test": Part()})
    with pytest.raises(UserError, match="not on the hub"):
        without_test.prepare(root)
    task.prepare(root, torchvision=tmp_path / "torchvision")
    facts = json.loads((root / "cifar10" / "task.json").read_text())["files"]
    assert {entry["source"] for entry in facts.values()} == {"torchvision.datasets.CIFAR10"}
    with pytest.raises(UserError, match=r"prepared from torchvision\.datasets\.CIFAR10; remove"):
        task.prepare(root)


def test_what_torchvision_has_not_and_cannot_get_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"StanfordCars is not in .*original URL is broken.*--torchvision FOLDER"
    ):
        vision.CARS.prepare(tmp_path / "tasks", torchvision=tmp_path)
    with pytest.raises(UserError, match="task resisc45: torchvision does not have it"):
        vision.RESISC45.prepare(tmp_path / "tasks", torchvision=tmp_path)
