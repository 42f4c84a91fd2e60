import os
import random
import signal

import numpy as np
import pytest
import torch
from detectron2.utils import logger

from blockcopy_d2.kernels import has_triton
from tests.shared_traces import share_traces

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its kernels then run on the CPU, slowly.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if has_triton():
        from tests.interpreter import make_faster

        make_faster()

share_traces()

# torch.export notes for every operator where it was called, an eighth of the time of a capture.
torch.fx.config.do_not_emit_stack_traces = True


@pytest.fixture(autouse=True)
def seeded():
    """
    Every test starts from the same seeds, regardless of earlier tests, and sees log lines that
    appear once per process.
    """
    logger._LOG_COUNTER.clear()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# A shell has its background jobs ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
