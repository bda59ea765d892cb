"""Names on the Hugging Face hub: earlier downloads are used, and a hub that is away is said within seconds."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ispasp import models
from ispasp.errors import ModelError
from ispasp.models import hub
from ispasp.preparation import TextPreparation
from tests.small_huggingface import BERT, saved

pytest.importorskip("transformers")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's folder of downloads, empty; the hub itself is where nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def same(model: nn.Module, other: nn.Module) -> bool:
    expected = other.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_an_earlier_download_needs_no_network(cache: Path):
    repository = cache / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0a1b")
    model = saved(repository / "snapshots" / "0a1b", BERT)
    loaded = models.load(models.parse("huggingface:me/tiny"))
    assert same(loaded.model, model) and isinstance(loaded.preparation, TextPreparation)
    assert loaded.words == f"{BERT} from me/tiny, the weights there"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.SimpleHTTPRequestHandler):
    """Answers as the hub does for the one model ``me/tiny``, whose files lie in ``directory``."""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/tiny"):
            sizes = {file.name: file.stat().st_size for file in Path(self.directory).iterdir()}
            info = {
                "id": "me/tiny",
                "sha": COMMIT,
                "siblings": [{"rfilename": name, "size": size} for name, size in sizes.items()],
            }
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            body = json.dumps(tree if "/tree/" in path else info).encode()
            self.answer(200, body, "application/json")
        elif path.startswith(f"/me/tiny/resolve/{COMMIT}/"):
            file = Path(self.directory) / path.rpartition("/")[2]
            self.answer(200, file.read_bytes(), "application/octet-stream")
        else:
            self.answer(404, b"{}", "application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Length": len(body), "Content-Type": kind, "X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub_with_one_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "offered"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield folder
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_from_the_hub_without_what_is_not_needed(hub_with_one_model: Path, cache: Path):
    model = saved(hub_with_one_model, BERT)
    (hub_with_one_model / "tf_model.h5").write_bytes(b"x")
    (hub_with_one_model / "pytorch_model.bin").write_bytes(b"x")
    loaded = models.load(models.parse("huggingface:me/tiny"))
    assert same(loaded.model, model) and isinstance(loaded.preparation, TextPreparation)
    fetched = {path.name for path in (cache / "models--me--tiny" / "snapshots" / COMMIT).iterdir()}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.usefixtures("cache")
def test_a_model_beyond_the_limit_is_refused_before_it_is_fetched(hub_with_one_model: Path, cache: Path):
    saved(hub_with_one_model, BERT)
    with (hub_with_one_model / "model.safetensors").open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(ModelError, match=r"me/tiny is 5\.0 GiB; at most 4 GiB"):
        models.load(models.parse("huggingface:me/tiny"))
    assert not (cache / "models--me--tiny").exists()


def test_a_name_that_the_hub_does_not_know_is_one_sentence(hub_with_one_model: Path):
    assert hub_with_one_model.is_dir()
    with pytest.raises(ModelError, match="The Hugging Face model me/other is no folder here") as raised:
        models.load(models.parse("huggingface:me/other"))
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["bert-base-uncased", "someone/something"])
def test_a_hub_that_cannot_be_reached_is_one_sentence_within_seconds(name: str):
    started = time.perf_counter()
    with pytest.raises(ModelError, match=f"The Hugging Face model {name} is no folder here") as raised:
        models.load(models.parse(f"huggingface:{name}"))
    assert time.perf_counter() - started < 8
    assert "\n" not in str(raised.value) and "give a folder that holds it" in str(raised.value)


@pytest.mark.usefixtures("cache")
def test_a_hub_that_keeps_silent_does_not_hold_anybody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        with pytest.raises(ModelError, match="cannot be fetched from the hub .*timed out"):
            models.load(models.parse("huggingface:me/tiny"))
        assert time.perf_counter() - started < 8


@pytest.mark.usefixtures("cache")
def test_offline_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        models.load(models.parse("huggingface:me/tiny"))


def test_what_is_neither_folder_nor_hub_name_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=f"There is no folder {tmp_path}/absent"):
        models.load(models.parse(f"huggingface:{tmp_path}/absent"))
