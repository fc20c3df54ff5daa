"""report.md: what a suite found, each row beside the published figure, and how it was made."""

from collections.abc import Mapping
from typing import Any

from suites.results import GAIN_METRICS, METRICS, Results
from suites.stages import duration
from suites.summary import Figure, Row, Summary, summarise

NOT_RUN, NO_FIGURE = "not run", "-"
SIDE_INFO = {None: NO_FIGURE, False: "no", True: "yes"}
RISKS = {"alignment_error": "alignment error", "cmc_top1": "1 - CMC-1", "average_precision": "1 - AP"}
PICTURES = {  # heading, and what a picture shows
    "curves": ("Backfilling curves", "CMC-1 and mAP over the share of the gallery that is backfilled"),
    "areas": ("Areas under the backfilling curves", "Mean CMC-1 and mAP of each method and order"),
    "groups": (
        "Groups of queries, along the curves",
        "CMC-1 and mAP of each group of queries, and the gap between the best and the worst, over the share of the "
        "gallery that is backfilled",
    ),
    "risk_coverage": ("Risk of the items backfilled last", "Mean risk over the share of items kept"),
    "retrieval_examples": (
        "Retrieval examples",
        "Queries picked to show the effect, each with its five nearest gallery images: before the upgrade, after the "
        "transformation, after backfilling",
    ),
}
GAP_POINTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the gallery at which the report shows gaps
GROUPS_NOTE = (
    "In percent; of rows with an order the areas under the curves. Gap: the figure of the best group less that of the "
    "worst; along the curves at the point nearest to each share of the gallery, and its mean over all points. Closed: "
    "the share of the gap before backfilling that is gone. What remains at 100 % is the new model's own gap."
)
AURC = {"kept": "AURC", "random": "AURC, random", "oracle": "AURC, oracle"}
QUALITY_NOTE = (
    "An item's alignment error is |new - h(old)|; its retrieval risk, 1 - CMC-1 or 1 - AP, is that of h(old) as the "
    "query in the gallery of new embeddings. Rank correlation: Spearman's, of the risk and how early the order "
    "backfills an item. AURC: the mean risk of the items that it would backfill last, averaged over all numbers of "
    "items kept; sorting by the risk itself (oracle) has the lowest, and a random order the mean risk of all items."
)
SPREAD = "mean ± standard deviation (n - 1) over {} seeds; without ±: of a stage that ran once"


def report(results: list[Results], pictures: Mapping[str, str]) -> str:
    """The report: how the suite was run, both tables, the pictures.

    Args:
        results: as `collect_results` gives them.
        pictures: name of PICTURES -> the file, relative to the report; those that were drawn.
    """
    first, summary = results[0], summarise(results)
    lines = [
        f"# {first['title']}",
        "",
        f"    {first['command']}",
        "",
        f"- Hardware: {_hardware(results)}",
        *(f"- Data: {root}: {_data(stamp)}" for root, stamp in first["data"].items()),
        f"- {_seeds(results)}",
        f"- {_revisions(results)}",
        f"- Time: {duration(sum(sum(times) for times in _times(results).values()))} in all",
        "",
        tables(summary),
        "",
        *(f"{note}\n" for note in first["notes"]),
        *_groups_section(summary),
        *_quality_section(summary),
        *(line for name, file in pictures.items() for line in _picture(name, file)),
        "## Time of each stage",
        "",
        *table(["stage", "time"], [[name, ", ".join(map(duration, times))] for name, times in _times(results).items()]),
    ]
    return "\n".join(lines) + "\n"


def tables(summary: Summary) -> str:
    """Both tables as Markdown, in percent; also what reproduce.py prints."""
    lines = ["## Retrieval without backfilling", "", *_figures_table(summary.no_backfilling, backfilling=False), ""]
    if summary.backfilling:
        lines += ["## Area under the backfilling curve", ""]
        lines += [*_figures_table(summary.backfilling, backfilling=True), ""]
        lines += ["## Regret", "", *_regret_table(summary.backfilling), ""]
    lines += ["In percent" + (f", {SPREAD.format(len(summary.seeds))}." if len(summary.seeds) > 1 else ".")]
    if summary.backfilling:
        lines[-1] += (
            " Gain recovered: (AUC - old/old) / (new/new - old/old). Regret: how far a curve falls, at most, below the "
            "lower one of its ends, where a part of the backfilling is worse than none, and below the straight line "
            "between them."
        )
    return "\n".join(lines)


