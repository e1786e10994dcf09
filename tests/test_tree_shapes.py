"""Shapes of trees: which are best, and files and settings that are refused."""

from __future__ import annotations

import pytest

from specdec.errors import ConfigError
from specdec.registry import create
from specdec.trees.measured import chances_of
from specdec.trees.shape import Shape, best_shape, expected_accepted, read_shape


def test_the_best_shape_has_the_most_expected_tokens():
    chances = [[0.6, 0.3], [0.5, 0.4], [0.5]]
    shape = best_shape(chances, 4)
    assert shape == Shape([-1, -1, 0, 0], [0, 1, 0, 1])
    assert expected_accepted(shape, chances) == pytest.approx(0.6 + 0.3 + 0.3 + 0.24)
    others = (Shape([-1, 0, 1, -1], [0, 0, 0, 1]), Shape([-1, -1, 0, 1], [0, 1, 0, 0]))
    assert all(expected_accepted(other, chances) < expected_accepted(shape, chances) for other in others)


def test_acceptance_by_rank_is_read_from_recorded_rounds():
    lines = [
        {"accepted_ranks": [[0, 1], [], [1]], "end_depth": [2, 2, 1]},
        {"accepted_ranks": None, "end_depth": [3]},
    ]
    assert chances_of(lines) == [[1 / 3, 1 / 3], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"parents": [-1, 2, 1], "ranks": [0, 0, 0]}', "nodes 1 -> 2 -> 1 are a cycle"),
        ('{"parents": [-1, 2, 0], "ranks": [0, 0, 0]}', "node 1 comes before its parent 2"),
        ('{"parents": [-1, 0, 0], "ranks": [0, 1, 1]}', "nodes 1 and 2 are the same: rank 1 after node 0"),
        ('{"parents": [-1, 5], "ranks": [0, 0]}', "node 1 has parent 5"),
        ('{"parents": [-1], "ranks": [0, 1]}', "1 parents and 2 ranks"),
        ('{"parents": [-1, -1], "ranks": [0, 1.5]}', "lists of integers"),
        ('{"parents": [-1, -1], "ranks": [0, 5000]}', "rank 5000; at most"),
        ("[1, 2]", "JSON"),
    ],
)
def test_a_file_that_holds_no_tree_is_refused(tmp_path, content, message):
    path = tmp_path / "tree.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_shape(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "settings"),
    [
        ("paths", {"num_paths": 0}),
        ("gumbel", {"branches": []}),
        ("gumbel", {"branches": [2, 0]}),
        ("beam", {"width": 0}),
        ("confidence", {"num_nodes": 0}),
        ("static", {"num_nodes": 0}),
        ("static", {"path": "nowhere.json"}),
        ("delayed", {"trunk": -1}),
        ("delayed", {"trunk": 5}),
    ],
)
def test_settings_that_make_no_tree_are_refused(tree, settings):
    with pytest.raises(ConfigError, match=rf"tree\.{next(iter(settings))}="):
        create("tree", tree, **settings).check(5)
