"""GLUE and the sets of GLUE-X, from small clones of the hub and from files placed by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probes.spec import split_spec
from probes.tasks import glue
from tests.probes.published_sets import from_clones, opened, place, texts, write_repository

pytest.importorskip("datasets")


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


def test_scores_of_stsb_as_numbers(tmp_path: Path) -> None:
    write_glue(tmp_path)
    sick = pa.table({"sentence_A": ["a", "b"], "sentence_B": ["c", "d"], "relatedness_score": [5.0, 2.6]})
    write_repository(
        tmp_path / "RobZamp--sick", {("default", part): sick for part in ("train", "validation", "test")}
    )
    task = from_clones(glue.STSB_SCORES, tmp_path)
    task.prepare(tmp_path / "tasks")
    result = opened(task, tmp_path / "tasks")
    assert (result.name, result.target, result.metric, result.classes) == (
        "glue-stsb-scores",
        "regression",
        "spearman",
        (),
    )
    assert result.train.labels.tolist() == pytest.approx([0.2, 1.0, 1.9, 3.2, 4.4, 5.0])
    assert result.evaluations[1].samples.labels.tolist() == pytest.approx([5.0, 2.0] * 3)


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
