"""A table of the trials of benchmarks/atp_search.py, and a picture of loss over steps.

python benchmarks/atp_evidence.py        writes README.md and curve.svg in benchmarks/results/atp_search
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "atp_search"
BASELINE = "static-taylor"
FINALISTS = {
    "static-taylor": ("prune, then tune", "#8a8a8a"),
    "static-taylor-compensate": ("prune, compensate, then tune", "#c77700"),
    "compensate-limit-30": ("ATP with compensation", "#0b62c4"),
}
SAME = {"atp": "compensate-limit-30"}
"""Settings that are the same under two names: today's defaults, and the change that led to them."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 60, 230, 20, 44
Cell = tuple[str, int, str]
"""Suite, steps, setting."""


def trials() -> list[dict[str, Any]]:
    """All finished trials of settings that still exist."""
    files = [path for path in sorted(RESULTS.glob("*.jsonl")) if path.stem != "discarded"]
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf8").splitlines()]


def by_cell(rows: list[dict[str, Any]]) -> dict[Cell, dict[int, float]]:
    """Loss by seed, by cell."""
    cells: dict[Cell, dict[int, float]] = defaultdict(dict)
    for row in rows:
        cells[row["suite"], row["steps"], SAME.get(row["name"], row["name"])][row["seed"]] = row["loss"]
    return cells


def table(cells: dict[Cell, dict[int, float]]) -> str:
    """One row for each cell: mean loss, and mean difference to the baseline over the seeds that both have."""
    lines = [
        "| suite | steps | setting | seeds | loss, nats a token | difference to `static-taylor` |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for (suite, steps, name), losses in sorted(
        cells.items(), key=lambda item: (item[0][:2], statistics.mean(item[1].values()))
    ):
        known = cells.get((suite, steps, BASELINE), {})
        gaps = [loss - known[seed] for seed, loss in losses.items() if seed in known]
        gap = "" if not gaps or name == BASELINE else f"{statistics.mean(gaps):+.3f}"
        if len(gaps) > 1 and gap:
            gap += f" ({min(gaps):+.3f} to {max(gaps):+.3f})"
        mean = statistics.mean(losses.values())
        lines.append(f"| {suite} | {steps} | {name} | {len(losses)} | {mean:.4f} | {gap} |")
    return "\n".join(lines) + "\n"


def curve(cells: dict[Cell, dict[int, float]], suite: str, seed: int) -> str:
    """Loss over the number of steps as SVG; every point is a separate run, all with the same seed."""
    lines = {
        name: sorted(
            (steps, losses[seed])
            for (s, steps, n), losses in cells.items()
            if (s, n) == (suite, name) and seed in losses
        )
        for name in FINALISTS
    }
    points = [point for line in lines.values() for point in line]
    steps = sorted({x for x, _ in points})
    low, high = min(y for _, y in points) - 0.02, max(y for _, y in points) + 0.02

    def at(x: int, y: float) -> tuple[float, float]:
        position = steps.index(x) / max(1, len(steps) - 1)  # the lengths double: equal distances
        return LEFT + position * (WIDTH - LEFT - RIGHT), TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{at(x, low)[0]:.0f}" y="{HEIGHT - 24}" text-anchor="middle">{x}</text>' for x in steps]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">optimiser steps ({suite}, seed {seed}, keep 0.6 of total)</text>')
    for tick in range(int(low * 10) + 1, int(high * 10) + 1):
        y = at(steps[0], tick / 10)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
    for name, line in lines.items():
        label, colour = FINALISTS[name]
        places = [at(*point) for point in line]
        parts.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" stroke="{colour}" fill="none"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}" fill="{colour}">{label}</text>')
    title = "Validation loss in nats a token over the length of the tuning"
    style = 'font-family="sans-serif" font-size="12" fill="#333333" stroke-width="2"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {style} role="img">'
    return "\n".join([head, f"<title>{title}</title>", background, *parts, "</svg>"]) + "\n"


HEAD = """# Trials of ATP's settings

Made by `benchmarks/atp_search.py`, which says how; summed up by `benchmarks/atp_evidence.py`. Lower is better.
All losses are on validation data and were used to select. With one seed, settings that differ by less than 0.02 are
not told apart: the same setting in another floating-point precision moved by that much. In brackets: the range over
seeds, paired. `discarded.jsonl` holds trials of an option that was dropped (distillation from the dense model).

"""


def main() -> None:
    cells = by_cell(trials())
    (RESULTS / "README.md").write_text(HEAD + table(cells), encoding="utf8")
    (RESULTS / "curve.svg").write_text(curve(cells, "healthcare", 0), encoding="utf8")


if __name__ == "__main__":
    main()
