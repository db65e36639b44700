"""Draws the dashboard's panels, from what Prometheus has of a run, into one SVG."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402: the backend first

# Seen on white and on black alike; the background stays the page's own.
GREY = "#808080"
COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4", "#84cc16", "#ec4899"]
COLUMNS = 3
UNITS = {"percentunit": "share", "none": "", "short": "", "ms": "ms", "s": "s"}

plt.rcParams.update({
    # Text stays text, and the same run gives the same names.
    "svg.fonttype": "none",
    "svg.hashsalt": "refund",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
})


def legend(target: dict, labels: dict) -> str:
    text = re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), target["legendFormat"])
    # A port is another in each run.
    return re.sub(r"127\.0\.0\.1:\d+", "gateway", text)


def draw(file: Path, panels: list, began: float, data) -> None:
    """`data` gives what a query found since `began`."""
    shown = [panel for panel in panels if panel["type"] != "row"]
    rows = -(-len(shown) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(13, 2.8 * rows), layout="constrained")
    figure.get_layout_engine().set(hspace=0.3)
    for panel, axis in zip(shown, axes.flat):
        lines = []
        for target in panel["targets"]:
            for result in data(target["query"]):
                points = [(float(at) - began, float(value)) for at, value in result["values"]]
                lines.append((legend(target, result["metric"]), points))
        # Lines that stay at nothing only hide the others.
        moving = [line for line in lines if any(value for _, value in line[1])]
        for label, points in moving or lines:
            axis.plot(*zip(*points), linewidth=1.2, label=label)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axis.set_title(panel["title"], loc="left", fontsize=9, fontweight="bold")
        axis.set_ylabel(UNITS.get(unit, unit))
        axis.locator_params(nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
        if moving:
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        else:
            axis.set_ylim(0, 1)
        below = axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3)
        # Else the widest would make its column's panels narrow.
        below.set_in_layout(False)
    for axis in axes.flat[len(shown):]:
        axis.set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
