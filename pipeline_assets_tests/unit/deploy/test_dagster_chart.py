"""The values for Dagster's own Helm chart, which isn't part of this repository.

Without the chart, the values that it passes on unchanged are validated by what consumes them: Kubernetes'
schemas, the code server's own options, Dagster's instance and run launcher. With it, all that it renders
is validated too:

    helm pull dagster --repo https://dagster-io.github.io/helm --version 1.13.27 --untar
    DAGSTER_CHART=dagster .venv/bin/pytest pipeline_assets_tests/unit/deploy/test_dagster_chart.py
"""

import os
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from dagster._cli.api import grpc_command
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config, dagster_instance_config_schema

from pipeline_assets.settings import Settings
from pipeline_assets_tests.unit.deploy.test_chart import KUBERNETES, judge, of_kind, pods, render
from pipeline_assets_tests.unit.deploy.test_chart import values as ours

ROOT = Path(__file__).parents[3]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/dagster-helm/values.yaml").read_text())
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
PARTS = {"code": CODE, "webserver": VALUES["dagsterWebserver"], "daemon": VALUES["dagsterDaemon"]}
RUN: dict[str, Any] = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
CHART = os.environ.get("DAGSTER_CHART", "")


def own_instance() -> dict[str, Any]:
    """Dagster's configuration as our own chart renders it."""
    config = of_kind(render(ours("staging")), "ConfigMap")["pipeline-assets-config"]["data"]
    instance: dict[str, Any] = yaml.safe_load(config["dagster.yaml"])
    return instance


def run_job(config: dict[str, Any]) -> dict[str, Any]:
    """The Kubernetes job that Dagster's run launcher creates for a run, given its configuration."""
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        UserDefinedDagsterK8sConfig,
        construct_dagster_k8s_job,
    )
    from kubernetes.client import ApiClient

    names = {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in config.items()}
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image="{repository}:{tag}".format(**CODE["image"]),
            dagster_home=VALUES["global"]["dagsterHome"],
            instance_config_map="dagster-instance",
            postgres_password_secret=VALUES["global"]["postgresqlSecretName"],
        ),
        ["dagster", "api", "execute_run"],
        "run",
        UserDefinedDagsterK8sConfig.from_dict(names),
    )
    made: dict[str, Any] = ApiClient().sanitize_for_serialization(job)
    return made


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", PARTS)
def test_what_a_pod_gets_is_what_kubernetes_knows(name: str, version: str) -> None:
    part = PARTS[name]
    container = {
        "name": name,
        "image": "{repository}:{tag}".format(**part["image"]),
        "env": part["env"],
        "securityContext": part["securityContext"],
        "resources": part["resources"],
        "volumeMounts": part["volumeMounts"],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "securityContext": part["podSecurityContext"],
            "containers": [container],
            "initContainers": part.get("initContainers", []),
            "volumes": part["volumes"],
        },
    }
    judge(pod, version)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_hardened_as_in_our_own_chart(name: str) -> None:
    (own,) = (
        pod["spec"]
        for key, pod in pods(render(ours("staging"))).items()
        if key == f"pipeline-assets-{name}"
    )
    part = PARTS[name]
    assert part["podSecurityContext"] == own["securityContext"]
    assert part["securityContext"] == own["containers"][0]["securityContext"]
    assert part["resources"] == own["containers"][0]["resources"]
    places = {mount["mountPath"] for mount in own["containers"][0]["volumeMounts"]}
    assert {mount["mountPath"] for mount in part["volumeMounts"]} == places - {"/config"}
    assert part["image"] == CODE["image"]
    assert part["env"] == CODE["env"]
    assert {one["name"].lower() for one in part["env"]} <= set(Settings.model_fields)


def test_the_code_server_takes_its_arguments() -> None:
    port = ["--port", str(CODE["port"]), "--host", "0.0.0.0"]  # noqa: S104 - as the chart adds it
    assert grpc_command.make_context("grpc", [*CODE["dagsterApiGrpcArgs"], *port])