def _picture(name: str, file: str) -> list[str]:
    heading, description = PICTURES[name]
    return [f"## {heading}", "", f"![{description}]({file})", ""]


def _quality_section(summary: Summary) -> list[str]:
    """How good each order is of the rows whose curves are shown, where it was judged: a case's orders by one risk."""
    rows = [row for row in summary.backfilling if row.risks and row.curve]
    if not rows:
        return []
    header = ["case", "side-info", "risk", "order", "rank correlation", *AURC.values()]
    body = [
        [row.case, SIDE_INFO[row.side_info], title, row.order or NO_FIGURE, number(row.risks[name].spearman)]
        + [number(row.risks[name].aurc[curve]) for curve in AURC]
        for case in dict.fromkeys((row.case, row.side_info) for row in rows)
        for name, title in RISKS.items()
        for row in rows
        if (row.case, row.side_info) == case and name in row.risks
    ]
    return ["## How good each order is", "", *table(header, body), "", QUALITY_NOTE, ""]


def _groups_section(summary: Summary) -> list[str]:
    """The figures of each group of queries, the gaps between them along the curves, and the shares that are closed."""
    rows = [(row, row.groups) for row in (*summary.no_backfilling, *summary.backfilling) if row.groups is not None]
    if not rows:
        return []
    body: list[list[str]] = []
    gaps: list[list[str]] = []
    closed: list[list[str]] = []
    for row, groups in rows:
        start = [row.case, SIDE_INFO[row.side_info], row.order or NO_FIGURE]
        for name, figures in {**groups.figures, "gap": groups.gap}.items():
            body.append([*start, name, *(percent(figures[metric]) for metric in METRICS)])
        for points, means, cells in ((groups.gaps, groups.gap, gaps), (groups.closed, groups.closed_area, closed)):
            for metric in points:
                nearest = _at_shares(row.fractions, points[metric])
                cells.append([*start, METRICS[metric], *nearest, percent(means[metric])])
    lines = ["## Groups of queries", "", *table(["case", "side-info", "order", "group", *METRICS.values()], body), ""]
    header = ["case", "side-info", "order", "figure", *(f"{share:.0%}" for share in GAP_POINTS), "mean"]
    for title, cells in (("The gap along the curves", gaps), ("The share of the gap that is closed", closed)):
        lines += [f"### {title}", "", *table(header, cells), ""] if cells else []
    return [*lines, GROUPS_NOTE, ""]


def _at_shares(fractions: list[float], points: list[Figure]) -> list[str]:
    """A curve's points nearest to GAP_POINTS, in percent."""
    places = [min(range(len(points)), key=lambda i: abs(fractions[i] - share)) for share in GAP_POINTS]
    return [percent(points[place]) for place in places]


def _figures_table(rows: list[Row], backfilling: bool) -> list[str]:
    compare = any(row.published for row in rows)
    header = ["case", "side-info", *(["order"] if backfilling else [])]
    for name in METRICS.values():
        header += [f"AUC {name}" if backfilling else name, *(["published"] if compare else [])]
    if backfilling:
        header += [f"gain recovered, {METRICS[name]}" for name in GAIN_METRICS]
    body = []
    for row in rows:
        cells = [row.case, SIDE_INFO[row.side_info]]
        cells += [row.order or NO_FIGURE] if backfilling else []
        for name in METRICS:
            cells.append(NOT_RUN if row.measured is None else percent(row.measured[name]))
            if compare:
                cells.append(f"{row.published[name]:.1f}" if row.published else NO_FIGURE)
        if backfilling:
            gains = row.gain_recovered or {}
            cells += [percent(gains.get(name)) for name in GAIN_METRICS]
        body.append(cells)
    return table(header, body)


