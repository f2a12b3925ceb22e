"""A picture shows itself in a notebook: as an image, once, also when pyplot was never used."""

from __future__ import annotations

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell

from dsv3_mini.viz.idea_graph import draw_idea_graph
from dsv3_mini.viz.picture import Picture


def test_a_fresh_kernel_shows_it_as_an_image() -> None:
    formatter = InteractiveShell.instance().display_formatter
    data, _ = formatter.format(Picture(2.0, 1.0))
    assert data["image/png"].startswith(b"\x89PNG")
    InteractiveShell.clear_instance()


def test_pyplot_does_not_know_it_and_so_does_not_show_it_again() -> None:
    before = plt.get_fignums()
    draw_idea_graph()
    assert plt.get_fignums() == before
