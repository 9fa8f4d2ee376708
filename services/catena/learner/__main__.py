"""Runs the learner as a process of its own."""

from catena.kit.room import main
from catena.learner.app import open_learner
from catena.learner.config import LearnerConfig

if __name__ == "__main__":
    main("learner", LearnerConfig, open_learner)