def _regret_table(rows: list[Row]) -> list[str]:
    header = ["case", "side-info", "order"]
    header += [f"below {line}, {name}" for line in ("the lower end", "the line") for name in METRICS.values()]
    body = []
    for row in rows:
        found = [row.regrets.get(name, (None, None)) for name in METRICS]
        figures = [percent(regret[line]) for line in (0, 1) for regret in found]
        body.append([row.case, SIDE_INFO[row.side_info], row.order or NO_FIGURE, *figures])
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


def percent(figure: Figure | None) -> str:
    """A fraction in percent, with its deviation where it has one.

    >>> percent(Figure(0.512)), percent(Figure(0.512, 0.004)), percent(None)
    ('51.2', '51.2 ± 0.4', '-')
    """
    return number(figure, scale=100, digits=1)


def number(figure: Figure | None, scale: float = 1, digits: int = 3) -> str:
    """A figure, with its deviation where it has one.

    >>> number(Figure(0.51234)), number(Figure(0.51234, 0.0042)), number(None)
    ('0.512', '0.512 ± 0.004', '-')
    """
    if figure is None:
        return NO_FIGURE
    known = [value for value in (figure.mean, figure.deviation) if value is not None]
    return " ± ".join(f"{scale * value:.{digits}f}" for value in known)


def _hardware(results: list[Results]) -> str:
    """The machines that ran the stages; more than one where a suite went on elsewhere."""
    environments = [stage["environment"] for result in results for stage in result["stages"].values()]
    machines = [
        f"{each['device']}, {each['cores']} CPU cores, Python {each['python']}, torch {each['torch']}"
        for each in environments
    ]
    return "; ".join(dict.fromkeys(machines))


def _revisions(results: list[Results]) -> str:
    """The revision of the code that ran the stages, then any other with the stages that it ran."""
    of_stage: dict[str, list[str]] = {}
    for name, stage in [item for result in results for item in result["stages"].items()]:
        known = stage["environment"].get("git_revisions", [None])
        of_stage.setdefault(name, []).extend(revision or "unknown" for revision in known)
    stages_of: dict[str, list[str]] = {}
    for name, revisions in of_stage.items():
        stages_of.setdefault(" and ".join(dict.fromkeys(revisions)), []).append(name)
    most = max(stages_of, key=lambda revisions: len(stages_of[revisions]))
    others = [f"{revisions} ({', '.join(names)})" for revisions, names in stages_of.items() if revisions != most]
    return "; ".join([f"Git revision: {most}", *others])


def _data(stamp: dict[str, Any] | None) -> str:
    """What is known of a data root's images: which data set, from where, and whether the split is the official one."""
    if stamp is None:
        return "not prepared by prepare_dataset.py, so that nothing is known of its split"
    origin = f" (from {stamp['source']})" if stamp["source"] else ""
    images = " and ".join(f"{count:,} {split} images" for split, count in stamp["images"].items())
    resized = f", reduced to {stamp['resized']} pixels" if stamp.get("resized") else ""
    held_out = ""
    if stamp.get("held_out") is not None:
        held_out = f", and {stamp['held_out']:.0%} of the former stand in for the latter, which were not looked at"
    return f"{stamp['dataset']}{origin}, split: {stamp['split'] or 'not known'}; {images}{resized}{held_out}"


def _seeds(results: list[Results]) -> str:
    """The seeds, and which stages ran otherwise."""
    first, stages = results[0], results[0]["stages"]
    seeds = [str(result["seed"]) for result in results]
    once = [name for name, stage in stages.items() if stage["once"]]
    others = {name: stage["seed"] for name, stage in stages.items() if stage["seed"] not in (None, first["seed"])}
    own = [f"{name} ran with seed {seed}" for name, seed in others.items()]
    shared = [f"once, with seed {first['seed']}, for all: {', '.join(once)}"] if once else []
    return "; ".join([f"Seed{'s' if len(seeds) > 1 else ''}: {', '.join(seeds)}", *shared, *own])


def _times(results: list[Results]) -> dict[str, list[float]]:
    """Stage -> the seconds of each of its runs."""
    return {
        name: [result["stages"][name]["seconds"] for result in (results[:1] if stage["once"] else results)]
        for name, stage in results[0]["stages"].items()
    }
