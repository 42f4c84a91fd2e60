"""Logs of the programs: written by Detectron2's handlers, without secrets."""

import logging

from detectron2.utils.logger import setup_logger

from blockcopy_d2.data import redact_words

__all__ = ["set_up_logs"]


def set_up_logs(output_dir=None, *, rank=0, detectron2=False):
    """
    Show the logs of this package and its libraries. Addresses appear without user, password and
    query. Safe to call twice.

    Args:
        output_dir (str or None): folder of a file log.txt, as in Detectron2; None: no file.
        rank (int): rank of this process; only rank 0 shows anything.
        detectron2 (bool): show all logs of Detectron2, as its ``default_setup`` does.
    """
    # Exactly the call of default_setup, which then finds the handlers made here.
    loggers = [setup_logger(output_dir, distributed_rank=rank)] if detectron2 else []
    for name in ("fvcore", "blockcopy_d2", "iopath"):
        loggers.append(setup_logger(output_dir, distributed_rank=rank, name=name))
    # Downloads log failures only.
    logging.getLogger("iopath").setLevel(logging.WARNING)
    for logger in loggers:
        for handler in logger.handlers:
            if not isinstance(handler.formatter, _WithoutSecrets):
                handler.setFormatter(_WithoutSecrets(handler.formatter))


class _WithoutSecrets(logging.Formatter):
    """Formats as another formatter does, tracebacks included."""

    def __init__(self, formatter):
        super().__init__()
        self._formatter = formatter

    def format(self, record):
        return redact_words(self._formatter.format(record))
