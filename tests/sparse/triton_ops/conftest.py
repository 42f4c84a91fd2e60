import pytest
import torch


@pytest.fixture(autouse=True)
def exact_references(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
