from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from probes.encoders import Settings, open_encoder
from probes.encoders.api import ApiEncoder
from probes.features import FeatureStore, feature_pass
from probes.results import read_rows
from probes.run import main
from probes.samples import Content
from probes.tasks.samplesets import Texts

SETTINGS = Settings(device="cpu", batch_size=4)
TEXTS = ["a fine film", "dull", "a stirring , funny and finally transporting re imagining", "no", "b"]
SECRET = "sk-very-secret-0123456789"


def features(encoder: Any, contents: list[Content]) -> Any:
    return encoder.encode([encoder.prepare(content) for content in contents])


def save_text_model(folder: Path, kind: str) -> Path:
    """Save a tiny randomly initialised model and tokenizer as save_pretrained does."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.split()})
    special = ["<pad>", "<unk>", "<cls>", "<end>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    if kind == "gpt2":
        tokens.pop("pad_token")  # as GPT-2 comes: without one
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary)}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **size)
        model = transformers.GPT2Model(config)
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        make = {"bert": (transformers.BertConfig, transformers.BertModel),
                "roberta": (transformers.RobertaConfig, transformers.RobertaModel)}[kind]  # fmt: skip
        model = make[1](make[0](**shape, **size, max_position_embeddings=66, pad_token_id=0))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_text_features_do_not_depend_on_the_rest_of_the_batch(tmp_path: Path, kind: str) -> None:
    folder = save_text_model(tmp_path, kind)
    hashes = set()
    for pooling in ("cls", "mean", "last"):
        encoder = open_encoder(f"transformers:{folder},pooling={pooling}", SETTINGS)
        together = features(encoder, list(TEXTS))
        alone = np.concatenate([features(encoder, [text]) for text in TEXTS])
        assert together.shape == (5, 16)
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert features(encoder, [("a film", "dull")]).shape == (1, 16)
        hashes.add(encoder.info.hash)
    assert len(hashes) == 3


def test_left_to_right_models_are_pooled_at_their_last_token(tmp_path: Path) -> None:
    encoder = open_encoder(f"transformers:{save_text_model(tmp_path, 'gpt2')}", SETTINGS)
    assert encoder.info.identity["pooling"] == "last"
    assert len({tuple(row) for row in features(encoder, ["a film", "b film"]).round(5).tolist()}) == 2


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


def test_the_image_tower_of_open_clip() -> None:
    encoder = open_encoder("open_clip:ViT-S-32-alt,weights=random", SETTINGS)
    assert features(encoder, [Image.new("RGB", (64, 48))]).shape == (1, 256)
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


class Embeddings(http.server.BaseHTTPRequestHandler):
    """/v1/embeddings, with a list of faults to commit before answering well."""

    faults: list[str] = []  # noqa: RUF012 - set by the fixture
    keys: list[str] = []  # noqa: RUF012
    requests = 0

    def do_POST(self) -> None:
        Embeddings.requests += 1
        Embeddings.keys.append(self.headers.get("authorization", ""))
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fault = Embeddings.faults.pop(0) if Embeddings.faults else ""
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if fault.isdigit():
            self.answer(int(fault), {"error": "later"})
            return
        data = [{"index": n, "embedding": self.embed(text)} for n, text in enumerate(body["input"])]
        if fault == "short answer":
            data.pop()
        if fault == "wrong length":
            data[0]["embedding"].append(1.0)
        if fault == "all wrong length":
            for item in data:
                item["embedding"].append(1.0)
        self.answer(200, {"data": data[::-1], "usage": {"total_tokens": 7}})

    @staticmethod
    def embed(text: str) -> list[float]:
        return [float(len(text)), float(text.count("a")), 1.0]

    def answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PROBE_KEY", SECRET)
    Embeddings.faults, Embeddings.keys, Embeddings.requests = [], [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def api(url: str, options: str = "", waits: list[float] | None = None) -> ApiEncoder:
    encoder = open_encoder(f"api:tiny,url={url},key_env=PROBE_KEY,batch=2{options}", SETTINGS)
    assert isinstance(encoder, ApiEncoder)
    encoder._sleep = (waits if waits is not None else []).append
    return encoder


def corpus(count: int = 20) -> Texts:
    return Texts([f"k{n}" for n in range(count)], np.zeros(count, np.int64), ["a" * n for n in range(count)])


def test_a_disturbed_endpoint_gives_the_features_of_an_undisturbed_one(endpoint: str, tmp_path: Path) -> None:
    plain = feature_pass(FeatureStore(tmp_path / "plain"), api(endpoint), corpus(), dataset="t")
    Embeddings.faults = [
        "drop",
        "429",
        "500",
        "wrong length",
        "",
        "short answer",
        "503",
        "",
        "all wrong length",
        "drop",
    ]
    waits: list[float] = []
    encoder = api(endpoint, ",price=0.02", waits)
    disturbed = feature_pass(FeatureStore(tmp_path / "disturbed"), encoder, corpus(), dataset="t")
    assert np.array_equal(plain.array, disturbed.array)
    assert len(waits) == 8
    assert encoder.cost_line() == "api:tiny: 18 requests, 77 tokens, cost 0.0000 at 0.02 a million tokens"


def test_an_endpoint_that_stays_down_ends_in_one_line_and_the_next_run_pays_only_the_rest(
    endpoint: str, tmp_path: Path
) -> None:
    Embeddings.faults = ["", "", *["500"] * 3]
    store = FeatureStore(tmp_path)
    with pytest.raises(UserError, match=r"answered 500 \(3 attempts\)"):
        feature_pass(store, api(endpoint, ",retries=2"), corpus(), dataset="t", chunk_rows=4)
    Embeddings.requests = 0
    feature_pass(store, api(endpoint), corpus(), dataset="t", chunk_rows=4)
    assert Embeddings.requests == 8


def test_a_refused_key_is_not_tried_again(endpoint: str) -> None:
    Embeddings.faults = ["401"]
    with pytest.raises(UserError, match="key in the environment is not accepted"):
        features(api(endpoint), ["a"])
    assert Embeddings.requests == 1


def test_the_key_is_sent_and_is_in_no_file_and_no_output(
    endpoint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    Embeddings.faults = ["drop", "500"]
    encoder = api(endpoint)
    feature_pass(FeatureStore(tmp_path), encoder, corpus(), dataset="t")
    print(encoder.info, encoder._endpoint)
    assert set(Embeddings.keys) == {f"Bearer {SECRET}"}
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err + caplog.text
    for folder, _, files in os.walk(tmp_path):
        assert all(SECRET.encode() not in (Path(folder) / file).read_bytes() for file in files)


def test_requests_keep_to_the_rate_limit(endpoint: str) -> None:
    waits: list[float] = []
    encoder = api(endpoint, ",rpm=60", waits)
    for _ in range(3):
        features(encoder, ["a"])
    assert len(waits) == 2
    assert 0.5 < waits[0] <= 1.0 < waits[1] <= 2.0