@pytest.mark.parametrize("version", KUBERNETES)
def test_a_run_is_hardened_as_in_our_own_chart(version: str) -> None:
    """A run gets only what its own values state: neither the code server's limits nor its init container."""
    assert CODE["includeConfigInLaunchedRuns"] == {"enabled": False}
    job = run_job(RUN)
    judge(job, version)
    own = run_job(own_instance()["run_launcher"]["config"]["run_k8s_config"])
    assert job["spec"]["ttlSecondsAfterFinished"] == own["spec"]["ttlSecondsAfterFinished"]
    pod, own_pod = (one["spec"]["template"]["spec"] for one in (job, own))
    for name in ("automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert pod[name] == own_pod[name], name
    (container,), (own_container,) = pod["containers"], own_pod["containers"]
    for name in ("securityContext", "resources"):
        assert container[name] == own_container[name], name
    assert CODE["env"] == [one for one in container["env"] if one in CODE["env"]]
    places, own_places = (
        {mount["mountPath"] for mount in one["volumeMounts"]} for one in (container, own_container)
    )
    assert places == own_places
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_the_webserver_listens_where_everybody_may() -> None:
    """Without root or capabilities, the webserver can't bind the chart's default port 80."""
    web = VALUES["dagsterWebserver"]
    assert web["service"]["port"] >= 1024
    assert web["readinessProbe"]["httpGet"]["port"] == web["service"]["port"]


def test_the_tables_are_made_as_by_our_own_chart() -> None:
    own = pods(render(ours("staging")))["pipeline-assets-migrate"]["spec"]["containers"][0]
    (container,) = CODE["initContainers"]
    assert container["args"] == own["args"]
    assert container["env"] == CODE["env"]


def test_dagster_takes_the_instance() -> None:
    more = VALUES["additionalInstanceConfig"]
    schema = dagster_instance_config_schema()
    taken = process_config({key: schema[key] for key in more}, more)
    assert taken.success, taken.errors


def test_limits_are_those_of_our_own_chart() -> None:
    own = own_instance()
    more = VALUES["additionalInstanceConfig"]
    assert more == {key: own[key] for key in more}
    daemon = VALUES["dagsterDaemon"]
    queue = daemon["runCoordinator"]["config"]["customRunCoordinator"]
    assert queue["class"] == "QueuedRunCoordinator"
    assert queue["config"] == own["run_queue"]
    for name in ("runMonitoring", "runRetries"):
        snake = re.sub("([A-Z])", r"_\1", name).lower()
        given = {re.sub("([A-Z])", r"_\1", k).lower(): v for k, v in daemon[name].items()}
        assert given == own[snake], name
    logs = VALUES["computeLogManager"]["config"]["customComputeLogManager"]
    assert logs == own["compute_logs"]


needs_chart = pytest.mark.skipif(
    not CHART, reason="DAGSTER_CHART names no folder with Dagster's chart"
)


def rendered() -> list[dict[str, Any]]:
    """The manifests that the chart renders from the values, after its own schema has validated them."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(VALUES, name="dagster", namespace="dagster")
    texts = (text for name, text in files.items() if name.endswith(".yaml"))
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


@needs_chart
@pytest.mark.parametrize("version", KUBERNETES)
def test_all_that_the_chart_renders_is_what_kubernetes_knows(version: str) -> None:
    found = helm_python.lint(CHART, VALUES, strict=True)
    assert found["messages"] == []
    manifests = rendered()
    assert {"pipeline-assets", "dagster-daemon"} <= {one["metadata"]["name"] for one in manifests}
    for one in manifests:
        judge(one, version)


@needs_chart
def test_dagster_takes_what_the_chart_renders(tmp_path: Path) -> None:
    (text,) = (
        one["data"]["dagster.yaml"]
        for one in rendered()
        if one["metadata"]["name"] == "dagster-instance"
    )
    (tmp_path / "dagster.yaml").write_text(text)
    taken, _ = dagster_instance_config(str(tmp_path))
    assert taken["run_coordinator"]["class"] == "QueuedRunCoordinator"
    given, own = yaml.safe_load(text), own_instance()
    # Dagster's chart has its own storage and launcher, names a module differently, and states defaults.
    own["run_coordinator"] = {**given["run_coordinator"], "config": own.pop("run_queue")}
    del own["storage"], own["run_launcher"], own["scheduler"]["module"]
    assert [name for name in own if not within(own[name], given.get(name))] == []


def within(own: Any, given: Any) -> bool:
    """Whether `given` has all that `own` has, and perhaps more."""
    if isinstance(own, dict) and isinstance(given, dict):
        return all(key in given and within(value, given[key]) for key, value in own.items())
    return bool(own == given)
