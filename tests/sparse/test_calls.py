"""Calls keep what belongs to them: threads, weights that change, traces that fail."""

import copy
import pickle
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from blockcopy_d2.evaluation.efficiency import MacCounter
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse, tracing
from blockcopy_d2.sparse.program_cache import _MAX_IDLE
from blockcopy_d2.sparse.weights import WeightsWatch

SIZE, BLOCK = (32, 48), 16


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.down = nn.Conv2d(channels, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.down(self.stem(x).relu())


@pytest.fixture
def sparse():
    return BlockSparseModule(Net().eval())


def full(size=SIZE):
    return BlockGrid.full(block_size=BLOCK, image_size=size)


def none(size=SIZE):
    return BlockGrid.empty(block_size=BLOCK, image_size=size)


def images(number, size=SIZE):
    return [torch.randn(1, 3, *size) for _ in range(number)]


@torch.no_grad()
def frame_of(sparse, state, image, grid):
    with block_sparse(sparse, grid, state) as frame:
        return sparse(image).clone(), frame


def in_threads(*functions):
    """Runs all at once; raises what any of them raised."""
    errors = []
    barrier = threading.Barrier(len(functions))

    def run(function):
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- calls of several threads


def test_pictures_of_another_thread_are_dense_while_a_frame_runs(sparse):
    first, second = images(2)
    state, found = StreamState(), []
    frame_of(sparse, state, first, full())

    def still():
        with torch.no_grad():
            found.append(sparse(second))

    with torch.no_grad(), block_sparse(sparse, none(), state):
        in_threads(still)
        kept = sparse(second).clone()
    assert torch.equal(found[0], sparse.dense_module(second))
    torch.testing.assert_close(kept, sparse.dense_module(first))


@pytest.mark.parametrize("attempt", range(3))
def test_a_camera_and_pictures_in_two_threads(sparse, attempt):
    # The network of the camera is traced while pictures are run.
    frames, stills = images(12), images(60)
    camera, pictures = [], []

    @torch.no_grad()
    def run_camera():
        state = StreamState()
        for index, image in enumerate(frames):
            camera.append(frame_of(sparse, state, image, none() if index % 3 else full()))

    @torch.no_grad()
    def run_pictures():
        for image in stills:
            pictures.append(sparse(image))

    in_threads(run_camera, run_pictures)
    with torch.no_grad():
        for image, found in zip(stills, pictures, strict=True):
            torch.testing.assert_close(found, sparse.dense_module(image))
        for index, (found, frame) in enumerate(camera):
            torch.testing.assert_close(found, sparse.dense_module(frames[index - index % 3]))
            assert not frame.dense_module_macs and len(frame.programs) == 1


def test_first_calls_of_several_networks_at_once():
    networks = [BlockSparseModule(Net(4 + index).eval()) for index in range(4)]
    (image,) = images(1)
    frames = {}

    def run(sparse):
        frames[sparse] = frame_of(sparse, StreamState(), image, full())[1]

    in_threads(*(lambda sparse=sparse: run(sparse) for sparse in networks))
    assert all(len(frames[sparse].programs) == 1 for sparse in networks)


def test_a_network_is_not_touched_while_it_is_captured(sparse, monkeypatch):
    (image,) = images(1)
    with torch.no_grad():
        expected = sparse(image)
    export, seen = torch.export.export, []

    def slow(module, *args, **kwargs):
        forward = module.forward

        def watched(*args):
            # The tracer has put its placeholders in place of the weights.
            in_threads(lambda: seen.append(sparse.stem[0].weight))
            return forward(*args)

        module.forward = watched
        return export(module, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", slow)
    found, _ = frame_of(sparse, StreamState(), image, full())
    assert seen and all(weight is sparse.dense_module.stem[0].weight for weight in seen)
    torch.testing.assert_close(found, expected)
    assert "forward" not in vars(sparse.dense_module)


def test_captures_take_turns(monkeypatch):
    export, running = torch.export.export, []

    def slow(*args, **kwargs):
        running.append(threading.current_thread())
        time.sleep(0.05)
        assert running == [threading.current_thread()]
        running.clear()
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", slow)
    (image,) = images(1)
    networks = [BlockSparseModule(Net().eval()) for _ in range(3)]
    in_threads(*(lambda s=s: frame_of(s, StreamState(), image, full()) for s in networks))
    assert all(len(s._programs) == 1 for s in networks)


def test_frames_of_two_models_nest(sparse):
    other, (image, later) = BlockSparseModule(Net().eval()), images(2)
    states = StreamState(), StreamState()
    with torch.no_grad(), block_sparse(sparse, full(), states[0]):
        with block_sparse(other, full(), states[1]) as inner:
            other(image)
            sparse(image)
        assert len(inner.programs) == 1 and states[0].nbytes and states[1].nbytes
        assert torch.equal(other(later), other.dense_module(later))


# ---------------------------------------------------------------- traces that fail


def failing(monkeypatch, error, times):
    export, calls = torch.export.export, []

    def fail(*args, **kwargs):
        calls.append(None)
        if len(calls) <= times:
            raise error
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", fail)
    return calls


def test_a_failure_of_the_moment_does_not_make_it_dense_for_good(sparse, monkeypatch):
    failing(monkeypatch, RuntimeError("another thread traces"), times=2)
    image, state = images(1)[0], StreamState()
    frames = [frame_of(sparse, state, image, full())[1] for _ in range(3)]
    assert [len(frame.programs) for frame in frames] == [0, 0, 1]
    assert [frame.may_improve for frame in frames] == [True, True, False]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("x"), KeyboardInterrupt()])
