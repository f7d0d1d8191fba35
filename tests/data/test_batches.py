import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, TokenBatches, train_batch, validation_batches
from data.batches import batches_of_rank

TOKENS = np.arange(1000, dtype=np.uint16)


def batches(steps, seed=0, batch_size=3, context=7, tokens=TOKENS):
    return [train_batch(tokens, seed=seed, step=s, batch_size=batch_size, context=context) for s in steps]


def test_rows_are_inputs_with_their_targets():
    x_BT1 = train_batch(TOKENS, seed=0, step=5, batch_size=4, context=7)
    assert x_BT1.shape == (4, 8)
    assert x_BT1.dtype == torch.int64
    assert torch.equal(x_BT1[:, 1:], x_BT1[:, :-1] + 1)
    assert (x_BT1[:, 0] % 7 == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(10, 400),
    context=st.integers(1, 9),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_sees_each_block_once(length, context, batch_size, seed, epoch):
    tokens, blocks = np.arange(length, dtype=np.uint32), (length - 1) // context
    first, last = epoch * blocks, (epoch + 1) * blocks - 1
    rows = torch.cat(batches(range(first // batch_size, last // batch_size + 1), seed, batch_size, context, tokens))
    rows = rows[first % batch_size :][:blocks]
    assert sorted(rows[:, 0].tolist()) == [block * context for block in range(blocks)]


def test_order_depends_on_seed_and_epoch():
    epoch_steps = (1000 - 1) // 7 // 2
    first = torch.cat(batches(range(epoch_steps), batch_size=2))
    assert not torch.equal(first, torch.cat(batches(range(epoch_steps, 2 * epoch_steps), batch_size=2)))
    assert not torch.equal(first, torch.cat(batches(range(epoch_steps), seed=1, batch_size=2)))
    starts = first[:, 0] / 7
    assert abs(np.corrcoef(starts, np.arange(len(starts)))[0, 1]) < 0.3


def test_a_batch_is_a_function_of_its_arguments(python):
    expected = [x.tolist() for x in batches(range(40, 60))]
    assert [x.tolist() for x in reversed(batches(reversed(range(40, 60))))] == expected
    code = (
        "import numpy as np; from data import train_batch; t = np.arange(1000, dtype=np.uint16)\n"
        "print([train_batch(t, seed=0, step=s, batch_size=3, context=7).tolist() for s in range(40, 60)])"
    )
    assert python(code).communicate()[0].strip() == str(expected)


def test_the_order_of_a_seed_stays_the_same():
    assert train_batch(TOKENS, seed=3, step=0, batch_size=5, context=10)[:, 0].tolist() == [140, 220, 980, 620, 790]


def test_validation_is_the_first_blocks_in_order():
    found = list(validation_batches(TOKENS, batch_size=3, context=10, count=4))
    assert [x.shape for x in found] == [(3, 11)] * 4
    assert torch.cat(found)[:, 0].tolist() == list(range(0, 120, 10))
    assert torch.equal(torch.cat(found)[:, -1], torch.cat(found)[:, 0] + 10)


def test_too_short_a_text_is_refused():
    message = (
        r"the split has 1000 tokens, but 100 sequences of context=10 need 1001: use eval_batches=1, more text, a short"
    )
    with pytest.raises(DataError, match=message):
        validation_batches(TOKENS, batch_size=50, context=10, count=2)
    assert len(list(validation_batches(np.arange(1001), batch_size=50, context=10, count=2))) == 2
    with pytest.raises(DataError, match=r"has 1000 tokens, but 1 sequence of context=1000 needs 1001: "):
        train_batch(TOKENS, seed=0, step=0, batch_size=1, context=1000)
    with pytest.raises(DataError, match=r"has 1000 tokens"):
        TokenBatches(TOKENS, seed=0, batch_size=1, context=1000, start=0, stop=1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_global_batch(world):
    expected = batches(range(4, 9), seed=5, batch_size=6)
    loaders = [
        TokenBatches(TOKENS, seed=5, batch_size=6, context=7, start=4, stop=9, rank=r, world=world)
        for r in range(world)
    ]
    for x_BT1, *parts in zip(expected, *loaders, strict=True):
        assert all(len(part) == 6 // world for part in parts)
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), x_BT1)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(DataError, match=r"batch_size=6 can't be divided among 4 ranks: use a multiple of 4"):
        TokenBatches(TOKENS, seed=0, batch_size=6, context=7, start=0, stop=1, rank=0, world=4)


@pytest.mark.parametrize(("count", "world"), [(1, 1), (3, 1), (3, 2), (4, 2), (1, 3), (5, 3)])
def test_ranks_get_equally_many_batches_and_each_counts_once(count, world):
    batches = [torch.tensor(i) for i in range(count)]
    by_rank = [list(batches_of_rank(batches, rank, world)) for rank in range(world)]
    assert len({len(part) for part in by_rank}) == 1
    assert sorted(int(x) for part in by_rank for x, counts in part if counts) == list(range(count))
    assert [int(x) for x, counts in by_rank[-1] if counts] == list(range(world - 1, count, world))
