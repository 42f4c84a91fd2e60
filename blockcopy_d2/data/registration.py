"""Registers data sets by name."""

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["register_dataset"]


def register_dataset(name, load, **metadata):
    """
    Register a data set with Detectron2. A name that is registered already is left alone. No file is
    accessed.

    Args:
        name (str): name of the data set.
        load (callable): returns its list of dicts.
        metadata: metadata of the data set, such as ``thing_classes`` and ``evaluator_type``, see
            :func:`blockcopy_d2.evaluation.build_evaluator`.
    """
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)
