from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from probes.encoders import Settings, open_encoder
from probes.encoders.feature_files import FileEncoder
from probes.encoders.registry import PAPER_MODELS
from probes.features import FeatureStore, feature_pass
from probes.results import read_rows
from probes.run import main
from probes.samples import Content
from probes.tasks.samplesets import Texts

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(device="cpu", batch_size=4)
TEXTS = ["", "a fine film", "dull", "a stirring , funny and finally transporting re imagining", "no", "b"]


def features(encoder: Any, contents: list[Content]) -> Any:
    return encoder.encode([encoder.prepare(content) for content in contents])


def save_text_model(folder: Path, kind: str, padding_side: str = "right") -> Path:
    """Save a tiny randomly initialised model and tokenizer as save_pretrained does."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in TEXTS for word in text.split()})
    special = ["<pad>", "<unk>", "<cls>", "<end>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    if kind in ("bert", "roberta"):
        backend.post_processor = processors.TemplateProcessing(
            single="<cls> $A <end>",
            pair="<cls> $A <end> $B <end>",
            special_tokens=[("<cls>", 2), ("<end>", 3)],
        )
    if kind == "gpt2":
        tokens.pop("pad_token")  # as GPT-2 comes: without one
    tokens["padding_side"] = padding_side
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary)}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **size)
        model = transformers.GPT2Model(config)
    elif kind == "t5":
        config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **size)
        model = transformers.T5Model(config)
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        make = {"bert": (transformers.BertConfig, transformers.BertModel),
                "roberta": (transformers.RobertaConfig, transformers.RobertaModel)}[kind]  # fmt: skip
        model = make[1](make[0](**shape, **size, max_position_embeddings=66, pad_token_id=0))
    model.save_pretrained(folder)
    return folder


POOLINGS = {
    "bert": ("cls", "mean", "last"),
    "roberta": ("cls", "mean", "last"),
    "gpt2": ("mean", "last"),
    "t5": ("cls", "mean", "last"),
}


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_text_features_do_not_depend_on_the_rest_of_the_batch(
    tmp_path: Path, kind: str, padding_side: str
) -> None:
    folder = save_text_model(tmp_path, kind, padding_side)
    hashes = set()
    for pooling in POOLINGS[kind]:
        encoder = open_encoder(f"transformers:{folder},pooling={pooling}", SETTINGS)
        together = features(encoder, list(TEXTS))
        alone = np.concatenate([features(encoder, [text]) for text in TEXTS])
        assert together.shape == (6, 16)
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert len(np.unique(together.round(4), axis=0)) == 6
        assert features(encoder, [("a film", "dull")]).shape == (1, 16)
        hashes.add(encoder.info.hash)
    assert len(hashes) == len(POOLINGS[kind])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_models_stored_in_half_precision_compute_in_single(tmp_path: Path, precision: str) -> None:
    import torch
    import transformers

    folder = save_text_model(tmp_path, "bert")
    stored = transformers.AutoModel.from_pretrained(folder).to(getattr(torch, precision))
    stored.save_pretrained(folder)
    encoder = open_encoder(f"transformers:{folder},pooling=mean", SETTINGS)
    together = features(encoder, list(TEXTS))
    alone = np.concatenate([features(encoder, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    stored.float().save_pretrained(tmp_path / "single")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "single")
    single = open_encoder(f"transformers:{tmp_path / 'single'},pooling=mean", SETTINGS)
    assert encoder.info.hash == single.info.hash


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_pooling_takes_the_states_that_it_names(tmp_path: Path, padding_side: str) -> None:
    import torch
    import transformers

    folder = save_text_model(tmp_path, "gpt2", padding_side)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(**tokenizer("a fine film", return_tensors="pt")).last_hidden_state[0].numpy()
    for pooling, expected in (("last", states[-1]), ("mean", states.mean(0))):
        encoder = open_encoder(f"transformers:{folder},pooling={pooling}", SETTINGS)
        found = features(encoder, ["a fine film", TEXTS[3]])[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_way_a_model_reads_decides_where_it_is_pooled(tmp_path: Path) -> None:
    for kind, pooling in (("gpt2", "last"), ("bert", "cls"), ("t5", "cls")):
        encoder = open_encoder(f"transformers:{save_text_model(tmp_path / kind, kind)}", SETTINGS)
        assert encoder.info.identity["pooling"] == pooling
    with pytest.raises(UserError, match=r"reads left to right.*possible: last, mean"):
        open_encoder(f"transformers:{tmp_path / 'gpt2'},pooling=cls", SETTINGS)


def test_a_prompt_stands_before_the_text_and_the_first_features_are_kept(tmp_path: Path) -> None:
    folder = f"transformers:{save_text_model(tmp_path, 'bert')}"
    plain, prompted = open_encoder(folder, SETTINGS), open_encoder(f"{folder},prompt=dull film ", SETTINGS)
    assert np.array_equal(features(prompted, ["a film"]), features(plain, ["dull film a film"]))
    assert np.array_equal(features(prompted, [("a", "film")]), features(plain, [("dull film a", "film")]))
    short = open_encoder(f"{folder},dimensions=5", SETTINGS)
    assert np.array_equal(features(short, ["a film"]), features(plain, ["a film"])[:, :5])
    whole = open_encoder(f"{folder},dimensions=16,prompt=", SETTINGS)
    assert whole.info.hash == plain.info.hash
    assert len({encoder.info.hash for encoder in (plain, prompted, short)}) == 3
    with pytest.raises(UserError, match="dimensions 17; possible: 1 to 16"):
        open_encoder(f"{folder},dimensions=17", SETTINGS)


def test_a_text_model_elsewhere_is_the_same_encoder(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        folder = save_text_model(tmp_path / name, "bert")
        hashes.add(open_encoder(f"transformers:{folder}", SETTINGS).info.hash)
    assert len(hashes) == 1


def test_a_text_model_whose_files_lack_its_pooler_is_the_same_encoder_each_time(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_text_model(tmp_path, "bert") / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "pooler" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    hashes = {open_encoder(f"transformers:{tmp_path}", SETTINGS).info.hash for _ in range(2)}
    assert len(hashes) == 1


def test_a_changed_weight_of_a_text_model_is_another_encoder(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path, "bert")
    before = open_encoder(f"transformers:{folder}", SETTINGS).info.hash
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert open_encoder(f"transformers:{folder}", SETTINGS).info.hash != before


def test_sst2_through_a_text_model(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = f"transformers:{save_text_model(tmp_path / 'model', 'bert')},pooling=mean"
    task = f"tsv:{real_data}/sst2/train.tsv,{real_data}/sst2/test.tsv,limit=200"
    main(["--plugin", "lp", "--encoder", encoder, "--task", task])
    rows = read_rows("results")
    assert {row.dataset for row in rows} == {"sst2", "sst2-typos", "sst2-dropped"}
    assert json.loads(rows[0].hyper_parameters)["modality"] == "text"


def test_local_weights_of_timm_are_used_and_random_ones_said_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    local = open_encoder(f"timm:test_resnet,weights={tmp_path / 'w.safetensors'}", SETTINGS)
    assert "RANDOM" not in capsys.readouterr().err
    random = open_encoder("timm:test_resnet,weights=random", SETTINGS)
    assert "RANDOM" in capsys.readouterr().err
    same = open_encoder(f"timm:test_resnet,weights={tmp_path / 'w.pth'}", SETTINGS)
    assert local.info.hash == same.info.hash != random.info.hash
    image = Image.new("L", (50, 40), 100)
    assert features(local, [image, image]).shape[0] == 2
    with pytest.raises(UserError, match="another architecture"):
        open_encoder(f"timm:test_vit,weights={tmp_path / 'w.pth'}", SETTINGS)
    torch.save({name: torch.zeros(3) for name in model.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="another shape; the file belongs to another architecture"):
        open_encoder(f"timm:test_resnet,weights={tmp_path / 'w.pth'}", SETTINGS)


def test_the_image_tower_of_open_clip(tiny_clip: str) -> None:
    encoder = open_encoder(f"open_clip:{tiny_clip},weights=random", SETTINGS)
    assert features(encoder, [Image.new("RGB", (64, 48))]).shape == (1, 16)
    with pytest.raises(UserError, match="did you mean"):
        open_encoder("open_clip:ViT-B-32/laion2b", SETTINGS)


def test_features_of_files_must_fit_and_be_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 2), np.nan, np.float32))
    np.save(tmp_path / "wide.npy", np.ones((3, 4), np.float32))
    spec = f"features:train={tmp_path}/a.npy,test={tmp_path}/"
    with pytest.raises(UserError, match=r"row 0 of .*nan.npy is not finite"):
        open_encoder(spec + "nan.npy", SETTINGS)
    with pytest.raises(UserError, match="dimensions differ: train 2, test 4"):
        open_encoder(spec + "wide.npy", SETTINGS)
    samples = Texts(["a", "b"], np.zeros(2, np.int64), ["a", "b"])
    with pytest.raises(UserError, match="train has 3 rows, the task 2 samples"):
        feature_pass(
            FeatureStore(tmp_path), open_encoder(spec + "a.npy", SETTINGS), samples, dataset="x train"
        )


def test_features_are_read_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "a.npy", array)
    save_file({"features": array, "other": array[:1]}, tmp_path / "a.safetensors")
    for name, kind in (("list", pa.list_(pa.float32())), ("fixed", pa.list_(pa.float32(), 3))):
        pq.write_table(pa.table({"features": pa.array(array.tolist(), kind)}), tmp_path / f"{name}.parquet")
    for file in ("a.safetensors", "list.parquet", "fixed.parquet"):
        encoder = open_encoder(f"features:train={tmp_path}/a.npy,test={tmp_path}/{file}", SETTINGS)
        assert isinstance(encoder, FileEncoder)
        found = encoder.look_up("test", 4)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)
    ragged = pa.table({"features": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="rows of 1 and 2 values"):
        open_encoder(f"features:train={tmp_path}/a.npy,test={tmp_path}/ragged.parquet", SETTINGS)


def test_the_papers_models_are_known_to_the_libraries_that_load_them() -> None:
    import open_clip
    import timm
    from transformers import CONFIG_MAPPING

    kinds = {name: spec.partition(":") for name, spec in PAPER_MODELS.items()}
    assert len(kinds) == 9
    for _, (kind, _, rest) in kinds.items():
        name = rest.partition(",")[0]
        if kind == "timm":
            assert name in timm.list_pretrained()
        elif kind == "open_clip":
            model, _, tag = name.partition("/")
            assert tag in open_clip.list_pretrained_tags_by_model(model)
        elif kind == "transformers":
            # The hub's names cannot be looked up without network, the architecture can.
            assert name.rpartition("/")[2].partition("-")[0] in CONFIG_MAPPING
        else:
            assert kind == "api"


OPEN_EACH = """
import sys
from nml.errors import UserError
from probes.encoders import open_encoder
for spec in sys.argv[1:]:
    try:
        open_encoder(spec)
    except UserError as error:
        print(error)
"""


def test_weights_that_cannot_be_downloaded_are_one_line_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A proxy that nothing listens on: the same on a machine with network and on one without.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    specs = (
        "timm:test_resnet.r160_in1k",
        "open_clip:RN50/openai",
        "transformers:google-bert/bert-large-uncased",
    )
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EACH, *specs],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for spec, line in zip(specs, lines, strict=True):
        assert line.startswith(f"--encoder {spec}: the pre-trained weights could not be loaded: https://")
        assert "does not answer" in line
        assert "on a machine with network" in line
