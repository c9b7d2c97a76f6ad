"""What the loops read: batches that can be stopped anywhere, of one loader or of several."""

import io
import multiprocessing
import random
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import treadle
from treadle.checkpoint import plain
from treadle.data import CombinedLoader, CombinedStream, Stream, evaluation_streams, training_stream
from treadle.errors import CheckpointError, ConfigError, DataError, TreadleWarning
from treadle.seeding import capture_rng, restore_rng
from treadle.testing import NoisyPoints

EPOCHS = 2
Moment = tuple[int, dict[str, Any]]
"""How many batches were trained on, and what a checkpoint holds then."""


def train(
    make: Callable[[], Any], *, mode: Any = None, moment: Moment | None = None, **settings: Any
) -> tuple[list[Any], list[Moment], Any]:
    """What a fit does with its data, without a model: it draws numbers in between, and may save at any time.

    Returns:
        What it saw, what it could have saved, and the generators at the end.
    """
    treadle.seed_everything(1 if moment is None else 999)  # a resumed process starts from another state
    loaders = make() if mode is None else CombinedLoader(make(), mode)
    stream = training_stream(loaders, name="the train loader", **settings)
    seen: list[Any] = []
    moments: list[Moment] = []
    epoch, resumed = 0, None

    def save() -> None:
        if moment is not None:
            return
        file = io.BytesIO()
        torch.save(plain({"stream": stream.state_dict(), "rng": capture_rng(), "epoch": epoch}, "it"), file)
        file.seek(0)
        moments.append((len(seen), torch.load(file, weights_only=True)))

    if moment is not None:
        resumed = moment[1]
        epoch = resumed["epoch"]
        stream.load_state_dict(resumed["stream"])
        if not stream.consumed:
            restore_rng(resumed["rng"])
    while epoch < EPOCHS:
        stream.set_epoch(epoch)
        inside = stream.consumed > 0
        batches = iter(stream)
        if resumed is not None and inside:
            restore_rng(resumed["rng"])
        resumed = None
        for batch in batches:
            seen.append((epoch, batch, torch.rand(()).item(), random.random()))
            save()
        stream.end_epoch()
        epoch += 1
        save()
    stream.close()
    return seen, moments, capture_rng()


def assert_resumes_exactly(make: Callable[[], Any], *, every: int = 1, **settings: Any) -> list[Any]:
    """Stopped at each moment (or each ``every``-th) and resumed, it sees what the whole run sees. Returns that."""
    seen, moments, end = train(make, **settings)
    assert seen
    for moment in moments[every - 1 :: every]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"treadle\[replay\]")
            rest, _, resumed_end = train(make, moment=moment, **settings)
        where = f"after {moment[0]} batches of {len(seen)}"
        assert len(rest) == len(seen) - moment[0], where
        for old, new in zip(seen[moment[0] :], rest, strict=True):
            assert_same_tree(old, new, where)
        assert_same_tree(dict(end), dict(resumed_end), where)
    return seen


def assert_same_tree(old: Any, new: Any, where: str) -> None:
    if isinstance(old, torch.Tensor):
        assert torch.equal(old, new), where
    elif isinstance(old, dict):
        assert list(old) == list(new), where
        for name in old:
            assert_same_tree(old[name], new[name], where)
    elif isinstance(old, (list, tuple)):
        assert len(old) == len(new), where
        for one, other in zip(old, new, strict=True):
            assert_same_tree(one, other, where)
    else:
        assert old == new, where


