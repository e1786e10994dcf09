"""Conversations as training text: rendered by the target's own chat template, with the tokens of the answers marked.

A conversation is a list of messages (role and content): a system message at most, then users and assistants in turn.
Prompts are rendered as `run.py` renders them, so that drafts learn and are selected on what they will serve.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.core.prompts import encode
from specdec.core.questions import Message
from specdec.training import TrainingError
from specdec.training.config import HeldoutConfig, OutputsConfig
from specdec.training.records import RecordsWriter, scratch_records

if TYPE_CHECKING:
    from specdec.training.corpus import Corpus

Conversation = tuple[Message, ...]
_SORTED_BATCHES = 16  # batches whose prompts are sorted by length together, so that rows of a batch are about as long


def check_template(tokenizer: Any, setting: str = "corpus.column holds messages") -> None:
    """Refuse a tokenizer that cannot render messages.

    Raises:
        TrainingError: it has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TrainingError(
            f"{setting}, but the tokenizer has no chat template: set tokenizer=FOLDER of one with a template, or give "
            "a column of plain text"
        )


def prompts_of(conversation: Conversation) -> list[list[Message]]:
    """The messages up to each question; earlier answers are those of the conversation."""
    return [list(conversation[: n + 1]) for n, message in enumerate(conversation) if message["role"] == "user"]


def encoded_prompt(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of a prompt, as a run feeds it."""
    return encode(tokenizer, messages, "auto")


def encoded_texts(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """The conversation's token ids, and which of them are part of an answer.

    An answer begins where a run's prompt ends, at the border of a token. Where the template renders earlier messages
    differently after later ones (it drops the reasoning of earlier answers, say), the text begins anew.

    Raises:
        TrainingError: the template does not render an answer behind its own prompt.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    text = ""
    for n, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = rendered(tokenizer, conversation[:n], add_generation_prompt=True)
        whole = rendered(tokenizer, conversation[: n + 1])
        if not whole.startswith(prompt):
            raise TrainingError(
                "the tokenizer's chat template does not render an answer behind its prompt, so answers cannot be "
                "marked: set distill.data=outputs, whose answers the target writes"
            )
        for part, counts in ((prompt.removeprefix(text), False), (whole.removeprefix(prompt), True)):
            new = tokenizer(part, add_special_tokens=False)["input_ids"]
            ids += new
            is_answer += [counts] * len(new)
        text = whole
    return ids, is_answer


def rendered(tokenizer: Any, messages: Conversation, **options: Any) -> str:
    """What the tokenizer's chat template makes of messages.

    Raises:
        TrainingError: the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        raise TrainingError(
            f"the tokenizer's chat template refuses a conversation that begins with {messages[0]['content'][:60]!r}: "
            f"{error}"
        ) from error
    return text


class ChatPrompts:
    """Prompts of the training conversations, each used once before any is used again; batch `index` by the seed."""

    def __init__(self, corpus: Corpus, tokenizer: Any, cfg: OutputsConfig, seed: int) -> None:
        check_template(tokenizer)
        self.num_left_out, shortest = 0, math.inf

        def write(writer: RecordsWriter) -> None:
            nonlocal shortest
            for file in corpus.train:
                for asked in prompts_of(file.messages):
                    ids = encoded_prompt(tokenizer, asked)
                    shortest = min(shortest, len(ids))
                    if len(ids) <= cfg.max_prompt_tokens:
                        writer.append(np.asarray(ids, np.uint32).tobytes())
                    else:
                        self.num_left_out += 1

        self._prompts = scratch_records(corpus.folder, write)
        self.batch_size, self.seed = cfg.batch, seed
        if not self._prompts:
            raise TrainingError(
                f"greedy.max_prompt_tokens={cfg.max_prompt_tokens} leaves out all {self.num_left_out} prompts of the "
                f"corpus; the shortest has {shortest if self.num_left_out else 0} tokens"
            )

    def prompt(self, number: int) -> list[int]:
        """The token ids of one prompt."""
        ids: list[int] = np.frombuffer(self._prompts[number], np.uint32).tolist()
        return ids

    def batch(self, index: int) -> list[list[int]]:
        """Prompts of about one length."""
        group, place = divmod(index, _SORTED_BATCHES)
        random = np.random.default_rng([self.seed, group])
        size = _SORTED_BATCHES * self.batch_size
        numbers, count = range(group * size, (group + 1) * size), len(self._prompts)
        passes = range(numbers[0] // count, numbers[-1] // count + 1)
        orders = {n: np.random.default_rng([self.seed, 1, n]).permutation(count) for n in passes}
        chosen = [self.prompt(int(orders[number // count][number % count])) for number in numbers]
        batches = sorted(chosen, key=len)
        first = int(random.permutation(_SORTED_BATCHES)[place]) * self.batch_size
        return batches[first : first + self.batch_size]


def heldout_conversations(corpus: Corpus, tokenizer: Any, cfg: HeldoutConfig, seed: int) -> list[dict[str, Any]]:
    """Prompts of held-out conversations in the form that a run's data takes, evenly over their turns and lengths."""
    check_template(tokenizer)
    lines = list[tuple[int, int, int]]()  # of fitting prompts: conversation, turn, tokens
    lengths = list[int]()
    for number, file in enumerate(corpus.heldout):
        for turn, messages in enumerate(prompts_of(file.messages), 1):
            lengths.append(len(encoded_prompt(tokenizer, messages)))
            if lengths[-1] <= cfg.max_tokens:
                lines.append((number, turn, lengths[-1]))
    if not lines:
        raise TrainingError(
            f"heldout.max_tokens={cfg.max_tokens} leaves out all {len(lengths)} prompts of the held-out conversations; "
            f"the shortest has {min(lengths, default=0)} tokens"
        )
    shuffled = [lines[place] for place in np.random.default_rng(seed).permutation(len(lines))][: cfg.num_prompts]
    ordered = sorted(shuffled, key=lambda line: line[2])
    return [
        {
            "question_id": number,
            "category": f"turn {turn}",
            "messages": prompts_of(corpus.heldout[place].messages)[turn - 1],
        }
        for number, (place, turn, _) in enumerate(ordered, 1)
    ]
