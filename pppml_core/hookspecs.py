"""Every hook of pppml: the table of contents of what can be extended.

A plugin is a module that an entry point of the group ``pppml`` names, with one plain function for each kind it offers::

    from pppml_core import Component, hookimpl

    @hookimpl
    def pppml_aggregators():
        return [Component(name="my-sum", config=MySumConfig, target="my_package.session:MySum", summary="...")]

A hook is called once, at start-up, takes no argument, must be quick and pure (no network, no disk, no heavy import), and returns
descriptions. The objects that do the work are built later, by name, when a run needs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from pppml_core.component import Component

hookspec = pluggy.HookspecMarker("pppml")
hookimpl = pluggy.HookimplMarker("pppml")


@hookspec
def pppml_aggregators() -> Sequence[Component]:
    """Sums over sites. Target: :class:`pppml_core.interfaces.aggregation.Aggregator`. Built in: ``plain``."""
    return ()


@hookspec
def pppml_personalizations() -> Sequence[Component]:
    """Local learning rules and what is shared. Target: :class:`pppml_core.interfaces.personalization.Personalization`.

    Built in: ``fedavg`` (no personalization) and ``local-only`` (shares nothing).
    """
    return ()


@hookspec
def pppml_privacy_mechanisms() -> Sequence[Component]:
    """Clipping, noise, private gradient rules, accounting. Target: :class:`pppml_core.interfaces.privacy.PrivacyMechanism`.

    Built in: ``none``.
    """
    return ()


@hookspec
def pppml_attacks() -> Sequence[Component]:
    """Readers of an adversary's view. Target: :class:`pppml_core.interfaces.attack.Attack`. Built in: ``distinguish``, ``read-out``."""
    return ()


@hookspec
def pppml_tasks() -> Sequence[Component]:
    """Data of several sites, loss and metrics. Target: :class:`pppml_core.interfaces.task.Task`. Built in: ``tiny``."""
    return ()


@hookspec
def pppml_models() -> Sequence[Component]:
    """Networks. Target: :class:`pppml_core.interfaces.model.ModelFactory`. Built in: ``tiny-net``."""
    return ()


@hookspec
def pppml_he_backends() -> Sequence[Component]:
    """Additively homomorphic encryption of whole vectors. Target: :class:`pppml_core.interfaces.he.HEBackend`."""
    return ()


@hookspec
def pppml_engines() -> Sequence[Component]:
    """Where sites run and how bytes travel. Target: :class:`pppml_core.interfaces.engine.Engine`. Built in:
    ``local``, ``processes``.
    """
    return ()


@hookspec
def pppml_reporters() -> Sequence[Component]:
    """Consumers of run events. Target: :class:`pppml_core.interfaces.reporter.Reporter`. Built in: ``console``, ``jsonl``."""
    return ()
