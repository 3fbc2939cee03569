"""What the verbs of `bench` say of a run, with all that is known on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.performance.report.story import Story
    from orchestrator.performance.results.bench import Run
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached


def told(run: Run, profile: Profile | Attached) -> Story:
    """A run's story, with what is known on this machine: probes, the engine, runs before."""
    from orchestrator.profile.existing import Attached

    if isinstance(profile, Attached):
        from orchestrator.attach.bench import kept_speeds
        from orchestrator.attach.explain import story as attached_story

        return attached_story(run, profile, kept_speeds(profile.name))
    from orchestrator.core.errors import UserError
    from orchestrator.models import catalog
    from orchestrator.performance.bench import history
    from orchestrator.performance.bench.against import layout_of
    from orchestrator.performance.predict import inputs
    from orchestrator.performance.report.attribute import story

    of_run = [one for one in profile.services if one.serving.model == run.provenance.model]
    profile = of_run[0] if of_run else profile.services[0]
    try:
        probes = inputs.probes(profile.name)
    except UserError:
        probes = None
    return story(
        run,
        profile,
        catalog.served(profile).config,
        layout_of(run),
        probes,
        inputs.engines(profile.name),
        history.earlier(profile.name, run),
    )


def with_proofs(story: Story) -> Story:
    """The story, with a line for each cause that `bench prove` tried."""
    from dataclasses import replace

    from orchestrator.performance.prove import store

    tried = store.load(story.run.provenance.profile, story.run.id)
    return replace(story, verdict=(*story.verdict, *(each.line for each in tried)))
