"""GPT-NeoX's and Megatron-DeepSpeed's orders, held against what their own code served.

Hashes were made by running gpt-neox @ ea7aefd8 and Megatron-DeepSpeed @ 8387ae17 on the files of tests/fixtures/neox;
the first 16 hexadecimal digits of sha256, of little-endian int64 where rows of tokens are hashed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import OrderMismatch, UnsupportedRecipe
from data_index.instances.megatron import (
    across_shards,
    document_stream,
    sample_pieces,
    sample_starts,
    sequence_pieces,
)
from data_index.megatron_index import MegatronIndex, read_megatron_index
from data_index.orders.blend import blend_order
from data_index.orders.megatron import (
    DatasetShuffle,
    deepspeed_shuffle,
    document_order,
    neox_shuffle,
    num_epochs_for,
    sample_order,
    training_order,
)
from data_index.orders.megatron_samples import (
    normalized,
    split_borders,
    split_by_range,
    weighted_num_samples,
    weights_by_num_documents,
)
from data_index.pieces import Pieces

FIXTURES = Path(__file__).parents[1] / "fixtures"
NEOX = FIXTURES / "neox"
DEEPSPEED = FIXTURES / "other-orders" / "megatron-deepspeed"
TOYS = ("toy_text_document", "toyb_text_document", "toy_int32_text_document")


def index_of(name: str) -> MegatronIndex:
    return read_megatron_index(NEOX / f"{name}.idx", (NEOX / f"{name}.bin").stat().st_size)


def tokens_of(name: str) -> np.ndarray:
    return np.fromfile(NEOX / f"{name}.bin", dtype=index_of(name).dtype)


def rows_of(pieces: Pieces, files: Sequence[np.ndarray]) -> np.ndarray:
    rows = [
        [files[file][start:stop] for file, start, stop in pieces.of_instance(i)] for i in range(len(pieces.first) - 1)
    ]
    return np.array([np.concatenate(row) for row in rows], dtype=np.int64)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def served(names: Sequence[str], shuffles: Sequence[DatasetShuffle], order: np.ndarray) -> np.ndarray:
    """The rows of tokens at each position of an order over several datasets."""
    rows = np.empty((len(order), shuffles[0].sequence_length + 1), dtype=np.int64)
    for name, shuffle in zip(names, shuffles, strict=True):
        samples = order.astype(np.int64) - shuffle.first_instance
        here = (samples >= 0) & (samples < shuffle.num_samples)
        stream = document_stream(shuffle, index_of(name).sizes)
        rows[here] = rows_of(sample_pieces(stream, index_of(name), samples[here]), [tokens_of(name)])
    return rows


def neox_shuffles(
    names: Sequence[str], num_samples: Sequence[int | None], *, seed: int, split: tuple[int, int] | None = None
) -> list[DatasetShuffle]:
    shuffles: list[DatasetShuffle] = []
    for name, wanted in zip(names, num_samples, strict=True):
        first = sum(shuffle.num_samples for shuffle in shuffles)
        sizes = index_of(name).sizes
        shuffles.append(
            neox_shuffle(sizes, sequence_length=32, seed=seed, num_samples=wanted, split=split, first_instance=first)
        )
    return shuffles


@pytest.fixture
def toy() -> MegatronIndex:
    return index_of(TOYS[0])


def toy_shuffle(toy: MegatronIndex, trainer: str, num_samples: int) -> DatasetShuffle:
    if trainer == "neox":
        return neox_shuffle(toy.sizes, sequence_length=32, seed=1234, num_samples=num_samples)
    return deepspeed_shuffle(toy.sizes, sequence_length=32, seed=42, num_samples=num_samples)


@pytest.mark.parametrize(
    ("trainer", "recorded"),
    [("neox", NEOX / "single_1epoch_seed1234"), ("deepspeed", DEEPSPEED / "ep1_ns161_sl32_seed42")],
)
def test_the_three_index_maps_are_the_trainers_byte_for_byte(toy: MegatronIndex, trainer: str, recorded: Path) -> None:
    shuffle = toy_shuffle(toy, trainer, 161)
    maps = {
        "doc_idx": document_order(shuffle),
        "sample_idx": sample_starts(document_stream(shuffle, toy.sizes)),
        "shuffle_idx": sample_order(shuffle),
    }

    for name, array in maps.items():
        expected = np.load(f"{recorded}.{name}.npy")
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected), name


@pytest.mark.parametrize(
    ("trainer", "num_samples", "hashes", "separate"),
    [
        ("neox", 1005, ("1f4c6b22a8e0c348", "b4be130a9cda555e", "aa0c6c069034b833"), False),
        ("deepspeed", 965, ("a322cbd870b3de4e", "7cf9308370429b95", "4904cfe71a4b2ca8"), True),
        ("deepspeed", 1380, ("842ea760658ccf3c", "efc8c44bfeb7390d", "e4188f7fe5f006fb"), False),
    ],
)
def test_two_epochs_are_shuffled_as_the_trainer_does(
    toy: MegatronIndex, trainer: str, num_samples: int, hashes: tuple[str, str, str], separate: bool
) -> None:
    """Jointly in GPT-NeoX; apart in Megatron-DeepSpeed, unless nearly all of the last epoch is needed."""
    shuffle = toy_shuffle(toy, trainer, num_samples)
    starts = sample_starts(document_stream(shuffle, toy.sizes))

    assert (shuffle.num_epochs, shuffle.num_samples, shuffle.separate_last_epoch) == (2, 1393, separate)
    assert tuple(map(digest, (document_order(shuffle), starts, sample_order(shuffle)))) == hashes


def test_second_copies_come_from_the_start_on_where_epochs_are_shuffled_jointly(toy: MegatronIndex) -> None:
    first_300 = document_order(toy_shuffle(toy, "neox", 1005))[:300]

    assert 300 - len(np.unique(first_300)) == 74


@pytest.mark.parametrize(
    ("trainer", "recorded"),
    [
        ("neox", NEOX / "single_1epoch_seed1234.batches.npy"),
        ("deepspeed", DEEPSPEED / "ep1_ns161_sl32_seed42.samples.npy"),
    ],
)
def test_batches_are_the_tokens_that_the_trainer_served(toy: MegatronIndex, trainer: str, recorded: Path) -> None:
    shuffle = toy_shuffle(toy, trainer, 161)
    expected = np.load(recorded).reshape(-1, 33)
    order = training_order([shuffle], [1.0], len(expected), rows_per_loader_batch=8)

    assert np.array_equal(served(TOYS[:1], [shuffle], order), expected)


@pytest.mark.parametrize(
    ("weights", "rows", "num_epochs"),
    [([0.6, 0.3, 0.1], "21aedfe2272dc23b", [1, 3, 1]), (None, "36ea6123458ec7b5", [1, 4, 4])],
)
def test_blends_of_gpt_neox_are_reproduced(weights: list[float] | None, rows: str, num_epochs: list[int]) -> None:
    """By given weights, and by weight_by_num_documents with its default alpha."""
    if weights is None:
        weights = weights_by_num_documents([index_of(name).num_sequences for name in TOYS], 0.3)
    shuffles = neox_shuffles(TOYS, weighted_num_samples(weights, 600), seed=7)

    order = training_order(shuffles, normalized(weights), 600, rows_per_loader_batch=10)

    assert [shuffle.num_epochs for shuffle in shuffles] == num_epochs
    assert digest(served(TOYS, shuffles, order)) == rows


def test_a_split_of_gpt_neox_is_reproduced(toy: MegatronIndex) -> None:
    train = split_borders("969, 30, 1", toy.num_sequences)[:2]
    shuffles = neox_shuffles(TOYS[:1], [400], seed=11, split=train)

    order = training_order(shuffles, [1.0], 400, rows_per_loader_batch=10)

    assert train == (0, 291)
    assert digest(served(TOYS[:1], shuffles, order)) == "4ec95a4282e73e7c"


def test_gpt_neox_begins_again_one_sample_before_the_end() -> None:
    """It believes in one sample fewer than it has: position 66 of 67 is the first sample again."""
    shuffles = neox_shuffles(TOYS[2:], [67], seed=3)

    order = training_order(shuffles, [1.0], 67, rows_per_loader_batch=1)

    assert (shuffles[0].num_samples, shuffles[0].num_items, order[66]) == (67, 66, order[0])
    assert digest(served(TOYS[2:], shuffles, order)) == "4987c2b9537f99a7"


def test_what_does_not_fill_a_loader_batch_is_dropped_before_beginning_again() -> None:
    shuffles = neox_shuffles(TOYS[2:], [67], seed=3)

    order = training_order(shuffles, [1.0], 80, rows_per_loader_batch=20)

    assert np.array_equal(order[60:], order[:20])


def test_a_blend_of_megatron_deepspeed_with_ranges_is_reproduced() -> None:
    names, ranges, weights = TOYS[:2], ("0:0.9", "0.1:1"), [0.7, 0.3]
    shuffles: list[DatasetShuffle] = []
    for name, share, wanted in zip(names, ranges, weighted_num_samples(weights, 600), strict=True):
        index = index_of(name)
        shuffles.append(
            deepspeed_shuffle(
                index.sizes,
                sequence_length=32,
                seed=42,
                num_samples=wanted,
                split=split_by_range(share, index.num_sequences),
                first_instance=sum(shuffle.num_samples for shuffle in shuffles),
            )
        )

    order = training_order(shuffles, normalized(weights), 600, rows_per_loader_batch=1)

    assert sum(shuffle.num_items for shuffle in shuffles) == 861
    assert digest(served(names, shuffles, order)) == "d7f608f13f4d651c"


def test_megatron_deepspeed_has_no_data_after_the_last_sample(toy: MegatronIndex) -> None:
    with pytest.raises(OrderMismatch, match="697 positions were asked for and the shuffled data hold 696"):
        training_order([toy_shuffle(toy, "deepspeed", 161)], [1.0], 697, rows_per_loader_batch=1)


def test_a_blend_that_runs_behind_a_datasets_end_starts_it_again_in_gpt_neox_only(toy: MegatronIndex) -> None:
    small = neox_shuffle(index_of(TOYS[1]).sizes, sequence_length=32, seed=7, num_samples=None, num_epochs=1)
    large = neox_shuffle(
        toy.sizes, sequence_length=32, seed=7, num_samples=None, num_epochs=1, first_instance=small.num_samples
    )

    order = training_order([small, large], [0.5, 0.5], 400, rows_per_loader_batch=1)

    items = order[order < small.num_samples]
    assert (small.num_samples, len(items)) == (78, 200)
    assert np.array_equal(items[:78], sample_order(small))
    # Item 78 is item 78 % 77.
    assert np.array_equal(items[78 : 78 + 76], sample_order(small)[1:77])


def test_pythias_preshuffled_rows_are_the_sequences_in_their_order() -> None:
    name = "preshuffled_toy_document"
    viewed = np.load(NEOX / "batch_viewer_steps3-5.npy")

    rows = rows_of(sequence_pieces(index_of(name)), [tokens_of(name)])

    assert np.array_equal(rows[3 * 8 : 6 * 8], viewed)


def test_shards_that_cut_sequences_anywhere_give_the_same_rows() -> None:
    name = "preshuffled_toy_document"
    tokens, whole = tokens_of(name), sequence_pieces(index_of(name))
    shard_tokens = np.array([1000, 0, 13, 33, 4000, 234])
    borders = np.append(0, np.cumsum(shard_tokens))
    shards = [tokens[:0], *(tokens[a:b] for a, b in zip(borders, borders[1:], strict=False))]

    pieces = across_shards(whole, shard_tokens, first_file=1)

    assert np.array_equal(rows_of(pieces, shards), rows_of(whole, [tokens]))
    assert (pieces.stop > pieces.start).all()
    with pytest.raises(OrderMismatch, match="a shard is missing"):
        across_shards(whole, shard_tokens[:-1])


@pytest.mark.parametrize("seed", range(6))
def test_samples_tile_the_documents_with_one_token_of_overlap(seed: int, toy: MegatronIndex) -> None:
    """Also with empty sequences, at either end too, and sequences longer than a sample."""
    random = np.random.RandomState(seed)
    sizes = random.choice([0, 0, 1, 2, 5, 70], size=40).astype(np.int32)
    sizes[5] = 9
    starts = np.append(0, np.cumsum(sizes, dtype=np.int64))[:-1]
    index = MegatronIndex(
        path=toy.path, dtype="uint16", sizes=sizes, pointers=2 * starts, document_starts=np.array([0, 40])
    )
    shuffle = neox_shuffle(sizes, sequence_length=8, seed=seed, num_samples=2 * int(sizes.sum()) // 9)
    stream = document_stream(shuffle, sizes)
    tokens = np.arange(sizes.sum())
    flat = np.concatenate([tokens[starts[s] : starts[s] + sizes[s]] for s in stream.sequences])

    pieces = sample_pieces(stream, index, np.arange(stream.num_samples))
    rows = rows_of(pieces, [tokens])

    assert shuffle.num_epochs > 1
    assert (pieces.stop > pieces.start).all()
    assert np.array_equal(rows[:, 0], flat[: stream.num_samples * 8 : 8])
    assert np.array_equal(np.append(rows[:, :-1].ravel(), rows[-1, -1]), flat[: stream.num_samples * 8 + 1])
    assert np.array_equal(rows[:-1, -1], rows[1:, 0])


def looped_starts(shuffle: DatasetShuffle, sizes: np.ndarray) -> list[list[int]]:
    """sample_idx token by token, as the trainers' own loop walks."""
    places = [(slot, offset) for slot, s in enumerate(document_order(shuffle)) for offset in range(sizes[s])]
    return [[0, 0], *([*places[n * shuffle.sequence_length]] for n in range(1, shuffle.num_samples + 1))]


