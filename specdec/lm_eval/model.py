"""``--model specdec`` of lm-evaluation-harness: text by speculative decoding in batches, scores by the target alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from specdec.engine.loading import load
from specdec.engine.output import SpeculativeOutput
from specdec.errors import ConfigError
from specdec.lm_eval.processes import Processes
from specdec.lm_eval.scoring import Pair, continuation_scores

_log = logging.getLogger(__name__)


@register_model("specdec")
class SpecdecLM(TemplateLM):  # type: ignore[misc]
    """A target and a draft as the harness's model.

    Args:
        target: a Hub name, a local folder, a GGUF file or "asset:tiny/target". draft: likewise, the name of a drafter
            that needs no model ("prompt_lookup"), or None for plain batched decoding.
        tokenizer: where the tokenizer is; None: the target's. dtype: "auto" keeps the checkpoint's.
        batch_size: rows in flight. max_length: tokens of a row; None: the target's context.
        max_gen_toks: budget of requests that have none. add_bos_token: None: what the tokenizer does.
        seed: of requests with do_sample.
        engine: further arguments of `specdec.Engine`, such as gamma or verifier.
    """

    def __init__(
        self,
        target: str,
        draft: str | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        seed: int = 0,
        **engine: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size or 1).isdigit() or int(batch_size or 1) < 1:
            raise ConfigError(f"batch_size={batch_size}: give the number of rows in flight, from 1")
        self.batch_size = int(batch_size or 1)
        self._processes = Processes()
        self._rank, self._world_size = self._processes.rank, self._processes.size
        place = (device or "auto").partition(":")[0]
        if place == "cuda" and not torch.cuda.is_available():  # the harness's default on any machine
            place = "auto"
        self.engine = load(target, draft, tokenizer=tokenizer, dtype=dtype, device=place, **engine)
        self.tokenizer = self.engine.tokenizer
        self._device = self.engine.target.device
        self.max_length = int(max_length or self.engine.target.context_length)
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        self._add_bos = add_bos_token
        self._label = f"{target}__{draft or 'plain'}"

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that is scored from its first token."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else int(begins)

    @property
    def tokenizer_name(self) -> str:
        """For the names of the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; a text that begins with the token of the beginning gets no second one."""
        add = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token):
            add = False
        return list(self.tokenizer.encode(string, **({} if add is None else {"add_special_tokens": add})))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, by the tokenizer's template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def all_gather(self, tensor: Any) -> Any:
        """See `Processes`."""
        return self._processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See `Processes`."""
        return self._processes.gather_object(obj, dst)

    def barrier(self) -> None:
        """See `Processes`."""
        self._processes.barrier()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._scored([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _scored(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return continuation_scores(self.engine.target, pairs, self.batch_size, self.max_length)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, each token with as much before it as fits."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scored([pair for pairs in windows for pair in pairs]))
        totals = [float(sum(next(scores)[0] for _ in pairs)) for pairs in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[Pair]:
        """A text in parts that fit; each token is scored once."""
        ids = self.tok_encode(text)
        rolling = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        return [make_disjoint_window(window) for window in rolling]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests; those with the same settings are decoded together."""
        groups: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(at)
        texts: dict[int, str] = {}
        for places in groups.values():
            settings = requests[places[0]].args[1]
            contexts = [requests[at].args[0] for at in places]
            for at, text in zip(places, self._generated(contexts, settings), strict=True):
                texts[at] = text
                self.cache_hook.add_partial("generate_until", requests[at].args, text)
        return [texts[at] for at in range(len(requests))]

    def _generated(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        until = [stop for stop in handle_stop_sequences(options.pop("until", None), eos=None) if stop]
        budget = int(options.pop("max_gen_toks"))
        room = self.max_length - budget
        if room < 1:
            raise ConfigError(f"max_gen_toks={budget} leaves no room for a prompt: max_length is {self.max_length}")
        if options.get("do_sample"):
            options["seed"] = self.seed
        else:
            options.pop("temperature", None)
        found = self.engine.generate(
            [self.tok_encode(context)[-room:] for context in contexts],
            max_new_tokens=budget,
            stop_strings=until or None,
            batch=self.batch_size,
            return_dict_in_generate=True,
            **options,
        )
        assert isinstance(found, SpeculativeOutput)
        if any(found.num_drafted or []):
            rate, length = found.acceptance_rate, found.mean_acceptance_length
            _log.info("%d rows, acceptance %.2f, %.2f tokens per row and verify call", len(contexts), rate, length)
        return [postprocess_generated_text(text, until, None) for text in found.texts or []]
