"""Tabulated learning curves: interpolation by hand on a small grid, and the tables that are shipped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.tables import RECIPES, Table, load


@pytest.fixture
def table() -> Table:
    """lr 0.01 to 1, reg 0.1 and 10, one seed, two epochs; lr 1 diverges in the second epoch at reg 10."""
    accuracy = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]], [[0.9, 1.0], [0.2, math.nan]]])
    accuracy = accuracy[:, :, None, :]
    lr, reg = np.array([0.01, 0.1, 1.0]), np.array([0.1, 10.0])
    return Table("digits", lr, reg, accuracy, 1 - accuracy, plain_seconds=2.0, pack_seconds=1.0)


def test_a_cell_of_the_grid_is_itself(table: Table) -> None:
    assert table.curve(0.1, 10.0, 0) == pytest.approx([0.7, 0.8])
    assert table.curve(0.1, 10.0, 0, "val_loss") == pytest.approx([0.3, 0.2])


def test_between_cells_it_is_linear_in_the_logarithms(table: Table) -> None:
    middle = math.sqrt(0.01 * 0.1)
    assert table.curve(middle, 0.1, 0) == pytest.approx([0.3, 0.4])
    assert table.curve(middle, 1.0, 0) == pytest.approx([0.4, 0.5])  # the mean of four cells
    assert table.curve(10**-1.75, 0.1, 0) == pytest.approx([0.2, 0.3])  # a quarter of the way


def test_a_trial_diverges_where_the_nearest_cell_does(table: Table) -> None:
    near = table.curve(10**-0.1, 10**0.9, 0)
    assert math.isfinite(near[0])
    assert math.isnan(near[1])
    far = table.curve(10**-0.6, 10.0, 0)  # nearer to lr 0.1: what diverged is left out
    assert far == pytest.approx([0.6 * 0.7 + 0.4 * 0.2, 0.8])


def test_beyond_the_grid_its_edge_counts(table: Table) -> None:
    assert table.curve(1e-9, 0.0, 0) == pytest.approx([0.1, 0.2])
    assert np.isnan(table.curve(1e9, 1e9, 0)[1])


def test_what_diverged_is_right_about_nothing(table: Table) -> None:
    assert table.mean(1.0, 10.0) == pytest.approx([0.2, 0.0])
    assert table.best == (1.0, 0.1, 1.0)


def test_a_metric_or_a_table_that_is_not_there_is_named(table: Table) -> None:
    with pytest.raises(ValueError, match="'accuracy'"):
        table.curve(0.1, 0.1, 0, "accuracy")
    with pytest.raises(ValueError, match="'imagenet'"):
        load("imagenet")


@pytest.mark.parametrize("name", RECIPES)
def test_the_tables_hold_the_optimum_and_the_cliff(name: str) -> None:
    table = load(name)
    recipe = RECIPES[name]
    assert table.val_accuracy.shape == (recipe.n_lr, recipe.n_reg, recipe.seeds, recipe.epochs)
    assert np.isnan(table.val_accuracy[-1, ..., -1]).all()
    assert (np.isnan(table.val_accuracy) == np.isnan(table.val_loss)).all()
    diverged = np.isnan(table.val_accuracy)
    assert (diverged[..., :-1] <= diverged[..., 1:]).all()  # once diverged, for good
    lr, reg, accuracy = table.best
    assert table.lr[0] < lr < table.lr[-1]
    assert table.reg[0] < reg < table.reg[-1]
    assert accuracy > 3 * 0.1
    assert 0 < table.pack_seconds < table.plain_seconds
