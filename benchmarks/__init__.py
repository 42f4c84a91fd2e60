"""Times the engine against Detectron2, one command each. results/ keeps the figures."""
