"""Settings of the trainer room; every one has a default that works on a laptop."""

from catena.kit.config import FilePath, Section


class TrainerConfig(Section, frozen=True, kw_only=True):
    """Section `trainer`.

    `concurrency`: jobs at a time in this process; more than one per device only slows each down.
    `threads`: of a job's process; 0 takes half of the cores, so that answering goes on beside training.
    `device`: `auto` takes a GPU where there is one; `cpu` and `cuda` insist.
    `lease_s`: how long a job stays with a trainer that fell silent; short resumes sooner, long bears longer pauses.
    `max_stalled`: attempts in a row without a new checkpoint after which a job fails; guards against poisonous jobs.
    `point_s`, `event_s`: least seconds between two points of a curve that are stored, and that are told as events.
    `eval_rows`: rows measured at most, each of held-out, trusted and retained; 200 gives a standard error of 3 points.
    `max_data_bytes`: of one job's rows together; they are frozen in SQL when the job is accepted.
    `data_folder`: where sources may name files; empty: `home/data`. Administrators may name any file.
    `keep_folders`: folders of finished jobs that stay for inspection, the newest first.
    """

    concurrency: int = 1
    threads: int = 0
    device: str = "auto"
    lease_s: float = 15.0
    max_stalled: int = 5
    point_s: float = 0.5
    event_s: float = 2.0
    eval_rows: int = 200
    max_data_bytes: int = 256 * 1024 * 1024
    data_folder: FilePath = ""
    keep_folders: int = 20
