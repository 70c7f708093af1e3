"""The progress bar of a training run: only in a terminal, with speed and loss."""

from __future__ import annotations

import re

from restormixer_arch.training.reports import Progress


def test_bar_shows_speed_and_loss(capsys):
    with Progress(10, shown=True) as progress:
        progress.start(4)
        progress.step(5, {"l_pix": 0.25, "l_percep": 0.5, "grad_norm": 9.0})
        progress.step(10, {"l_pix": 0.125})
    bar = capsys.readouterr().err
    assert "4/10" in bar and "10/10" in bar and "loss 0.1250" in bar and re.search(r"it/s|s/it", bar)


def test_psnr_and_learning_rate_are_shown_if_available(capsys):
    with Progress(10, shown=True) as progress:
        progress.start(0)
        progress.psnr, progress.learning_rate = 24.314, 5.6e-4
        progress.step(10, {"l_pix": 0.25})
    assert "loss 0.2500, PSNR 24.31, lr 5.6e-04" in capsys.readouterr().err


def test_no_bar_without_a_terminal(capsys):
    with Progress(10) as progress:
        progress.start(0)
        progress.step(5, {"l_pix": 0.25})
    assert capsys.readouterr().err == ""
