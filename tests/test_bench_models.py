"""Models in the bench: what was measured with other weights is measured again, and no table mixes two targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import perturbed, small_llama
from gguf_files import gguf_llama, write_gguf
from test_labels import composed, save_pair, write_words

from specdec.bench.__main__ import main as bench
from specdec.bench.export import export_pair
from specdec.bench.suite import FOLDER
from specdec.models import pair as pair_module
from specdec.models.pair import load_pair


@pytest.fixture(autouse=True)
def _fresh_cache():
    pair_module._cache.clear()


@pytest.mark.slow
def test_the_bench_measures_again_what_was_measured_with_another_model(tmp_path, monkeypatch, capsys):
    data = write_words(tmp_path / "words.jsonl")
    monkeypatch.setattr("specdec.bench.machine.os.sched_setaffinity", lambda *_: None, raising=False)
    folder, mine = tmp_path / "bench", tmp_path / "mine"
    (folder / "suite").mkdir(parents=True)
    study = {"title": "All", "pairs": ["mine"], "methods": ["plain", "static"], "batches": [2], "max_new_tokens": 4}
    suite = {
        "title": "One",
        "repeats": 1,
        "progress": False,
        "studies": {"all": {**study, "min_prompts": 2, "baseline": "plain"}},
    }
    files = {
        "pairs.yaml": {"mine": save_pair(mine, 1)},
        "peers.yaml": {},
        "methods.yaml": {"plain": {"overrides": ["scheduler=plain"]}, "static": {"overrides": ["scheduler=static"]}},
        "suite/one.yaml": suite,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    words = ["suite=one", f"folder={folder}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", f"data={data}"]

    def measured() -> tuple[set[str], str]:
        assert bench(words) == 0
        document = json.loads((tmp_path / "out" / "results.json").read_text())
        return {cell["target_fingerprint"] for cell in document["cells"]}, capsys.readouterr().err

    first, _ = measured()
    again, said = measured()
    assert first == again
    assert "have changed" not in said
    lines = (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()
    shutil.rmtree(mine)
    save_pair(mine, 2)
    other, said = measured()
    assert "2 measurements are of files that have changed since" in said
    assert len(first) == len(other) == 1
    assert first != other
    assert len((tmp_path / "out" / "measurements.jsonl").read_text().splitlines()) == len(lines) + 2


@pytest.mark.nightly
def test_a_pair_without_a_draft_gives_other_engines_its_gguf_file_and_no_draft(tmp_path, monkeypatch, capsys):
    gguf = write_gguf(tmp_path / "small.Q4_1.gguf", gguf_llama(), "Q4_1")
    monkeypatch.setattr("specdec.bench.machine.os.sched_setaffinity", lambda *_: None, raising=False)
    folder = tmp_path / "bench"
    (folder / "suite").mkdir(parents=True)
    peers = {"hf": {}, "hf-assisted": {"speculative": True}, "hf-lookup": {"lookup": True}}
    study = {"title": "All", "pairs": ["small"], "methods": list(peers), "batches": [1], "min_prompts": 2}
    files = {
        "pairs.yaml": {
            "small": [f"pair.target={gguf}", "pair.tokenizer=null", "pair.draft=null", "drafter=prompt_lookup"],
        },
        "peers.yaml": {"hf": {"script": str(FOLDER / "peers" / "peer_hf.py"), "environment": "current"}},
        "methods.yaml": {name: {"peer": "hf", "options": options} for name, options in peers.items()},
        "suite/one.yaml": {
            "title": "One",
            "repeats": 1,
            "progress": False,
            "studies": {"all": {**study, "max_new_tokens": 6, "overrides": ["data.max_input_tokens=100"]}},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    data = tmp_path / "words.jsonl"
    data.write_text(json.dumps({"question_id": 1, "category": "c", "turns": ["one two one two one"]}) + "\n")
    words = ["suite=one", f"folder={folder}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", f"data={data}"]
    assert bench(words) == 0, capsys.readouterr().err
    cells = {cell["method"]: cell for cell in json.loads((tmp_path / "out" / "results.json").read_text())["cells"]}
    assert (cells["hf-assisted"]["status"], cells["hf-assisted"]["error"]) == (
        "refused",
        "the pair small has no draft model",
    )
    assert [cells[name]["num_exact"] for name in ("hf", "hf-lookup")] == [2, 2]
    (exported,) = (tmp_path / "cache" / "models").glob("*/target")
    assert (exported / "target.gguf").resolve() == gguf.resolve()


def test_a_table_of_the_bench_never_holds_two_targets(tmp_path):
    from specdec.bench.suite import Library, Method, Study, Suite
    from specdec.bench.summary import summarize
    from specdec.bench.tables import to_markdown

    study = Study("All", ["p"], ["plain", "other"], [1], baseline="plain")
    suite = Suite("s", "S", studies={"all": study})
    library = Library(tmp_path, {"p": []}, {"plain": Method(), "other": Method()}, {}, {})
    figures = {"tokens_per_s": 3.0, "wall_s": 1.0, "num_prompts": 1, "num_prompt_tokens": 1, "num_exact": 1}
    cell = {"study": "all", "pair": "p", "context": None, "batch": 1, "repeat": 0, "status": "done"}
    records = {
        method: {**cell, **figures, "key": method, "method": method, "target_fingerprint": f"{number}" * 8}
        for number, method in enumerate(study.methods)
    }
    document = summarize(suite, library, records)
    assert [entry["pair"] for entry in document["cells"]] == ["p 000000", "p 111111"]
    assert document["cells"][1]["ratio"] is None, "a ratio to the speed of another target means nothing"
    document["machine"] = {"cores": [], "processor": "", "device": "", "git_revision": "", "versions": {"torch": ""}}
    assert to_markdown(document).count("## All: pair p ") == 2


@pytest.mark.slow
def test_exported_pairs_with_one_target_do_not_share_a_draft(tmp_path):
    """Folders without a tokenizer in them are exported for other engines, under a name that tells drafts apart."""
    exported = []
    for place in ("a", "b"):
        target, draft, _ = (arg.partition("=")[2] for arg in save_pair(tmp_path / place, 1))
        perturbed(small_llama(1, torch.float32), 0.04, seed=ord(place)).save_pretrained(draft)
        shutil.move(Path(target) / "tokenizer.json", tmp_path / place / "tokenizer.json")
        tokenizer = tmp_path / "a" / "draft"
        cfg = composed(f"pair.target={target}", f"pair.draft={draft}", f"pair.tokenizer={tokenizer}")
        pair_module._cache.clear()
        exported.append(export_pair(cfg, load_pair(cfg), tmp_path / "cache")[1])
    weights = [(folder / "model.safetensors").read_bytes() for folder in exported]
    assert weights[0] != weights[1]
