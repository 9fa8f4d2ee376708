"""Runs the trainer as a process of its own."""

from catena.kit.room import main
from catena.trainer.app import open_trainer
from catena.trainer.config import TrainerConfig

if __name__ == "__main__":
    main("trainer", TrainerConfig, open_trainer)
