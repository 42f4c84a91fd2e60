"""The base of StaticHeads of all meta-architectures."""

__all__ = ["StaticHeads"]


class StaticHeads:
    """
    A meta-architecture between its normalized input and its output, in two steps of fixed shapes:
    the modules that run in blocks, and the layers after them. The host never waits, so that both
    can be part of a CUDA graph. There is a subclass for every supported meta-architecture. A batch
    of N images takes as many launches as one.

    Attributes:
        meta_architecture (type): class whose results are reproduced.
        output_name (str): name of the result in Detectron2's output, if it has one part.
    """

    meta_architecture = None
    output_name = ""

    @classmethod
    def supports(cls, model):
        """
        Args:
            model (nn.Module): a meta-architecture.

        Returns:
            bool: whether this class reproduces that model. False for subclasses of known models,
            which may compute something else.
        """
        return type(model) is cls.meta_architecture

    @staticmethod
    def sparse_modules(model):
        """
        Args:
            model (nn.Module): a meta-architecture that is supported.

        Returns:
            tuple[nn.Module]: its modules that run in blocks.
        """
        raise NotImplementedError

    def network(self, images):
        """
        Args:
            images (Tensor): (N, 3, H, W), normalized and padded.

        Returns:
            tuple: outputs of the sparse modules.
        """
        raise NotImplementedError

    def __call__(self, *inputs):
        """
        Args:
            inputs: outputs of :meth:`network`, then the FrameSizes.

        Returns:
            StaticDetections or Tensor, or a tuple of these: results of N images. A Tensor holds the
            outputs themselves.
        """
        raise NotImplementedError

    def begin(self, *inputs):
        """
        The first part of a call, until the number of detections is known: the host can be told
        while the device computes the rest.

        Args:
            inputs: arguments of a call.

        Returns:
            tuple: int32 (N,), detections of each image, or None if they are not known before the
            end; and the other arguments of :meth:`finish`.
        """
        return None, *inputs

    def finish(self, count, *begun):
        """
        The rest of a call.

        Args:
            count, begun: from :meth:`begin`.

        Returns:
            the result of the call.
        """
        return self(*begun)

    def parts(self, result):
        """
        Args:
            result: result of a call.

        Returns:
            dict[str, StaticDetections or Tensor]: its parts under their names in Detectron2's
            output.
        """
        return {self.output_name: result}

    def complete(self, output):
        """
        Args:
            output (dict): output of an image with its :meth:`parts`, in Detectron2's format.

        Returns:
            Mapping: the same with the values that Detectron2 derives from them, computed when they
            are read.
        """
        return output
