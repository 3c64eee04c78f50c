"""The flow as it is deployed on Argo Workflows: @project, @trigger and @schedule from the Config, and the event at its end.

`deployed` is a decorator of the flows; `announce` is called by LoraFlow's last step, a sweep announces nothing. Nothing here
matters to a run on this machine but the project, whose name its tags have.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from metaflow import FlowMutator

from steps.flow.terminal import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steps.settings.cluster import Deployment


class deployed(FlowMutator):
    """Flow decorator: `@project`, `@trigger` and `@schedule`, as far as the Config names them."""

    def pre_mutate(self, mutable_flow: Any) -> None:
        """Add them (Metaflow calls this once the Config is read, in every command and in the pods)."""
        raw = dict(mutable_flow.configs).get("config")
        given = raw.to_dict().get("deployment") if raw else None
        if not given:
            return
        for name, arguments in decorators_of(given).items():
            if name == "project":  # given as keywords, Metaflow takes branch and production for its own defaults
                words = ",".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
                mutable_flow.add_decorator(f"project:{words}")
            else:
                mutable_flow.add_decorator(name, deco_kwargs=arguments)


def decorators_of(deployment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a flow decorator → its arguments. `deployment` is the Config's checked section as JSON values."""
    found: dict[str, dict[str, Any]] = {}
    if deployment["project"]:
        # Metaflow has --branch and --production for a @project in the flow's file only, not for one from a Config.
        chosen = {name: deployment[name] for name in ("branch", "production") if deployment[name]}
        found["project"] = {"name": deployment["project"], **chosen}
    if deployment["trigger"]["event"]:
        found["trigger"] = {"event": _event(deployment["trigger"])}
    if deployment["schedule"]:
        zone = {"timezone": deployment["timezone"]} if deployment["timezone"] else {}
        found["schedule"] = {"cron": deployment["schedule"], **zone}
    return found


def _event(trigger: Mapping[str, Any]) -> dict[str, Any]:
    from metaflow import namespaced_event_name

    name = namespaced_event_name(trigger["event"]) if trigger["of_project"] else trigger["event"]
    # Metaflow's Parameters have dashes, the Config's options underscores.
    parameters = {option.replace("_", "-"): field for option, field in trigger["parameters"].items()}
    return {"name": name, **({"parameters": parameters} if parameters else {})}


def announce(flow: Any) -> None:
    """Publish the event that other flows wait for, if this run's model has passed its gate.

    It is one within the project and its branch, so two teams' flows do not start each other's. Outside of Argo nothing happens;
    an event that cannot be published is told, and ends nothing.
    """
    from steps.settings.config import parse_settings

    deployment = parse_settings(flow.config.to_dict()).deployment
    if not deployment.announce or flow.dry_run:
        return
    if not flow.report["gate_passed"]:
        say(f"the event {deployment.announce} is not published: the gate is not passed")
        return
    _publish(deployment, payload_of(flow))


def _publish(deployment: Deployment, payload: Mapping[str, Any]) -> None:
    from metaflow import namespaced_event_name
    from metaflow.integrations import ArgoEvent

    name = namespaced_event_name(deployment.announce) if deployment.project else deployment.announce
    ArgoEvent(name, payload=dict(payload)).safe_publish()


def payload_of(flow: Any) -> dict[str, Any]:
    """What the event says of the model: each a value that a flow's parameter can take."""
    from steps.flow import metaflow_internals

    return {
        "run": metaflow_internals.pathspec(),
        "model": flow.plan["model"]["name"],
        "dataset": flow.plan["dataset"]["name"],
        "base_digest": flow.base["digest"],
        "data_digest": flow.prepared["digest"],
        "adapter": flow.adapter["path"],
        "adapter_digest": flow.adapter["digest"],
        "merged": flow.merged["path"],
        "merged_digest": flow.merged["digest"],
        "score": flow.report["tuned_score"],
        "base_score": flow.report["base_score"],
    }
