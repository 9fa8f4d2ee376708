"""`python -m catena.executor`: the executor as a process of its own."""

from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.kit.room import main

if __name__ == "__main__":
    main("executor", ExecutorConfig, open_executor)
