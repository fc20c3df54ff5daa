"""Which group each query is of: by classes, and by files in any form; and what is wrong with some of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.embeddings import EmbeddingSet
from evaluation.config import EvalParams, Groups
from evaluation.groups import Grouping, check_groups, group_queries, named_groups
from utils.config import build
from utils.errors import UserError

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, -1, 5])
NAMES = np.array([f"photo {i}" for i in range(8)])
OF_QUERY = ["b", "a", "a", "b", "b", "c", "", "c"]


def queries(ids: np.ndarray | None = NAMES) -> EmbeddingSet:
    return EmbeddingSet(torch.randn(8, 2), ids, LABELS)


def by_classes(**classes: list[Any]) -> Groups:
    return build(EvalParams, {"groups": {"classes": classes}}, source="e.yaml").groups or Groups()


def test_classes_are_ranges_labels_or_both() -> None:
    found = group_queries(queries(), by_classes(first=[0, 2], rest=[[2, 4], 5, 4]))
    assert found.names == ["first", "rest"]
    assert found.of_query.tolist() == [0, 0, 1, 1, 1, 1, -1, 1]
    assert group_queries(queries(), by_classes(x=[3], y=[[0, 1], [4, 6]])).of_query.tolist() == [
        1,
        -1,
        -1,
        0,
        1,
        1,
        -1,
        1,
    ]


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".json", "of ids.json", "other ids.csv"])
def test_a_file_in_any_form(suffix: str, tmp_path: Path) -> None:
    path, query, order = tmp_path / f"groups{suffix}", queries(), np.array([7, 0, 5, 2, 4, 1, 6, 3])
    groups, ids = np.array(OF_QUERY)[order], NAMES[order]
    if suffix == ".npz":
        np.savez(path, groups=groups, ids=ids)
    elif suffix == ".npy":
        np.save(path, np.array(OF_QUERY))
    elif suffix == ".json":
        path.write_text(json.dumps(OF_QUERY))
    elif suffix == "of ids.json":
        path.write_text(json.dumps({"groups": groups.tolist(), "ids": ids.tolist()}))
    elif suffix == ".csv":
        path.write_text("ids,groups\n" + "".join(f"{a},{b}\n" for a, b in zip(ids, groups, strict=True)))
    else:  # numbers, and more of them than there are queries
        query = queries(10 * np.arange(8))
        rows = [f"{group},{10 * place},{place}" for place, group in zip(order, groups, strict=True)]
        path.write_text("\n".join(["groups,ids,else", "z,555,9", *rows]))
    found = group_queries(query, Groups(file=str(path)))
    assert found.names == ["a", "b", "c"]
    assert [found.names[place] if place >= 0 else "" for place in found.of_query] == OF_QUERY


def test_numbers_are_names_too() -> None:
    found = named_groups(np.array([7, 3, 7]))
    assert (found.names, found.of_query.tolist()) == (["3", "7"], [1, 0, 1])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": [0, 3], "b": [2, 6]}, "classes.b: label 2 is in a already"),
        ({"a": [[0, 3], 1], "b": [3, 6]}, "classes.a: label 1 is in a already"),
        ({"a": [0, 6]}, "classes: a gap needs two groups, got 1"),
        ({"a": [3, 0], "b": [4]}, r"classes.a: should be two rising labels, as \[0, 20\], or a list"),
        ({"a": [0, 3], "b": ["cat"]}, "classes.b: should be two rising labels"),
        ({"a": [0, 3], "b": [[3]]}, "classes.b: should be two rising labels"),
        ({"a": [0, 3], "b": [-1]}, "classes.b: should be two rising labels"),
        ({"a": [0, 6], "b": []}, "classes.b: is empty"),
    ],
)
def test_classes_that_the_config_refuses(classes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"e\.yaml: groups\.{message}"):
        by_classes(**classes)
    with pytest.raises(ValueError, match="one of the three says"):
        Groups()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": [0, 3], "b": [3, 9]}, "classes.b: no query has a label from 6 to 8; the largest is 5"),
        ({"a": [0, 6], "b": [17]}, "classes.b: no query has a label from 17 to 17; the largest is 5"),
        ({"a": [0, 3], "b": [4, 5]}, r"classes: 3 of 8 queries are in no group, the first is id photo 3 \(label 3\)"),
    ],
)
def test_classes_that_do_not_fit_the_queries(classes: dict[str, Any], message: str) -> None:
    groups = by_classes(**classes)
    with pytest.raises(UserError, match=rf"eval_params\.groups\.{message}"):
        check(queries(), group_queries(queries(), groups), groups)


def check(query: EmbeddingSet, found: Grouping, groups: Groups) -> None:
    grouped = replace(query, group_numbers=found.of_query)
    check_groups(grouped, found.names, groups)


def test_a_group_may_have_lost_its_queries_to_a_subset() -> None:
    groups = by_classes(a=[0, 3], b=[3, 6])
    found = group_queries(queries(), groups)
    first = queries().take(torch.arange(3))
    with pytest.raises(UserError, match=r"eval_params\.groups\.classes: the group b is empty"):
        check(first, Grouping(found.names, found.of_query[:3]), groups)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "b"]', r"has 2 rows and no `ids`, there are 8 queries"),
        ('{"group": []}', "has no `groups`"),
        ('{"groups": ["a"], "ids": ["photo 0", "photo 1"]}', r"ids are \(2,\), groups \(1,\)"),
        ('{"groups": ["a", "b"], "ids": ["x", "x"]}', "1 ids occur more than once, the first is x"),
        ('{"groups": ["a", "b"], "ids": [1, 2]}', "numbers, so that none is the same"),
        (
            '{"groups": ["a", "b"], "ids": ["photo 0", "photo 1"]}',
            "5 of 8 queries are in no group, the first is id photo 2",
        ),
        ('["a", "a", "a", "a", "a", "a", "a", "a"]', "a gap needs two groups, there is a alone"),
        ('["a", "a", "a", "b", "", "a", "a", "a"]', "1 of 8 queries are in no group, the first is id photo 4"),
        ("[0.5, 1.5, 0, 0, 0, 0, 0, 0]", r"groups should be \(n,\) texts or whole numbers, got \(8,\) float64"),
        ('[["a"], ["b", "c"]]', "groups and ids should be plain lists"),
        ("[", "cannot be read"),
        ('"a"', "should hold a list of groups"),
    ],
)
def test_files_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(content)
    groups = Groups(file=str(tmp_path / "g.json"))
    with pytest.raises(UserError, match=rf"eval_params\.groups\.file: {tmp_path}/g\.json.*{message}"):
        check(queries(), group_queries(queries(), groups), groups)


def test_ids_where_the_queries_have_none(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("ids,groups\nx,a\n")
    with pytest.raises(UserError, match=r"g\.csv has `ids` and the query set has none"):
        group_queries(queries(None), Groups(file=str(tmp_path / "g.csv")))
