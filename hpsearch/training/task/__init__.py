"""Bring your own net: ``kind: task``. The user's class, its data, and packs of its modules through ``torch.func``."""

from hpsearch.training.task.data import TaskData, task_data
from hpsearch.training.task.loading import Task, load_task
from hpsearch.training.task.pack import TaskPack, task_key
from hpsearch.training.task.stack import TaskMember
from hpsearch.training.task.width import architecture, find_task_width

__all__ = [
    "Task",
    "TaskData",
    "TaskMember",
    "TaskPack",
    "architecture",
    "find_task_width",
    "load_task",
    "task_data",
    "task_key",
]
