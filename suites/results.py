"""What a suite found with one seed, as plain values: the figures of each row, and how they came about."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suites.config import EVAL_SCRIPT, Row, SuiteConfig
from suites.planning import PlannedStage, seeds_of
from suites.stages import Record
from utils.errors import UserError
from utils.provenance import environment, git_revision

METRICS = {"cmc_top1": "CMC-1", "cmc_top5": "CMC-5", "map": "mAP"}
GAIN_METRICS = ("cmc_top1", "map")
Results = dict[str, Any]


def collect_results(
    suite: SuiteConfig,
    stages: list[PlannedStage],
    records: dict[str, Record],
    *,
    command: str,
    data: dict[str, Any],
) -> list[Results]:
    """All that the report and the plots show, for each seed: measured figures are fractions, published ones percent.

    Args:
        records: the finished stages, by label; their evaluations are read from the suite's folder.
        command: the command that ran the suite.
        data: data root -> what is known of the images there, or None.

    Raises:
        UserError: the result of an evaluation cannot be read.
    """
    shared = {
        "suite": suite.name,
        "title": suite.title,
        "command": command,
        "environment": environment(),
        "git_revision": git_revision(),
        "data": data,
        "notes": suite.notes,
    }
    return [
        shared | {"seed": seed} | _results_of([stage for stage in stages if stage.seed in (None, seed)], suite, records)
        for seed in seeds_of(suite, stages)
    ]


def _results_of(stages: list[PlannedStage], suite: SuiteConfig, records: dict[str, Record]) -> Results:
    evaluations = {stage.name: _read(stage.config.output) for stage in stages if stage.script == EVAL_SCRIPT}
    baselines = {"old_old": suite.old_old, "new_new": suite.new_new}
    several = suite.seeds is not None and len(suite.seeds) > 1
    return {
        "stages": {
            stage.name: {
                "seed": None if stage.config is None else stage.config.seed,
                "once": several and stage.seed is None,
                "seconds": round(records[stage.label].seconds, 1),
                "environment": records[stage.label].environment,
            }
            for stage in stages
        },
        "baselines": {name: evaluations[stage]["metrics"] for name, stage in baselines.items()},
        "baseline_stages": baselines,
        "no_backfilling": [_row(row, suite, evaluations) for row in suite.tables.no_backfilling],
        "backfilling": [_row(row, suite, evaluations) for row in suite.tables.backfilling],
        "evaluations": evaluations,
    }


def _read(path: str) -> Results:
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict) or "metrics" not in result:
        raise UserError(f"{path}: is no result of eval.py; delete it and run the command again")
    return result


def _row(row: Row, suite: SuiteConfig, evaluations: dict[str, Any]) -> Results:
    published = None if row.published is None else dict(zip(METRICS, row.published, strict=True))
    values = asdict(row) | {"measured": None, "published": published}
    if row.stage is None:
        return values
    evaluation = evaluations[row.stage]
    if row.order is None:
        return values | {"measured": evaluation["metrics"]}
    old, new = (evaluations[name]["metrics"] for name in (row.old_old or suite.old_old, row.new_new or suite.new_new))
    auc = evaluation["backfilling"][row.order]["auc"]
    gains = {name: gain_recovered(auc[name], old[name], new[name]) for name in GAIN_METRICS}
    return values | {"measured": auc, "gain_recovered": gains}


def gain_recovered(auc: float | None, old: float | None, new: float | None) -> float | None:
    """The share of the gain from old/old to new/new that a backfilling curve has on average, or None without a gain.

    >>> gain_recovered(0.5, old=0.25, new=0.75), gain_recovered(0.125, old=0.25, new=0.75)
    (0.5, -0.25)
    >>> gain_recovered(0.5, old=0.6, new=0.6)
    """
    if auc is None or old is None or new is None or new <= old:
        return None
    return (auc - old) / (new - old)
