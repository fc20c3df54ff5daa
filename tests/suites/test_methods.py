"""Suites that state a method once: the stages and rows that it becomes, and what is refused."""

import copy
from typing import Any

import pytest

from suites.methods import expand
from utils.config import merge, parse_yaml
from utils.errors import UserError

SUITE = """
name: mine
places: {family: glyphs}
template:
  models: {old: "{family}_old.pt", new: "{family}_new.pt"}
  transformation: "{family}_{method}.pt"
  transformed: "{family}_old_{method}.pt"
  training:
    name: train_{method}
    config: configs/{family}_{training}.yaml
    overrides: {output_transformation_path: "{transformation}", epochs: 3}
  evaluation:
    name: eval_{method}
    config: configs/{family}_eval.yaml
    overrides: {query_model_path: "{query}", gallery_model_path: "{gallery}"}
stages:
  data: {script: prepare_dataset.py, output: "data_store/{family}"}
  eval_old: {script: eval.py, config: "configs/{family}_eval.yaml"}
methods:
  old: {case: old/old, stage: eval_old, published: {plain: [34.2, 60.6, 16.5]}}
  as_is: {case: new/old, gallery: "{old}"}
  fct:
    case: FCT
    side_info: false
    training: fct
    overrides: {epochs: 9}
    evaluation: {seed: 4}
    orders: [random, distance]
    curves: [random]
    published: {random: [1.0, 2.0, 3.0]}
"""


def expanded(**changes: Any) -> dict[str, Any]:
    return expand(merge(parse_yaml(SUITE), changes), "suite.yaml")


def test_methods_become_stages() -> None:
    stages = expanded()["stages"]
    assert list(stages) == ["data", "eval_old", "train_fct", "eval_as_is", "eval_fct"]
    assert stages["data"] == {"script": "prepare_dataset.py", "output": "data_store/glyphs"}
    assert stages["train_fct"] == {
        "script": "train_transformation.py",
        "config": "configs/glyphs_fct.yaml",
        "overrides": {"output_transformation_path": "glyphs_fct.pt", "epochs": 9},  # the method's own wins
    }
    assert stages["eval_as_is"]["overrides"]["gallery_model_path"] == "glyphs_old.pt"
    assert stages["eval_fct"]["overrides"] == {
        "query_model_path": "glyphs_new.pt",
        "gallery_model_path": "glyphs_old_fct.pt",
        "eval_params": {"backfilling": 20, "backfilling_list": ["random", "distance"]},
        "seed": 4,
    }


def test_methods_become_rows() -> None:
    tables = expanded()["tables"]
    shown = [(row["case"], row["stage"], row["published"]) for row in tables["no_backfilling"]]
    others = [("new/old", "eval_as_is", None), ("FCT", "eval_fct", None)]
    assert shown == [("old/old", "eval_old", [34.2, 60.6, 16.5]), *others]
    shown = [(row["order"], row["curve"], row["published"]) for row in tables["backfilling"]]
    assert shown == [("random", True, [1.0, 2.0, 3.0]), ("distance", False, None)]
    rest = expanded(methods={"fct": {"rows": ["distance"], "curves": None}}, tables={"backfilling": [{"case": "X"}]})
    assert [row["case"] for row in rest["tables"]["no_backfilling"]] == ["old/old", "new/old"]
    assert [(row["case"], row.get("curve")) for row in rest["tables"]["backfilling"]] == [("FCT", True), ("X", None)]


def test_use_chooses_and_sorts() -> None:
    chosen = expanded(use=["fct", "old"])
    assert list(chosen["stages"]) == ["data", "eval_old", "train_fct", "eval_fct"]
    assert [row["case"] for row in chosen["tables"]["no_backfilling"]] == ["FCT", "old/old"]
    assert list(expanded(use=[])["stages"]) == ["data", "eval_old"]


def test_what_the_suite_states_of_a_stage_wins_and_null_leaves_one_out() -> None:
    stages = expanded(stages={"train_fct": {"overrides": {"epochs": 1}, "once": True}, "data": None})["stages"]
    assert list(stages) == ["eval_old", "train_fct", "eval_as_is", "eval_fct"]
    assert stages["train_fct"]["overrides"] == {"output_transformation_path": "glyphs_fct.pt", "epochs": 1}
    assert stages["train_fct"]["once"] is True


def test_methods_share_a_stage_that_both_say_the_same_of() -> None:
    shared = {"template": {"training": {"name": "train_{training}", "overrides": {"output_transformation_path": "h"}}}}
    twin = parse_yaml(SUITE)["methods"]["fct"]
    assert list(expanded(**shared, methods={"twin": twin})["stages"]).count("train_fct") == 1
    with pytest.raises(UserError, match=r"^suite\.yaml: methods\.twin: its stage train_fct is another method's too"):
        expanded(**shared, methods={"twin": twin | {"overrides": {"epochs": 2}}})


def test_a_suite_without_methods_stays_as_it_is() -> None:
    values = {"name": "x", "stages": {"a": {"script": "eval.py"}}, "tables": {"no_backfilling": [], "backfilling": []}}
    assert expand(copy.deepcopy(values), "x.yaml") == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use": ["ftc"]}, "use: unknown 'ftc'; did you mean fct?"),
        ({"use": "fct"}, "use: should be a list, got 'fct'"),
        ({"methods": {"fct": {"casee": "x"}}}, "unknown key `methods.fct.casee`; did you mean `methods.fct.case`?"),
        ({"methods": {"fct": {"orders": ["sigm"]}}}, "methods.fct.orders[0]: unknown 'sigm'; did you mean sigma?"),
        ({"methods": {"fct": {"published": {"randm": [1]}}}}, "methods.fct.published: unknown 'randm'; did you mean r"),
        ({"methods": {"fct": {"gallery": "{olld}"}}}, "methods.fct: `{olld}` has a place that is none of {family}"),
        ({"methods": {"fct": {"gallery": "{old.x}"}}}, "methods.fct: `{old.x}` has a place that is none of {family}"),
        ({"stages": {"data": {"output": "{famil}"}}}, "stages.data: `{famil}` has a place that is none of {family}"),
        ({"template": {"training": None}}, "methods.fct: has a stage of its own; `template.training` should say"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        expanded(**changes)
    assert str(error.value).startswith(f"suite.yaml: {message}")
