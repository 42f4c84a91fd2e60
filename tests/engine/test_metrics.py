"""Counts of streams, as Prometheus reads them."""

import contextlib
import socket
import sys
import types
import urllib.request

import pytest

from blockcopy_d2.engine.metrics import StreamMetrics
from blockcopy_d2.modeling import FrameClock


def result(executed=0.25, **clock):
    known = {"captured": 1e9, "latency": 0.03, "dropped": 0, "skipped": 0, "reconnects": 0}
    return types.SimpleNamespace(executed=executed, clock=FrameClock(**{**known, **clock}))


def read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


@pytest.fixture
def metrics():
    pytest.importorskip("prometheus_client")
    with StreamMetrics(0) as metrics:
        yield metrics


def test_counts_of_streams(metrics):
    metrics.observe("door", result())
    metrics.observe("door", result(dropped=3, skipped=4, reconnects=2, executed=1.0))
    metrics.observe("door", result(latency=0.7, reconnects=2))
    metrics.observe("yard", result(captured=5.0))
    values = read(metrics.port)
    door = {
        "frames_total": 3,
        "dropped_frames_total": 3,
        "skipped_frames_total": 4,
        "reconnects_total": 2,
        "executed_ratio": 0.25,
        "last_frame_timestamp_seconds": 1e9,
        "latency_seconds_count": 3,
        "latency_seconds_sum": pytest.approx(0.76),
    }
    for name, value in door.items():
        assert values[f'blockcopy_{name}{{stream="door"}}'] == value
    assert values['blockcopy_latency_seconds_bucket{le="0.04",stream="door"}'] == 2
    assert values['blockcopy_frames_total{stream="yard"}'] == 1
    assert all(name.startswith("blockcopy_") for name in values)


def test_a_lost_source_shows_while_no_frame_comes(metrics):
    class Feed:
        connected = True

    feed = Feed()
    metrics.watch("door", feed)
    assert read(metrics.port)['blockcopy_connected{stream="door"}'] == 1
    feed.connected = False
    assert read(metrics.port)['blockcopy_connected{stream="door"}'] == 0
    feed.connected = True
    del feed
    assert read(metrics.port)['blockcopy_connected{stream="door"}'] == 0, "it is gone"


def test_two_do_not_share_counts_and_closing_frees_the_port(metrics):
    with StreamMetrics(0) as other:
        other.observe("door", result())
        assert not any("door" in name for name in read(metrics.port))
    with StreamMetrics(other.port):
        pass


def test_a_port_that_is_taken_is_named(metrics):
    with pytest.raises(OSError, match=f"Metrics cannot be served at 127.0.0.1:{metrics.port}"):
        StreamMetrics(metrics.port)
    with pytest.raises(ValueError, match="port is 70000; it must be a whole number"):
        StreamMetrics(70000)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'blockcopy-d2\[metrics\]'"):
        StreamMetrics(0)


def test_other_machines_see_nothing_unless_asked(metrics):
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."):
        pytest.skip("this machine has no other address")
    with contextlib.closing(socket.socket()) as client:
        client.settimeout(2)
        assert client.connect_ex((own, metrics.port)) != 0
