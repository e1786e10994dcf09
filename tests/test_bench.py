"""The benchmark suite: order, resuming and claims."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cases import short_only
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from specdec.bench import machine
from specdec.bench.__main__ import main
from specdec.bench.claims import judge
from specdec.bench.plan import BenchCell, pairs, steps, turn
from specdec.bench.prompts import cell_prompts, uneven
from specdec.bench.suite import FOLDER, Claim, Study, load_suite
from specdec.config.resolve import resolve
from specdec.core.files import read_lines
from specdec.core.lock import locked
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError

SMALL = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "pair.synthetic.residual_scale=0.02"]
HF = str(FOLDER / "peers" / "peer_hf.py")


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=[*SMALL, "baseline=false", *overrides]))


# --- what is measured, and in which order -----------------------------------------------------------------------------


def test_every_turn_takes_every_method_once_and_begins_elsewhere():
    turns = [turn(["a", "b", "c"], repeat) for repeat in range(3)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


@pytest.mark.parametrize(
    "name", short_only(sorted(path.stem for path in (FOLDER / "suite").glob("*.yaml")), "quick", "real", "gpu")
)
def test_the_suites_are_whole(name):
    suite, library = load_suite([f"suite={name}"])
    planned = [step for pair in pairs(suite) for step in steps(suite, library, pair)]
    assert len({step.key for step in planned}) == len(planned) > 0
    for claim in suite.claims:  # a claim that names no measurement would never be judged
        study = suite.studies[claim.study]
        others = [claim.over] if claim.over and not claim.over.startswith("published:") else []
        assert {claim.method, *others} <= set(study.methods)
        assert set(claim.batches or []) <= set(study.batches)
        assert set(claim.pairs or []) <= set(study.pairs)
        assert set(claim.contexts or []) <= set(study.contexts)


@pytest.mark.slow
def test_a_key_changes_with_what_decides_the_measurement():
    def keys(*words):
        suite, library = load_suite(["suite=quick", *words])
        return {step.key for pair in pairs(suite) for step in steps(suite, library, pair)}

    assert keys() == keys("out=elsewhere", "progress=false")
    assert keys() < keys("repeats=5")
    assert not keys() & keys("threads=2")
    assert not keys() & keys("studies.quick.max_new_tokens=7")
    assert not keys() & keys("studies.quick.spread=0.5", "without=[hf-generate]")


@pytest.mark.parametrize(
    ("words", "message"),
    short_only(
        [
            (["suite=quikc"], "did you mean 'quick'"),
            (["suite=quick", "repeat=3"], "repeat"),
            (["suite=quick", "studies.quick.methods=[inplce]"], "did you mean 'inplace'"),
            (["suite=quick", "threads"], "KEY=VALUE"),
            (["suite=quick", "studies.quick.spread=1.5"], "spread=1.5: it must be from 0 to below 1"),
            (["suite=two_core", "studies.engines.spread=0.5"], "other engines take one max_new_tokens"),
            (["suite=quick", "folder=/nowhere"], "methods.yaml"),
        ],
        ["suite=quikc"],
        ["suite=quick", "threads"],
        ["suite=quick", "studies.quick.spread=1.5"],
    ),
)
def test_wrong_words_are_one_line(words, message, capsys):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_two_benchmarks_at_once_are_refused(tmp_path, capsys):
    with locked(tmp_path, "bench"):
        assert main(["suite=quick", f"cache={tmp_path}", f"out={tmp_path / 'out'}"]) == 1
    assert "another benchmark is running" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_of_uneven_length_spread_evenly_around_the_usual_one():
    prompts = uneven([Prompt(i, i, "c", [1]) for i in range(400)], longest=150, spread=0.5)
    budgets = sorted(prompt.max_new_tokens for prompt in prompts)
    assert budgets[0] == 50
    assert budgets[-1] in (149, 150)
    assert abs(sum(budgets) / len(budgets) - 100) < 1
    assert abs(budgets[100] - 75) <= 2, "a quarter of them is done at a quarter of the range"
    assert Study("t", [], [], [], max_new_tokens=100, spread=0.5).longest_output == 150


def test_prompts_of_a_set_length_are_ragged_and_repeatable():
    pool = [Prompt(i, i, "c", list(range(10 * i, 10 * i + 7))) for i in range(3)]
    chosen = cell_prompts(pool, 8, 40, limit=50)
    lengths = [len(prompt.ids) for prompt in chosen]
    assert len(chosen) == 8
    assert all(32 < length <= 40 for length in lengths)
    assert len(set(lengths)) > 1
    assert chosen[1].ids[:9] == [*pool[1].ids, *pool[2].ids[:2]]
    assert [prompt.ids for prompt in cell_prompts(pool, 3, None, 50)] == [prompt.ids for prompt in pool]
    with pytest.raises(ConfigError, match="contexts=60"):
        cell_prompts(pool, 1, 60, limit=50)


def test_prompts_with_a_chat_template_are_not_cut():
    pool = [Prompt(i, i, "c", list(range(size))) for i, size in enumerate((10, 33, 200, 40, 31, 41))]
    chosen = cell_prompts(pool, 3, 40, limit=50, whole=True)
    assert [prompt.ids for prompt in chosen] == [pool[1].ids, pool[3].ids, pool[1].ids]
    with pytest.raises(ConfigError, match="no prompt of data has 16 to 20 tokens"):
        cell_prompts(pool, 1, 20, limit=50, whole=True)


# --- a suite from end to end ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small suite of its own: two methods, a peer in this environment, one that is missing, one that fails."""
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda *_: None, raising=False)  # other tests want all cores
    files = {
        "pairs.yaml": {"small": SMALL},
        "peers.yaml": {
            "here": {"script": HF, "environment": "current"},
            "absent": {"script": HF, "environment": "absent"},
        },
        "methods.yaml": {
            "plain": {"overrides": ["scheduler=plain"]},
            "eqspec": {"overrides": ["scheduler=static", "alignment=inplace"]},
            "broken": {"overrides": ["scheduler=no_such_scheduler"]},
            "hf": {"peer": "here"},
            "hf-assisted": {"peer": "here", "options": {"speculative": True}, "batches": [1]},
            "absent": {"peer": "absent"},
        },
        "published.yaml": {
            "elsewhere": {"label": "published figures, other machine", "tokens_per_s": {"small": {2: 9}}}
        },
        "suite/own.yaml": {
            "title": "Own",
            "repeats": 2,
            "progress": False,
            "studies": {
                "s": {
                    "title": "All",
                    "pairs": ["small"],
                    "methods": ["plain", "eqspec", "broken", "hf", "hf-assisted", "absent"],
                    "batches": [1, 2],
                    "min_prompts": 3,
                    "max_new_tokens": 6,
                    "baseline": "plain",
                    "published": ["elsewhere"],
                }
            },
            "claims": [
                {"text": "is measured", "study": "s", "method": "eqspec", "over": "plain", "at_least": 0},
                {"text": "impossible", "study": "s", "method": "eqspec", "over": "plain", "at_least": 1e6},
                {"text": "cannot be told", "study": "s", "method": "absent", "over": "plain", "at_least": 0},
            ],
        },
    }
    for name, document in files.items():
        path = tmp_path / "speed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(document), path)
    return tmp_path