def test_sample_starts_skip_empty_sequences_but_for_the_first() -> None:
    sizes = np.array([0, 3, 0, 0, 11, 0, 2], dtype=np.int32)
    for seed in range(20):
        shuffle = neox_shuffle(sizes, sequence_length=3, seed=seed, num_samples=6)
        assert sample_starts(document_stream(shuffle, sizes)).tolist() == looped_starts(shuffle, sizes)


@pytest.mark.parametrize("trainer", ["neox", "deepspeed"])
@pytest.mark.parametrize("num_samples", [1, 696, 697, 1000, 3000])
def test_every_sequence_and_every_sample_comes_once_an_epoch(
    toy: MegatronIndex, trainer: str, num_samples: int
) -> None:
    shuffle = toy_shuffle(toy, trainer, num_samples)

    counts = np.bincount(document_order(shuffle), minlength=300)

    assert set(counts) == {shuffle.num_epochs}
    assert np.array_equal(np.sort(sample_order(shuffle)), np.arange(shuffle.num_samples))
    assert shuffle.num_samples >= num_samples


@pytest.mark.parametrize(
    ("num_samples", "separate"),
    # One epoch has 696 samples; int(0.95 * 696) = 661, and two epochs begin at 697.
    [(696, False), (697, True), (696 + 660, True), (696 + 661, False)],
)
def test_the_last_epoch_is_apart_below_95_percent(toy: MegatronIndex, num_samples: int, separate: bool) -> None:
    assert toy_shuffle(toy, "deepspeed", num_samples).separate_last_epoch is separate


