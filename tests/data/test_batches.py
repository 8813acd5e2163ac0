"""Plans of an epoch: which songs meet, how evenly they are dealt, and exact positions; and the count of bad files."""

import json

import numpy as np
import pytest

from collap.data.batches import (
    BadFiles,
    EpochBatches,
    deal_rows,
    epoch_plan,
    idle_share,
    length_buckets,
    padding_share,
)


def song_lengths(num_songs: int) -> np.ndarray:
    """Segments of 30 s of songs of 2 to 5 minutes: half around 3:30, half anywhere."""
    generator = np.random.default_rng(7)
    usual = generator.normal(210, 45, num_songs // 2).clip(120, 300)
    seconds = np.concatenate([usual, generator.uniform(120, 300, num_songs - num_songs // 2)])
    return np.ceil(generator.permutation(seconds) / 30).astype(int)


SEGMENTS = song_lengths(4100)


def test_length_buckets():
    lengths = np.repeat([3, 9, 1, 5], 25)
    buckets = length_buckets(lengths, 10, np.random.default_rng(0))
    assert sorted(buckets.flatten()) == list(range(100))
    assert sum(len(set(lengths[batch])) for batch in buckets) <= 10 + 3
    means = lengths[buckets].mean(1)
    assert means.tolist() != sorted(means)
    assert not np.array_equal(buckets, length_buckets(lengths, 10, np.random.default_rng(1)))


def test_shares_of_a_plan_by_hand():
    segments = np.array([[[1, 3], [2, 2]], [[4, 4], [1, 1]]])  # 2 steps, 2 processes of 2 songs
    assert idle_share(segments) == pytest.approx(1 - 18 / (2 * (4 + 8)))
    assert padding_share(segments) == pytest.approx(1 - 18 / 20)


@pytest.mark.parametrize("batch_size", [64, 128])
def test_batches_by_length_leave_little_padding_and_waiting(batch_size):
    shares = []
    for segments in (None, SEGMENTS):
        dealt = SEGMENTS[deal_rows(epoch_plan(len(SEGMENTS), batch_size, 0, 0, segments), 8, segments)]
        assert dealt.shape == (4100 // batch_size, 8, batch_size // 8)
        shares.append((idle_share(dealt), padding_share(dealt)))
    (idle, padding), (bucketed_idle, bucketed_padding) = shares
    assert idle > 0.05 and bucketed_idle < 0.02
    assert padding > 0.15 and bucketed_padding < 0.05


@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_every_row_once_in_an_epoch_and_other_batches_in_the_next(segments):
    plans = [epoch_plan(len(SEGMENTS), 64, 5, epoch, segments) for epoch in (0, 1)]
    for plan in plans:
        assert len(set(plan.flatten())) == plan.size == 4100 // 64 * 64
    missing = [set(range(4100)) - set(plan.flatten()) for plan in plans]
    assert missing[0] != missing[1]
    batches = [{frozenset(batch) for batch in plan.tolist()} for plan in plans]
    assert not batches[0] & batches[1]
    assert not np.array_equal(plans[0], epoch_plan(len(SEGMENTS), 64, 6, 0, segments))
    # A pair that meets in one epoch meets again no oftener than bucketing makes it: 1 in 6 songs is of the same length.
    pairs = [{(row, other) for batch in plan.tolist() for row in batch for other in batch} for plan in plans]
    assert len(pairs[0] & pairs[1]) / len(pairs[0]) < 0.15


def test_short_and_long_batches_come_in_any_order():
    plan = epoch_plan(len(SEGMENTS), 64, 0, 0, SEGMENTS)
    means = SEGMENTS[plan].mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_the_rows_of_a_step_do_not_depend_on_the_processes(segments):
    alone = list(EpochBatches(4100, 64, 1, segments=segments))
    for processes in (2, 8):
        shares = [EpochBatches(4100, 64, 1, index, processes, segments) for index in range(processes)]
        for whole, *parts in zip(alone, *shares, strict=True):
            assert {len(part) for part in parts} == {64 // processes}
            assert sorted(row for part in parts for row in part) == sorted(whole)
    assert all(type(row) is int for row in alone[0])


def test_sums_of_the_processes_are_nearly_equal():
    plan = epoch_plan(len(SEGMENTS), 64, 0, 0)  # not by length: the sums are equal because of the dealing alone
    sums = SEGMENTS[deal_rows(plan, 8, SEGMENTS)].sum(axis=2)
    assert np.ptp(sums, axis=1).mean() < 3.5  # 2.3 segments of about 56; 4.8 when dealt in the same order each round


@pytest.mark.parametrize("segments", [None, SEGMENTS[:100]])
def test_it_goes_on_at_any_step(segments):
    batches = EpochBatches(100, 8, 3, 1, 2, segments, pool_batches=4)
    batches.set_position(2, 0)
    whole = list(batches)
    assert len(whole) == len(batches) == 12
    for step in (1, 5, 12):
        again = EpochBatches(100, 8, 3, 1, 2, segments, pool_batches=4)
        again.set_position(2, step)
        assert list(again) == whole[step:]


def test_batches_that_cannot_be_formed():
    with pytest.raises(ValueError, match="batch_size 10 cannot be split evenly over 4 processes"):
        EpochBatches(100, 10, 0, 0, 4)
    with pytest.raises(ValueError, match="7 rows, fewer than batch_size 8"):
        EpochBatches(7, 8, 0)
    with pytest.raises(ValueError, match="segments of 3 rows; expected those of all 8"):
        EpochBatches(8, 8, 0, segments=[1, 2, 3])


def test_one_bad_song_of_eight_is_too_many():
    bad = BadFiles(0.01, 8)
    bad.add([])
    with pytest.raises(
        ValueError, match=r"1 of 8 files cannot be read \(12.5 %, allowed are 1 %\): row 3 \(a.mp3\): cut"
    ):
        bad.add([("row 3 (a.mp3)", "cut")])


def test_a_bad_file_counts_once_and_after_resuming_too():
    bad = BadFiles(0.02, 100)
    for _ in range(5):
        bad.add([("row 3 (a.mp3)", "cut")])
    resumed = BadFiles(0.02, 100)
    resumed.load_state_dict(json.loads(json.dumps(bad.state_dict())))
    resumed.add([("row 4", "empty"), ("row 3 (a.mp3)", "cut")])
    with pytest.raises(ValueError, match=r"3 of 100 files.*row 3 \(a.mp3\): cut; row 4: empty; row 9: silent"):
        resumed.add([("row 9", "silent")])


def test_the_share_of_a_stream_is_of_the_songs_seen():
    bad = BadFiles(0.02, None)
    bad.add([("row 1", "cut"), ("row 2", "cut"), ("row 3", "cut")], 7)
    bad.add([], 190)
    resumed = BadFiles(0.02, None)
    resumed.load_state_dict(bad.state_dict())
    resumed.add([("row 4", "cut")], 0)
    with pytest.raises(ValueError, match="5 of 202 files"):
        resumed.add([("row 5", "cut")], 0)
    early = BadFiles(0.02, None)
    early.add([("row 1", "cut"), ("row 2", "cut"), ("row 3", "cut")], 96)
    with pytest.raises(ValueError, match="3 of 100 files"):
        early.add([], 1)
