"""Fields of Detectron2's Instances, and parts of outputs, that are computed when first read."""

from collections import UserDict

__all__ = ["LazyFields"]


class LazyFields(UserDict):
    """
    Replaces the dict of fields within an Instances, or an output. Any method of Instances that
    reads a field gets its value. Copies and pickles hold values alone.

    Examples:
    ::
        instances = Instances(size, scores=scores)
        instances._fields = LazyFields(instances.get_fields())
        instances.get_fields().later("pred_masks", paste)
    """

    def later(self, name, function):
        """
        Args:
            name (str): name of the field.
            function (callable): returns its value; called once at most.
        """
        self.data[name] = _Later(function)

    def __getitem__(self, name):
        value = self.data[name]
        if isinstance(value, _Later):
            value = self.data[name] = value.function()
        return value

    def __copy__(self):
        return dict(self)

    copy = __copy__

    def __reduce__(self):
        return dict, (dict(self),)


class _Later:
    def __init__(self, function):
        self.function = function
