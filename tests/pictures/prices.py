"""README.md's table of dollars a month as a picture."""

import io
import re

from matplotlib import rc_context
from matplotlib.figure import Figure

from tests.benchmarks.dollars_a_month import README, THIS_WORKER

_COLOURS = {THIS_WORKER: "#2563eb", "naive": "#f87171"}
_OTHERS = "#a8b3c2"


def figures() -> dict[str, dict[str, int]]:
    """Dollars a month of README.md's table: by load, then by way of keeping totals."""
    _, _, below = README.read_text().partition("| load |")
    heads, _, *rows = (f"| load |{below}".split("\n\n")[0]).splitlines()
    _, *ways = (cell.strip(" *") for cell in heads.strip("|").split("|"))
    found = {}
    for row in rows:
        load, *dollars = (cell.strip(" *") for cell in row.strip("|").split("|"))
        found[load] = {way: int(re.sub(r"\D", "", one)) for way, one in zip(ways, dollars, strict=True)}
    return found


def draw() -> str:
    """The picture as SVG: a panel for each load, each with a scale of its own."""
    loads = figures()
    # Text stays text, and the same picture is the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "prices", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        for panel, (load, dollars) in zip(figure.subplots(1, len(loads)), loads.items(), strict=True):
            ways = list(dollars)
            bars = panel.barh(ways, dollars.values(), color=[_COLOURS.get(way, _OTHERS) for way in ways])
            panel.bar_label(bars, [f"${amount:,}" for amount in dollars.values()], padding=3)
            name, _, what = load.partition(": ")
            panel.set_title(f"{name}\n{what}", fontsize=10)
            panel.invert_yaxis()
            panel.set_xlim(0, max(dollars.values()) * 1.35)
            panel.set_xticks([])
            panel.spines[["top", "right", "bottom"]].set_visible(False)
            if panel is not figure.axes[0]:
                panel.set_yticks([])
        figure.suptitle("Dollars a month (red: can count twice)", fontsize=12)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
