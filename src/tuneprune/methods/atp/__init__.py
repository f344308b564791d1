"""ATP."""

from tuneprune.methods.atp.atp import Atp

__all__ = ["Atp"]
