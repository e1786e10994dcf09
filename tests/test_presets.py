"""Presets: each composes, carries its own sweep, and runs in a debug size; several of them in one command."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import pytest
from cases import short_only
from conftest import last_document
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from specdec.cli.presets import split_presets
from specdec.config.identity import identity
from specdec.config.resolve import resolve
from specdec.core.columns import COLUMNS
from specdec.core.files import flatten
from specdec.core.prompts import load_prompts
from specdec.errors import ConfigError
from specdec.report.published import published
from specdec.run.folder import RunFolder

PAPER = published()
FOLDER = files("specdec.conf") / "experiment"
PRESETS = sorted(file.name.removesuffix(".yaml") for file in FOLDER.iterdir() if file.name.endswith(".yaml"))
PAPERS = [name for name in PRESETS if name.startswith("paper_")]
TINY = ["debug=fast", "data.num_prompts=2", "max_new_tokens=3", "warmup=false", "progress=false"]


@cache
def composed(*overrides: str):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return compose(config_name="config", overrides=list(overrides), return_hydra_config=True)


@cache
def swept(name: str) -> dict[str, list[str]]:
    params = OmegaConf.select(composed(f"experiment={name}"), "hydra.sweeper.params") or {}
    return {str(key): str(values).split(",") for key, values in params.items()}


def own(cfg):
    return OmegaConf.create({key: cfg[key] for key in cfg if key != "hydra"})


@pytest.mark.parametrize("name", short_only(PAPERS, "paper_table2", ci=["paper_table4"]))
def test_every_point_of_a_preset_composes(name):
    cfg = composed(f"experiment={name}")
    assert cfg.experiment == name
    assert cfg.hydra.mode.name == "MULTIRUN"
    params = swept(name)
    assert params
    for place in range(max(map(len, params.values()))):  # every value of every setting, not every combination
        point = [f"{key}={values[place % len(values)]}" for key, values in params.items()]
        resolve(own(composed(f"experiment={name}", *point)))
    fast = resolve(own(composed(f"experiment={name}", "debug=fast")))
    assert (fast.data.num_prompts, fast.max_new_tokens) == (4, 8), "debug=fast wins over the preset's own size"


def test_the_paper_has_a_preset_for_every_table_and_figure():
    assert set(PAPERS) >= {f"paper_{name}" for name in ("table1", "table2", "table4")}
    assert set(PAPERS) >= {f"paper_figure{name}" for name in ("1", "5a", "5b", "5c")}
    assert set(PAPER) <= set(PAPERS)
    assert swept("paper_table1")["scheduler"] == ["plain", "eqspec", "exspec", "bsp", "dsd"]
    ablations = swept("paper_figure5c")
    assert len(ablations["data.prompt_tokens"]) == len(ablations["batching"]) == len(ablations["batching.window"]) == 2


def test_a_preset_does_not_split_identities():
    shared = ["scheduler=eqspec", "batch=4"]
    one, other = (resolve(own(composed(f"experiment=paper_figure{name}", *shared))) for name in ("1", "5a"))
    assert one.experiment != other.experiment
    assert RunFolder("r", identity(one)).hash == RunFolder("r", identity(other)).hash


# --- several presets in one command -------------------------------------------------------------------------------


def test_a_command_with_several_presets_is_split():
    lines = split_presets(["experiment=paper_table1,paper_figure5c", "batch=2", "pair=tiny", "-m"])
    assert len(lines) == 2
    assert lines[0][:3] == [
        "experiment=paper_table1",
        "hydra.sweeper.params=null",
        "scheduler=plain,eqspec,exspec,bsp,dsd",
    ]
    assert lines[1][0] == "experiment=paper_figure5c"
    assert "data.prompt_tokens=64,null" in lines[1]
    assert not [part for part in lines[1] if part.startswith("batch=") and part != "batch=2"]
    assert all(line[-3:] == ["batch=2", "pair=tiny", "-m"] for line in lines)
    folders = [part for line in lines for part in line if part.startswith("hydra.sweep.dir=")]
    assert len(set(folders)) == 2


def test_other_commands_are_left_as_they_are():
    for line in (["batch=1,2", "-m"], ["--cfg", "job"], [], ["experiment=quickstart"], ["experiment=null", "batch=2"]):
        assert split_presets(line) == [line]
    assert split_presets(["-m", "experiment=paper_table2", "gamma=3"]) == [["-m", "experiment=paper_table2", "gamma=3"]]
    with pytest.raises(ConfigError, match=r"unknown experiment 'paper_tabel1'.*did you mean 'paper_table1'"):
        split_presets(["experiment=paper_table2,paper_tabel1", "-m"])


@pytest.fixture
def sweep(run, tmp_path):
    """A sweep in a debug size; returns exit code and stdout."""

    def call(*arguments: str) -> tuple[int, str]:
        code, out, _ = run(*arguments, *TINY, "-m", results=tmp_path)
        return code, out

    return call


@pytest.mark.nightly
def test_presets_run_one_after_the_other_each_with_its_own_sweep(sweep, tmp_path):
    """The command of the README, in a debug size, with one batch size and one window."""
    code, out = sweep("experiment=paper_table1,paper_table2,paper_figure5c", "batch=2", "batching.window=16")
    assert code == 0, out
    points = last_document(out)["points"]
    by_preset = {name: [p for p in points if p["preset"] == name] for name in PAPERS}
    assert [p["scheduler"] for p in by_preset["paper_table1"]] == ["plain", "eqspec", "exspec", "bsp", "dsd"]
    assert [p["scheduler"] for p in by_preset["paper_table2"]] == ["eqspec", "exspec"]
    assert len({(p["lengths"], p["batching"], p["window"]) for p in by_preset["paper_figure5c"]}) == 4
    assert all(p["num_exact"] == 2 for p in points if p["scheduler"] not in ("bsp", "dsd"))
    for name in ("paper_table1", "paper_table2", "paper_figure5c"):
        assert f"{name}: pair tiny" in out
    assert {"identical", "random"} == {p["lengths"] for p in by_preset["paper_figure5c"]}


@pytest.mark.nightly
def test_points_that_presets_share_are_computed_once_and_listed_under_all(sweep, tmp_path):
    """paper_table4 runs in test_serving.py."""
    code, out = sweep("experiment=paper_figure1,paper_figure5a,paper_figure5b", "batch=2", "baseline=false")
    assert code == 0, out
    points = last_document(out)["points"]
    assert all(p["num_exact"] == p["num_prompts"] == 2 for p in points)
    eqspec = [p for p in points if p["scheduler"] == "eqspec"]
    assert len(eqspec) == 3
    assert len({p["hash"] for p in eqspec}) == 1
    summary = json.loads((tmp_path / eqspec[0]["hash"] / "summary.json").read_text())
    assert summary["experiments"] == ["paper_figure1", "paper_figure5a", "paper_figure5b"]


# --- prompts of one length ----------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of letters: weightless, and lengths are easy to see."""

    chat_template = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


