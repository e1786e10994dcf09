"""Drafters over the target's hidden states: lossless with every alignment, lawful drafts, and training that helps."""

import pytest
import torch
from cases import nightly_but
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.reader import Reader
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.context import DrafterContext
from specdec.drafters.trained import loaded, save_heads
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training.acceptance import HeldoutPrompt
from specdec.training.accuracies import measure_accuracies
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig, ValidationConfig
from specdec.training.heads import KINDS, HeadsObjective
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier

TRAINED = ("medusa", "eagle", "ppd", "early_exit")
NEW_TOKENS = 14


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def own_text(model) -> torch.Tensor:
    """Greedy outputs of the target, which is what it will be asked for again."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(VOCAB, (24, 1), generator=generator)
    return model.module.generate(starts, max_new_tokens=28, do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.fixture(scope="module")
def folders(model, own_text, tmp_path_factory):
    """Each kind trained for a few dozen steps: the folder, the first and the last loss."""
    made = {}
    for kind in TRAINED:
        cfg = HeadsConfig(kind=kind, num_heads=3, layer=2, num_insertions=8)
        torch.manual_seed(0)
        module = KINDS[kind].build(model.module, cfg).double().train()
        objective = HeadsObjective(
            KINDS[kind], model.module, cfg, seed=0, losses=LossConfig(argmax=0.0, forward_kl=1.0)
        )
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-1 if kind == "ppd" else 1e-2)
        counted = torch.ones_like(own_text, dtype=torch.bool)
        losses = []
        for step in range(60):
            loss = objective(module, Batch(own_text, counted, {"batches": step}), step).mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        folder = tmp_path_factory.mktemp(kind)
        save_heads(folder, kind, KINDS[kind].settings(cfg), module, model)
        made[kind] = (str(folder), losses[0], losses[-1])
    model.module.requires_grad_(False)
    return made


def context_for(model: CausalLM, alignment: str) -> tuple[DrafterContext, Clock]:
    clock = Clock()
    return DrafterContext(model, None, lambda other: ALIGNMENTS[alignment](other, clock), clock), clock


def engine_for(model, alignment, kind, *, scheduler="static", verifier=None, **settings):
    context, _ = context_for(model, alignment)
    drafter = create("drafter", kind, context, **settings)
    return make_engine(
        model,
        drafter=drafter,
        alignment=ALIGNMENTS[alignment],
        scheduler=scheduler,
        verifier=verifier,
        batch=3,
        gamma=3,
    )


@pytest.fixture(scope="module")
def truth(model, prompts):
    return [greedy_alone(model, prompt, NEW_TOKENS, frozenset()) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("alignment", nightly_but(ALIGNMENTS, "inplace", "eqspec"))
@pytest.mark.parametrize("kind", TRAINED)
def test_lossless_with_every_alignment(model, prompts, truth, folders, kind, alignment):
    engine = engine_for(model, alignment, kind, scheduler="exspec", path=folders[kind][0])
    budgets = [NEW_TOKENS - i % 4 for i in range(len(prompts))]
    rows, rounds = run_all(engine, prompts, budgets)
    for row, expected in zip(rows, truth, strict=True):
        assert row.output_ids == expected[: row.max_new_tokens]
    for outcome in rounds:  # probes are not counted as drafted
        assert all(map(int.__le__, outcome.num_accepted, outcome.num_drafted))
        assert max(outcome.num_drafted) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_a_batch_is_refilled_while_others_draft(model, prompts, truth, folders, kind):
    engine = engine_for(model, "inplace", kind, scheduler="continuous", path=folders[kind][0])
    rows, _ = run_all(engine, prompts, [NEW_TOKENS - i % 5 for i in range(len(prompts))])
    assert [row.output_ids for row in rows] == [t[: r.max_new_tokens] for r, t in zip(rows, truth, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_training_lowers_the_loss_and_lifts_acceptance(model, own_text, folders, kind):
    folder, first, last = folders[kind]
    assert last < 0.8 * first
    asked = [row[:3].tolist() for row in own_text[:8]]
    shape = {"num_heads": 3} if kind == "medusa" else {"num_tokens": 3} if kind == "ppd" else {}
    shape["untrained"] = True
    accepted = []
    for settings in (shape, {"path": folder}):
        rows, _ = run_all(engine_for(model, "inplace", kind, **settings), asked, 20)
        accepted.append(sum(row.num_accepted for row in rows) / sum(row.num_drafted for row in rows))
    assert accepted[1] > accepted[0]


def sampled(engine, prompts, seed):
    params = SamplingParams(temperature=1.0, seed=seed)
    rows = [Sequence(i, list(prompt), 8, sampling=params) for i, prompt in enumerate(prompts)]
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)
    return [row.output_ids for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_naive_sampling_gives_the_tokens_of_plain_sampling(model, prompts, folders, kind):
    plain = sampled(make_engine(model, alignment=ALIGNMENTS["inplace"], verifier=NaiveVerifier()), prompts, 5)
    engine = engine_for(model, "inplace", kind, verifier=NaiveVerifier(), path=folders[kind][0])
    assert sampled(engine, prompts, 5) == plain


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["medusa", "eagle"])
def test_drafts_come_with_the_law_they_were_drawn_from(model, folders, kind):
    """With rejection sampling proved for any draft law, the law that is told being the law of the draw is the rest."""
    prompt, num_draws, counts = [5, 9, 2, 40], 3000, torch.zeros(VOCAB)
    context, _ = context_for(model, "inplace")
    drafter = create("drafter", kind, context, path=folders[kind][0])
    reader = Reader(context.align(model), drafter.observe_hidden, drafter.hidden_layers)
    rows = [Sequence(i, prompt, 8, sampling=SamplingParams(temperature=1.3, seed=i // 100)) for i in range(num_draws)]
    drafter.admit(rows)
    reader.read(rows, [len(prompt) - 1] * num_draws)
    draft = drafter.propose(rows, [1] * num_draws)
    assert draft.probs_BGV is not None
    law_V = draft.probs_BGV[0, 0]
    torch.testing.assert_close(draft.probs_BGV[:, 0], law_V.expand(num_draws, -1))
    counts.index_add_(0, draft.tokens_BG[:, 0], torch.ones(num_draws))
    expected_V = num_draws * law_V
    large_V = expected_V >= 5
    chi2 = (((counts - expected_V) ** 2 / expected_V)[large_V]).sum()
    freedom = int(large_V.sum()) - 1
    assert float(chi2) < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


@pytest.mark.slow
def test_rejection_runs_with_heads_and_refuses_probes(model, prompts, folders):
    engine = engine_for(model, "eqspec", "eagle", verifier=RejectionVerifier(), untrained=True)
    assert all(sampled(engine, prompts, 1))
    with pytest.raises(ContractError, match="verifier=naive"):
        sampled(engine_for(model, "eqspec", "ppd", verifier=RejectionVerifier(), path=folders["ppd"][0]), prompts, 1)


@pytest.mark.slow
@torch.inference_mode()
def test_guesses_are_those_of_a_forward_without_a_cache(model, folders):
    """Prompt tokens after the last verified token, in one plain forward over embeddings."""
    context, _ = context_for(model, "masked")
    drafter = create("drafter", "ppd", context, path=folders["ppd"][0])
    engine = make_engine(model, drafter=drafter, alignment=ALIGNMENTS["masked"], batch=2, gamma=3)
    pool = SequencePool([Sequence(0, [4, 8, 15, 16], 12), Sequence(1, [23, 42], 12)])
    while not pool.done:
        engine.step(pool)
        for row in pool.active:
            seen = torch.tensor([row.tokens(0)[:-1]])
            embeds = torch.cat([model.module.get_input_embeddings()(seen), drafter.probes_MD[None]], dim=1)
            logits = model.module(inputs_embeds=embeds).logits[0, -3:]
            assert drafter._guesses[row.index].tolist() == logits.argmax(-1).tolist()


@pytest.mark.slow
def test_folders_that_do_not_fit_are_one_line(model, folders, tmp_path):
    context, _ = context_for(model, "inplace")
    with pytest.raises(ConfigError, match=r"was trained for drafter=medusa, not drafter=eagle"):
        create("drafter", "eagle", context, path=folders["medusa"][0])
    with pytest.raises(ConfigError, match=r"no folder of `python train.py task=heads heads.kind=ppd`"):
        create("drafter", "ppd", context, path=str(tmp_path))
    other, _ = context_for(CausalLM(small_llama(0, torch.float64, layers=2)), "inplace")
    with pytest.raises(ConfigError, match="num_target_layers 3; this one has 2"):
        create("drafter", "medusa", other, path=folders["medusa"][0])
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        data = (tmp_path.parent / folders["medusa"][0].rsplit("/", 1)[-1] / name).read_bytes()
        (broken / name).write_bytes(data if name == "config.json" else data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be loaded"):
        create("drafter", "medusa", context, path=str(broken))


@pytest.mark.slow
def test_what_eagle_keeps_while_nothing_is_drafted_holds_no_logits(model, folders, prompts):
    engine = engine_for(model, "inplace", "eagle", path=folders["eagle"][0])
    engine.draft_length = FixedLength(gamma=0)
    pool = SequencePool([Sequence(i, list(prompt), NEW_TOKENS) for i, prompt in enumerate(prompts[1:4])])
    for _ in range(6):
        engine.step(pool)
    kept = [part for parts in engine.drafter._unread._parts.values() for part in parts]
    assert len(kept) >= 18
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in kept[-6:])


@pytest.mark.slow
def test_typical_acceptance_overlooks_probes(model, folders, prompts):
    """Their ids are beyond the vocabulary, so no law has a place for them."""
    engine = engine_for(model, "inplace", "ppd", verifier=create("verifier", "typical"), path=folders["ppd"][0])
    assert all(len(output) == 8 for output in sampled(engine, prompts[:3], seed=1))


def test_accuracies_count_the_guesses_of_output_tokens_alone(model, prompts):
    """The first place is always guessed right by the first guess, the second by the second where the token is even."""

    def guesses(module, target, ids_BT, start):
        logits_BTGV = torch.zeros(1, ids_BT.shape[1] - start, 2, VOCAB)
        for t in range(start, ids_BT.shape[1]):
            for g in range(2):
                true = int(ids_BT[0, t + 2 + g]) if t + 2 + g < ids_BT.shape[1] else 0
                logits_BTGV[0, t - start, g, true] = 1.0
                if g == 1:
                    logits_BTGV[0, t - start, g, (true + 1) % VOCAB] = 2.0 if true % 2 == 0 else 0.5
        return logits_BTGV

    some, cfg = [HeldoutPrompt(ids, "") for ids in prompts[:4]], ValidationConfig(new_tokens=9, batch=2)
    outputs = [greedy_alone(model, prompt.ids, 9, frozenset()) for prompt in some]
    table = measure_accuracies(guesses, None, model, some, cfg)
    # The prompt of one token has no entry before it, so that its first output token is guessed by none.
    known = [output[1 + (len(prompt.ids) < 2) :] for prompt, output in zip(some, outputs, strict=True)]
    even = sum(token % 2 == 0 for tokens in known for token in tokens) / sum(map(len, known))
    assert table[0][0] == 1.0
    assert table[1][:2] == pytest.approx([1 - even, even], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["medusa", "ppd"])
def test_measured_accuracies_are_those_of_drafting(model, own_text, folders, kind):
    """The first guesses of the first place, against the first drafted tokens of an engine."""
    module = loaded(KINDS[kind].build(model.module, HeadsConfig(kind=kind, num_heads=3)), folders[kind][0], model)
    some = [HeldoutPrompt(ids[:3].tolist(), "") for ids in own_text[:8]]
    table = measure_accuracies(KINDS[kind].guesses, module, model, some, ValidationConfig(new_tokens=20, batch=4))
    engine = engine_for(model, "inplace", kind, path=folders[kind][0])
    engine.draft_length = FixedLength(gamma=1)
    rows, _ = run_all(engine, [prompt.ids for prompt in some], 20)
    accepted, drafted = (sum(getattr(row, name) for row in rows) for name in ("num_accepted", "num_drafted"))
    assert len(table) == 3
    assert table[0][0] == pytest.approx(accepted / drafted, abs=0.12)  # drafting skips the token after an accepted one
