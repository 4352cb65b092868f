"""The embeddings endpoint, against a real HTTP server that misbehaves in every way it can."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml.errors import UserError
from probes.encoders import Settings, open_encoder
from probes.encoders.api_keys import named_keys
from probes.encoders.endpoint import ApiEncoder
from probes.features import FeatureStore, feature_pass
from probes.run import main
from probes.tasks.samplesets import Texts

SETTINGS = Settings(device="cpu", batch_size=4)
ROOT = Path(__file__).resolve().parents[2]
SECRET = "sk-very-secret-0123456789"


class Server(http.server.ThreadingHTTPServer):
    """Speaks /v1/embeddings and commits the faults it is given, one a request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Embeddings)
        self.faults: list[str] = []
        self.keys: list[str] = []
        self.texts: list[list[str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Embeddings(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.keys.append(self.headers.get("authorization", ""))
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.texts.append(body["input"])
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault.isdigit():
            self.answer(int(fault), {"error": "later"})
        elif fault.startswith("http"):
            self.send_response(307)
            self.send_header("location", fault)
            self.send_header("content-length", "0")
            self.end_headers()
        elif fault == "refused":
            words = f"batch size 2 > maximum allowed batch size 1\n for {self.server.keys[-1]}"
            self.answer(422, {"error": {"message": words, "type": "Validation"}})
        else:
            data = [
                {"index": n, "embedding": embed(text)[: body.get("dimensions", 3)]}
                for n, text in enumerate(body["input"])
            ]
            # Every good answer comes back to front: only the index tells what belongs to what.
            self.answer(200, {"data": spoil(data, fault)[::-1], "usage": {"total_tokens": 7}})

    def answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


def embed(text: str) -> list[float]:
    return [float(len(text)), float(text.count("a")), 1.0]


def spoil(data: list[dict[str, Any]], fault: str) -> list[dict[str, Any]]:
    if fault == "short answer":
        data.pop()
    elif fault == "one wrong length":
        data[0]["embedding"].append(1.0)
    elif fault == "all wrong length":
        for item in data:
            item["embedding"].append(1.0)
    elif fault == "wrong index":
        data[0]["index"] = 7
    elif fault == "NaN":
        data[0]["embedding"][0] = float("nan")
    elif fault == "null":
        data[0]["embedding"][0] = None
    elif fault == "base64":
        for item in data:
            packed = np.array(item["embedding"], "<f4").tobytes()
            item["embedding"] = base64.b64encode(packed).decode()
    return data


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("PROBE_KEY", SECRET)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def api(server: Server, options: str = "", waits: list[float] | None = None) -> ApiEncoder:
    encoder = open_encoder(f"api:tiny,url={server.url},key_env=PROBE_KEY,batch=2{options}", SETTINGS)
    assert isinstance(encoder, ApiEncoder)
    encoder._sleep = (waits if waits is not None else []).append
    return encoder


def corpus(count: int = 24) -> Texts:
    return Texts([f"k{n}" for n in range(count)], np.zeros(count, np.int64), ["a" * n for n in range(count)])


def ask(encoder: ApiEncoder, *texts: str) -> Any:
    return encoder.encode([encoder.prepare(text) for text in texts])


def test_a_prompt_and_a_length_are_asked_for_and_part_of_the_key(server: Server) -> None:
    encoder = api(server, ",prompt=aa: ,dimensions=2")
    assert ask(encoder, "a", "").tolist() == [[5, 3], [4, 2]]
    assert len({api(server, more).info.hash for more in ("", ",prompt=x", ",dimensions=2")}) == 3
    assert api(server, ",prompt=").info.hash == api(server).info.hash
    with pytest.raises(
        UserError, match="asked for 8 dimensions, the endpoint gives 3; leave dimensions= out"
    ):
        ask(api(server, ",dimensions=8"), "a")
    with pytest.raises(UserError, match="dimensions 0; possible: 1 or more"):
        api(server, ",dimensions=0")


FAULTS = [
    "",
    "drop",
    "429",
    "500",
    "one wrong length",
    "",
    "short answer",
    "wrong index",
    "503",
    "base64",
    "NaN",
    "null",
    "all wrong length",
    "drop",
]


def test_a_disturbed_endpoint_gives_the_features_of_an_undisturbed_one(
    server: Server, tmp_path: Path
) -> None:
    plain = feature_pass(FeatureStore(tmp_path / "plain"), api(server), corpus(), dataset="t")
    server.faults = list(FAULTS)
    waits: list[float] = []
    encoder = api(server, ",price=0.02", waits)
    disturbed = feature_pass(FeatureStore(tmp_path / "disturbed"), encoder, corpus(), dataset="t")
    assert np.array_equal(plain.array, disturbed.array)
    assert len(waits) == 11
    assert encoder.requests == 12 + 11
    # Six answers were of no use, and paid for all the same.
    assert encoder.cost_line() == "api:tiny: 23 requests, 126 tokens, cost 0.0000 at 0.02 a million tokens"


def arguments(server: Server, real_data: Path) -> list[str]:
    encoder = f"api:tiny,url={server.url},key_env=PROBE_KEY,batch=8,retries=4,price=0.1"
    task = f"tsv:{real_data}/sst2/train.tsv,{real_data}/sst2/test.tsv,limit=60,shifts=dropped"
    return ["--plugin", "lp", "--encoder", encoder, "--task", task, "--hyper", "epochs=2"]


def feature_bytes(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("features/*/features.npy")}


def files_with_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_sst2_from_the_command_line_through_a_disturbed_endpoint(
    server: Server, tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, disturbed = tmp_path / "plain", tmp_path / "disturbed"
    for folder in (plain, disturbed):
        folder.mkdir()
    monkeypatch.chdir(plain)
    main(arguments(server, real_data))
    server.faults = list(FAULTS)
    done = subprocess.run(
        [sys.executable, "-m", "probes.run", *arguments(server, real_data)],
        cwd=disturbed,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not server.faults
    assert feature_bytes(plain) == feature_bytes(disturbed)
    assert len(feature_bytes(plain)) == 3
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert SECRET not in done.stdout + done.stderr
    assert files_with_secret(tmp_path) == []


def test_a_run_that_an_endpoint_ends_says_why_and_what_was_spent(
    server: Server,
    tmp_path: Path,
    real_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    server.faults = ["", "401"]
    with pytest.raises(UserError, match="the key in the environment is not accepted"):
        main(arguments(server, real_data))
    with pytest.raises(SystemExit):
        main([*arguments(server, real_data), "--print_config"])
    printed = capsys.readouterr()
    assert printed.err.startswith("api:tiny: 2 requests, 7 tokens, cost 0.0000 at 0.1 a million tokens")
    assert "key_env=PROBE_KEY" in printed.out
    assert SECRET not in printed.out + printed.err
    assert files_with_secret(tmp_path) == []


def test_an_endpoint_that_stays_down_ends_in_one_line_and_the_next_run_pays_only_the_rest(
    server: Server, tmp_path: Path
) -> None:
    server.faults = ["", "", *["500"] * 3]
    store = FeatureStore(tmp_path)
    with pytest.raises(UserError, match=r"answered 500 \(later\) \(3 attempts\)"):
        feature_pass(store, api(server, ",retries=2"), corpus(20), dataset="t", chunk_rows=4)
    server.texts = []
    feature_pass(store, api(server), corpus(20), dataset="t", chunk_rows=4)
    assert len(server.texts) == 8


@pytest.mark.parametrize("fault", ["NaN", "one wrong length", "short answer"])
def test_answers_that_stay_wrong_end_in_one_line(server: Server, fault: str) -> None:
    server.faults = [fault] * 3
    with pytest.raises(UserError, match=r"\(3 attempts\)"):
        ask(api(server, ",retries=2"), "a", "b")


def test_a_refused_key_is_not_tried_again(server: Server) -> None:
    server.faults = ["401"]
    with pytest.raises(UserError, match="key in the environment is not accepted"):
        ask(api(server), "a")
    assert len(server.texts) == 1


def test_pauses_grow_and_the_servers_wish_is_followed(server: Server) -> None:
    server.faults = ["500"] * 4
    waits: list[float] = []
    ask(api(server, "", waits), "a")
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits))
    server.faults = ["429"]
    encoder = api(server, "", waits)
    encoder._endpoint = encoder._endpoint.__class__(**vars(encoder._endpoint) | {"pause": 1e-6})
    ask(encoder, "a")
    assert waits[-1] == 0.01


def test_the_key_is_in_no_log(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.faults = ["drop", "500"]
    encoder = api(server)
    feature_pass(FeatureStore(tmp_path), encoder, corpus(), dataset="t")
    print(encoder.info, encoder._endpoint)
    out = capfd.readouterr()
    assert "HTTP Request" in caplog.text
    assert SECRET not in out.out + out.err + caplog.text


def test_another_server_gets_no_key_of_openai(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    encoder = open_encoder(f"api:tiny,url={server.url}", SETTINGS)
    assert ask(encoder, "a").shape == (1, 3)
    assert server.keys == [""]
    server.faults = ["401"]
    with pytest.raises(UserError, match=r"answered 401 \(later\).*key_env=NAME"):
        ask(encoder, "a")


def test_an_address_that_sends_elsewhere_does_not_send_the_key_there(server: Server) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server.faults = [f"{other.url}/embeddings"]
        with pytest.raises(UserError, match="answered 307"):
            ask(api(server), "a")
        other.shutdown()
    assert server.keys == [f"Bearer {SECRET}"]
    assert other.keys == []


def test_a_study_file_sends_a_key_only_where_the_command_line_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(f"encoder: ['api:tiny,url={server.url},key_env=PROBE_KEY']\n")
    words = ["--config", "study.yaml"]
    allowed = f"PROBE_KEY@{server.url.split('/')[2]}"
    with pytest.raises(UserError, match=f"PROBE_KEY is not sent to.*--allow-key {allowed}") as refused:
        main(words)
    assert SECRET not in str(refused.value)
    with (tmp_path / "study.yaml").open("a") as file:
        file.write(f"allow_key: [{allowed}]\n")
    with pytest.raises(UserError, match="stands in a config file"):
        main(words)
    assert server.keys == []
    # Now it is opened, and found to read no images.
    with pytest.raises(UserError, match="texts"):
        main([*words, "--allow-key", allowed])


@pytest.mark.parametrize(
    ("spec", "named", "sent"),
    [
        ("api:m", [], True),
        ("api:m,url=https://api.mistral.ai/v1,key_env=MISTRAL_API_KEY", [], True),
        ("api:m,url=http://api.mistral.ai/v1,key_env=MISTRAL_API_KEY", [], False),
        ("api:m,url=https://api.mistral.ai.evil/v1,key_env=MISTRAL_API_KEY", [], False),
        ("api:m,key_env=PROBE_KEY", [], False),
        ("api:m,key_env=PROBE_KEY", ["PROBE_KEY@api.openai.com"], True),
        ("api:m,url=https://host/v1,key_env=PROBE_KEY", ["PROBE_KEY@other"], False),
        ("api:m,url=https://host:1/v1,key_env=PROBE_KEY", ["PROBE_KEY@host"], False),
        ("api:m,url=https://HOST/v1,key_env=PROBE_KEY", ["PROBE_KEY@host"], True),
    ],
)
def test_keys_go_to_known_or_named_hosts(
    spec: str, named: list[str], sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "MISTRAL_API_KEY", "PROBE_KEY"):
        monkeypatch.setenv(variable, SECRET)
    words = [word for name in named for word in ("--allow-key", name)]
    settings = Settings(device="cpu", keys=named_keys([spec], named, words))
    with contextlib.nullcontext() if sent else pytest.raises(UserError, match="is not sent to"):
        open_encoder(spec, settings)
    # What stands on the command line is said by its user.
    open_encoder(spec, Settings(device="cpu", keys=named_keys([spec], [], [f"--encoder={spec}"])))


def test_a_refusal_is_shown_in_the_server_s_words_without_the_key(server: Server) -> None:
    server.faults = ["refused"]
    with pytest.raises(UserError) as error:
        ask(api(server), "a", "b")
    said = "answered 422 (batch size 2 > maximum allowed batch size 1 for Bearer ***)"
    assert said in str(error.value)
    assert "batch=N" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("url", ["http://localhost:abc/v1", "http:///v1", "ftp://host/v1", "http://[::1/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="url; possible: https://HOST/v1"):
        open_encoder(f"api:tiny,url={url},key_env=PATH", SETTINGS)


@pytest.mark.parametrize(
    "option",
    [
        f"key={SECRET}",
        f"api_key={SECRET}",
        f"url=https://host/v1?key={SECRET}",
        f"url=https://me:{SECRET}@host/v1",
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(option: str) -> None:
    with pytest.raises(UserError, match="the key belongs into the environment") as error:
        open_encoder(f"api:tiny,{option}", SETTINGS)
    assert SECRET not in str(error.value)


def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_KEY", SECRET + "\n")
    ask(api(server), "a")
    assert server.keys == [f"Bearer {SECRET}"]
    monkeypatch.setenv("PROBE_KEY", SECRET + "\nä")
    with pytest.raises(UserError, match="PROBE_KEY cannot be a key") as error:
        api(server)
    assert SECRET not in str(error.value)


def test_requests_keep_to_the_rate_limit(server: Server) -> None:
    waits: list[float] = []
    encoder = api(server, ",rpm=60", waits)
    for _ in range(3):
        ask(encoder, "a")
    assert len(waits) == 2
    assert 0.5 < waits[0] <= 1.0 < waits[1] <= 2.0


def test_a_model_that_changed_its_width_since_is_told_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.tsv").write_text("".join(f"text {n}\t{n % 2}\n" for n in range(8)))
    encoder = [
        "--encoder",
        f"api:tiny,url={server.url},key_env=PROBE_KEY",
        "--plugin",
        "lp",
        "--allow-overlap",
    ]
    main([*encoder, "--task", "tsv:t.tsv,t.tsv,shifts=none", "--hyper", "epochs=1"])
    server.faults = ["all wrong length"] * 9
    with pytest.raises(
        UserError, match=r"features of t-dropped have 4 dimensions, those of the training data 3"
    ):
        main([*encoder, "--task", "tsv:t.tsv,t.tsv,shifts=dropped", "--hyper", "epochs=1"])
