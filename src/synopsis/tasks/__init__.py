"""What models are trained and measured on: pure data, no model."""

from synopsis.tasks.base import Batch, Task

__all__ = ["Batch", "Task"]
