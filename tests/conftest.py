"""A skip is a test that did not run: only those that need hardware, data, another project or a browser may."""

import pytest

MAY_SKIP = {"gpu", "data", "peer", "browser"}
skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and not MAY_SKIP & set(report.keywords):
        skipped.append(f"{report.nodeid}: {report.longrepr}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if skipped and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in skipped:
        terminalreporter.write_line(f"skipped, which counts as failed: {line}", red=True)
