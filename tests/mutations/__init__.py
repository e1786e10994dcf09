"""Small plausible bugs, each planted alone into something correct: all of them, in the order of the printed list."""

from __future__ import annotations

from mutations import columns, drafters, engine, eqspec, policies, schedulers, selectors, slots, states, verifiers
from mutations.planting import Mutation

ALL: list[Mutation] = [
    thing
    for module in (eqspec, slots, states, columns, drafters, selectors, policies, verifiers, schedulers, engine)
    for thing in vars(module).values()
    if isinstance(thing, Mutation)
]