@pytest.mark.slow
def test_prompts_of_one_length_go_on_with_those_after_them(tmp_path):
    path = tmp_path / "data.jsonl"
    texts = ["abc", "defgh", "i"]
    path.write_text(
        "".join(json.dumps({"question_id": i, "category": "c", "turns": [t]}) + "\n" for i, t in enumerate(texts))
    )

    def prompts(*overrides: str) -> list[str]:
        data = composed("data=jsonl", f"data.path={path}", *overrides).data
        return ["".join(map(chr, prompt.ids)) for prompt in load_prompts(data, Letters(), 20)[0]]

    assert prompts() == texts
    assert prompts("data.prompt_tokens=4") == ["abcd", "defg", "iabc"]
    assert prompts("data.prompt_tokens=12") == ["abcdefghiabc", "defghiabcdef", "iabcdefghiab"]
    with pytest.raises(ConfigError, match=r"data.prompt_tokens=21: it must be from 1 to 20"):
        prompts("data.prompt_tokens=21")


# --- the paper's figures ------------------------------------------------------------------------------------------


def test_the_papers_figures_are_keyed_like_summaries():
    cells = {
        (r["experiment"], r["method"], r["pair"], r["batch"], r["metric"], r.get("lengths"))
        for p in PAPER.values()
        for r in p
    }
    rows = [row for rows in PAPER.values() for row in rows]
    assert len(cells) == len(rows), "no cell twice"
    assert len(PAPER["paper_table1"]) == 2 * (3 + 3 + 4 * 6), "two metrics: plain, HF, and four methods at two batches"
    value = {(r["method"], r["pair"], r["batch"], r["metric"]): r["value"] for r in PAPER["paper_table1"]}
    assert value["exspec", "vicuna", 4, "exact_match"] == pytest.approx(0.908)
    assert value["bsp", "qwen3", 1, "partial_match"] == pytest.approx(0.199)
    assert all(0 <= row["value"] <= 1 for row in PAPER["paper_table1"] + PAPER["paper_figure5c"])
    shares = {r["metric"]: r["value"] for r in PAPER["paper_table2"] if r["method"] == "eqspec"}
    parts = shares["verify_share"] + shares["draft_share"] + shares["alignment_overhead"]
    assert parts == pytest.approx(1.0)
    assert shares["verify_s_per_call"] == pytest.approx(0.0249)


def test_the_papers_metrics_are_found_in_a_summary():
    def ours(summary: dict, metric: str) -> float | None:
        return COLUMNS[metric].value(flatten(summary))

    summary = {"verify_s": 2.0, "draft_s": 1.0, "decode_s": 4.0, "num_verify_calls": 100, "latency_s": {"p99": 7.0}}
    assert ours(summary, "verify_s_per_call") == 0.02
    assert ours(summary, "verify_share") == 0.5
    assert ours(summary, "latency_s.p99") == 7.0
    assert ours(summary, "latency_s.p50") is None
    assert ours(summary, "exact_match") is None
    assert ours({}, "draft_share") is None
