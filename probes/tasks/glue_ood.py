"""The out-of-domain sets of GLUE-X (arXiv 2211.08073), rebuilt from where each was published first.

GLUE-X itself is a folder on Google Drive. What is elsewhere is taken from there, with the splits and the
labels of GLUE-X's evaluation code (github.com/YangLinyi/GLUE-X, ``evaluation/utils_lp.py``):

    part           splits                        labels
    imdb           train, test                   0 negative, 1 positive, as in SST-2
    yelp           train, test                   the same
    amazon         train, test                   the same; the text of a review without its title
    flipkart       all                           neutral counts as negative
    qqp, mrpc      train, validation             1 means the same, as in each other
    twitter        PIT-2015: train, dev, test    by its readme: three of five votes, or an expert's 4 or 5
    snli           train, validation, test       as in MNLI; without a gold label, left out
    sick           train, validation, test       as in MNLI; scores of 1 to 5 in five steps
    mismatched     validation_mismatched         MNLI's own
    scitail        train, validation, test       entails, neutral -> entailment, not
    hans           train, validation             entailment, not, as in RTE
    newsqa         GLUE-X's qnli_ood             entailment, not, as in QNLI
    grammar-test   GLUE-X's cola_ood             0 unacceptable, 1 acceptable, as in CoLA

``newsqa`` and ``grammar-test`` were made for GLUE-X and are in its folder alone. Flipkart's reviews are on
Kaggle, which wants an account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nml.errors import UserError
from probes.tasks.by_hand import Row
from probes.tasks.examples import Convert, Example
from probes.tasks.hub_splits import CONVERTED, HubSplits
from probes.tasks.prepared import Part

REPOSITORY = "nyu-mll/glue"
COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
DRIVE = (
    "of GLUE-X's folder (drive.google.com/drive/folders/1BcwjmVOqq96igfbB2MCXwLzthFX7XEhy, "
    "linked from github.com/YangLinyi/GLUE-X)"
)

Label = Callable[[Any], int | float | None]


def keep(text: str, pair: str | None = None, *, label: Label, column: str = "label") -> Convert:
    """Return what makes an example of a row.

    Args:
        text: Column of the text; several names, separated by ``|``, where sources differ.
        pair: Column of the second text, the same.
        label: From the value in ``column`` to the class; None leaves the row out.
        column: Column of the label, the same.

    A row without a text is left out, too.
    """

    def convert(row: Row) -> Example | None:
        value = _value(row, column)
        try:
            found = label(value)
        except ValueError as error:
            raise UserError(f"label {value!r}", possible="a score, or votes like (3, 2)") from error
        first = _value(row, text)
        if found is None or not first:
            return None
        return Example(str(first), None if pair is None else str(_value(row, pair)), found)

    return convert


def _value(row: Row, names: str) -> Any:
    for name in names.split("|"):
        if name in row:
            return row[name]
    raise UserError(f"no column {names.replace('|', ' or ')}", possible=", ".join(map(str, row)))


def in_steps(least: float, step: float) -> Label:
    """Return what rounds a score to its class: the steps from ``least``, as Python rounds."""
    return lambda score: round((float(score) - least) / step)


def on_scale(least: float, step: float) -> Label:
    """Return what counts the steps of a score from ``least``, fractions of them as well."""
    return lambda score: (float(score) - least) / step


def among(labels: Mapping[Any, int | None]) -> Label:
    """Return what looks a label up, in upper or lower case."""

    def look_up(found: Any) -> int | None:
        name = found.strip().lower() if isinstance(found, str) else found
        if name not in labels:
            raise UserError(f"label {found!r}", possible=", ".join(map(str, labels)))
        return labels[name]

    return look_up


def _votes(label: str) -> int | None:
    """Return the class of a pair of tweets: votes ``(3, 2)`` of five people, or the digit of an expert."""
    text = str(label).strip()
    if text.startswith("("):
        positive = int(text.strip("()").partition(",")[0])
        return None if positive == 2 else int(positive >= 3)
    return None if text == "3" else int(int(text) >= 4)


def _splits(repository: str, *splits: str, config: str | None = None, revision: str = COMMIT) -> HubSplits:
    return HubSplits(repository=repository, config=config, splits=splits, revision=revision)


BINARY = among({0: 0, 1: 1, "0": 0, "1": 1})
ENTAILMENT = among({0: 0, 1: 1, 2: 2, -1: None, "entailment": 0, "neutral": 1, "contradiction": 2})
FOLLOWS = among(
    {0: 0, 1: 1, "entailment": 0, "not_entailment": 1, "non-entailment": 1, "entails": 0, "neutral": 1}
)

IMDB = Part(
    hub=_splits(
        "stanfordnlp/imdb",
        "train",
        "test",
        config="plain_text",
        revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    ),
    convert=keep("text", label=BINARY),
)
YELP = Part(
    hub=_splits("fancyzhx/yelp_polarity", "train", "test", config="plain_text", revision="main"),
    convert=keep("text", label=BINARY),
)
AMAZON = Part(
    hub=_splits(
        "fancyzhx/amazon_polarity",
        "train",
        "test",
        config="amazon_polarity",
        revision="9d9c45c18f8c3cf1b23a3c27917b60cbf28f3289",
    ),
    convert=keep("content", label=BINARY),
)
FLIPKART = Part(
    convert=keep("Summary", column="Sentiment", label=among({"negative": 0, "neutral": 0, "positive": 1})),
    by_hand="the CSV of Kaggle's niraliivaghani/flipkart-product-customer-reviews-dataset, or "
    f"flipkart_updated.tsv {DRIVE}",
)
QQP = Part(
    hub=_splits(REPOSITORY, "train", "validation", config="qqp"),
    convert=keep("question1", "question2", label=BINARY),
)
MRPC = Part(
    hub=_splits(REPOSITORY, "train", "validation", config="mrpc"),
    convert=keep("sentence1", "sentence2", label=BINARY),
)
TWITTER = Part(
    convert=keep("Sent_1", "Sent_2", column="Label", label=_votes),
    by_hand="train.data, dev.data and test.data of github.com/cocoxu/SemEval-PIT2015",
)
SNLI = Part(
    hub=_splits(
        "stanfordnlp/snli",
        "train",
        "validation",
        "test",
        config="plain_text",
        revision="cdb5c3d5eed6ead6e5a341c8e56e669bb666725b",
    ),
    convert=keep("premise", "hypothesis", label=ENTAILMENT),
)
_SICK = _splits("RobZamp/sick", "train", "validation", "test", revision=CONVERTED)
_SICK_BY_HAND = "SICK.txt of zenodo.org/records/2787612"
SICK_ENTAILMENT = Part(
    hub=_SICK,
    convert=keep("sentence_A", "sentence_B", column="label|entailment_label", label=ENTAILMENT),
    by_hand=_SICK_BY_HAND,
)
SICK_SCORES = Part(
    hub=_SICK,
    convert=keep("sentence_A", "sentence_B", column="relatedness_score", label=in_steps(1.0, 1.0)),
    by_hand=_SICK_BY_HAND,
)
# From 1 to 5 there, from 0 to 5 in STS-B.
SICK_NUMBERS = Part(
    hub=_SICK,
    convert=keep("sentence_A", "sentence_B", column="relatedness_score", label=on_scale(1.0, 0.8)),
    by_hand=_SICK_BY_HAND,
)
MISMATCHED = Part(
    hub=_splits(REPOSITORY, "validation_mismatched", config="mnli"),
    convert=keep("premise", "hypothesis", label=ENTAILMENT),
)
SCITAIL = Part(
    hub=_splits(
        "allenai/scitail",
        "train",
        "validation",
        "test",
        config="tsv_format",
        revision="0cc4353235b289165dfde1c7c5d1be983f99ce44",
    ),
    convert=keep("premise", "hypothesis", label=FOLLOWS),
)
HANS = Part(
    hub=_splits("jhu-cogsci/hans", "train", "validation", revision=CONVERTED),
    convert=keep("premise|sentence1", "hypothesis|sentence2", column="label|gold_label", label=FOLLOWS),
    by_hand="heuristics_train_set.txt and heuristics_evaluation_set.txt of github.com/tommccoy1/hans",
)
NEWSQA = Part(
    convert=keep("question|sentence1", "sentence|sentence2", label=FOLLOWS),
    by_hand=f"the folder qnli_ood {DRIVE}",
)
GRAMMAR_TEST = Part(
    convert=keep("sentence", label=BINARY),
    by_hand=f"the folder cola_ood {DRIVE}",
)
