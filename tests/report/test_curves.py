"""Curves: which are drawn, over epochs, and how many points they keep."""

import base64

import numpy as np

from vitswin_jax.report import curves


def titles(panels):
    for panel in panels:
        kind, _, data = panel.uri.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data).decode().rstrip().endswith("</svg>")
    return [panel.title for panel in panels]


def test_curves_show_what_was_logged():
    assert curves.curves({}) == []
    assert curves.curves({"images_per_second": ((1, 2), (3.0, 4.0))}) == []
    both = {"train/loss": ((1, 2), (3.0, float("nan"))), "test/loss": ((2,), (2.5,))}
    others = {"lr": ((1, 2), (0.0, 1e-3)), "train/grad_norm": ((1,), (0.0,))}
    assert titles(curves.curves(both | others)) == ["Loss", "Learning rate", "Gradient norm"]


def test_steps_become_the_epochs_of_their_rows():
    series = {"epoch": ((10, 20, 40), (0.5, 1.0, 2.0))}
    np.testing.assert_allclose(curves.epochs_at([10, 30, 40], series), [0.5, 1.5, 2.0])


def test_runs_are_told_apart_by_colour_and_then_by_dashes():
    lines = [curves.line_of(i) for i in range(32)]
    assert len({(line.color, line.dash) for line in lines}) == 32
    assert len({line.color for line in lines[:8]}) == 8
    assert curves.line_of(32) == lines[0]


def test_many_runs_share_panels():
    run = {"epoch": ((1, 2), (0.5, 1.0)), "test/accuracy": ((2,), (0.5,))}
    assert titles(curves.many_runs([run, {}, run | {"lr": ((1, 2), (0.0, 1e-3))}])) == [
        "Test accuracy", "Learning rate",
    ]  # fmt: skip
    assert curves.many_runs([{}, {"lr": ((1,), (1.0,))}]) == []


def test_thin_keeps_the_last_and_about_a_thousand():
    numbers = list(range(12_345))
    thinned = curves.thin(numbers)
    assert len(thinned) <= 1000
    assert thinned[-1] == 12_344
    assert thinned == sorted(thinned)
    assert curves.thin([1, 2, 3]) == [1, 2, 3]


def svg_of(panel):
    return base64.b64decode(panel.uri.partition(",")[2]).decode()


def test_hosts_have_a_panel_for_each_kind_and_those_that_differ_a_name():
    still = {kind: [(5, 0.1), (10, 0.1)] for kind in ("input", "device", "save")}
    slow = still | {"input": [(5, 0.1), (10, 0.9)]}
    panels = curves.hosts({host: slow if host == 11 else still for host in range(12)})
    assert [panel.title.rpartition(" ")[2] for panel in panels] == ["input", "devices", "saves"]
    assert "host 11" in svg_of(panels[0]) and svg_of(panels[0]).count("<!-- host ") == 8
    assert curves.hosts({}) == []
