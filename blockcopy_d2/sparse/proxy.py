"""A module that stands in for another one."""

from torch import nn

__all__ = ["ModuleProxy"]


class ModuleProxy(nn.Module):
    """
    Shows the module it wraps: parameters, buffers, children and hence the state dict under the same
    names, and all other attributes and methods, bound to the wrapped module. Attributes of the
    wrapped module are also assigned and deleted there. The proxy's own attributes take precedence.
    """

    def _wrap(self, module):
        """
        Wraps a module. Call it once the proxy has its own attributes.

        Args:
            module (nn.Module): not a child of the proxy, so that names in the state dict stay.

        Raises:
            ValueError: a child of it has the name of a child of the proxy.
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
        # The proxy's own children do not belong to the wrapped module.
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
            # Python looks up special methods; and before _wrap there is no wrapped module.
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
        # The names of the type are added by hand: object.__dir__ takes those of __class__.
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
