"""Names of pairs: from the checkpoints that are given, or as set; and two pairs of one name never in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import short_only
from conftest import VOCAB, last_document, perturbed, small_llama
from hydra import compose, initialize_config_module
from test_pair import save_tokenizer

import specdec
from specdec import analysis
from specdec.config.resolve import resolve
from specdec.models import pair as pair_module
from specdec.models.pair import load_pair
from specdec.report.__main__ import main as report
from specdec.report.content import collect
from specdec.report.texts import prompts

SMALL = ["max_new_tokens=5", "batch=2", "scheduler=static", "baseline=false", "stop_tokens=[]"]
PRESETS = sorted({path.stem for path in Path(specdec.__path__[0], "conf", "pair").glob("*.yaml")} - {"folder"})


@pytest.fixture(autouse=True)
def _fresh_cache():
    pair_module._cache.clear()


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", short_only(PRESETS, "tiny", "smollm2_135m"))
def test_a_preset_has_its_own_name(preset):
    assert composed(f"pair={preset}").pair.name == preset
    assert composed(f"pair={preset}", "pair.draft=null").pair.name == preset, "without a draft it is the same target"


@pytest.mark.parametrize(
    ("overrides", "name"),
    short_only(
        [
            ("pair.target=/a/mine/target pair.draft=/a/mine/draft", "mine"),
            ("pair.target=/a/large pair.draft=/b/small", "large+small"),
            ("pair.draft=/b/small", "tiny+small"),
            ("pair.target=/a/large", "large+tiny"),
            ("pair=vicuna pair.target=/a/vicuna-ft/checkpoint-300 pair.draft=null", "vicuna-ft-checkpoint-300"),
            ("pair=qwen3 pair.draft=org/other-0.5B", "qwen3+other-0.5B"),
            ("pair=synthetic weights=pretrained pair.target=/a/one/export/target", "one"),
            (f"pair.target=/hub/models--org--Nice-1B/snapshots/{'0a' * 20} pair.draft=null", "Nice-1B"),
            ("pair.target=/a/large pair.draft=/b/small pair.name=ours", "ours"),
            ("pair=qwen3 pair.target=/a/Qwen3-8B pair.draft=/a/Qwen3-0.6B pair.name=qwen3", "qwen3"),
        ],
        "pair.target=/a/mine/target pair.draft=/a/mine/draft",
        "pair.target=/a/large",
        "pair.target=/a/large pair.draft=/b/small pair.name=ours",
    ),
)
def test_other_checkpoints_give_their_names_unless_one_is_set(overrides, name):
    assert composed(*overrides.split()).pair.name == name


@pytest.mark.slow
def test_fingerprints_follow_what_decides_made_up_weights():
    """Not the pair's name or threads, by which tables would be parted for nothing."""
    base = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3"]
    prints = []
    for more in ([], ["pair.name=other"], ["pair.threads=1"], ["pair.synthetic.residual_scale=0.3"], ["seed=3"]):
        pair_module._cache.clear()
        prints.append(load_pair(composed(*base, *more)).fingerprint)
    assert prints[0] == prints[1] == prints[2]
    assert len(set(prints)) == 3


def test_a_folder_that_holds_other_weights_is_loaded_again(tmp_path):
    """In one process, as a notebook is: the results would be recorded as those of the new weights."""
    prints = []
    for seed in (1, 2):
        pair = load_pair(composed(*save_pair(tmp_path / "mine", seed)))
        prints.append(pair.fingerprint)
        assert torch.equal(pair.target.module.lm_head.weight, small_llama(seed, torch.float32).lm_head.weight)
    assert len(set(prints)) == 2


# --- runs and reports -----------------------------------------------------------------------------------------------


def save_pair(folder: Path, seed: int) -> list[str]:
    """Two models under names that say nothing; returns the overrides that load them."""
    target = small_llama(seed, torch.float32)
    target.save_pretrained(folder / "target")
    perturbed(target, 0.04).save_pretrained(folder / "draft")
    save_tokenizer(folder / "target", [f"w{(i + 7 * seed) % VOCAB}" for i in range(VOCAB)])
    save_tokenizer(folder / "draft", [f"w{(i + 7 * seed) % VOCAB}" for i in range(VOCAB)])
    target, draft = folder / "target", folder / "draft"
    return [f"pair.target={target}", f"pair.draft={draft}", f"pair.tokenizer={target}"]


def write_words(path: Path) -> Path:
    questions = [{"question_id": n, "category": "c", "turns": [f"w{n} w4 w5"]} for n in range(3)]
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.jsonl")


@pytest.mark.slow
def test_two_pairs_of_other_folders_have_names_of_their_own(run, tmp_path, data):
    results = tmp_path / "results"
    for name in ("one", "two"):
        code, out, err = run(*save_pair(tmp_path / name, len(name)), *SMALL, "data=jsonl", f"data.path={data}")
        assert code == 0, err
        assert f"pair {name}, " in out
        assert last_document(out)["pair"] == name
    assert sorted(analysis.load(results)["pair"]) == ["one", "two"]


