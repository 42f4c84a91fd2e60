"""Times the engine against Detectron2, one command each. results/ keeps the figures."""

import blockcopy_d2.quiet_imports  # noqa: F401  comes before all others
