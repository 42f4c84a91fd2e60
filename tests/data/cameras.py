"""Cameras of this machine, for tests: servers of MJPEG by HTTP, and of JPEG by RTSP."""

import contextlib
import functools
import http.server
import io
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

WIDTH, HEIGHT = 80, 48


class MjpegCamera:
    """
    Serves frames of rising brightness, from 0 for each connection.

    Attributes:
        address (str): with secrets. It stays the same over :meth:`cut` and :meth:`start`.
        period (float): seconds between frames.
        silent_after (int or None): number of frames after which a connection says nothing more,
            until ``go_on`` is set.
        connections (int): so far.
        gone (Semaphore): released when a client has left.
    """

    def __init__(self, *, period=0.02, size=(WIDTH, HEIGHT)):
        self.period, self.size = period, size
        self.silent_after, self.go_on = None, threading.Event()
        self.connections, self.gone = 0, threading.Semaphore(0)
        self._server, self._port = None, 0
        self.start()
        self.address = f"http://u:s3cret@127.0.0.1:{self._port}/door.mjpg?token=s3cret"

    def start(self):
        handler = functools.partial(_Handler, self)
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def cut(self):
        """Closes the server and its connections."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in server.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.go_on.set()
        self.cut()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        """Logs nothing when clients leave."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, camera, *args):
        self.camera = camera
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        camera = self.camera
        camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for index in range(10**6):
                if camera.silent_after is not None and index >= camera.silent_after:
                    camera.go_on.wait(30)
                self.wfile.write(part(index, camera.size))
                time.sleep(camera.period)
        except OSError:
            camera.gone.release()


def part(index, size):
    content = io.BytesIO()
    Image.new("RGB", size, (min(255, index),) * 3).save(content, "JPEG", quality=95)
    header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {content.tell()}\r\n\r\n"
    return header.encode() + content.getvalue() + b"\r\n"


def level(image):
    """float: the number of a frame of :class:`MjpegCamera`."""
    height, width = image.shape[:2]
    return image[height // 2, width // 2].mean()


class RtspCamera:
    """
    A moving ball, 160x96 at 25 frames per second, served by GStreamer in another process.

    Attributes:
        address (str): with secrets, which the server asks for.
    """

    def __init__(self):
        self._python = _python_with_gstreamer()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"rtsp://u:s3cret@127.0.0.1:{self._port}/door"
        self.start()

    def start(self):
        command = [self._python, "-c", _RTSP_SERVER, str(self._port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number):
        """
        Sends a signal: SIGKILL cuts connections; SIGSTOP silences the camera, and SIGCONT wakes it.
        """
        self.process.send_signal(number)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


_RTSP_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball"
    " ! video/x-raw,format=I420,width=160,height=96,framerate=25/1"
    " ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
rights = "media.factory.access=true, media.factory.construct=true"
factory.add_role_from_structure(Gst.Structure.new_from_string("user, " + rights))
auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("u", "s3cret"), token)
server.set_auth(auth)
server.get_mount_points().add_factory("/door", factory)
assert server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def _python_with_gstreamer():
    """An interpreter that has GStreamer's RTSP server; skips the test where there is none."""
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "assert Gst.ElementFactory.find('rtpjpegpay') and Gst.ElementFactory.find('jpegenc')"
    )
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if python and not subprocess.run([python, "-c", check], capture_output=True).returncode:
            return python
    pytest.skip(
        "needs GStreamer's RTSP server; on Debian: apt install python3-gi"
        " gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"
    )
