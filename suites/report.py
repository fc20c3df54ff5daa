"""What a suite found: results.json, and report.md made from it, each row beside the published figure."""

import json
from dataclasses import asdict
from typing import Any

from suites.planning import PlannedStage
from suites.schema import Row, SuiteConfig
from suites.stages import Record, duration
from utils.provenance import environment, git_revision

METRICS = {"cmc_top1": "CMC-1", "cmc_top5": "CMC-5", "map": "mAP"}
GAIN_METRICS = ("cmc_top1", "map")
NOT_RUN, NO_FIGURE = "not run", "-"
Results = dict[str, Any]
Figures = dict[str, float | None]


def collect_results(
    suite: SuiteConfig, stages: list[PlannedStage], records: dict[str, Record], command: str
) -> Results:
    """All that the report and the plots show, as plain values: measured figures are fractions, published ones percent.

    Args:
        records: the finished stages; their evaluations are read from the suite's folder.
        command: the command that ran the suite.
    """
    evaluations = {
        stage.name: json.loads((suite.stages_dir / f"{stage.name}.json").read_text(encoding="utf-8"))
        for stage in stages
        if stage.script == "eval.py"
    }
    baselines = [evaluations[name]["metrics"] for name in (suite.old_old, suite.new_new)]
    seeds = sorted({stage.config.seed for stage in stages if stage.config is not None})
    return {
        "suite": suite.name,
        "title": suite.title,
        "command": command,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
        "environment": environment(),
        "git_revision": git_revision(),
        "stages": {
            name: {"seconds": round(record.seconds, 1), "environment": record.environment}
            for name, record in records.items()
        },
        "notes": suite.notes,
        "baselines": {"old_old": baselines[0], "new_new": baselines[1]},
        "no_backfilling": [_row(row, evaluations) for row in suite.tables.no_backfilling],
        "backfilling": [_row(row, evaluations, *baselines) for row in suite.tables.backfilling],
        "evaluations": evaluations,
    }


def _row(row: Row, evaluations: dict[str, Any], old: Figures | None = None, new: Figures | None = None) -> Results:
    published = None if row.published is None else dict(zip(METRICS, row.published, strict=True))
    values = asdict(row) | {"measured": None, "published": published}
    if row.stage is None:
        return values
    evaluation = evaluations[row.stage]
    if row.order is None:
        return values | {"measured": evaluation["metrics"]}
    assert old is not None
    assert new is not None
    auc = evaluation["backfilling"][row.order]["auc"]
    gains = {name: gain_recovered(auc[name], old[name], new[name]) for name in GAIN_METRICS}
    return values | {"measured": auc, "gain_recovered": gains}


def gain_recovered(auc: float | None, old: float | None, new: float | None) -> float | None:
    """The share of the gain from old/old to new/new that a backfilling curve has on average, or None without a gain.

    >>> gain_recovered(0.5, old=0.2, new=0.6)
    0.75
    """
    if auc is None or old is None or new is None or new <= old:
        return None
    return (auc - old) / (new - old)


def report(results: Results) -> str:
    """report.md: how the suite was run, both tables, the plots."""
    seconds = {name: stage["seconds"] for name, stage in results["stages"].items()}
    lines = [
        f"# {results['title']}",
        "",
        f"    {results['command']}",
        "",
        f"- Hardware: {_hardware(results['stages'])}",
        f"- Seed: {results['seed']}",
        f"- Git revision: {results['git_revision'] or 'unknown'}",
        f"- Time: {duration(sum(seconds.values()))} in all",
        "",
        tables(results),
        "",
        *(f"{note}\n" for note in results["notes"]),
        "## Backfilling curves",
        "",
        "![CMC-1 and mAP over the share of the gallery that is backfilled](backfilling.png)",
        "",
        "## Retrieval examples",
        "",
        "Queries picked to show the effect, each with its five nearest gallery images.",
        "",
        "![Nearest images before the upgrade, after the transformation, after backfilling](retrieval_examples.png)",
        "",
        "## Time of each stage",
        "",
        *table(["stage", "time"], [[name, duration(value)] for name, value in seconds.items()]),
    ]
    return "\n".join(lines) + "\n"


def tables(results: Results) -> str:
    """Both tables as Markdown, in percent; also what reproduce.py prints."""
    lines = ["## Retrieval without backfilling", "", *_figures_table(results["no_backfilling"], backfilling=False)]
    if results["backfilling"]:
        lines += ["", "## Area under the backfilling curve", ""]
        lines += [*_figures_table(results["backfilling"], backfilling=True), ""]
        lines += ["In percent. Gain recovered: (AUC - old/old) / (new/new - old/old)."]
    return "\n".join(lines)


def _figures_table(rows: list[Results], backfilling: bool) -> list[str]:
    compare = any(row["published"] for row in rows)
    header = ["case", "side-info", *(["order"] if backfilling else [])]
    for name in METRICS.values():
        header += [f"AUC {name}" if backfilling else name, *(["published"] if compare else [])]
    if backfilling:
        header += [f"gain recovered, {METRICS[name]}" for name in GAIN_METRICS]
    body = []
    for row in rows:
        measured, published = row["measured"], row["published"]
        cells = [row["case"], {None: "-", False: "no", True: "yes"}[row["side_info"]]]
        cells += [row["order"]] if backfilling else []
        for name in METRICS:
            cells.append(NOT_RUN if measured is None else _percent(measured[name]))
            if compare:
                cells.append(f"{published[name]:.1f}" if published else NO_FIGURE)
        if backfilling:
            cells += [NO_FIGURE if measured is None else _percent(row["gain_recovered"][name]) for name in GAIN_METRICS]
        body.append(cells)
    return table(header, body)


def table(header: list[str], body: list[list[str]]) -> list[str]:
    """A Markdown table whose columns also line up in a terminal.

    >>> print("\\n".join(table(["case", "mAP"], [["old/old", "9.5"]])))
    | case    | mAP |
    |---------|-----|
    | old/old | 9.5 |
    """
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *body]]
    rule = "|".join("-" * (width + 2) for width in widths)
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def _percent(fraction: float | None) -> str:
    return NO_FIGURE if fraction is None else f"{100 * fraction:.1f}"


def _hardware(stages: dict[str, Any]) -> str:
    """The machines that ran the stages; more than one where a suite went on elsewhere."""
    machines = []
    for stage in stages.values():
        e = stage["environment"]
        machine = f"{e['device']}, {e['cores']} CPU cores, Python {e['python']}, torch {e['torch']}"
        if machine not in machines:
            machines.append(machine)
    return "; ".join(machines)
