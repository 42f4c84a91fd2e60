"""Steps of RMSprop for all weights of a policy at once, some of which wait for later frames."""

import copy
from collections import defaultdict

import torch
import torch.distributed as dist
from torch.optim.rmsprop import rmsprop

__all__ = ["WeightUpdates"]


class WeightUpdates:
    """
    Changes the weights of a policy. A step with anything that is not finite changes nothing, and
    is counted. The host never waits for the device, so that a step can be part of a CUDA graph.

    Attributes:
        parameters (list[nn.Parameter]):
        optimizer (torch.optim.RMSprop): has the settings of every step, and its state.
        skipped (Tensor): int64 scalar, steps so far that changed nothing.
    """

    def __init__(self, parameters, *, learning_rate, weight_decay, sync=False):
        """
        Args:
            parameters (iterable[nn.Parameter]): on the device where they will stay.
            learning_rate, weight_decay (float): settings of RMSprop.
            sync (bool): take steps together with the other processes of a job, which start from
                the weights of the first one.
        """
        self.parameters = list(parameters)
        device = self.parameters[0].device
        # On CUDA a step can be part of a graph, and its counters are on the device.
        self._capturable = device.type == "cuda"
        self.optimizer = torch.optim.RMSprop(
            self.parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            capturable=self._capturable,
        )
        size = sum(parameter.numel() for parameter in self.parameters)
        self._square_average = torch.zeros(size, device=device)
        steps_device = device if self._capturable else None
        self._steps = torch.zeros(len(self.parameters), device=steps_device)
        self._keep_optimizer_state()
        # A waiting step: the change of the weights, and whether it counts as skipped.
        self._change = torch.zeros_like(self._square_average)
        self._skips = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._beside = None
        self._sync = sync
        if sync:
            for parameter in self.parameters:
                dist.broadcast(parameter.detach(), src=0)

    def __getstate__(self):
        self.wait()
        # Its tensors are parts of one, which pickle would write once for each.
        optimizer = copy.copy(self.optimizer)
        optimizer.state = defaultdict(dict)
        return {**vars(self), "optimizer": optimizer, "_beside": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._keep_optimizer_state()

    def step(self, gradients, loss, num_streams, *, waits=False):
        """
        Args:
            gradients (sequence[Tensor]): one for each parameter.
            loss (Tensor): scalar; the step is skipped where it is not finite.
            num_streams (Tensor): scalar, streams that the gradients come from; without any the step
                is skipped.
            waits (bool): change the weights in :meth:`take_over`, not now.
        """
        self.wait()
        flat = torch.cat([*map(_flatten, gradients), loss.detach().view(1)])
        if self._sync:
            dist.all_reduce(flat)
        finite = torch.isfinite(torch.linalg.vector_norm(flat)) & (num_streams > 0)
        settings = self.optimizer.param_groups[0]
        with torch.no_grad():
            # All weights as one tensor: a dozen launches on a GPU instead of hundreds.
            before = torch.cat([_flatten(parameter) for parameter in self.parameters])
            after, square_average = before.clone(), self._square_average.clone()
            options = {name: settings[name] for name in ("lr", "alpha", "eps", "weight_decay")}
            options |= dict(foreach=False, capturable=self._capturable, momentum=0, centered=False)
            rmsprop([after], [flat[:-1]], [square_average], [], [], [self._steps], **options)
            self._square_average.copy_(torch.where(finite, square_average, self._square_average))
            if waits:
                self._change.copy_(torch.where(finite, after - before, 0.0))
                self._skips += ~finite
                return
            after = torch.where(finite, after, before)
            torch._foreach_copy_([_channels_last(x) for x in self.parameters], self._split(after))
        self.skipped += ~finite

    @torch.no_grad()
    def take_over(self):
        """Change the weights by the step that waits, if there is one."""
        self.wait()
        changes = self._split(self._change)
        torch._foreach_add_([_channels_last(x) for x in self.parameters], changes)
        self.skipped += self._skips
        self._change.zero_()
        self._skips.zero_()

    def computed_beside(self, event, *owners):
        """
        Notes that a step is computed on another CUDA stream.

        Args:
            event (torch.cuda.Event): reached when it is.
            owners: objects whose memory it needs, kept alive until then.
        """
        self._beside = (event, owners)

    def wait(self):
        """Has the current CUDA stream wait for a step on another one. The host goes on."""
        beside, self._beside = self._beside, None
        if beside is not None:
            event, _ = beside
            event.wait()

    def state_dict(self):
        """
        Returns:
            dict: "optimizer", "skipped_updates", and the step that is "waiting".
        """
        self.wait()
        return {
            "optimizer": self.optimizer.state_dict(),
            "skipped_updates": self.skipped.clone(),
            "waiting": {"change": self._change.clone(), "skips": self._skips.clone()},
        }

    def load_state_dict(self, state_dict):
        """
        Args:
            state_dict (dict): from :meth:`state_dict`, owned by this object from now on; nothing
                waits if it does not say so. Its settings are ignored.

        Raises:
            AttributeError, IndexError, KeyError, RuntimeError, TypeError: it belongs to other
                parameters.
        """
        self.wait()
        optimizer = {**self.optimizer.state_dict(), "state": state_dict["optimizer"]["state"]}
        self.optimizer.load_state_dict(optimizer)
        self._square_average.zero_()
        self._steps.zero_()
        self._keep_optimizer_state()
        self.skipped.copy_(state_dict["skipped_updates"])
        waiting = state_dict.get("waiting", {"change": 0, "skips": 0})
        self._change.copy_(torch.as_tensor(waiting["change"]))
        self._skips.copy_(torch.as_tensor(waiting["skips"]))

    def is_valid(self):
        """
        Returns:
            bool: whether all numbers of the state are finite, and none of an average or a count is
            negative.
        """
        positive = (self._square_average, self._steps)
        finite = all(x.isfinite().all() for x in (*positive, self._change))
        return finite and all((x >= 0).all() for x in positive)

    def _split(self, flat):
        """Splits a flat tensor into one for each parameter, channels last."""
        shapes = [_channels_last(parameter).shape for parameter in self.parameters]
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _keep_optimizer_state(self):
        """Moves the optimizer's state into one tensor for all parameters, which stays in place."""
        averages = self._split(self._square_average)
        for index, (parameter, average) in enumerate(zip(self.parameters, averages, strict=True)):
            kept = {"step": self._steps[index], "square_avg": _channels_first(average)}
            for name, value in self.optimizer.state[parameter].items():
                kept[name].copy_(value)
            self.optimizer.state[parameter] = kept


def _channels_last(x):
    return x.movedim(1, -1) if x.dim() > 2 else x


def _channels_first(x):
    return x.movedim(-1, 1) if x.dim() > 2 else x


def _flatten(x):
    """Copies nothing if x is in channels_last memory format."""
    return _channels_last(x.detach()).flatten()
