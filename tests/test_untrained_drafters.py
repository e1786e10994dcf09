"""Weights that nobody trained: refused, or labelled in every table; and checkpoints that lack some of theirs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from cases import nightly_but, short_only
from conftest import VOCAB, last_document, small_llama
from hydra import compose, initialize_config_module
from safetensors.torch import load_file, save_file
from test_drafters import context_of
from test_pair import save_tokenizer

import specdec
from specdec import analysis, conformance
from specdec.bench.__main__ import main as bench
from specdec.bench.suite import FOLDER
from specdec.config.identity import identity
from specdec.config.resolve import resolve
from specdec.core.files import digest
from specdec.draft_lengths.__main__ import main as draft_lengths
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.pair import load_pair
from specdec.registry import create
from specdec.report.__main__ import main as report
from specdec.training import TrainingError
from specdec.training.model import load_weights

TRAINED = ("eagle", "longspec", "medusa", "ppd", "early_exit")
SMALL = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=3", "max_new_tokens=6"]
SMALL += ["data.max_input_tokens=20", "data.overlong=truncate", "batch=2"]


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", short_only(TRAINED, "ppd"))
def test_a_drafter_without_its_weights_is_refused(kind):
    """By a run before anything is loaded, by the class, by the library and by the kit."""
    said = f"drafter={kind} without drafter.path would draft with untrained weights: set drafter.path=FOLDER of .*"
    other = ["pair=vicuna", f"drafter={kind}"]
    refused(ConfigError, rf"{said}, or drafter\.untrained=true", lambda: composed(*other))
    synthetic = [f"drafter={kind}", "weights=random"]
    refused(ConfigError, said, lambda: composed(*synthetic))
    model = CausalLM(small_llama(0, torch.float32))
    refused(ConfigError, said, lambda: create("drafter", kind, context_of(model)))
    refused(ConfigError, f"draft='{kind}' drafts with trained weights", lambda: specdec.Engine(model, kind))
    refused(ConfigError, said, lambda: conformance.examine("drafter", kind))


@pytest.mark.parametrize("kind", TRAINED)
def test_untrained_weights_draft_when_asked_for(kind):
    model = CausalLM(small_llama(0, torch.float32))
    assert create("drafter", kind, context_of(model), untrained=True)
    both = [f"drafter={kind}", "drafter.untrained=true", "drafter.path=somewhere"]
    refused(
        ConfigError,
        r"drafter\.untrained=true with drafter\.path=somewhere: remove one of them",
        lambda: composed(*both),
    )


@pytest.mark.slow
def test_results_of_trained_weights_keep_their_names():
    settings = identity(composed("drafter=eagle", "drafter.path=somewhere"))
    assert settings["drafter"] == {"path": "somewhere", "name": "eagle"}
    assert identity(composed("drafter=medusa", "drafter.path=somewhere"))["drafter"].keys() == {
        "path",
        "name",
        "num_heads",
    }
    tree = identity(composed("drafter=medusa", "drafter.path=somewhere", "drafter.nodes=9"))
    assert tree["drafter"]["nodes"] == 9
    untrained = identity(composed("drafter=eagle", "drafter.untrained=true"))
    assert digest(untrained) != digest(settings)


@pytest.mark.slow
def test_every_table_says_that_a_drafter_is_untrained(run, tmp_path, capsys):
    results = tmp_path / "results"
    points = tmp_path / "points.csv"
    arguments = [*SMALL, "scheduler=static", "drafter=medusa", "drafter.untrained=true"]
    code, out, err = run(*arguments, "logger=csv", f"logger.path={points}")  # and plain, as the baseline
    assert code == 0, err
    table, document = out.strip().rsplit("\n", 1)
    assert "drafter medusa (untrained)" in table
    assert json.loads(document)["drafter"] == "medusa (untrained)"
    assert [row["drafter"] for row in csv.DictReader(points.open())] == ["medusa (untrained)"]
    assert set(analysis.load(results)["drafter"]) == {"none", "medusa (untrained)"}
    assert report([str(results), "--format", "html,md,latex,csv", "--out", str(tmp_path)]) == 0
    for name in ("report.html", "report.md", "report.tex", "points.csv"):
        assert "untrained" in (tmp_path / name).read_text(), name
    markdown = (tmp_path / "report.md").read_text()
    assert "| static inplace untrained |" in markdown, "also where all points of a scheduler have that drafter"


@pytest.mark.slow
def test_a_profile_says_that_its_drafter_is_untrained(run, tmp_path, capsys):
    results = tmp_path / "results"
    code, _, err = run(*SMALL, "drafter=medusa", "drafter.untrained=true", "draft_length=batch_table", "baseline=false")
    assert code == 0, err
    assert draft_lengths(results) == 0
    assert "untrained" in capsys.readouterr().out


@pytest.mark.slow
def test_the_bench_says_that_a_drafter_is_untrained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("specdec.bench.machine.os.sched_setaffinity", lambda *_: None, raising=False)
    folder = tmp_path / "bench"
    (folder / "suite").mkdir(parents=True)
    files = {
        "pairs.yaml": {"small": SMALL[:3]},
        "peers.yaml": {},
        "methods.yaml": {
            "plain": {"overrides": ["scheduler=plain"]},
            "medusa": {"overrides": ["scheduler=continuous", "drafter=medusa", "drafter.untrained=true"]},
        },
        "suite/one.yaml": {
            "title": "One",
            "repeats": 1,
            "progress": False,
            "studies": {
                "all": {
                    "title": "All",
                    "pairs": ["small"],
                    "methods": ["plain", "medusa"],
                    "batches": [2],
                    "max_new_tokens": 4,
                    "min_prompts": 2,
                    "baseline": "plain",
                }
            },
            "claims": [{"text": "fast", "study": "all", "method": "medusa", "over": "plain"}],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert Path(FOLDER).is_dir()
    assert bench(["suite=one", f"folder={folder}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]) == 0
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "| medusa (untrained) | 2 |" in tables
    assert "| fast | medusa (untrained) / plain |" in tables
    assert "| medusa |" not in tables
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["method"] for cell in document["cells"]] == ["plain", "medusa (untrained)"]


# --- weights that a checkpoint lacks --------------------------------------------------------------------------------


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """`transformers` makes up what is missing, and says so in a warning that nobody sees."""
    folder = tmp_path / "part"
    small_llama(0, torch.float32).save_pretrained(folder)
    save_tokenizer(folder, [f"w{i}" for i in range(VOCAB)])
    weights = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = r"lacks lm_head\.weight and 1 more weights, which would be random"
    overrides = ["pair=vicuna", f"pair.target={folder}", "pair.draft=null"]
    refused(PairError, rf"pair\.target={folder}: the checkpoint {said}", lambda: load_pair(composed(*overrides)))
    refused(
        TrainingError,
        f"new_draft={folder}: the checkpoint {said}",
        lambda: load_weights(str(folder), "new_draft", VOCAB),
    )


def test_made_up_weights_are_told_in_the_table(run):
    small = ["pair=vicuna", "weights=random", "pair.num_layers=1", "pair.hidden_size=128", "pair.vocab_size=2048"]
    _, out, _ = run(
        *small,
        "data.num_prompts=2",
        "max_new_tokens=3",
        "data.max_input_tokens=9",
        "data.overlong=truncate",
        "baseline=false",
    )
    assert "pair vicuna, weights random, data heldout" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", nightly_but(["dspark", "eagle3", "medusa"], "dspark"))
def test_the_built_in_target_has_heads_of_its_own(kind, run):
    assert composed(f"drafter={kind}").drafter.path == f"asset:tiny/heads/{kind}"
    assert composed(f"drafter={kind}", "drafter.untrained=true").drafter.path is None
    assert composed(f"drafter={kind}", "drafter.path=mine").drafter.path == "mine"
    settings = [f"drafter={kind}", "batch=4", "gamma=3", "data.num_prompts=8", "max_new_tokens=24", "baseline=false"]
    code, out, err = run(*settings, "verifier=greedy")
    assert code == 0, err
    summary = last_document(out)
    assert summary["num_exact"] == 8
    assert summary["acceptance_rate"] > 0.2
