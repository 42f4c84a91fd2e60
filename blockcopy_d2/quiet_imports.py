"""
Imports Detectron2 without the warnings that its libraries give meanwhile, about functions of each
other. Commands import this first, so that their output begins with their own. Other warnings are
shown, as are these ones at any other time.
"""

import warnings

with warnings.catch_warnings():
    # fvcore and Detectron2's box regression; Detectron2's model zoo.
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    import detectron2.model_zoo
    import detectron2.modeling  # noqa: F401
