"""The balance of classes over an epoch."""

import dataclasses
import types

import numpy as np
import pytest

from bev_perception.families.bevdet.order import Balanced, balance_classes, training_order
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.strict import ConfigError
from bev_perception.supervision.order import Shuffled

#: 80 samples with class 0, 16 of them with class 1, one with class 2; 3 samples without any
CLASSES = [{0, 1}] * 16 + [{0}] * 64 + [{2}] + [set()] * 3


def test_every_class_takes_an_equal_part():
    samples = balance_classes(CLASSES, 4, np.random.default_rng(0))
    total = 80 + 16 + 1  # counted once for each class
    assert len(samples) == 3 * int(total / 4)  # nothing holds class 3
    first, second, third = np.split(samples, 3)
    assert (first < 80).all() and len(set(first.tolist())) > 10
    assert (second < 16).all() and (third == 80).all()


def test_numbers_are_rounded_as_in_the_reference():
    for count in (3, 7, 10):
        classes = [{i % count} for i in range(37)]
        samples = balance_classes(classes, count, np.random.default_rng(1))
        held = np.bincount([i % count for i in range(37)], minlength=count)
        assert len(samples) == sum(int(n * (1 / count / (n / 37))) for n in held)


def test_copies_have_their_own_chance_and_epochs_their_own_order():
    order = Balanced(np.array([5, 5, 5, 7]), slots=3, seed=1)
    assert len(order) == 2
    first, second = order.epoch(0), order.epoch(1)
    drawn = [draw for row in first for draw in row]
    assert sorted(draw.index for draw in drawn[:4]) == [5, 5, 5, 7]
    assert len({draw.seed for draw in drawn}) == 4
    assert {draw.seed for row in second for draw in row}.isdisjoint(draw.seed for draw in drawn)
    assert first == Balanced(np.array([5, 5, 5, 7]), slots=3, seed=1).epoch(0)


@dataclasses.dataclass
class Data:
    held: list

    def __len__(self):
        return len(self.held)

    def classes(self, index):
        return self.held[index]


def variant(**recipe):
    training = types.SimpleNamespace(family=BEVDetRecipe(**recipe))
    return types.SimpleNamespace(name="some", class_names=("a", "b", "c", "d"), training=training)


def test_order_of_a_variant():
    assert isinstance(training_order(variant(), Data(CLASSES), 8, 0), Shuffled)
    assert len(training_order(variant(balanced=True), Data(CLASSES), 8, 0)) == 9
    with pytest.raises(ConfigError, match="nothing to balance"):
        training_order(variant(balanced=True), Data([set(), set()]), 8, 0)