def bench(folder, *words):
    return main(
        ["suite=own", f"folder={folder / 'speed'}", f"out={folder / 'out'}", f"cache={folder / 'cache'}", *words]
    )


def records(folder):
    return list(read_lines(folder / "out" / "measurements.jsonl"))  # all but a torn last line


@pytest.mark.slow
def test_a_suite_measures_every_cell_once_and_says_why_it_did_not(folder, capsys):
    assert bench(folder) == 1, "a method that fails is told by the exit code"
    out = capsys.readouterr().out
    document = json.loads((folder / "out" / "results.json").read_text())
    cells = {(cell["method"], cell["batch"]): cell for cell in document["cells"]}
    for method, batch in (
        ("plain", 1),
        ("plain", 2),
        ("eqspec", 1),
        ("eqspec", 2),
        ("hf", 1),
        ("hf", 2),
        ("hf-assisted", 1),
    ):
        cell = cells[method, batch]
        assert (cell["status"], cell["num_measured"]) == ("done", 2)
        assert (cell["num_exact"], cell["num_prompts"]) == (max(3, 2 * batch), max(3, 2 * batch))
        assert cell["tokens_per_s"]["value"] > 0
    assert cells["hf-assisted", 2]["status"] == "refused"
    assert cells["absent", 1]["status"] == "not installed"
    assert "install.py absent" in cells["absent", 1]["error"]
    assert cells["broken", 1]["status"] == "failed"
    assert "no_such_scheduler" in cells["broken", 1]["error"]
    assert all("tokens_per_s" not in cell for cell in cells.values() if cell["status"] != "done"), "never a zero"
    verdicts = [claim["verdict"] for claim in document["claims"]]
    assert verdicts == ["met", "met", "NOT MET", "NOT MET", "not measured", "not measured"]

    assert "| absent | not installed | not installed | - |" in out
    assert "published figures, other machine" in out
    assert json.loads(out.strip().splitlines()[-1])["claims_met"] == 2
    latex = (folder / "out" / "tables.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    assert (folder / "out" / "s-small-throughput.svg").stat().st_size > 1000

    before = records(folder)
    done = [record for record in before if record["status"] == "done"]
    stopped = [record for record in before if record not in done[-3:]]  # as if without the last three
    lines = "".join(json.dumps(record) + "\n" for record in stopped)
    (folder / "out" / "measurements.jsonl").write_text(lines + '{"key')
    bench(folder)
    again = records(folder)
    assert again[: len(stopped)] == stopped
    taken = [record for record in again[len(stopped) :] if record["status"] == "done"]
    assert sorted(record["key"] for record in taken) == sorted(record["key"] for record in done[-3:])
    others = {record["method"] for record in again[len(stopped) :] if record["status"] != "done"}
    assert others == {"broken", "absent", "hf-assisted"}, "what could not be measured is tried again"


def test_outputs_of_uneven_length_are_compared_up_to_their_own_ends(folder):
    words = ("studies.s.spread=0.5", "studies.s.methods=[plain,eqspec]", "studies.s.batches=[2]", "claims=[]")
    assert bench(folder, *words) == 0
    ends = [prompt.max_new_tokens for prompt in uneven([Prompt(i, i, "c", [1]) for i in range(4)], 9, 0.5)]
    assert 3 <= min(ends) < max(ends) <= 9
    for record in records(folder):
        assert record["num_exact"] == record["num_prompts"] == 4
        assert record["num_output_tokens"] == sum(ends)


@pytest.mark.slow
def test_a_file_of_prompts_that_is_not_there_is_told_before_anything_is_measured(folder, capsys):
    words = ("data=/nowhere.jsonl", "studies.s.methods=[plain]", "studies.s.batches=[2]", "claims=[]", "repeats=1")
    assert bench(folder, *words) == 1
    assert capsys.readouterr().err.count("data=/nowhere.jsonl: no such file") == 1
    assert not records(folder)
    assert bench(folder, *words, "studies.s.data=heldout") == 0, "a study may have prompts of its own"
    assert len(records(folder)) == 1


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_judged_by_its_median():
    suite, library = load_suite(["suite=quick"])
    cells = {
        BenchCell("quick", "tiny", None, 8, method): [
            {"repeat": repeat, "status": "done", "tokens_per_s": rate} for repeat, rate in enumerate(rates)
        ]
        for method, rates in (("inplace", [10.0, 30.0, 20.0]), ("eqspec", [10.0, 10.0, 12.0]))
    }
    claim = Claim("twice as fast", "quick", "inplace", over="eqspec", batches=[8], at_least=2.0)
    (line,) = judge(claim, suite, library, cells)
    assert (line["value"]["value"], line["verdict"]) == (2.0, "met")
    claim.at_least = 2.1
    assert judge(claim, suite, library, cells)[0]["verdict"] == "NOT MET"


def test_a_figure_of_another_machine_is_scaled_by_what_ran_on_both():
    suite, library = load_suite(["suite=quick"])
    published = {"code": {"tokens_per_s": {"tiny": {8: 30.0}}}, "hf": {"tokens_per_s": {"tiny": {8: 100.0}}}}
    library = replace(library, published=published)
    cells = {
        BenchCell("quick", "tiny", None, 8, method): [{"repeat": 0, "status": "done", "tokens_per_s": rate}]
        for method, rate in (("inplace", 60.0), ("eqspec", 50.0))
    }
    claim = Claim("faster", "quick", "inplace", over="published:code", batches=[8])
    assert judge(claim, suite, library, cells)[0]["value"]["value"] == 2.0
    claim.yardstick = "eqspec=hf"  # this machine gives half of what that one did
    assert judge(claim, suite, library, cells)[0]["value"]["value"] == 4.0
    claim.yardstick = "masked=hf"
    assert judge(claim, suite, library, cells)[0]["verdict"] == "not measured"