def test_a_last_epoch_that_is_apart_holds_each_sequence_once(toy: MegatronIndex) -> None:
    shuffle = toy_shuffle(toy, "deepspeed", 965)

    assert np.array_equal(np.sort(document_order(shuffle)[300:]), np.arange(300))
    assert np.array_equal(np.sort(sample_order(shuffle)[:696]), np.arange(696))


def test_numbers_that_megatron_deepspeed_refuses_are_refused(toy: MegatronIndex) -> None:
    """Rounding can ask the last epoch for one sample more than an epoch has."""
    sizes = np.array([7], dtype=np.int32)
    deepspeed_shuffle(sizes, sequence_length=4, seed=1, num_samples=2)

    with pytest.raises(UnsupportedRecipe, match="3 samples need 2 of the last of 2 epochs, which has 1"):
        deepspeed_shuffle(sizes, sequence_length=4, seed=1, num_samples=3)


@pytest.mark.parametrize(("num_samples", "num_epochs"), [(0, 1), (1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_epochs_are_the_fewest_that_hold_the_samples(num_samples: int, num_epochs: int) -> None:
    """13 tokens, samples of 4 + 1: 3 in one epoch, 6 in two."""
    assert num_epochs_for(13, 4, num_samples) == num_epochs


@pytest.mark.parametrize(
    ("split", "num_sequences", "borders"),
    [
        ("969, 30, 1", 300, (0, 291, 300, 300)),
        ("969,30,1", 1000, (0, 969, 999, 1000)),
        ("8/1/1", 15, (0, 11, 13, 15)),
        ("1", 7, (0, 7, 7, 7)),
        ("1,1", 3, (0, 1, 3, 3)),
        ("1,1,1", 5, (0, 1, 3, 5)),
    ],
)
def test_splits_are_rounded_as_the_trainers_round(
    split: str, num_sequences: int, borders: tuple[int, int, int, int]
) -> None:
    """From running get_train_valid_test_split_: what rounding gains is taken from the training sequences too."""
    assert split_borders(split, num_sequences) == borders


def test_pythias_number_of_samples_has_half_a_percent_more() -> None:
    assert weighted_num_samples([1.0], 143_000 * 1024) == [147_164_160]


def test_weights_are_summed_one_after_another_in_every_python() -> None:
    """Python's own sum rounds better since 3.12; the trainers ran on earlier ones."""
    assert normalized([0.1] * 10)[0] == 0.1 / 0.9999999999999999
    with pytest.raises(OrderMismatch, match="sum to nothing"):
        normalized([0.0, 0.0])


@pytest.mark.parametrize("pack_impl", ["unpacked", "pack_until_overflow"])
def test_other_ways_of_packing_are_refused_by_name(toy: MegatronIndex, pack_impl: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=pack_impl):
        neox_shuffle(toy.sizes, sequence_length=32, seed=1, num_samples=9, pack_impl=pack_impl)


def test_a_file_of_other_sizes_is_not_the_runs(toy: MegatronIndex) -> None:
    with pytest.raises(OrderMismatch, match="not the run's file"):
        document_stream(toy_shuffle(toy, "neox", 9), toy.sizes[:-1])


def test_a_dataset_without_tokens_is_refused() -> None:
    with pytest.raises(OrderMismatch, match="without tokens"):
        neox_shuffle(np.zeros(3, np.int32), sequence_length=8, seed=1, num_samples=1)


def looped_blend(weights: Sequence[float], length: int) -> list[int]:
    """The blending rule as a loop, in the arithmetic of the trainers."""
    shares = (np.array(weights) / np.sum(weights)).tolist()
    counts, picks = [0] * len(shares), []
    for position in range(length):
        lags = [share * max(position, 1.0) - count for share, count in zip(shares, counts, strict=True)]
        picks.append(lags.index(max(lags)))
        counts[picks[-1]] += 1
    return picks


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [1.0, 1.0],
        [0.5, 0.25, 0.25],
        [1.0, 1.0, 1.0],
        [3.0, 2.0, 1.0, 7.0],
        [0.0, 1.0, 2.0],
        [0.0001, 0.7, 0.2999],
        [0.3, 0.001, 0.05, 0.2, 0.0007, 0.11],
    ],
)
def test_a_blend_serves_what_the_loop_serves(weights: list[float]) -> None:
    """Side by side in lanes, but to the last item; ties and shares so small that guesses fail are among them."""
    for length in (0, 1, 2, 17, 5000):
        datasets, items = blend_order(weights, length)
        assert datasets.dtype == np.uint8
        assert datasets.tolist() == looped_blend(weights, length)
        for dataset in range(len(weights)):
            assert items[datasets == dataset].tolist() == [*range(int((datasets == dataset).sum()))]


def test_blends_that_the_trainers_refuse_are_refused() -> None:
    with pytest.raises(UnsupportedRecipe, match="255 datasets"):
        blend_order([1.0] * 255, 3)
    with pytest.raises(OrderMismatch, match="sum to nothing"):
        blend_order([0.0, 0.0], 3)
