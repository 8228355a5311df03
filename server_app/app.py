"""The ServerApp: reads the settings, opens the fleet behind Flower's grid and conducts the run."""

from __future__ import annotations

import logging
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fednas_core.base.errors import FednasError
from fednas_core.base.settings import flower_leaves, read, refuse_idle
from fednas_core.base.terminal import lenient, say
from fednas_core.engine.resuming import resumed
from fednas_core.engine.run import conduct, settle
from server_app.folders import placed, project_folder
from server_app.rounds import open_fleet

app = ServerApp()


class PlainErrors(logging.Filter):
    """Lets Flower log errors that are meant for people without their traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the traceback of a `FednasError`; keep the record."""
        if record.exc_info and isinstance(record.exc_info[1], FednasError):
            record.msg, record.args, record.exc_info = f"fednas: {record.exc_info[1]}", None, None
        return True


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run everything. An error ends Flower's run as failed, with its text as the run's status details."""
    began = time.monotonic()
    lenient()
    logger = logging.getLogger("flwr")
    if not any(isinstance(item, PlainErrors) for item in logger.filters):
        logger.addFilter(PlainErrors())
    given = grid.run.override_config
    config = resumed(placed(read(context.run_config)), given, project_folder() / "runs")
    refuse_idle(config, given)
    config = settle(config, given, say)
    if told := flower_leaves(config, given):
        say(told)
    fleet = open_fleet(grid, config, say)
    try:
        conduct(config, fleet, say, began)
    finally:
        fleet.close()
