"""A reporter that, at the moment that the environment names, ends its own process with SIGKILL, as `kill -9` would, or makes it unable to
write any file; else it does nothing.
"""

from __future__ import annotations

import json
import os
import resource
import signal

from pppml_core.interfaces.reporter import Reporter

#: JSON: a map that the event must contain.
KILL_AT, FULL_AT = "DRILL_KILL_AT", "DRILL_FULL_AT"


class Killer(Reporter):
    def handle(self, event):
        if _is(event, KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        if _is(event, FULL_AT):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _is(event, name):
    wanted = json.loads(os.environ.get(name, "null"))
    return wanted is not None and all(event.get(key) == value for key, value in wanted.items())
