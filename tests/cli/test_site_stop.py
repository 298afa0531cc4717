"""``pppml site run`` is stopped as services and containers are stopped."""

import os
import signal
import time


class Serving:
    """An engine that gets SIGTERM while it serves."""

    def __init__(self):
        self.ended = False

    def serve(self, home):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except KeyboardInterrupt:
            self.ended = True
            return 0
        return 1


def test_sigterm_ends_what_the_engine_has_started(world, monkeypatch):
    from pppml_core.registry import Registry

    engine, before = Serving(), signal.getsignal(signal.SIGTERM)
    assert world.pppml("site init --home home --name clinic_a").code == 0
    world.write("home/site.yaml", "engine: local\n")
    monkeypatch.setattr(Registry, "build", lambda self, kind, config: engine)
    done = world.pppml("site run --home home")
    assert done.code == 0, done.err
    assert engine.ended
    assert signal.getsignal(signal.SIGTERM) == before
