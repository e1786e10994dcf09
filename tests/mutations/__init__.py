"""Small plausible bugs, each planted alone into something correct: all of them, in the order of the printed list."""

from __future__ import annotations

from mutations import columns, drafters, engine, eqspec, schedulers, slots, verifiers
from mutations.planting import Mutation

ALL: list[Mutation] = [
    thing
    for module in (eqspec, slots, columns, drafters, verifiers, schedulers, engine)
    for thing in vars(module).values()
    if isinstance(thing, Mutation)
]
