"""Fixed programs of the alignment contract, for situations that drawn ones seldom reach. Imports no torch."""

from __future__ import annotations

from specdec.conformance.cases import CROSSED, MAX_LENGTH, VOCAB, Admit, Commit, Forward, Program, Release, Step, ramp


def long_program(num_rounds: int = 30) -> Program:
    """Three rows that outgrow every cache reservation with unequal acceptance; the third runs every third round."""
    steps: list[Step] = [Admit(((0, (1, 2, 3)), (1, (4,)), (2, (5, 6, 7, 8, 9))))]
    lengths = [3, 1, 5]
    for turn in range(num_rounds):
        rows = [0, 1, 2] if turn % 3 == 0 else [1, 0]
        fed = tuple((row, tuple((7 * turn + 3 * row + i) % VOCAB for i in range(6))) for row in rows)
        steps.append(Forward(fed))
        kept: list[tuple[int, int]] = []
        for row in rows:
            lengths[row] += 1 + (5 if row == 0 else (turn + row) % 6)
            kept.append((row, lengths[row]))
        steps.append(Commit(tuple(kept)))
    assert max(lengths) < MAX_LENGTH
    return Program(tuple(steps))


def leaving_program() -> Program:
    """Rows that leave from the middle and the front of a batch after unequal commits; their numbers are used again."""
    return Program(
        (
            Admit(((0, (1, 2, 3)), (1, (4,)), (2, (5, 6, 7, 8)))),
            Forward(((0, (9, 10)), (1, (11, 12)), (2, (13, 14)))),
            Commit(((0, 4), (1, 3), (2, 5))),
            Release((1,)),
            Forward(((0, (15, 16)), (2, (17,)))),
            Commit(((0, 6), (2, 5))),
            Admit(((1, (18, 19)),)),
            Forward(((2, (20,)), (1, (21, 22)), (0, (23,)))),
            Commit(((2, 6), (1, 3), (0, 7))),
            Release((2, 0)),
            Admit(((0, (24, 25, 26, 27, 28)), (3, (29,)))),
            Forward(((3, (30, 31)), (0, (32,)))),
            Commit(((3, 2), (0, 5))),
            Forward(((1, (33,)), (0, (34, 35)), (3, (36,)))),
            Commit(((1, 3), (0, 7), (3, 3))),
        )
    )


def returning_programs() -> list[Program]:
    """States that must start anew: of a row in the place of one that has run long, and of rows cut back further.

    A chain of 70 tokens is longer than those with a checkpoint after every token.
    """
    rounds: list[Step] = []
    for turn in range(3):
        rounds += [Forward(((0, ramp(turn, 3)),)), Commit(((0, 7 + 2 * turn),))]
    return [
        Program((Admit(((0, ramp(1, 5)),)), *rounds, Release((0,)), Admit(((1, (9, 8)),)), Forward(((1, (3, 4)),)))),
        Program(
            (
                Admit(((0, ramp(1, 9)), (1, ramp(3, 4)))),
                Forward(((1, (5, 6, 7)), (0, (8, 9)))),
                Commit(((0, 7), (1, 6))),
                Forward(((0, (1, 2)), (1, ramp(4, 70)))),
                Commit(((0, 8), (1, 40))),
                Forward(((1, (2, 3)), (0, (4,)))),
            )
        ),
    ]


def wide_program(trees: bool = False) -> Program:
    """Nine rows in one forward, in arbitrary order, that feed up to nine tokens each and keep any number of them."""
    rows = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    steps: list[Step] = [Admit(tuple((row, ramp(row, 1 + row % 4)) for row in range(9)))]
    lengths = {row: 1 + row % 4 for row in rows}
    for turn in range(3):
        counts = {row: 1 + (row + turn * 4) % 9 for row in rows}
        parents = {row: [i - 2 if trees and i % 3 == 2 else i - 1 for i in range(counts[row])] for row in rows}
        steps.append(
            Forward(
                tuple((row, ramp(row + turn, counts[row])) for row in rows),
                tuple(tuple(parents[row]) for row in rows) if trees else None,
            )
        )
        kept: list[tuple[int, int | tuple[int, ...]]] = []
        for row in rows:
            node = (row * 5 + turn) % (counts[row] + 1) - 1
            path: list[int] = []
            while node >= 0:
                path.insert(0, node)
                node = parents[row][node]
            lengths[row] += len(path)
            kept.append((row, tuple(path) if trees else lengths[row]))
        steps.append(Commit(tuple(kept)))
        rows = rows[3:] + rows[:3]
    return Program(tuple(steps))


def growing_programs() -> list[Program]:
    """Rows that reach the initial columns of the storage and exceed them: growth must lose nothing."""
    near = CROSSED - 2
    together = Admit(((0, ramp(1, near)), (1, ramp(2, near - 5)), (2, (3, 4))))
    chain = Forward(tuple((row, ramp(row, 4)) for row in range(3)))
    tree = Forward(tuple((row, ramp(row, 4)) for row in range(3)), ((-1, 0, -1, 2), (-1, -1, 1, 2), (-1, 0, 0, 1)))
    ragged = Commit(((0, near + 1), (1, near - 1), (2, 4)))
    return [
        # In one batch: chains, trees, and nodes that are not yet committed when the storage grows.
        Program((together, chain, ragged, chain, Commit(((0, near + 5), (1, near), (2, 4))), chain)),
        Program((together, tree, Commit(((0, (2, 3)), (1, (1, 2, 3)), (2, (0, 2)))), tree)),
        Program((together, chain, chain, Commit(((0, near + 6), (1, near - 5), (2, 9))), chain)),
        # New rows need more rows of the storage just before its columns run out; a number is used again.
        Program(
            (
                Admit(((0, ramp(1, near)),)),
                Admit(((1, (5,)), (2, (6, 7)))),
                chain,
                Commit(((0, near + 3), (1, 2), (2, 5))),
                Release((1,)),
                Admit(((1, ramp(9, near)), (3, (8,)))),
                Forward(((3, (1, 2)), (0, (3, 4, 5)), (1, (6, 7, 8)))),
                Commit(((3, 2), (0, near + 6), (1, near + 3))),
                Forward(((0, (1,)), (1, (2,)), (2, (3,)), (3, (4,)))),
            )
        ),
    ]


