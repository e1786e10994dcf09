"""Where training keeps its work, and when settings may be changed."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from specdec.core.files import flatten
from specdec.training import TrainingError
from specdec.training.config import HeadsConfig, TrainConfig
from specdec.training.heads import KINDS
from specdec.training.limits import check_heads
from specdec.training.losses import check_losses
from specdec.training.resolve import output_folder, register_schema, to_dataclass
from specdec.training.stages import keep_settings


def test_the_command_line_names_the_folder_by_the_pair():
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        cfg = compose(config_name="train", overrides=["pair=tiny"])
    assert not isinstance(cfg.pair, str), "an option of the group, with its settings"
    assert str(output_folder(to_dataclass(cfg))) == "outputs/train/tiny"


def test_every_recipe_trains_its_heads_and_yields_to_the_command_line():
    register_schema()
    recipes = {file.name.removesuffix(".yaml") for file in (files("specdec.conf") / "recipe").iterdir()}
    recipes -= {"none", "smollm2_draft_model"}
    kinds = {recipe: recipe for recipe in recipes} | {"smollm2_draft": "eagle3"}
    assert set(kinds.values()) <= KINDS.keys()
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        for recipe, kind in kinds.items():
            cfg = to_dataclass(compose(config_name="train", overrides=[f"recipe={recipe}", "fit.lr=1e-4"]))
            assert (cfg.task, cfg.heads.kind, cfg.fit.lr) == ("heads", kind, 1e-4)
            check_losses(cfg.distill)
            check_heads(cfg.heads, 49152, reducible=KINDS[kind].reducible)
            assert cfg.validation.gamma <= cfg.heads.num_heads  # a block drafts no more


def test_the_two_recipes_for_smollm2_learn_from_the_same_answers():
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        names = ("smollm2_draft", "smollm2_draft_model")
        head, draft = (to_dataclass(compose(config_name="train", overrides=[f"recipe={name}"])) for name in names)
    assert (head.task, draft.task) == ("heads", "distill")
    assert draft.greedy.top_k > 0, "kept, so that the target is asked once"
    draft.greedy.top_k = head.greedy.top_k
    for part in ("frozen", "corpus", "questions", "greedy", "heldout", "seed"):
        assert getattr(head, part) == getattr(draft, part)


@pytest.mark.slow
def test_what_a_recipe_says_stands_against_the_defaults_of_the_command():
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        for file in (files("specdec.conf") / "recipe").iterdir():
            said = flatten({k: v for k, v in (yaml.safe_load(file.read_text()) or {}).items() if k != "defaults"})
            cfg = compose(config_name="train", overrides=[f"recipe={file.name.removesuffix('.yaml')}"])
            composed = flatten(OmegaConf.to_container(cfg))
            assert {key: composed[key] for key in said if key != "fit.phases"} == {
                key: value for key, value in said.items() if key != "fit.phases"
            }


def test_settings_may_be_mended_as_long_as_nothing_was_done(tmp_path):
    def keep(corpus: int, lr: int, force: bool = False) -> None:
        keep_settings(tmp_path, {"corpus": {"path": corpus}, "fit": {"lr": lr}}, force)

    def done(*path: str) -> None:
        tmp_path.joinpath(*path[:-1]).mkdir(exist_ok=True)
        tmp_path.joinpath(*path).touch()

    keep(1, 1)
    keep(2, 1)
    done("tokens", "record.json")
    keep(2, 2)
    with pytest.raises(TrainingError, match=r"other settings \(corpus\.path=2 there, 3 now\): choose another"):
        keep(3, 2)
    done("fit", "last.ckpt")
    keep(2, 2)
    with pytest.raises(TrainingError, match=r"other settings \(fit\.lr=2 there, 3 now\)"):
        keep(2, 3)
    keep(2, 3, force=True)
    assert not [*tmp_path.glob("*/*")], "a forced run that is killed finds nothing of other settings finished"
    done("fit", "last.ckpt")
    keep(2, 3, force=True)
    assert (tmp_path / "fit/last.ckpt").exists()
    keep(2, 3)


def test_a_killed_stage_is_gone_on_with_under_its_own_settings_only(tmp_path):
    keep_settings(tmp_path, {"questions": {"temperature": 1.0}, "fit": {"lr": 1}}, False)
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions/batch_0000.json").touch()
    keep_settings(tmp_path, {"questions": {"temperature": 1.0}, "fit": {"lr": 2}}, False)
    with pytest.raises(TrainingError, match=r"other settings \(questions\.temperature=1\.0 there, 0\.5 now\)"):
        keep_settings(tmp_path, {"questions": {"temperature": 0.5}, "fit": {"lr": 2}}, False)
    (tmp_path / "a_run_below/fit").mkdir(parents=True)
    (tmp_path / "a_run_below/fit/last.ckpt").touch()
    keep_settings(tmp_path, {"questions": {"temperature": 0.5}, "fit": {"lr": 2}}, True)
    assert not (tmp_path / "questions/batch_0000.json").exists()
    assert (tmp_path / "a_run_below/fit/last.ckpt").exists()


def test_rehearsals_and_kinds_of_heads_have_folders_of_their_own():
    folders = [
        output_folder(cfg)
        for cfg in (
            TrainConfig(),
            TrainConfig(rehearse=True),
            TrainConfig(task="distill"),
            TrainConfig(task="heads", heads=HeadsConfig(kind="medusa")),
            TrainConfig(task="heads", heads=HeadsConfig(kind="eagle")),
        )
    ]
    assert [folder.name for folder in folders] == ["tiny", "tiny-rehearsal", "distill", "medusa", "eagle"]