@pytest.fixture(scope="module")
def alike(tmp_path_factory, data) -> tuple[Path, list[str]]:
    """Results of two pairs in folders of one name, at two batch sizes each, and the marks that tell them apart."""
    import sys

    from specdec.cli import run as cli

    root = tmp_path_factory.mktemp("alike")
    marks = []
    for place, batches in (("a", "1,2"), ("b", "1,2")):
        seed = ord(place)
        arguments = [*save_pair(root / place / "mine", seed), *SMALL[:1], *SMALL[2:], f"batch={batches}", "-m"]
        arguments += ["data=jsonl", f"data.path={data}", f"results_dir={root / 'results'}"]
        before, sys.argv = sys.argv, ["run.py", *arguments]
        try:
            cli.main()
        finally:
            sys.argv = before
        summaries = [json.loads(path.read_text()) for path in (root / "results").glob("*/summary.json")]
        marks += sorted({f"{s['target_fingerprint'][:6]}+{s['draft_fingerprint'][:6]}" for s in summaries} - set(marks))
    return root / "results", marks


@pytest.mark.slow
def test_two_pairs_of_one_name_are_told_apart_by_their_fingerprints(alike):
    results, marks = alike
    assert len(marks) == 2
    points = analysis.load(results)
    assert set(points["pair"]) == {f"mine {mark}" for mark in marks}
    assert set(points["pair.name"]) == {"mine"}
    assert set(analysis.samples(results)["pair"]) == set(points["pair"])


@pytest.mark.slow
def test_a_report_parts_them(alike, tmp_path):
    results, marks = alike
    content = collect([results])
    assert sorted(group.keys["pair"] for group in content.groups) == sorted(f"mine {mark}" for mark in marks)
    assert all(len({point["target_fingerprint"] for point in group.points}) == 1 for group in content.groups)
    assert report([str(results), "--format", "html,md,latex,csv", "--out", str(tmp_path)]) == 0
    for name in ("report.html", "report.md", "report.tex", "points.csv"):
        text = (tmp_path / name).read_text()
        assert all(mark in text for mark in marks), name
    assert (tmp_path / "report.md").read_text().count("## pair mine ") == 2


def test_a_report_that_is_asked_to_mix_them_names_them_in_every_row(alike):
    """Curves are drawn by method: two pairs would share one, and their samples would be read with one tokenizer."""
    results, _ = alike
    content = collect([results], ["data"])
    (group,) = content.groups
    methods = {point["method"] for point in group.done}
    assert methods == {f"static inplace {point['pair']}" for point in group.done}
    assert len(methods) == 2
    shown = prompts(content, group, 10)
    texts = {json.loads(line)["text"] for path in results.glob("*/samples.jsonl") for line in path.open()}
    for prompt in shown:
        for rendering in prompt.renderings:
            assert "".join(piece.text for piece in rendering.pieces) in texts


@pytest.mark.slow
def test_the_table_of_a_sweep_tells_them_apart(run, tmp_path, data):
    from specdec.cli.table import print_table

    outcomes = []
    for place in ("a", "b"):
        arguments = [*save_pair(tmp_path / place / "mine", ord(place)), *SMALL, "data=jsonl", f"data.path={data}"]
        outcomes.append(last_document(run(*arguments)[1]))
    assert [outcome["pair"] for outcome in outcomes] == ["mine", "mine"]
    print_table(outcomes)
    marks = [f"{o['target_fingerprint'][:6]}+{o['draft_fingerprint'][:6]}" for o in outcomes]
    assert len(set(marks)) == 2
    code, out, _ = run(*arguments)  # what print_table has said is before this run's own table
    assert code == 0
    assert all(f"mine {mark}" in out for mark in marks)


@pytest.mark.slow
def test_two_files_of_prompts_of_one_name_are_told_apart(run, tmp_path, data):
    results = tmp_path / "results"
    overrides = save_pair(tmp_path / "one", 1)
    for place, text in (("a", "w1 w4"), ("b", "w2 w5")):
        path = tmp_path / place / "words.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps({"question_id": 1, "category": "c", "turns": [text]}) + "\n")
        code, _, err = run(*overrides, *SMALL, "data=jsonl", f"data.path={path}")
        assert code == 0, err
    points = analysis.points(results)
    assert {point["data"] for point in points} == {f"words {point['data_fingerprint'][:6]}" for point in points}
    assert len({point["data"] for point in points}) == len(collect([results]).groups) == 2


def test_heads_in_other_folders_are_other_models():
    common = {"pair": "p", "data": "d", "label": "r", "scheduler": "static", "alignment": "eqspec", "drafter": "eagle"}
    found = [{**common, "batch": batch, "drafter.path": path} for batch, path in ((1, "a"), (2, "b"))]
    analysis.name_methods(found)
    assert [point["method"] for point in found] == ["static a", "static b"]


def test_a_fingerprint_that_is_not_known_parts_nothing():
    """Results of before there was one, and a pair with and without its draft."""
    from specdec.config.labels import tell_apart

    points = [
        {"pair": "p", "target_fingerprint": t, "draft_fingerprint": d}
        for t, d in ((None, None), ("t", None), ("t", "d"))
    ]
    tell_apart(points)
    assert {point["pair"] for point in points} == {"p"}
