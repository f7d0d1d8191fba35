"""Legends and lines that all figures share."""

import pandas as pd
import pytest
from matplotlib.lines import Line2D

from train.results.style import LEGEND, cap_line, legend, panels, styled

LONG = "attention=sigmoid, qk_norm=layernorm, optimizer.beta2=0.05, optimizer.eps=1e-12"


@pytest.mark.parametrize(
    ("labels", "columns"), [(["a", "b", "c"], 3), (["non-approximate, odd layers"] * 3, 2), ([LONG, "short"], 1)]
)
def test_legends_lie_inside_the_figure(labels, columns):
    """Two panels are 4.7 inches wide. Higher legends make the figure higher, not the panels lower."""

    @styled
    def made():
        figure, axes = panels(2)
        before = figure.get_figheight()
        legend(figure, [Line2D([], [], label=label) for label in labels])
        figure.savefig("/dev/null", format="png")
        return figure, axes, before

    figure, axes, before = made()
    (found,) = figure.legends
    box = found.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert found._ncols == columns
    assert [text.get_text().replace("\n", " ") for text in found.get_texts()] == labels
    assert figure.get_figheight() - before == pytest.approx(max(0, box.height / figure.dpi - LEGEND), abs=0.02)
    assert axes[0].get_window_extent().height > 1.2 * figure.dpi


@pytest.mark.parametrize(("starts", "drawn"), [([6.08, 6.12], 1), ([6.08, 6.62], 0), ([], 0)])
def test_the_loss_at_initialisation_is_drawn_where_runs_share_it(starts, drawn):
    _, (axes,) = panels(1)
    cap_line(axes, pd.DataFrame({"validation/loss_init": starts}))
    assert len(axes.lines) == drawn
    assert [float(line.get_ydata()[0]) for line in axes.lines] == [pytest.approx(6.1)] * drawn