def sharing_programs() -> list[Program]:
    """Rows with equal first tokens, which a strategy may hold once: no row may see what others have after these."""
    common, other = ramp(3, 40), ramp(8, 21)
    first = Admit(
        (
            *((0, (*common, 1, 2, 3)), (1, common), (2, (*common, 4)), (3, (*common[:-1], 60, 5, 6))),
            *((4, other), (5, (7,)), (6, (*other, 9, 9)), (7, (*common, 1, 2, 8))),
        )
    )
    lengths = {0: 43, 1: 40, 2: 41, 3: 42, 4: 21, 5: 1, 6: 23, 7: 43}

    def feed(*rows: int) -> tuple[Forward, Commit]:
        fed = Forward(tuple((row, ramp(row, 2 + row % 3)) for row in rows))
        for row in rows:
            lengths[row] += row % 2 + 1
        return fed, Commit(tuple((row, lengths[row]) for row in rows))

    tree = Forward(tuple((row, ramp(row, 4)) for row in (7, 1, 5, 2)), ((-1, 0, -1, 2), (-1, -1, 1, 2)) * 2)
    kept = Commit(((7, (2, 3)), (1, (1, 2)), (5, (0,)), (2, (0,))))
    steps: list[Step] = [first, *feed(0, 1, 2, 3, 4, 5, 6, 7), Release((0, 3)), *feed(6, 2, 1), tree, kept]
    for row, size in ((7, 2), (1, 2), (5, 1), (2, 1)):
        lengths[row] += size
    # The first reader of each prefix leaves; others come that share it in part, or after all have left.
    lengths.update({0: 31, 3: 43})
    steps += [Admit(((0, (*common[:30], 2)), (3, (*common, 1, 2, 3)))), *feed(3, 0), Release((4, 6)), *feed(7, 2)]
    # Rows are cut back into what they share, and go on otherwise.
    lengths.update({1: 25, 2: 0})
    steps += [Commit(((1, 25), (2, 0))), *feed(2, 1, 5), Release((0, 1, 2, 3, 5, 7)), Admit(((8, common), (9, (1, 2))))]
    lengths.update({8: 40, 9: 2})
    return [Program((*steps, *feed(9, 8), Admit(((10, (*other, 1)), (11, (*other, 2)))))), levels_program()]


def levels_program() -> Program:
    """Rows whose equal first tokens are a tree, which grows, and forks in the middle of a part."""
    every = ramp(3, 20)
    one, two = (*every, *ramp(11, 15)), (*every, *ramp(14, 12))
    deep = (*one, *ramp(17, 18))
    fork = (*deep[:44], *ramp(2, 9))
    lengths = dict[int, int]()

    def admit(*rows: tuple[int, tuple[int, ...]]) -> Admit:
        lengths.update((row, len(content)) for row, content in rows)
        return Admit(rows)

    def feed(*rows: int) -> tuple[Forward, Commit]:
        fed = Forward(tuple((row, ramp(row, 2 + row % 2)) for row in rows))
        lengths.update((row, lengths[row] + 1 + row % 2) for row in rows)
        return fed, Commit(tuple((row, lengths[row]) for row in rows))

    # Each row that comes finds a row that decodes already, and shares another part of its tokens.
    steps: list[Step] = [admit((0, (*deep, 1, 2))), *feed(0), admit((1, (*two, 4))), *feed(0, 1)]
    steps += [admit((2, (*deep, 5)), (3, (*one, 6)), (4, (9, 9)), (5, (*two, 7))), *feed(5, 3, 1, 0, 2, 4)]
    tree = Forward(tuple((row, ramp(row, 3)) for row in (3, 0, 5, 2)), ((-1, 0, -1), (-1, -1, 1)) * 2)
    steps += [tree, Commit(((3, (2,)), (0, (1, 2)), (5, (0, 1)), (2, (1,))))]
    for row, size in ((3, 1), (0, 2), (5, 2), (2, 1)):
        lengths[row] += size
    # The first rows of every part leave; others come that fork off within the longest one, or share what all do.
    steps += [Release((0, 1)), admit((6, (*fork, 60)), (7, (*every, 58)), (10, (*fork, 59))), *feed(7, 2, 10, 6, 5)]
    # Rows are cut back into parts above theirs, and grow otherwise; the last ones find the longest parts still there.
    lengths.update({2: 30, 6: 12})
    steps += [Release((5,)), Commit(((2, 30), (6, 12))), *feed(6, 3, 2), admit((8, deep), (9, (*deep, 3)))]
    steps += feed(8, 2, 9, 6, 10, 7)
    return Program(tuple(steps))
