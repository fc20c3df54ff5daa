"""The methods of a suite, each stated once -> the stages that they run, and the rows that these fill."""

from dataclasses import dataclass
from typing import Any

from evaluation.config import BackfillingOrder
from utils.config import build, key, merge, section, unknown_choice
from utils.errors import UserError

TABLES = ("no_backfilling", "backfilling")
PLAIN = "plain"  # the row of a method before any backfilling
BACKFILLING = 20  # points between the ends, as in the papers


@dataclass
class StageTemplate:
    """`template.training`, `template.evaluation`: what such stages of all methods have in common."""

    name: str = key("", doc="of the stage")
    config: str = key("", doc="the script's config")
    overrides: dict[str, Any] = key({}, doc="config keys, in sections; a method's own win over them")


@dataclass
class Template:
    """`template`: how a method becomes stages. Its texts, and a method's, may hold places, as `_places` fills them."""

    training: StageTemplate = section(StageTemplate, doc="trains a method's transformation")
    evaluation: StageTemplate = section(StageTemplate, doc="evaluates a method")
    models: dict[str, str] = key({}, doc="{old} and {new}")
    transformation: str = key("", doc="{transformation}, a method's file of it")
    transformed: str = key("", doc="{transformed}, the file of its transformed old model")


@dataclass
class Method:
    """`methods.NAME`: a way to answer new queries, with its row in each table."""

    case: str = key(doc="its name in the tables")
    side_info: bool | None = key(None, doc="whether the transformation sees side-information; left out: no question")
    training: str | None = key(None, doc="{training}: by which config it is trained; none: nothing is trained")
    overrides: dict[str, Any] = key({}, doc="config keys of the training, in sections")
    stage: str | None = key(None, doc="an evaluation among `stages`, whose rows these are; left out: one of its own")
    evaluation: dict[str, Any] = key({}, doc="config keys of the evaluation, in sections")
    models: dict[str, str] = key({}, doc="{old} and {new}, where they are not the template's")
    query: str = key("{new}", doc="model of the queries")
    gallery: str = key("{transformed}", doc="model of the gallery")
    orders: list[BackfillingOrder] = key([], doc="orders of backfilling to evaluate; none: no backfilling")
    rows: list[str] | None = key(None, doc="`plain`, before any backfilling, and orders; if left out, all")
    curves: list[str] | None = key(None, doc="of the orders, those that plots of curves show; all if left out")
    published: dict[str, list[float]] = key({}, doc="row -> the published CMC-1, CMC-5 and mAP, in percent")
    old_old: str | None = key(None, doc="stage: old/old of its own models; the suite's if left out")
    new_new: str | None = key(None, doc="stage: new/new of its own models; the suite's if left out")
    once: bool = key(False, doc="with several seeds: run its stages with the first of them alone")


def expand(values: dict[str, Any], source: str) -> dict[str, Any]:
    """A suite's nested values with its `methods` turned into `stages` and rows of `tables`.

    `use` names the methods that count, in their order; all if left out. Stages that the suite states itself come before
    those of the methods, and its own rows behind theirs; what it states of a method's stage wins. A stage of null is
    one of the base that it goes without.

    Raises:
        UserError: naming `source` and the key.
    """
    values = dict(values)
    shared, methods = values.pop("places", None) or {}, values.pop("methods", None) or {}
    template = build(Template, values.pop("template", None) or {}, source, prefix="template.")
    trainings: dict[str, Any] = {}
    evaluations: dict[str, Any] = {}
    tables: dict[str, list[Any]] = {name: [] for name in TABLES}
    for name in values.pop("use", None) or methods:
        if name not in methods:
            raise UserError(f"{source}: {unknown_choice('use', name, methods)}")
        where = f"{source}: methods.{name}"
        method = build(Method, methods[name], source, prefix=f"methods.{name}.")
        places = _places(name, method, template, shared, where)
        if method.training is not None:
            trainings |= _stage("train_transformation.py", template.training, method.overrides, method, places, where)
        stage = method.stage or filled(template.evaluation.name, places, where)
        if method.stage is None:
            orders = {"eval_params": {"backfilling": BACKFILLING, "backfilling_list": list(method.orders)}}
            evaluation = merge(orders if method.orders else {}, method.evaluation)
            evaluations |= _stage("eval.py", template.evaluation, evaluation, method, places, where)
        for row in [PLAIN, *method.orders] if method.rows is None else method.rows:
            tables[TABLES[row != PLAIN]].append(_row(row, method, stage))
    stated = {name: stage for name, stage in (values.get("stages") or {}).items() if stage is not None}
    stated = filled(stated, shared, source)
    of_methods = trainings | evaluations
    others = {name: stage for name, stage in stated.items() if name not in of_methods}
    values["stages"] = others | merge(of_methods, {name: stated[name] for name in of_methods if name in stated})
    own_rows = values.get("tables") or {}
    values["tables"] = own_rows | {name: rows + (own_rows.get(name) or []) for name, rows in tables.items()}
    return values


def _places(name: str, method: Method, template: Template, shared: dict[str, str], where: str) -> dict[str, str]:
    """What the places of a method's texts stand for: those of the suite's `places`; {method}, {training}; {old}, {new},
    the models; {transformation}, {transformed}, the files of its own; {query}, {gallery}, the models of its evaluation.
    """
    places = {**shared, "method": name, "training": method.training or ""}
    places |= filled(template.models | method.models, places, where)
    for stated, name in (
        (template, "transformation"),
        (template, "transformed"),
        (method, "query"),
        (method, "gallery"),
    ):
        places[name] = filled(getattr(stated, name), places, where)
    return places


def _stage(
    script: str,
    template: StageTemplate,
    own: dict[str, Any],
    method: Method,
    places: dict[str, str],
    where: str,
) -> dict[str, Any]:
    """The name of a method's stage and its values."""
    stage: dict[str, Any] = {"script": script, "config": template.config, "overrides": merge(template.overrides, own)}
    return filled({template.name: stage | ({"once": True} if method.once else {})}, places, where)


def _row(row: str, method: Method, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = {"case": method.case, "side_info": method.side_info, "stage": stage}
    values["published"] = method.published.get(row)
    if row != PLAIN:
        curve = method.curves is None or row in method.curves
        values |= {"order": row, "curve": curve, "old_old": method.old_old, "new_new": method.new_new}
    return values


def filled(values: Any, places: dict[str, str], where: str) -> Any:
    """Nested `values` with the places {NAME} in their texts filled.

    Raises:
        UserError: a place that there is not.

    >>> filled({"{a}": ["{b}.pt", 1]}, {"a": "x", "b": "y"}, "here")
    {'x': ['y.pt', 1]}
    """
    if isinstance(values, dict):
        return {filled(name, places, where): filled(value, places, where) for name, value in values.items()}
    if isinstance(values, list):
        return [filled(value, places, where) for value in values]
    if not isinstance(values, str):
        return values
    try:
        return values.format_map(places)
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{where}: `{values}` has a place that is none of {{{'}, {'.join(places)}}}") from None
