import numpy as np
import pytest

from benchmarks.router.metrics import best_within, crossing, curve, spread
from benchmarks.router.table import final, read_table

pytestmark = pytest.mark.unit

COLUMNS = "query_id,text,category,model,answer,correct,usd,latency_ms"


def test_the_area_is_half_for_chance_and_more_for_who_knows():
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(20_000) < 0.5).astype(float), (rng.random(20_000) < 0.8).astype(float)
    assert curve(rng.random(20_000), weak, strong).apgr == pytest.approx(0.5, abs=0.03)
    knowing = curve(strong - weak, weak, strong)
    assert knowing.apgr > 1.0
    assert knowing.calls_at(0.5) < 25.0 < curve(weak - strong, weak, strong).calls_at(0.5)


def test_half_of_the_gain_by_half_of_the_calls_is_told_so():
    weak, strong = np.zeros(1000), np.ones(1000)
    told = curve(np.arange(1000.0), weak, strong)
    assert told.apgr == pytest.approx(0.5)
    assert told.calls_at(0.5) == pytest.approx(50.0)
    assert told.calls_at(0.8) == pytest.approx(80.0)


def test_where_a_line_reaches_a_level_and_what_it_has_within_a_cost():
    points = [(0.4, -2.0), (0.8, 2.0), (1.2, 3.0)]
    assert crossing(points, 0.0) == pytest.approx(0.6)
    assert np.isnan(crossing(points, 5.0))
    assert best_within(points, 1.0) == pytest.approx(2.5)


def test_an_interval_is_as_wide_as_student_says():
    told = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert told.mean == 3.0
    assert told.half == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)


def test_worked_answers_are_compared_by_their_result():
    assert final("3 + 4 = 7\n#### 1,007.") == "1007"
    assert final("so she has 12 left, 5 of them red") == "5"
    assert final(" C ") == "c"


def test_a_table_is_read_with_and_without_costs(tmp_path):
    rows = [f"q{n},text {n},c,{m},A,{int(m == 'x')},{0.01 if m == 'x' else ''}," for n in range(30) for m in ("x", "y")]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([COLUMNS, *rows]))
    table = read_table(path)
    assert table.models == ["x", "y"]
    assert table.right.mean(axis=0).tolist() == [1.0, 0.0]
    assert table.usd[0, 0] == 0.01


def test_a_table_that_lacks_a_column_says_which(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("query_id,text,model,answer,correct,usd,latency_ms\n1,a,x,A,1,,\n")
    with pytest.raises(ValueError, match="category"):
        read_table(path)
