import copy
import pickle

import pytest
import torch
from detectron2.structures import Boxes, Instances

from blockcopy_d2.modeling.fixed_shape.lazy_fields import LazyFields


class Lazy:
    """Instances with masks for later, and how often they were made."""

    def __init__(self, number=3):
        self.calls = 0
        self.masks = torch.rand(number, 4, 5) > 0.5
        self.instances = Instances((4, 5), pred_boxes=Boxes(torch.rand(number, 4)))
        self.instances.scores = torch.rand(number)
        fields = LazyFields(self.instances.get_fields())
        fields.later("pred_masks", self._make)
        self.instances._fields = fields

    def _make(self):
        self.calls += 1
        return self.masks


def test_what_does_not_read_the_masks_does_not_make_them():
    lazy = Lazy()
    instances = lazy.instances
    assert len(instances) == 3 and instances.has("pred_masks") and instances.image_size == (4, 5)
    assert "pred_masks" in instances.get_fields() and list(instances.get_fields())[2:]
    assert instances.scores.shape == (3,) and len(instances.pred_boxes) == 3
    instances.pred_classes = torch.zeros(3)
    with pytest.raises(AssertionError, match="Adding a field of length 2"):
        instances.set("ids", [1, 2])
    instances.remove("pred_classes")
    with pytest.raises(AttributeError, match="Cannot find field 'ids'"):
        _ = instances.ids
    assert lazy.calls == 0


READS = {
    "attribute": lambda x: x.pred_masks,
    "get": lambda x: x.get("pred_masks"),
    "fields": lambda x: x.get_fields()["pred_masks"],
    "items": lambda x: dict(x.get_fields().items())["pred_masks"],
    "values": lambda x: list(x.get_fields().values())[2],
    "dict": lambda x: dict(x.get_fields())["pred_masks"],
    "keywords": lambda x: Instances((4, 5), **x.get_fields()).pred_masks,
    "to": lambda x: x.to("cpu").pred_masks,
    "cat": lambda x: Instances.cat([x, x]).pred_masks[:3],
    "indices": lambda x: x[torch.arange(3)].pred_masks,
    "slice": lambda x: x[:3].pred_masks,
    "copy": lambda x: copy.copy(x).pred_masks,
    "deep copy": lambda x: copy.deepcopy(x).pred_masks,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).pred_masks,
    "fields' copy": lambda x: x.get_fields().copy()["pred_masks"],
    "pop": lambda x: x.get_fields().pop("pred_masks"),
}


@pytest.mark.parametrize("name", READS)
def test_whatever_reads_the_masks_makes_them_once(name):
    lazy = Lazy()
    assert torch.equal(READS[name](lazy.instances), lazy.masks)
    if name != "pop":
        assert torch.equal(lazy.instances.pred_masks, lazy.masks)
        assert "pred_masks: tensor" in str(lazy.instances)
    assert lazy.calls == 1


def test_a_field_may_be_replaced_or_removed_unread():
    lazy = Lazy()
    lazy.instances.pred_masks = torch.ones(3, 4, 5, dtype=torch.bool)
    assert lazy.instances.pred_masks.all()
    other = Lazy()
    other.instances.remove("pred_masks")
    assert not other.instances.has("pred_masks") and lazy.calls == other.calls == 0
