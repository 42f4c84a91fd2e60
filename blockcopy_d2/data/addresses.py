"""Addresses and file names in a form that may be shown to anyone."""

import os
import re

__all__ = ["is_address", "name_of", "redact", "redact_words"]

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Stand-ins for bytes that are not UTF-8, see os.fsdecode.
_BYTE = re.compile("[\udc80-\udcff]")
# In running text an address ends with the word, a quotation or a change of colour.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>\x1b]+")


def is_address(source):
    """
    Args:
        source (str): source of a video.

    Returns:
        bool: whether it has the form ``protocol://...`` and does not name an existing file.
    """
    return "://" in source and not os.path.exists(source)


def redact(text):
    """
    Hides parts of an address that may be secret: user and password, query and fragment. An address
    extends to the end of ``text``, since a password may hold any character, so redact arguments one
    by one. Bytes of a file name that are not UTF-8 become escapes, so that the text can be printed.

    Args:
        text (object): its string is taken.

    Returns:
        str: ``rtsp://admin:1234@host/door?token=x`` becomes ``rtsp://***@host/door?***``. If the
        parts cannot be told apart, only the protocol is left.
    """
    text = _BYTE.sub(lambda match: f"\\x{ord(match.group()) - 0xDC00:02x}", str(text))
    text = text.encode("utf-8", "backslashreplace").decode()
    return _ADDRESS.sub(_redacted, text)


def redact_words(text):
    """
    :func:`redact` for text that contains addresses, such as a line of a log. An address ends with
    the word.

    Args:
        text (object): its string is taken.

    Returns:
        str: the text, with its addresses redacted.
    """
    return _WORD.sub(lambda match: redact(match.group()), str(text))


def _redacted(match):
    protocol, rest = match.groups()
    authority = re.match(r"[^/?#]*", rest).group()
    path = re.match(r"[^?#]*", rest[len(authority) :]).group()
    hidden = rest[len(authority) + len(path) :]
    user, at, host = authority.rpartition("@")
    # An @ further on may end a password that holds one of / ? #.
    if "@" in path or "@" in hidden:
        return f"{protocol}://***"
    return f"{protocol}://{'***@' if at else ''}{host}{path}{'?***' if hidden else ''}"


def name_of(source):
    """
    Args:
        source (str): source of a video.

    Returns:
        str: its name without folder and extension; for an address without a path, the host. It may
        be shown, and used as the name of a file.
    """
    shown = redact(source)
    if not is_address(source):
        return os.path.splitext(os.path.basename(os.path.abspath(shown)))[0]
    host, _, path = shown.split("://", 1)[1].removesuffix("?***").partition("/")
    name = os.path.splitext(os.path.basename(path.rstrip("/")))[0]
    return name or host.removeprefix("***").lstrip("@").replace(":", "_") or "video"
