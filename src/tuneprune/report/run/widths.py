"""The picture of the kept widths: one row of bars for each kind of group, one bar for each layer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from tuneprune.report.run.record import Width
from tuneprune.report.templates import render
from tuneprune.structure.spaces import UNIT_NAMES

LABEL_WIDTH, TOTAL_WIDTH, BARS_WIDTH = 184, 76, 724
BAR_HEIGHT, ROW_HEIGHT, AXIS_HEIGHT = 54, 88, 22
MAX_PITCH = 120


@dataclass(frozen=True)
class Bar:
    """One group: its layer, name and width."""

    layer: int
    name: str
    width: Width


@dataclass(frozen=True)
class KindRow:
    """All groups of one kind at one place in the block, by layer."""

    label: str
    place: str
    bars: tuple[Bar, ...]

    @property
    def kept(self) -> int:
        """Units kept over all layers."""
        return sum(bar.width.kept for bar in self.bars)

    @property
    def size(self) -> int:
        """Units of the dense model over all layers."""
        return sum(bar.width.size for bar in self.bars)

    @property
    def dense_text(self) -> str:
        """Units of one group in the dense model, or the number of groups if each is one unit, such as a layer."""
        sizes = sorted({bar.width.size for bar in self.bars})
        if sizes == [1]:
            return f"{len(self.bars)} when dense"
        return f"{sizes[0]} each when dense" if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]} each when dense"


def kind_rows(widths: Mapping[str, Width]) -> list[KindRow]:
    """The groups in rows: by kind and, if a block has several groups of a kind, by place in the block."""
    found: dict[tuple[str, str], list[Bar]] = {}
    for name, width in widths.items():
        layer, place = _address(name)
        found.setdefault((width.kind, place), []).append(Bar(layer, name, width))
    places = {kind: sum(other == kind for other, _ in found) for kind, _ in found}
    return [
        KindRow(
            label=_label(kind),
            place=place if places[kind] > 1 else "",
            bars=tuple(sorted(bars, key=lambda bar: bar.layer)),
        )
        for (kind, place), bars in found.items()
    ]


def widths_picture(widths: Mapping[str, Width]) -> Markup:
    """The rows as one <svg>, with the group and its numbers in the tooltip of each bar; empty without groups."""
    rows = kind_rows(widths)
    if not rows:
        return Markup("")
    num_layers = 1 + max(bar.layer for row in rows for bar in row.bars)
    pitch = min(BARS_WIDTH / num_layers, MAX_PITCH)
    return render(
        "widths.svg.j2",
        rows=rows,
        num_layers=num_layers,
        pitch=pitch,
        bar_width=pitch * (0.8 if pitch >= 14 else 0.9),
        label_every=next(step for step in (1, 2, 5, 10, 20, 50) if step * pitch >= 20 or step == 50),
        left=LABEL_WIDTH,
        right=LABEL_WIDTH + pitch * num_layers + 14,
        size=(LABEL_WIDTH + BARS_WIDTH + TOTAL_WIDTH, ROW_HEIGHT * len(rows) + AXIS_HEIGHT),
        bar_height=BAR_HEIGHT,
        row_height=ROW_HEIGHT,
    )


def _label(kind: str) -> str:
    """The name of a kind's units; a record of a later version may have kinds unknown here."""
    names = {str(known): name for known, name in UNIT_NAMES.items()}
    name = names.get(kind, kind.replace("_", " "))
    return name[:1].upper() + name[1:]


def _address(name: str) -> tuple[int, str]:
    """Layer index and place in the block of a group's name; a group without a layer counts as layer 0."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return (int(match[1]), name[match.end() :]) if match else (0, name)