def test_memory_and_interrupts_are_raised_and_forgotten(sparse, monkeypatch, error):
    failing(monkeypatch, error, times=5)
    image, state = images(1)[0], StreamState()
    for _ in range(5):
        with pytest.raises(type(error)):
            frame_of(sparse, state, image, full())
    assert len(frame_of(sparse, state, image, full())[1].programs) == 1


def test_a_network_that_cannot_be_captured_says_that_it_ran_densely(monkeypatch, caplog):
    class DataDependent(Net):
        def forward(self, x):
            return super().forward(x * 2 if x.sum() > 0 else x)

    sparse, state = BlockSparseModule(DataDependent().eval()), StreamState()
    calls = failing(monkeypatch, None, times=0)
    image = torch.rand(1, 3, *SIZE)
    for index in range(5):
        with MacCounter(sparse) as counter:
            found, frame = frame_of(sparse, state, image, full() if index == 0 else none())
        assert counter.macs == 0, "the frame counts them"
        assert torch.equal(found, sparse.dense_module(image))
        assert frame.executed.is_full and frame.refreshed.is_full
        stem, down = 32 * 48 * 4 * 3 * 9, 16 * 24 * 4 * 4 * 9
        assert frame.macs == frame.dense_macs == stem + down
    assert len(calls) == 3 and not frame.may_improve
    assert sum("runs densely" in record.message for record in caplog.records) == 1


# ---------------------------------------------------------------- weights that change


def _load(net):
    net.down.load_state_dict({k: v * 2 for k, v in net.down.state_dict().items()})


def _multiply(net):
    net.stem[0].weight.mul_(2)


def _data(net):
    net.down.weight.data = net.down.weight * 2


def _parameter(net):
    net.down.weight = nn.Parameter(net.down.weight * 2)


def _layer(net):
    net.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)


def _statistics(net):
    net.stem[1].running_mean.add_(1)


def _buffer(net):
    net.stem[1].running_var = torch.full_like(net.stem[1].running_var, 3.0)


def _without_bias(net):
    net.down.bias = None


def _in_inference_mode(net):
    with torch.inference_mode():
        net.down.weight.mul_(2)


def _made_in_inference_mode(net):
    with torch.inference_mode():
        net.down.weight = nn.Parameter(net.down.weight * 2, requires_grad=False)


def _by_alias(net):
    net.down.weight.data.mul_(2)


def _by_numpy(net):
    net.down.weight.detach().numpy()[1] = 3


def _average(net):
    """Averages of weights over training are written like this."""
    for parameter in net.parameters():
        parameter.data.mul_(0.9).add_(parameter.data, alpha=0.5)


def _pruned(net):
    prune.l1_unstructured(net.down, "weight", 0.5)


def _normalized(net):
    parametrizations.weight_norm(net.down)
    net.down.parametrizations.weight.original0.mul_(2)


CHANGES = [
    _load,
    _multiply,
    _data,
    _parameter,
    _layer,
    _statistics,
    _buffer,
    _without_bias,
    _in_inference_mode,
    _made_in_inference_mode,
    _by_alias,
    _by_numpy,
    _average,
    _pruned,
    _normalized,
]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_noticed(sparse, change):
    image, states = images(1)[0], [StreamState(), StreamState()]
    for state in states:
        old, _ = frame_of(sparse, state, image, full())
    change(sparse.dense_module)
    for state in states:
        with pytest.raises(RuntimeError, match="must run all blocks"):
            frame_of(sparse, state, image, none())
        new, _ = frame_of(sparse, state, image, full())
        assert not torch.allclose(new, old)
        torch.testing.assert_close(new, sparse.dense_module(image))
        again, _ = frame_of(sparse, state, images(1)[0], none())
        assert torch.equal(again, new)


