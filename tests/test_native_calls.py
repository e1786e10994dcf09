"""What the native execution is given is checked before anything is written: every wrong call is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import no_library, small_llama
from native_models import IDS, build
from tampering import aligned_logits, own_logits
from torch import Tensor, nn

from specdec.core.outputs import LOGITS
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call, Chains, Given
from specdec.models.kv import KVStorage, Place
from specdec.models.native.library import PackedMatrix, rms_norm
from specdec.models.shared import SharedColumns

pytestmark = pytest.mark.skipif(no_library() is not None, reason=f"no native library here: {no_library()}")


@dataclass
class Writer:
    """A writer whose every part can be wrong."""

    place: Place
    num_columns: int
    shared: SharedColumns | None = None

    def written(self) -> None:
        pass


def arguments(**changes: Any) -> dict[str, Any]:
    """Of a call that is right: two rows of three tokens in slots 2 and 0 of three, in 8 columns."""
    model = build("llama")
    usual = {
        "tokens": torch.tensor([[1, 2, 3], [4, 5, 6]]),
        "positions": torch.tensor([[0, 1, 2], [3, 4, 5]]),
        "mask": torch.ones(2, 3, 6, dtype=torch.bool),
        "real": torch.tensor([[True, True, True], [True, False, False]]),
        "slots": torch.tensor([2, 0]),
        "starts": torch.tensor([0, 3]),
        "columns": 6,
        "storage": model.empty_storage(3, 8).data_NBHSD,
        "num_logits": 0,
        "shared": None,
    }
    return {**usual, **changes}


def run(chains: bool = False, **changes: Any) -> Tensor:
    given, model = arguments(**changes), build("llama")
    storage = given["storage"]
    writer = Writer(Place(KVStorage(storage, 8, ()), given["slots"], given["starts"]), given["columns"])
    if (shared := given["shared"]) is not None:
        storages = tuple(KVStorage(part, 4, ()) for part in shared[0])
        writer.shared = SharedColumns(storages, list(shared[3])[: len(storages)], shared[1], torch.tensor(shared[2]))
    T = given["tokens"].shape[1] if given["tokens"].ndim > 1 else 0
    layout = Chains(writer, T, 100, model.device) if chains else Given(given["positions"], given["mask"])
    call = Call(given["tokens"], layout, writer, given["num_logits"], LOGITS, given["real"])
    with torch.inference_mode():
        return model.execute("native").run(call)


def embeddings(ids: Tensor, width: int) -> Tensor:
    return ids[..., None].float().expand(*ids.shape, width)


def shares(
    storages: Callable[[Tensor], list[Tensor]], of: list[Any], lengths: list[int], message: str, *starts: int
) -> tuple[dict[str, Callable[[Any], Any]], str]:
    """A call whose rows read columns of prefixes of four before their own; the mask is as wide as it says."""
    width = 6 + max(lengths)
    paths = [path if isinstance(path, list) else [path] for path in of]
    changes: dict[str, Callable[[Any], Any]] = {
        "shared": lambda _: (storages(build("llama").empty_storage(1, 4).data_NBHSD), paths, lengths, starts or (0, 0)),
        "columns": lambda _: width,
        "mask": lambda x: x.new_ones(2, 3, width),
    }
    return changes, message


WRONG: dict[str, tuple[dict[str, Callable[[Any], Any]], str]] = {
    "ids in int32": ({"tokens": Tensor.int}, r"ids \(2, 3\) in torch.int32"),
    "ids in bool": ({"tokens": Tensor.bool}, "ids .* in torch.bool"),
    "a token too high": ({"tokens": lambda x: x + 10**12}, "token 1000000000001 is not among"),
    "a negative token": ({"tokens": lambda x: -x}, "token -1 is not among"),
    "embeddings in float64": ({"tokens": lambda x: embeddings(x, 32).double()}, "embeddings .* in torch.float64"),
    "embeddings of another width": ({"tokens": lambda x: embeddings(x, 31)}, r"embeddings \(2, 3, 31\)"),
    "fewer positions": ({"positions": lambda x: x[:1]}, r"positions \(1, 3\)"),
    "positions in int32": ({"positions": Tensor.int}, "positions .* in torch.int32"),
    "a position too high": ({"positions": lambda x: x + 2**40}, "position 1099511627776 is not below"),
    "a negative position": ({"positions": lambda x: x - 1}, "position -1 is not below"),
    "a mask of numbers": ({"mask": Tensor.float}, "a mask .* in torch.float32"),
    "a mask of fewer columns": ({"mask": lambda x: x[..., :5]}, r"a mask \(2, 3, 5\)"),
    "a mask for all rows": ({"mask": lambda x: x[:1]}, r"a mask \(1, 3, 6\)"),
    "real tokens as numbers": ({"real": Tensor.long}, "real tokens .* in torch.int64"),
    "real tokens of one row": ({"real": lambda x: x[:1]}, r"real tokens \(1, 3\)"),
    "fewer slots": ({"slots": lambda x: x[:1]}, r"slots \(1,\)"),
    "more starts": ({"starts": lambda x: x.repeat(2)}, r"slots \(4,\)"),
    "a slot too high": ({"slots": lambda x: x + 1}, "row 0 is in slot 3 of 3"),
    "a negative slot": ({"slots": lambda x: -x}, "row 0 is in slot -2 of 3"),
    "a start too high": ({"starts": lambda x: x + 1}, "row 1 writes columns 4 to 7 of 6"),
    "the highest start": ({"starts": lambda x: x + 2**63 - 4}, "row 0 writes columns 9223372036854775804"),
    "a negative start": ({"starts": lambda x: -x}, "row 1 writes columns -3 to 0 of 6"),
    "more columns than there are": ({"columns": lambda x: 9, "mask": lambda x: x.new_ones(2, 3, 9)}, "of 8"),
    "a storage in float64": ({"storage": Tensor.double}, "a storage .* in torch.float64"),
    "a storage elsewhere": ({"storage": lambda x: x.to("meta")}, "a storage .* on meta"),
    "a storage of fewer layers": ({"storage": lambda x: x[:2].clone()}, r"a storage \(2, 3"),
    "a storage of fewer heads": ({"storage": lambda x: x[:, :, :1].clone()}, "a storage .*"),
    "a storage of narrower heads": ({"storage": lambda x: x[..., :4].clone()}, "a storage .*, 4\\)"),
    "a storage with gaps": ({"storage": lambda x: x.repeat(1, 1, 1, 2, 1)[..., :8, :]}, "is not contiguous"),
    "a prefix that there is not": shares(lambda x: [x], [1, 0], [2, 1], "row 0 shares 2 columns of prefix 1"),
    "a prefix of a negative number": shares(lambda x: [x], [-1, 0], [2, 1], "row 0 shares 2 columns of prefix -1"),
    "more than the prefix holds": shares(lambda x: [x], [0, 0], [4, 6], "row 1 shares 6 columns of prefix 0"),
    "fewer shared columns than none": shares(lambda x: [x], [0, 0], [4, -1], "row 1 shares -1 of 4 columns"),
    "shared columns of one row": shares(lambda x: [x], [0], [4], r"prefixes \(1, 1\)"),
    "a first prefix that starts later": shares(lambda x: [x], [0, 0], [4, 4], "row 0 shares 2 columns of prefix 0", 2),
    "a next prefix that starts past the end": shares(
        lambda x: [x, x], [[0, 1], 0], [7, 4], "row 0 shares 5 columns of prefix 0", 0, 5
    ),
    "a next prefix that starts with the first": shares(
        lambda x: [x, x], [0, [0, 1]], [4, 4], "row 1 shares 0 columns of prefix 0", 0, 0
    ),
    "a next prefix of which nothing is read": shares(
        lambda x: [x, x], [[0, 1], 0], [3, 4], "row 0 shares 0 columns of prefix 1", 0, 3
    ),
    "a next prefix that there is not": shares(lambda x: [x], [0, [0, 7]], [4, 4], "row 1 shares 4 columns of prefix 7"),
    "a prefix of several rows": shares(lambda x: [x.repeat(1, 2, 1, 1, 1)], [0, 0], [1, 1], "a storage .*"),
    "more logits than tokens": ({"num_logits": lambda x: 4}, "logits of 4 tokens are wanted, and 3 are fed"),
    "fewer logits than none": ({"num_logits": lambda x: -1}, "logits of -1 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_one_line_and_writes_nothing(what):
    changes, message = WRONG[what]
    usual = arguments()
    changed = {name: change(usual[name]) for name, change in changes.items()}
    with pytest.raises(ContractError, match=f"^native execution: .*{message}") as refused:
        run(**changed)
    assert "\n" not in str(refused.value)
    storage = changed.get("storage", usual["storage"])
    assert storage.is_meta or not storage.any()


def test_views_of_any_strides_are_read_right():
    usual = arguments()
    right = run()
    for name in ("tokens", "positions", "mask", "real", "slots", "starts"):
        spread = usual[name].repeat_interleave(2, dim=-1)[..., ::2]
        turned = usual[name].mT.contiguous().mT if usual[name].ndim > 1 else spread
        for view in (spread, turned):
            assert torch.equal(run(**{name: view}), right), name


@pytest.mark.parametrize("chains", [False, True])
@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0), (0, 0)])
def test_no_rows_and_no_tokens_give_no_logits(B, T, chains):
    given = arguments()
    changes = {
        **{name: given[name][:B, :T] for name in ("tokens", "positions", "mask", "real")},
        **{name: given[name][:B] for name in ("slots", "starts")},
    }
    assert run(chains, **changes).shape == (B, T, build("llama").vocab_size)


def test_rows_without_a_real_token_change_nothing_and_give_zeros():
    usual = arguments()
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not run(real=nothing, storage=usual["storage"]).any()
    assert not usual["storage"].any()
    one = nothing.clone()
    one[1, 0] = True
    assert not run(real=one, storage=usual["storage"])[0].any()
    assert not usual["storage"][:, 2].any()
    assert usual["storage"][:, 0].any()


@pytest.mark.parametrize("num_logits", [1, 2, 3])
def test_the_last_logits_are_those_of_all(num_logits):
    everything = run()
    assert torch.equal(run(num_logits=num_logits), everything[:, -num_logits:])


def test_a_query_that_sees_nothing_gets_no_values():
    """Only padding may be masked whole; its logits are finite all the same."""
    mask = torch.ones(2, 3, 6, dtype=torch.bool)
    mask[0, 1] = False
    assert run(mask=mask).isfinite().all()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (((torch.ones(4, 3, dtype=torch.float64), None),), "a weight .* in torch.float64"),
        (((torch.ones(4, 3), torch.ones(3)),), r"a bias \(3,\)"),
        (((torch.ones(4, 3), None), (torch.ones(4, 2), None)), r"a weight \(4, 2\)"),
    ],
)
def test_what_is_no_matrix_is_not_packed(tensors, message):
    with pytest.raises(ContractError, match=message):
        PackedMatrix(*tensors)


def test_products_and_norms_of_another_width_are_refused():
    packed = PackedMatrix((torch.ones(4, 3), None))
    for x in (torch.ones(2, 4), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, 1)):
        with pytest.raises(ContractError, match="inputs"):
            packed(x, 1)
        with pytest.raises(ContractError, match="inputs"):
            rms_norm(x, torch.ones(3), 1e-6)


class Doubled(nn.Embedding):
    """An embedding of one's own."""

    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def larger(module: Any) -> None:
    module.model.embed_tokens = nn.Embedding(module.config.vocab_size + 7, module.config.hidden_size)


