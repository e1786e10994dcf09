"""pair=FOLDER: what training exported is used by naming its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.config.pair_folder import expand_pair_folder, fill_from_folder
from specdec.config.schema import PairConfig
from specdec.core.files import read_lines
from specdec.errors import ConfigError

SMALL = ["data.num_prompts=2", "max_new_tokens=6", "batch=2", "baseline=false"]


def filled(folder, **settings):
    pair = PairConfig(name="folder", folder=str(folder), **settings)
    fill_from_folder(pair)
    return pair


def model_folder(path, **provenance):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if provenance:
        (path / "provenance.json").write_text(json.dumps(provenance))
    return path


def test_only_a_path_is_taken_for_a_folder():
    words = ["pair=tiny", "pair=vicuna,qwen3", "pair.draft=./x", "-m"]
    assert expand_pair_folder(words) == words
    folder = ["pair=folder", "pair.folder='out/my pair'"]
    assert expand_pair_folder(["batch=2", "pair=out/my pair"]) == ["batch=2", *folder]


def test_target_draft_and_tokenizer_lie_beside_each_other(tmp_path):
    for role in ("target", "draft", "tokenizer"):
        (tmp_path / "mine" / role).mkdir(parents=True)
    pair = filled(tmp_path / "mine", draft="another")
    assert (pair.name, pair.draft) == ("mine+another", "another"), "what is set by hand stays, and is told"
    assert pair.target.endswith("mine/target")
    assert pair.tokenizer.endswith("mine/tokenizer")


def test_a_distilled_draft_comes_with_its_target(tmp_path):
    draft = model_folder(tmp_path / "draft", task="distill", config={"frozen": "asset:tiny/target"})
    pair = filled(draft)
    assert (pair.target, pair.draft) == ("asset:tiny/target", str(draft))


def test_a_model_by_itself_is_a_target(tmp_path):
    pair = filled(model_folder(tmp_path / "lm", task="lm"))
    assert pair.target == str(tmp_path / "lm")
    assert pair.draft is None


def test_what_is_no_pair_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        filled(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither target/ nor config\.json"):
        filled(tmp_path / "empty")
    heads = model_folder(tmp_path / "heads", task="heads", config={"heads": {"kind": "medusa"}})
    with pytest.raises(ConfigError, match=rf"drafter=medusa drafter\.path={heads}"):
        filled(heads)


@pytest.mark.slow
def test_the_shipped_pair_by_its_folder_gives_what_its_name_gives(run, tmp_path):
    outputs = []
    for words in (["pair=tiny"], ["pair=specdec/assets/tiny"]):
        code, out, err = run(*words, *SMALL, results=tmp_path)
        assert code == 0, err
        folder = json.loads(out.splitlines()[-1])["path"]
        outputs.append([line["output_ids"] for line in read_lines(Path(folder) / "samples.jsonl")])
    assert outputs[0] == outputs[1]
