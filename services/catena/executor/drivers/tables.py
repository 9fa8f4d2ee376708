"""The executor's tables. JSON is the core's own types, encoded; figures that are counted in SQL are columns."""

import sqlalchemy as sa
from alembic.operations import Operations

from catena.kit.outbox import outbox_table
from catena.kit.store import Migration

METADATA = sa.MetaData()

executions = sa.Table(
    "executions",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("texts", sa.LargeBinary),
    sa.Index("executions_created", "created_s"),
)
scores = sa.Table(
    "execution_scores",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("execution_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Index("execution_scores_created", "created_s"),
    comment="of a tenant's executions, and of what it takes for one: feedback may overtake the record, or be on none",
)
pipeline_figures = sa.Table(
    "pipeline_figures",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("executions", sa.BigInteger, nullable=False),
    sa.Column("successes", sa.BigInteger, nullable=False),
    sa.Column("cost_usd", sa.Double, nullable=False),
)
stage_figures = sa.Table(
    "stage_figures",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("duration_ms", sa.Double, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)
models = sa.Table(
    "models",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("seed", sa.LargeBinary),
)
model_calls = sa.Table(
    "model_calls",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
)
pipelines = sa.Table(
    "pipelines",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
runs = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("finished_s", sa.Double, nullable=False),
    sa.Column("errand", sa.LargeBinary, nullable=False),
    sa.Column("stages", sa.LargeBinary, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("unwanted", sa.Boolean, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until_s", sa.Double, nullable=False),
    sa.UniqueConstraint("tenant", "request_id"),
    sa.Index("runs_open", "state", "until_s"),
)
run_calls = sa.Table(
    "run_calls",
    METADATA,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
run_payloads = sa.Table(
    "run_payloads",
    METADATA,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("reference", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
outbox_table(METADATA)


def _scores_by_tenant(operations: Operations) -> None:
    """Scores stand by themselves: no foreign key, and the tenant that gave them beside the execution."""
    operations.rename_table("execution_scores", "execution_scores_1")
    operations.create_table(
        "execution_scores",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("execution_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Index("execution_scores_created", "created_s"),
    )
    operations.execute(
        "INSERT INTO execution_scores (tenant, execution_id, number, source, value, created_s) "
        "SELECT e.tenant, s.execution_id, s.number, s.source, s.value, e.created_s "
        "FROM execution_scores_1 s JOIN executions e ON e.id = s.execution_id"
    )
    operations.drop_table("execution_scores_1")
    operations.drop_table("inbox", if_exists=True)


def _payloads_beside_runs(operations: Operations) -> None:
    """Large texts of new runs; those of older ones stay where they are."""
    operations.create_table(
        "run_payloads",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("reference", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )


MIGRATIONS: tuple[Migration, ...] = (_scores_by_tenant, _payloads_beside_runs)
