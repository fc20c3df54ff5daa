"""The methods of a suite, each stated once -> the stages that they run, and the rows that these fill."""

from dataclasses import dataclass, fields
from typing import Any, get_args

from evaluation.config import BackfillingOrder
from utils.config import build, key, merge, section, unknown_choice
from utils.errors import UserError

TABLES = ("no_backfilling", "backfilling")
PLAIN = "plain"  # the row of a method before any backfilling
ROWS = (PLAIN, *get_args(BackfillingOrder))
BACKFILLING = 20  # points between the ends, as in the papers


@dataclass
class StageTemplate:
    """`template.training`, `template.evaluation`: what such stages of all methods have in common."""

    name: str = key(doc="of the stage")
    config: str = key(doc="the script's config")
    overrides: dict[str, Any] = key({}, doc="config keys, in sections; a method's own win over them")


@dataclass
class Template:
    """`template`: how a method becomes stages. Its texts, and a method's, may hold places, as `_places` fills them."""

    training: StageTemplate | None = key(None, doc="trains a method's transformation")
    training_script: str = key("train_transformation.py", doc="by which script; of embedding files fit_embeddings.py")
    evaluation: StageTemplate | None = key(None, doc="evaluates a method")
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

    def __post_init__(self) -> None:
        for name in ("rows", "curves", "published"):
            for row in getattr(self, name) or ():
                if row not in ROWS:
                    raise ValueError(unknown_choice(name, row, ROWS))


@dataclass
class Methods:
    """The keys of a suite of which `expand` makes its stages and tables."""

    methods: dict[str, Method] = key({}, doc="name -> method, each a row or more of the tables")
    use: list[str] | None = key(None, doc="the methods that count, in their order; all if left out")
    template: Template = section(Template, doc="how a method becomes stages")
    places: dict[str, str] = key({}, doc="what places stand for in stages, template and methods")
    stages: dict[str, Any] = key({}, doc="stages of the suite's own; null: one of the base that it goes without")
    tables: dict[str, list[Any]] = key({}, doc="rows of the suite's own")


def expand(values: dict[str, Any], source: str) -> dict[str, Any]:
    """A suite's nested values with its `methods` turned into `stages` and rows of `tables`.

    Stages that the suite states itself come before those of the methods, and its own rows behind theirs; what it states
    of a method's stage wins.

    Raises:
        UserError: naming `source` and the key: a wrong value, an unknown method in `use`, a place that there is not, or
            methods whose stages bear one name and differ.
    """
    keys = [field.name for field in fields(Methods)]
    suite = build(Methods, {name: values[name] for name in keys if values.get(name) is not None}, source)
    trainings: dict[str, Any] = {}
    evaluations: dict[str, Any] = {}
    tables: dict[str, list[Any]] = {name: [] for name in TABLES}
    for name in suite.methods if suite.use is None else suite.use:
        if name not in suite.methods:
            raise UserError(f"{source}: {unknown_choice('use', name, suite.methods)}")
        method, where = suite.methods[name], f"{source}: methods.{name}"
        places = _places(name, method, suite, where)
        if method.training is not None:
            template = _needed(suite.template.training, "training", where)
            stage = _stage(suite.template.training_script, template, method.overrides, method)
            _add(trainings, filled({template.name: stage}, places, where), where)
        evaluation = method.stage
        if evaluation is None:
            template = _needed(suite.template.evaluation, "evaluation", where)
            orders = {"eval_params": {"backfilling": BACKFILLING, "backfilling_list": list(method.orders)}}
            own = merge(orders if method.orders else {}, method.evaluation)
            evaluation = filled(template.name, places, where)
            _add(evaluations, filled({evaluation: _stage("eval.py", template, own, method)}, places, where), where)
        for row in [PLAIN, *method.orders] if method.rows is None else method.rows:
            tables[TABLES[row != PLAIN]].append(_row(row, method, evaluation))
    stated = {
        name: filled(stage, suite.places, f"{source}: stages.{name}")
        for name, stage in suite.stages.items()
        if stage is not None
    }
    of_methods = trainings | evaluations
    others = {name: stage for name, stage in stated.items() if name not in of_methods}
    stages = others | merge(of_methods, {name: stated[name] for name in of_methods if name in stated})
    tables = suite.tables | {name: rows + suite.tables.get(name, []) for name, rows in tables.items()}
    return {name: value for name, value in values.items() if name not in keys} | {"stages": stages, "tables": tables}


def _places(name: str, method: Method, suite: Methods, where: str) -> dict[str, str]:
    """What the places of a method's texts stand for: those of the suite's `places`; {method}, {training}; {old}, {new},
    the models; {transformation}, {transformed}, the files of its own; {query}, {gallery}, the models of its evaluation.
    """
    template = suite.template
    places = {**suite.places, "method": name, "training": method.training or ""}
    places |= filled(template.models | method.models, places, where)
    places["transformation"] = filled(template.transformation, places, where)
    places["transformed"] = filled(template.transformed, places, where)
    places["query"] = filled(method.query, places, where)
    places["gallery"] = filled(method.gallery, places, where)
    return places


def _needed(template: StageTemplate | None, kind: str, where: str) -> StageTemplate:
    if template is None:
        raise UserError(f"{where}: has a stage of its own; `template.{kind}` should say its name and config")
    return template


def _stage(script: str, template: StageTemplate, own: dict[str, Any], method: Method) -> dict[str, Any]:
    """The values of a method's stage, with places."""
    stage: dict[str, Any] = {"script": script, "config": template.config, "overrides": merge(template.overrides, own)}
    return stage | ({"once": True} if method.once else {})


def _add(stages: dict[str, Any], stage: dict[str, Any], where: str) -> None:
    """Add a stage, which another method may have stated just so."""
    for name, values in stage.items():
        if stages.setdefault(name, values) != values:
            raise UserError(f"{where}: its stage {name} is another method's too, which says something else of it")


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
    except (LookupError, ValueError, AttributeError, TypeError):
        raise UserError(f"{where}: `{values}` has a place that is none of {{{'}, {'.join(places)}}}") from None