def smaller(module: Any) -> None:
    module.config.vocab_size -= 7
    module.model.embed_tokens = nn.Embedding(module.config.vocab_size, module.config.hidden_size)


def doubled(module: Any) -> None:
    module.model.embed_tokens = Doubled(module.config.vocab_size, module.config.hidden_size)


def hooked(module: Any) -> None:
    module.model.embed_tokens.register_forward_hook(lambda part, inputs, output: output + 1)


def transposed(module: Any) -> None:
    table = module.model.embed_tokens.weight
    table.data = table.data.T.contiguous().T


@pytest.mark.parametrize("change", [larger, smaller, doubled, hooked, transposed])
def test_an_embedding_of_another_kind_is_called_as_the_module_that_it_is(change):
    module = small_llama(0, torch.float32, tie_word_embeddings=False)
    change(module)
    module.requires_grad_(False)
    ids = [token % (module.config.vocab_size - 7) for token in IDS[0]]
    model = CausalLM(module)
    model.execute("native")
    torch.testing.assert_close(aligned_logits(model, ids), own_logits(model, ids), atol=1e-4, rtol=1e-4)


def narrower_mlp(module: Any) -> None:
    mlp, hidden = module.model.layers[1].mlp, module.config.hidden_size
    mlp.gate_proj, mlp.up_proj = (nn.Linear(hidden, 16, bias=False) for _ in range(2))
    mlp.down_proj = nn.Linear(16, hidden, bias=False)


def one_bias(module: Any) -> None:
    module.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.ones(1))


def one_norm(module: Any) -> None:
    module.model.norm.weight = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("change", [narrower_mlp, one_bias, one_norm])
def test_layers_of_several_sizes_are_refused(change):
    module = small_llama(0, torch.float32)
    change(module)
    with pytest.raises(ConfigError, match=r"execution=native cannot run this model: it knows layers of one size, and "):
        CausalLM(module).execute("native")


def test_a_model_made_in_inference_mode_can_be_run():
    with torch.inference_mode():
        module = small_llama(0, torch.float32)
    assert CausalLM(module).execute("native").name == "native"


def test_weights_that_were_replaced_are_not_read_from_freed_memory():
    model = CausalLM(small_llama(0, torch.float32))
    native = model.execute("native")
    before = aligned_logits(model, IDS[0])
    for weight in model.module.parameters():
        weight.data = torch.full_like(weight, float("nan"))
    others = [torch.full((size,), float("nan")) for size in (32, 64, 128, 61 * 32) for _ in range(20)]
    assert model.execution is native
    assert torch.equal(aligned_logits(model, IDS[0]), before)
    assert others
