"""A plugin of pytest that writes the outcome of every test to the file OUTCOMES as soon as it is known."""

import os


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        with open(os.environ["OUTCOMES"], "a") as file:
            print(report.outcome, report.nodeid, file=file)
