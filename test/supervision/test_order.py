"""The order of the samples."""

from bev_perception.supervision.order import Shuffled


def indices(order, epoch):
    return [[draw.index for draw in row] for row in order.epoch(epoch)]


def test_every_epoch_shows_every_sample():
    order = Shuffled(10, 4, seed=3)
    epochs = [indices(order, epoch) for epoch in range(2)]
    for rows in epochs:
        assert [len(row) for row in rows] == [4] * len(order)
        assert {index for row in rows for index in row} == set(range(10))
    assert epochs[0] != epochs[1]
    assert epochs[0] == indices(Shuffled(10, 4, seed=3), 0) != indices(Shuffled(10, 4, seed=4), 0)
    assert indices(Shuffled(1, 8, 0), 0) == [[0] * 8]


def test_the_chance_of_a_sample_depends_on_seed_epoch_and_number_alone():
    draws = {draw.seed for epoch in range(2) for row in Shuffled(8, 4, seed=3).epoch(epoch) for draw in row}
    assert len(draws) == 16
    assert draws == {draw.seed for epoch in range(2) for row in Shuffled(8, 2, seed=3).epoch(epoch) for draw in row}
