"""Counts of running streams for Prometheus. Needs prometheus_client."""

import weakref

from blockcopy_d2.config_key import whole

__all__ = ["StreamMetrics"]

_LOCAL = "127.0.0.1"
_PORT = whole(None, least=0, most=65535)
# Seconds, from one frame of a fast GPU to a camera that is far behind.
_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)


class StreamMetrics:
    """
    Counts the frames of streams and serves the counts at ``http://HOST:PORT/metrics``, on a thread
    of its own. A context manager, which closes the server. Every metric has the label ``stream``:

    * ``blockcopy_frames_total``: frames that were run
    * ``blockcopy_dropped_frames_total``: frames of a live source that were passed over for newer
      ones
    * ``blockcopy_skipped_frames_total``: frames left out for the rate that was asked for
    * ``blockcopy_reconnects_total``: times that a live source was lost and found again
    * ``blockcopy_connected``: 0 while a live source is lost, else 1
    * ``blockcopy_latency_seconds``: histogram, from the capture of a frame to its result
    * ``blockcopy_executed_ratio``: executed share of the blocks of the last frame
    * ``blockcopy_last_frame_timestamp_seconds``: when the last frame was captured

    Attributes:
        port (int): where it listens.
    """

    def __init__(self, port, host=_LOCAL):
        """
        Args:
            port (int): 0: one that is free.
            host (str): an address of this machine; "0.0.0.0": all of them. Anyone who can reach it
                can read the counts and the names of the streams, nothing else.

        Raises:
            ImportError: prometheus_client is not installed.
            OSError: the port is taken, or the host is not one of this machine.
            ValueError: it is not a port.
        """
        try:
            import prometheus_client as client
        except ImportError:
            raise ImportError(
                "Metrics need prometheus_client: pip install 'blockcopy-d2[metrics]'"
            ) from None
        port = _PORT.check("port", port)
        self._registry = client.CollectorRegistry()

        def metric(kind, name, text, **options):
            name = f"blockcopy_{name}"
            return kind(name, text, ["stream"], registry=self._registry, **options)

        self._frames = metric(client.Counter, "frames", "Frames that were run")
        self._dropped = metric(
            client.Counter, "dropped_frames", "Frames of a live source passed over for newer ones"
        )
        self._skipped = metric(
            client.Counter, "skipped_frames", "Frames left out for the rate that was asked for"
        )
        self._reconnects = metric(
            client.Counter, "reconnects", "Times that a live source was lost and found again"
        )
        self._connected = metric(client.Gauge, "connected", "0 while a live source is lost")
        self._latency = metric(
            client.Histogram, "latency_seconds", "From capture to result", buckets=_BUCKETS
        )
        self._executed = metric(
            client.Gauge, "executed_ratio", "Executed share of the blocks of the last frame"
        )
        self._captured = metric(
            client.Gauge, "last_frame_timestamp_seconds", "When the last frame was captured"
        )
        self._known = {}
        try:
            self._server, self._thread = client.start_http_server(
                port, addr=host, registry=self._registry
            )
        except OSError as error:
            raise OSError(
                f"Metrics cannot be served at {host}:{port}: {error.strerror or error}. Choose"
                " another port, or 0 for one that is free."
            ) from error
        self.port = self._server.server_port

    def watch(self, stream, feed):
        """
        Show whether a live source is lost, also while no frame comes.

        Args:
            stream (str): name, to be shown.
            feed (FrameFeed): is not kept alive.
        """
        known = weakref.ref(feed)

        def connected():
            feed = known()
            return float(feed is not None and feed.connected)

        self._connected.labels(stream).set_function(connected)

    def observe(self, stream, result):
        """
        Count a frame. Waits for the device, to know the executed share.

        Args:
            stream (str): name, to be shown: without secrets, as :attr:`VideoFrames.name` is.
            result (FrameResult): with a clock.
        """
        clock = result.clock
        self._frames.labels(stream).inc()
        self._dropped.labels(stream).inc(clock.dropped)
        self._skipped.labels(stream).inc(clock.skipped)
        before = self._known.get(stream, 0)
        self._reconnects.labels(stream).inc(max(0, clock.reconnects - before))
        self._known[stream] = clock.reconnects
        self._latency.labels(stream).observe(clock.latency)
        self._executed.labels(stream).set(result.executed)
        self._captured.labels(stream).set(clock.captured)

    def close(self):
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
