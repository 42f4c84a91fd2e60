import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockcopy_d2.data import FrameReadError, VideoFrames, redact, redact_words
from blockcopy_d2.data.addresses import name_of


@pytest.mark.parametrize(
    "address, shown, name",
    [
        ("rtsp://admin:s3cret@host:554/door", "rtsp://***@host:554/door", "door"),
        ("rtsp://s3cret@host/door", "rtsp://***@host/door", "door"),
        ("rtsp://admin:s3cret@host", "rtsp://***@host", "host"),
        ("rtsp://admin:p@s3cret@host:554", "rtsp://***@host:554", "host_554"),
        ("rtsp://admin:p/s3cret@host/door", "rtsp://***", "video"),
        ("rtsp://admin:p?s3cret@host/door", "rtsp://***", "video"),
        ("rtsp://admin:p s3cret@host/door", "rtsp://***@host/door", "door"),
        ("https://host/a.m3u8?token=s3cret", "https://host/a.m3u8?***", "a"),
        ("https://host/a.m3u8#s3cret", "https://host/a.m3u8?***", "a"),
        ("https://host/a.mp4?mail=a@b&token=s3cret", "https://***", "video"),
        ("HTTP://u:s3cret@[::1]:80/x/a.mkv", "HTTP://***@[::1]:80/x/a.mkv", "a"),
        ("--video-input=rtsp://u:s3cret@host/a", "--video-input=rtsp://***@host/a", "a"),
        ("https://host/a.mp4", "https://host/a.mp4", "a"),
    ],
)
def test_secrets_of_an_address_are_hidden(address, shown, name):
    assert redact(address) == shown and name_of(address) == name
    assert "s3cret" not in redact(f"{address} cannot be read")


@pytest.mark.parametrize("text", ["a:b.mp4", "C:/clips/a.mp4", "me@home.mp4", "what?.mp4", "é.mp4"])
def test_file_names_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("opts=['A', 'http://u:s3cret@h/a.pth'], b", "opts=['A', 'http://***@h/a.pth'], b"),
        ("\x1b[1mhttp://u:s3cret@h/a?t=s3cret\x1b[0m b", "\x1b[1mhttp://***@h/a?***\x1b[0m b"),
        ("x=rtsp://s3cret@h rtsp://u:s3cret@h", "x=rtsp://***@h rtsp://***@h"),
        ("rtsp://***@h/a?*** is silent; a: b", "rtsp://***@h/a?*** is silent; a: b"),
        ("at tcp://127.0.0.1:49152, a@b?", "at tcp://127.0.0.1:49152, a@b?"),
    ],
)
def test_secrets_in_running_text_are_hidden(text, shown):
    assert redact_words(text) == shown


def test_a_frame_of_an_address_is_named_without_secrets():
    error = FrameReadError("http://u:s3cret@h/a.png", "a", 0, "no such file")
    assert "http://***@h/a.png: no such file" in str(error)


def test_bytes_that_are_no_text_can_be_printed():
    assert redact("a\udcff.mp4") == "a\\xff.mp4"
    assert redact("http://h/\ud800\udc80") == "http://h/\\ud800\\x80"


secret = st.text(min_size=1, max_size=8).map(lambda text: f"s3{text}cret")


@settings(max_examples=200, deadline=None)
@given(secret, secret)
def test_no_password_and_no_token_passes(password, token):
    for address in (f"rtsp://u:{password}@host/a", f"http://u:{password}@h/a?t={token}"):
        for shown in (redact(address), name_of(address)):
            assert "cret" not in shown
            shown.encode()


def test_no_error_tells_a_secret(tmp_path):
    import traceback

    with pytest.raises(ValueError) as caught:
        VideoFrames("http://u:s3cret@127.0.0.1:1/a.mp4?token=s3cret")
    text = "".join(traceback.format_exception(caught.value))
    assert "http://***@127.0.0.1:1/a.mp4?*** cannot be read as a video" in text
    # The traceback quotes this test's own line, and nothing else does.
    assert text.count("s3cret") == 2
