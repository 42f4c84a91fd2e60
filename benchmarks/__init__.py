"""Timing of the engine against Detectron2, one command each; results/ keeps what they found."""