@torch.no_grad()
def test_other_weights_of_one_module_make_the_features_of_all_stale():
    first = BlockSparseModule(nn.Conv2d(3, 4, 3, padding=1).eval())
    second = BlockSparseModule(nn.Conv2d(4, 4, 3, padding=1).eval())
    both, state = nn.Sequential(first, second), StreamState()
    (image,) = images(1)
    frame_of(both, state, image, full())
    first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="must run all blocks"):
        frame_of(both, state, image, none())
    frame_of(both, state, image, full())
    frame_of(both, state, image, none())


def test_a_watch_is_cheap_and_sees_nothing_where_nothing_is(sparse):
    layers = nn.ModuleList(Net() for _ in range(60)).eval()
    watch = WeightsWatch(layers)
    assert watch.changed() and not watch.changed()
    before = time.process_time()
    for _ in range(100):
        assert not watch.changed()
    # 600 tensors, twice those of R50-FPN; with time to spare for a slow machine.
    assert (time.process_time() - before) / 100 < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_watch_looks_at_values_of_all_kinds(dtype, layout):
    layer = nn.Module()
    layer.register_buffer("values", torch.ones(300, 8, 3, 3, dtype=dtype).to(memory_format=layout))
    layer.register_buffer("empty", torch.ones(0, dtype=dtype))
    layer.register_buffer("scalar", torch.ones((), dtype=dtype))
    layer.register_buffer("repeated", torch.ones(3, 1, dtype=dtype).expand(3, 4))
    watch = WeightsWatch(layer)
    assert watch.changed() and not watch.changed()
    for values in (layer.values.data, layer.values.data[7:9], layer.scalar.data):
        values.mul_(2)
        assert watch.changed() and not watch.changed()


def test_copies_and_pickles_start_afresh(sparse):
    image, state = images(1)[0], StreamState()
    frame_of(sparse, state, image, full())
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert len(other._programs) == 0
        with torch.no_grad():
            other.down.weight.mul_(2)
        found, _ = frame_of(other, StreamState(), image, full())
        torch.testing.assert_close(found, other.dense_module(image))
        assert not torch.allclose(found, sparse.dense_module(image))
    assert torch.equal(
        frame_of(sparse, state, image, none())[0], frame_of(sparse, state, image, none())[0]
    )


# ---------------------------------------------------------------- features


def test_programs_in_use_outlive_those_of_other_sizes(sparse):
    state, (image,) = StreamState(), images(1)
    kept, _ = frame_of(sparse, state, image, full())
    for index in range(_MAX_IDLE + 4):
        size = (16, 16 * (index + 1))
        frame_of(sparse, StreamState(), images(1, size)[0], full(size))
    assert torch.equal(frame_of(sparse, state, images(1)[0], none())[0], kept)
    assert len(sparse._programs) == _MAX_IDLE + 1
    del _
    state.reset()
    assert len(sparse._programs) == _MAX_IDLE


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_between_modules_leaves_no_mixed_features(sparse, error):
    state, (image,) = StreamState(), images(1)
    with pytest.raises(error), block_sparse(sparse, full(), state):
        sparse(image)
        raise error
    assert state.nbytes == 0
    # And the binding is gone.
    with torch.no_grad():
        assert torch.equal(sparse(image), sparse.dense_module(image))


# ---------------------------------------------------------------- inference mode


def test_inference_mode_at_any_time():
    with torch.inference_mode():
        built = BlockSparseModule(Net().eval())
    frames = images(4)
    active = torch.zeros(1, 2, 3, dtype=torch.bool)
    active[0, 0, 1] = active[0, 1, 2] = True
    some = BlockGrid(active, block_size=BLOCK, image_size=SIZE)
    outputs = {}
    for modes in (
        (False,) * 4,
        (True,) * 4,
        (True, False, True, False),
        (False, True, True, False),
    ):
        state = StreamState()
        for index, (image, inference) in enumerate(zip(frames, modes, strict=True)):
            with torch.inference_mode(inference), torch.no_grad():
                image = image.clone()
                with block_sparse(built, some if index else full(), state) as frame:
                    outputs.setdefault(index, []).append(built(image).clone())
                assert len(frame.programs) == 1
    for found in outputs.values():
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_programs_are_compiled_once(sparse, monkeypatch):
    compiled = []
    original = tracing.trace
    monkeypatch.setattr(
        "blockcopy_d2.sparse.module.trace",
        lambda *args: compiled.append(None) or original(*args),
    )
    (image,) = images(1)
    in_threads(*(lambda: frame_of(sparse, StreamState(), image, full()) for _ in range(4)))
    assert len(compiled) == 1


def test_threads_find_new_weights_once(sparse, monkeypatch):
    """Else a slow one would drop what another has compiled meanwhile."""
    looked = []
    monkeypatch.setattr(
        "blockcopy_d2.sparse.weights.make_writable",
        lambda module: (looked.append(module), time.sleep(0.05)),
    )
    in_threads(*(sparse.weights_version for _ in range(4)))
    assert len(looked) == 1