def shuffled(size: int = 20, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(NoisyPoints(size), batch_size, shuffle=True, **options)


class Counted(IterableDataset[Any]):
    """An iterable that knows where it stands, and starts one sample later in each pass."""

    def __init__(self, size: int) -> None:
        self.points, self.size, self.position, self.passes = NoisyPoints(size), size, 0, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.size:
            self.position += 1
            yield self.points[(self.position + self.passes) % self.size]
        self.position, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.passes = state["position"], state["passes"]


class Streamed(IterableDataset[Any]):
    """An iterable that knows nothing."""

    def __init__(self, size: int) -> None:
        self.points = NoisyPoints(size)

    def __iter__(self) -> Iterator[Any]:
        return (self.points[index] for index in range(len(self.points)))


class Unsized:
    """A loader of one's own, without length and state."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Bookmarked:
    """A loader with a state, as torchdata has one: the next iteration begins where it says."""

    def __init__(self) -> None:
        self.position, self.mark = 0, 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.position, self.mark = self.mark, 0
        while self.position < 5:
            self.position += 1
            yield torch.full((4,), self.position) + torch.rand(4)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.mark = state["position"]


class Drawing(Sampler[int]):
    """A sampler that takes every index from a global generator, or from one of its own, when it is asked for it."""

    def __init__(self, size: int, generator: random.Random | None = None) -> None:
        self.size, self.generator = size, generator

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.size):
            yield (self.generator or random).randrange(self.size)


MODES = ["min_size", "max_size_cycle", "max_size"]


@pytest.mark.parametrize("mode", MODES)
class TestSeveralLoadersStoppedAnywhere:
    """Side by side with 5, 2 and 3 batches, shuffled and augmented."""

    def test_go_on_bit_for_bit(self, mode: str) -> None:
        seen = assert_resumes_exactly(lambda: {"a": shuffled(20), "b": [shuffled(7), shuffled(12)]}, mode=mode)
        assert len(seen) == EPOCHS * {"min_size": 2, "max_size_cycle": 5, "max_size": 5}[mode]

    def test_go_on_in_worker_processes(self, mode: str) -> None:
        def make() -> Any:
            return [shuffled(20, num_workers=2), shuffled(7, num_workers=1, persistent_workers=True), shuffled(12)]

        assert_resumes_exactly(make, mode=mode, every=3)

    def test_go_on_without_a_length(self, mode: str) -> None:
        """Those that can't be entered in the middle are read again up to it."""

        def make() -> Any:
            return [Unsized(shuffled(8)), DataLoader(Streamed(20), 4), shuffled(12)]

        seen = assert_resumes_exactly(make, mode=mode)
        assert len(seen) == EPOCHS * {"min_size": 2, "max_size_cycle": 5, "max_size": 5}[mode]

    def test_go_on_by_their_own_state(self, mode: str) -> None:
        def make() -> Any:
            return [DataLoader(Counted(20), 4), DataLoader(Counted(8), 4), shuffled(12)]

        assert_resumes_exactly(make, mode=mode)

    def test_go_on_with_a_limit(self, mode: str) -> None:
        """Of the combined batches, here in the middle of the second one's second pass."""
        seen = assert_resumes_exactly(lambda: [shuffled(20), shuffled(9)], mode=mode, limit=4)
        assert len(seen) == EPOCHS * (3 if mode == "min_size" else 4)

    def test_go_on_with_a_limit_of_each(self, mode: str) -> None:
        def make() -> Any:
            loader = CombinedLoader([shuffled(20), shuffled(20)], mode)  # type: ignore[arg-type]
            loader.limits = [5, 2]
            return loader

        assert_resumes_exactly(make)

    def test_go_on_with_samplers_that_draw_as_they_go(self, mode: str) -> None:
        def make() -> Any:
            return [DataLoader(NoisyPoints(n), 4, sampler=Drawing(n)) for n in (20, 8)]

        assert_resumes_exactly(make, mode=mode)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_go_on_when_they_share_a_generator(self, mode: str, workers: int) -> None:
        """One torch.Generator for all of them: each pass draws from where the others have left it."""

        def make() -> Any:
            generator = torch.Generator().manual_seed(3)
            return [
                shuffled(18, generator=generator, num_workers=workers),
                shuffled(7, generator=generator),
                DataLoader(NoisyPoints(9), 3, sampler=RandomSampler(range(9), replacement=True, generator=generator)),
            ]

        assert_resumes_exactly(make, mode=mode, every=1 if not workers else 4)

    def test_go_on_when_they_share_a_generator_and_draw_as_they_go(self, mode: str) -> None:
        def make() -> Any:
            generator = random.Random(3)
            return [DataLoader(NoisyPoints(n), 4, sampler=Drawing(n, generator)) for n in (20, 8, 12)]

        assert_resumes_exactly(make, mode=mode)


class TestOneLoaderStoppedAnywhere:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_bit_for_bit(self, workers: int) -> None:
        assert_resumes_exactly(lambda: shuffled(num_workers=workers), every=1 if not workers else 4)

    def test_goes_on_by_its_own_state(self) -> None:
        seen = assert_resumes_exactly(lambda: DataLoader(Counted(20), 4))
        assert seen[0][1][0].tolist() != seen[5][1][0].tolist()  # which differs in each epoch

    def test_goes_on_with_a_data_set_that_tells_its_length(self) -> None:
        """It is not asked for more than it has, so it still stands at its end when the next epoch begins."""

        class Sized(Counted):
            def __len__(self) -> int:
                return self.size

        seen = assert_resumes_exactly(lambda: DataLoader(Sized(20), 4))
        assert [len(batch[0]) for _, batch, *_ in seen] == [4] * 5 * EPOCHS

    def test_goes_on_by_a_state_of_the_loaders_own(self) -> None:
        """Which is for the middle of an epoch: the next one begins at its beginning."""
        assert_resumes_exactly(Bookmarked)

    def test_saves_what_it_was_loaded_with_before_it_is_read(self) -> None:
        """A checkpoint saved by a hook of a resumed run's start is one to resume from."""
        _, moments, _ = train(shuffled)
        for loaders in (shuffled, lambda: [shuffled(), shuffled(8)]):
            _, moments, _ = train(loaders)
            for _, moment in moments:
                stream = training_stream(loaders(), name="it")
                stream.load_state_dict(moment["stream"])
                assert_same_tree(plain(dict(stream.state_dict()), "it"), moment["stream"], "loaded")


class TestALoaderThatBeginsAgainInAnEpoch:
    def test_is_shuffled_anew(self) -> None:
        seen, _, _ = train(lambda: [shuffled(20), shuffled(8)])
        first, second = (
            torch.cat([batch[1][0] for _, batch, *_ in seen[start : start + 2]]).tolist() for start in (0, 2)
        )
        assert first != second
        assert sorted(first) == sorted(second) == list(range(8))

    def test_is_not_read_for_nothing(self) -> None:
        """When the longest ends, nobody has begun again in vain: 5, 5 and 5 batches are 15 reads of each."""
        data = [CountsReads(20), CountsReads(20), CountsReads(8)]
        train(lambda: {index: Unsized(DataLoader(each, 4)) for index, each in enumerate(data)})
        assert [each.reads for each in data] == [EPOCHS * 20] * 3


class TestTheWayToThePosition:
    def reads(self, mode: Any, moment: int, **settings: Any) -> list[int]:
        """How many samples are read again to get to a moment, from loaders of 20 and 8 that have to be replayed."""
        data = [CountsReads(20), CountsReads(8)]

        def make() -> Any:
            return {index: Unsized(DataLoader(each, 4)) for index, each in enumerate(data)}

        _, moments, _ = train(make, mode=mode, **settings)
        before = [each.reads for each in data]
        stream = training_stream(CombinedLoader(make(), mode), name="it", **settings)
        stream.load_state_dict(moments[moment][1]["stream"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"treadle\[replay\]")
            iter(stream)
        return [each.reads - old for each, old in zip(data, before, strict=True)]

    def test_reads_nothing_of_a_loader_that_has_ended(self) -> None:
        assert self.reads("max_size", 3) == [16, 0]

    def test_reads_nothing_of_earlier_passes(self) -> None:
        assert self.reads("max_size_cycle", 2) == [12, 4]

    def test_reads_nothing_at_the_end_of_an_epoch(self) -> None:
        assert self.reads("min_size", 1, limit=2) == [0, 0]


class CountsReads(NoisyPoints):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


class TestACheckpointOfOtherLoaders:
    @pytest.mark.parametrize(
        "then, now",
        [
            (shuffled, lambda: [shuffled()]),
            (lambda: [shuffled()], shuffled),
            (lambda: [shuffled()], lambda: [shuffled()] * 2),
            (lambda: CombinedLoader([shuffled()]), lambda: CombinedLoader([shuffled()], "max_size")),
            (shuffled, lambda: [torch.zeros(4)]),
        ],
        ids=["one, now several", "several, now one", "one more", "another mode", "a loader, now a list"],
    )
    def test_is_refused(self, then: Any, now: Any) -> None:
        _, moments, _ = train(then)
        with pytest.raises(CheckpointError, match="the train loader is") as error:
            training_stream(now(), name="the train loader").load_state_dict(moments[0][1]["stream"])
        assert "load_from_checkpoint" in error.value.fix


class TestWorkerProcesses:
    @pytest.mark.parametrize("persistent", [False, True])
    def test_of_all_loaders_have_ended_when_it_is_closed(self, persistent: bool) -> None:
        before = set(multiprocessing.active_children())
        stream = training_stream(
            [shuffled(n, num_workers=1, persistent_workers=persistent) for n in (20, 8)], name="the train loader"
        )
        for _ in range(2):
            for _ in zip(stream, range(4), strict=False):
                assert set(multiprocessing.active_children()) != before
        stream.close()
        assert set(multiprocessing.active_children()) == before

    def test_have_ended_even_if_nothing_was_read(self) -> None:
        before = set(multiprocessing.active_children())
        for loaders in (shuffled(num_workers=1), [shuffled(num_workers=1)]):
            stream = training_stream(loaders, name="it")
            iter(stream)
            assert set(multiprocessing.active_children()) != before
            stream.close()
            assert set(multiprocessing.active_children()) == before


class TestWhatAFitReads:
    def test_of_one_loader_is_its_batches(self) -> None:
        loader = DataLoader(NoisyPoints(), 4)
        stream = training_stream(loader, name="it")
        assert isinstance(stream, Stream)
        assert stream.loader is loader
        assert (stream.length, stream.name) == (5, "it")

    def test_of_a_list_without_loaders_is_its_items(self) -> None:
        """Whatever is in them: tensors, dicts, lists."""
        for batches in ([torch.zeros(2, 3)], [{"x": torch.zeros(2)}], [[torch.zeros(2)], [torch.zeros(1)]], [(1, 2)]):
            assert list(training_stream(batches, name="it")) == batches  # type: ignore[comparison-overlap]

    def test_of_a_list_or_a_dict_of_loaders_is_a_collection_of_batches(self) -> None:
        """Side by side, as often as the longest needs."""
        Pair = namedtuple("Pair", ["one", "two"])
        one, two = DataLoader(range(4), 2), DataLoader(range(9), 3)
        for loaders in ([one, two], (one, two), {"a": one, "b": two}, [[one], two], {"a": {"b": one}, "c": [two]}):
            assert training_stream(loaders, name="it").length == 3
        pair = next(iter(training_stream(Pair(one, two), name="it")))
        assert type(pair) is Pair
        assert (pair.one.tolist(), pair.two.tolist()) == ([0, 1], [0, 1, 2])
        nested = list(training_stream({"a": (one, [two])}, name="it"))
        assert [(type(b["a"]), b["a"][0].tolist(), b["a"][1][0].tolist()) for b in nested] == [
            (tuple, [0, 1], [0, 1, 2]),
            (tuple, [2, 3], [3, 4, 5]),
            (tuple, [0, 1], [6, 7, 8]),
        ]

    def test_of_loaders_of_ones_own_is_said_by_a_mapping(self) -> None:
        batches = list(training_stream({"a": Unsized([1, 2, 3]), "b": [10]}, name="it"))
        assert batches == [{"a": 1, "b": 10}, {"a": 2, "b": 10}, {"a": 3, "b": 10}]

    def test_of_a_combined_loader_goes_by_its_mode(self) -> None:
        loader = CombinedLoader([[1, 2, 3], [10]], "max_size")
        stream = training_stream(loader, name="it")
        assert stream.loader is loader
        assert list(stream) == [[1, 10], [2, None], [3, None]]

    def test_of_a_sequential_one_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match='the train loader is a CombinedLoader with mode="sequential"') as error:
            training_stream(CombinedLoader([[1]], "sequential"), name="the train loader")
        assert error.value.fix.startswith('mode="max_size_cycle"')

    @pytest.mark.parametrize("limit, length", [(1.0, 5), (0.5, 2), (3, 3), (9, 5), (0, 0)])
    def test_is_limited_in_combined_batches(self, limit: Any, length: int) -> None:
        stream = training_stream([shuffled(20), shuffled(8)], limit=limit, name="it")
        assert stream.length == length
        assert len(list(stream)) == length

    def test_has_no_length_if_one_loader_has_none(self) -> None:
        stream = training_stream([shuffled(20), Unsized(shuffled(8))], name="it")
        assert stream.length is None
        with pytest.raises(DataError, match=r"it has no length, so it can't be limited to a fraction of 0\.5"):
            training_stream([shuffled(20), Unsized(shuffled(8))], limit=0.5, name="it")

    @pytest.mark.parametrize(
        "empty",
        [[], DataLoader(NoisyPoints(3), 4, drop_last=True), Unsized([]), iter([])],
        ids=["list", "DataLoader", "unsized", "iterator"],
    )
    @pytest.mark.parametrize("mode", MODES)
    def test_names_the_one_that_is_empty(self, mode: Any, empty: Any) -> None:
        with pytest.raises(DataError, match=r"the train loader\['b'\] (has no batches|gave no batch)"):
            list(training_stream(CombinedLoader({"a": [1, 2], "b": empty}, mode), name="the train loader"))

    def test_names_a_generator_that_should_begin_again(self) -> None:
        loaders = {"a": [1, 2], "b": (item for item in [1])}
        with pytest.raises(DataError, match=r"the train loader\['b'\] gave no batch when it began again") as error:
            list(training_stream(loaders, name="the train loader"))
        assert "generator" in error.value.why

    def test_names_the_one_whose_limit_is_0(self) -> None:
        loader = CombinedLoader([[1], [2]])
        loader.limits = [1, 0]
        with pytest.raises(DataError, match=r"the train loader\[1\] gave no batch: its limit is 0"):
            training_stream(loader, name="the train loader")

    def test_can_not_be_a_number_among_loaders(self) -> None:
        with pytest.raises(DataError, match=r"loader\['b'\] is 5, which can't be iterated"):
            training_stream({"a": shuffled(), "b": 5}, name="the train loader")


class TestWhatAnEvaluationReads:
    def test_of_several_loaders_is_each_in_its_turn(self) -> None:
        """In flattened order, each with the limit."""
        loaders = {"a": DataLoader(range(9), 3), "b": [DataLoader(range(4), 2), DataLoader(range(1))]}
        streams = evaluation_streams(loaders, limit=2, name="the val loader")
        assert [stream.name for stream in streams] == [
            "the val loader['a']",
            "the val loader['b'][0]",
            "the val loader['b'][1]",
        ]
        assert [stream.length for stream in streams] == [2, 2, 1]
        assert [len(list(stream)) for stream in streams] == [2, 2, 1]

    def test_of_a_sequential_combined_loader_is_the_same(self) -> None:
        """Of two limits the smaller holds."""
        loader = CombinedLoader([range(9), range(9), Unsized(range(9))], "sequential")
        loader.limits = [1, 0.9, 3]
        assert [len(list(s)) for s in evaluation_streams(loader, name="it")] == [1, 8, 3]
        assert [len(list(s)) for s in evaluation_streams(loader, limit=2, name="it")] == [1, 2, 2]

    def test_of_another_combined_loader_is_one(self) -> None:
        (stream,) = evaluation_streams(CombinedLoader([[1, 2], [3, 4]]), limit=1, name="it")
        assert isinstance(stream, CombinedStream)
        assert list(stream) == [[1, 3]]

    def test_of_one_loader_is_one(self) -> None:
        (stream,) = evaluation_streams([1, 2, 3], limit=0.7, name="it")
        assert list(stream) == [1, 2]
        (listed,) = evaluation_streams([DataLoader(range(3))], name="it")
        assert listed.length == 3

    def test_names_the_one_that_is_empty(self) -> None:
        with pytest.raises(DataError, match=r"the val loader\[1\] has no batches"):
            evaluation_streams(CombinedLoader([[1], []], "sequential"), name="the val loader")


class TestTheIndicesOfABatch:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_those_that_its_sampler_asked_for(self, workers: int) -> None:
        stream = training_stream(shuffled(num_workers=workers), name="it")
        for identities, *_ in stream:
            assert stream.indices == identities.tolist()
        stream.close()

    def test_are_known_without_automatic_batching(self) -> None:
        stream = Stream(DataLoader(NoisyPoints(), batch_size=None, shuffle=True))
        for identity, *_ in stream:
            assert stream.indices == [int(identity)]

    def test_may_be_tensors_to_the_sampler(self) -> None:
        stream = Stream(DataLoader(range(4), 2, sampler=SubsetRandomSampler(torch.arange(4))))  # type: ignore[arg-type]
        for identities in stream:
            assert stream.indices == identities.tolist()

    @pytest.mark.parametrize(
        "loader",
        [
            [torch.zeros(2)],
            DataLoader(Streamed(4), 2),
            DataLoader({"a": 1.0}, sampler=["a"]),  # type: ignore[arg-type]
            [DataLoader(NoisyPoints(), 2)],
        ],
        ids=["list", "iterable", "keys", "several"],
    )
    def test_are_none_where_nobody_knows(self, loader: Any) -> None:
        stream = training_stream(loader, name="it")
        for _ in stream:
            assert stream.indices is None


class TestTheSizeOfABatch:
    def test_is_that_of_each_of_its_parts(self) -> None:
        stream = training_stream({"a": shuffled(20), "b": shuffled(8)}, name="it")
        assert [stream.batch_size() for _ in stream] == [4] * 5

    def test_is_that_of_the_parts_that_are_there(self) -> None:
        stream = training_stream(CombinedLoader([shuffled(8, 2), shuffled(2, 2)], "max_size"), name="it")
        assert [stream.batch_size() for _ in stream] == [2] * 4

    def test_is_not_known_if_they_differ(self) -> None:
        stream = training_stream({"a": shuffled(20), "b": shuffled(8, 2)}, name="it")
        next(iter(stream))
        with pytest.raises(DataError, match=r"is not known: 4 of it\['a'\]; 2 of it\['b'\]") as error:
            stream.batch_size()
        assert "batch_size=" in error.value.fix


class TestSamplersThatShuffleByEpoch:
    def test_are_told_the_epoch_in_every_loader(self) -> None:
        samplers = [DistributedSampler(range(4), num_replicas=1, rank=0) for _ in range(2)]  # type: ignore[arg-type]
        loaders = [DataLoader(range(4), sampler=sampler) for sampler in samplers]  # type: ignore[arg-type]
        training_stream(loaders, name="it").set_epoch(7)
        assert [sampler.epoch for sampler in samplers] == [7, 7]


class TestAnEvaluationThatShouldLeaveNoTrace:
    def test_leaves_none_in_the_generators_of_any_loader(self) -> None:
        generators = [torch.Generator().manual_seed(n) for n in range(2)]
        before = [generator.get_state() for generator in generators]
        loader = CombinedLoader([shuffled(generator=generator) for generator in generators])
        (stream,) = evaluation_streams(loader, name="it")
        with stream.isolated():
            assert len(list(stream)) == 5
            assert not torch.equal(generators[1].get_state(), before[1])
        for generator, state in zip(generators, before, strict=True):
            assert torch.equal(generator.get_state(), state)


def read_in_order(loader: Any, epochs: int = 2) -> list[list[Any]]:
    """The samples of each batch of some epochs, read in order."""
    stream = training_stream(loader, name="the train loader", in_order=True)
    return [[batch[0].tolist() for batch in stream] for _ in range(epochs)]


class TestOverfitting:
    IN_ORDER = ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])

    @pytest.mark.parametrize(
        "options",
        [
            {"shuffle": True},
            {"shuffle": True, "generator": torch.Generator()},
            {"sampler": WeightedRandomSampler([1.0] * 10, 30)},
            {"sampler": RandomSampler(range(10), replacement=True, num_samples=50)},
            {"sampler": SubsetRandomSampler([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])},
            {"sampler": DistributedSampler(range(10), num_replicas=1, rank=0)},  # type: ignore[arg-type]
        ],
        ids=["shuffle", "generator", "weighted", "replacement", "subset", "distributed"],
    )
    def test_reads_a_shuffled_data_set_in_its_order(self, options: dict[str, Any]) -> None:
        """The same batches in each epoch, and a word about it."""
        loader = DataLoader(NoisyPoints(10), 4, **options)
        sampler, batch_sampler = loader.sampler, loader.batch_sampler
        with pytest.warns(TreadleWarning, match=r"treadle\[overfit\]: the train loader shuffles"):
            assert read_in_order(loader) == [list(self.IN_ORDER)] * 2
        assert (loader.sampler, loader.batch_sampler) == (sampler, batch_sampler)
        assert getattr(batch_sampler, "sampler", None) is sampler  # the user's loader is as it was

    def test_reads_only_a_subset_that_was_chosen(self) -> None:
        loader = DataLoader(NoisyPoints(10), 4, sampler=SubsetRandomSampler([7, 2, 5]))
        with pytest.warns(TreadleWarning, match="overfit"):
            assert read_in_order(loader) == [[[2, 5, 7]]] * 2

    def test_reads_only_the_share_of_its_rank(self) -> None:
        sampler: Any = DistributedSampler(range(10), num_replicas=2, rank=1)  # type: ignore[arg-type]
        with pytest.warns(TreadleWarning, match="overfit"):
            assert read_in_order(DataLoader(NoisyPoints(10), 4, sampler=sampler)) == [[[1, 3, 5, 7], [9]]] * 2
        assert sampler.shuffle

    def test_says_nothing_of_a_loader_that_does_not_shuffle(self) -> None:
        assert read_in_order(DataLoader(NoisyPoints(10), 4)) == [list(self.IN_ORDER)] * 2
        assert read_in_order(DataLoader(NoisyPoints(10), batch_sampler=self.IN_ORDER)) == [list(self.IN_ORDER)] * 2

    def test_is_possible_without_automatic_batching(self) -> None:
        with pytest.warns(TreadleWarning, match="overfit"):
            assert read_in_order(DataLoader(NoisyPoints(3), batch_size=None, shuffle=True)) == [[0, 1, 2]] * 2

    @pytest.mark.parametrize("own", ["sampler", "batch_sampler"])
    def test_keeps_a_sampler_of_ones_own_and_says_so(self, own: str) -> None:
        class Pairs(BatchSampler):
            """Of a class of its own, so nobody knows what it does."""

        sampler: Any = Drawing(10) if own == "sampler" else Pairs(range(10), 2, drop_last=False)
        loader = DataLoader(NoisyPoints(10), **{own: sampler})
        with pytest.warns(TreadleWarning, match=rf"sampler of its own, {type(sampler).__name__}, which is kept"):
            read_in_order(loader)

    def test_is_of_every_loader(self) -> None:
        loaders = {"a": shuffled(8), "b": shuffled(4, 2)}
        with pytest.warns(TreadleWarning, match=r"treadle\[overfit\]: the train loader\['[ab]'\] shuffles") as said:
            stream = training_stream(loaders, name="the train loader", in_order=True)
        assert len(said) == 2
        assert [(b["a"][0].tolist(), b["b"][0].tolist()) for b in stream] == [
            ([0, 1, 2, 3], [0, 1]),
            ([4, 5, 6, 7], [2, 3]),
        ]

    @pytest.mark.filterwarnings("ignore:treadle.overfit")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_bit_for_bit(self, workers: int) -> None:
        def make() -> Any:
            return [shuffled(20, num_workers=workers), shuffled(8)]

        every = 1 if not workers else 5
        seen = assert_resumes_exactly(make, every=every, in_order=True, limit=3)
        assert [batch[0][0].tolist() for _, batch, *_ in seen[:3]] == [list(range(n, n + 4)) for n in (0, 4, 8)]


class TestAStateOfItsOwn:
    """A loader with state_dict, as torchdata has one."""

    class Stateful(DataLoader[Any]):
        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    def test_is_read_as_it_is_when_overfitting_and_that_is_said(self) -> None:
        loader = self.Stateful(NoisyPoints(), 4, shuffle=True)
        with pytest.warns(TreadleWarning, match=r"treadle\[overfit\]: the train loader has a state of its own"):
            read_in_order(loader, epochs=1)
