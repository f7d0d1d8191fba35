"""`python -m tests.train.results.page.speed [RUNS]`: how long a report page of so many runs takes to open in Chromium.

Each run has 2,000 steps, 200 watch steps, 6 blocks of 8 heads. Median, least and largest of seven openings, in
milliseconds from navigation on: the table of runs painted, the whole file read with one run's curves drawn, and the CPU
time of the page's process, which other work on the machine moves least.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.train.results.page.browser import MISSING, Browser, chromium
from tests.train.results.page.many import many_runs, rows
from train.results.page.html import write_page
from train.results.table import table

TIMES = """
const [page] = performance.getEntriesByType("navigation");
const [painted] = performance.getEntriesByName("runs painted");
return [painted.startTime, page.loadEventEnd];
"""


def cpu_seconds(browser: Browser) -> float:
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(float(m["value"]) for m in metrics if m["name"] == "ProcessTime")


def main() -> None:
    if MISSING:
        sys.exit(MISSING)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        sweep = many_runs(Path(folder) / "many", count, rows())
        started = time.perf_counter()
        page = write_page(sweep, table(sweep.runs), None)
        print(f"{count} runs, {page.stat().st_size / 1e6:.1f} MB, written in {time.perf_counter() - started:.1f} s")
        browser.driver.execute_cdp_cmd("Performance.enable", {})
        browser.open(page)
        found = []
        for _ in range(7):
            before = cpu_seconds(browser)
            browser.open(page)
            found.append([*browser.run(TIMES), 1e3 * (cpu_seconds(browser) - before)])
    for name, values in zip(("table painted", "all read", "CPU time"), zip(*found, strict=True), strict=True):
        print(f"{name}: {statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
