"""A module that stands for another one."""

from torch import nn

__all__ = ["ModuleProxy"]


class ModuleProxy(nn.Module):
    """
    Has what the module it wraps has: parameters, buffers, children and hence the state dict under
    the same names, and all other attributes and methods, which are bound to the wrapped module.
    What the wrapped module has is also assigned and deleted there. Attributes of the proxy itself
    come first.
    """

    def _wrap(self, module):
        """
        To be called once the proxy has its own attributes.

        Args:
            module (nn.Module): no child of the proxy, lest names in the state dict change.

        Raises:
            ValueError: if a child of it has the name of one of the proxy's.
        """
        common = self._modules.keys() & module._modules.keys()
        if common:
            raise ValueError(
                f"{type(module).__name__} has children named {', '.join(sorted(common))}, as"
                f" {type(self).__name__} has, which cannot wrap it: rename them."
            )
        self._parameters = module._parameters
        self._buffers = module._buffers
        self._non_persistent_buffers_set = module._non_persistent_buffers_set
        # Children of its own are none of the wrapped module's.
        own = self._modules
        self._modules = {**module._modules, **own} if own else module._modules
        self.training = module.training
        object.__setattr__(self, "_wrapped", module)

    def _wrapped_value(self, name, value):
        """The attribute of the wrapped module as the proxy shows it."""
        return value

    def _wrapped_changed(self):
        """Called when an attribute of the wrapped module was assigned or deleted."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Python looks for special methods of its own; there is no wrapped module before _wrap.
            if "_wrapped" not in self.__dict__ or name.startswith("__"):
                raise
        wrapped = self._wrapped
        try:
            value = getattr(wrapped, name)
        except AttributeError as error:
            raise AttributeError(
                f"'{type(self).__name__}' object has no attribute '{name}', and neither has the"
                f" {type(wrapped).__name__} that it wraps",
                name=name,
                obj=self,
            ) from error
        return self._wrapped_value(name, value)

    def __setattr__(self, name, value):
        if self._belongs_to_wrapped(name):
            setattr(self._wrapped, name, value)
            self._share_child(name)
            self._wrapped_changed()
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name):
        if self._belongs_to_wrapped(name):
            delattr(self._wrapped, name)
            self._share_child(name)
            self._wrapped_changed()
        else:
            super().__delattr__(name)

    def add_module(self, name, module):
        if self._belongs_to_wrapped(name):
            setattr(self, name, module)
        else:
            super().add_module(name, module)

    def __dir__(self):
        wrapped = dir(self._wrapped) if "_wrapped" in self.__dict__ else ()
        # The names of the type are said: object's own __dir__ takes those of __class__.
        return sorted({*super().__dir__(), *dir(type(self)), *wrapped})

    def _belongs_to_wrapped(self, name):
        return (
            "_wrapped" in self.__dict__
            and name not in self.__dict__
            and not hasattr(type(self), name)
            and hasattr(self._wrapped, name)
        )

    def _share_child(self, name):
        children = self._wrapped._modules
        if name in children:
            self._modules[name] = children[name]
        elif self._modules is not children:
            self._modules.pop(name, None)
