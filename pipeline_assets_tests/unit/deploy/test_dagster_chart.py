"""The values for Dagster's own chart, as far as they can be judged without it, which isn't installable here.

What the chart hands on unchanged is judged by those who take it: Kubernetes' schemas, the code server's own
options, Dagster's instance and run launcher. That its names are the chart's is not.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._cli.code_server import start_command
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_k8s.job import UserDefinedDagsterK8sConfig

from pipeline_assets.settings import Settings
from pipeline_assets_tests.unit.deploy.test_chart import KUBERNETES, of_kind, pods, render
from pipeline_assets_tests.unit.deploy.test_chart import values as ours

ROOT = Path(__file__).parents[3]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/dagster-helm/values.yaml").read_text())
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
PARTS = {"code": CODE, "webserver": VALUES["dagsterWebserver"], "daemon": VALUES["dagsterDaemon"]}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", PARTS)
def test_what_a_pod_gets_is_what_kubernetes_knows(name: str, version: str) -> None:
    part = PARTS[name]
    container = {
        "name": name,
        "image": "{repository}:{tag}".format(**part["image"]),
        "env": [{"name": key, "value": value} for key, value in part["env"].items()],
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
    kubernetes_validate.validate(pod, version, strict=True)


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
    assert {key.lower() for key in part["env"]} <= set(Settings.model_fields)


def test_the_code_server_takes_its_arguments() -> None:
    port = ["--port", str(CODE["port"]), "--host", "0.0.0.0"]  # noqa: S104 - as the chart adds it
    assert start_command.make_context("start", [*CODE["codeServerArgs"], *port])


def test_dagster_takes_the_instance_and_the_launcher() -> None:
    more = VALUES["additionalInstanceConfig"]
    schema = dagster_instance_config_schema()
    taken = process_config({key: schema[key] for key in more}, more)
    assert taken.success, taken.errors
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    taken_apart = UserDefinedDagsterK8sConfig.from_dict(
        {re.sub("([A-Z])", r"_\1", key).lower(): launcher[key] for key in launcher}
    )
    (container, pod, job) = (launcher[key] for key in launcher)
    assert taken_apart.container_config["resources"] == container["resources"]
    assert taken_apart.pod_spec_config["automount_service_account_token"] is False
    assert pod == {"automountServiceAccountToken": False}
    assert (
        taken_apart.job_spec_config["ttl_seconds_after_finished"] == job["ttlSecondsAfterFinished"]
    )


def test_limits_are_those_of_our_own_chart() -> None:
    config = of_kind(render(ours("staging")), "ConfigMap")["pipeline-assets-config"]["data"]
    own = yaml.safe_load(config["dagster.yaml"])
    more = VALUES["additionalInstanceConfig"]
    assert more == {key: own[key] for key in more}
    monitoring, retries = (VALUES["dagsterDaemon"][key] for key in ("runMonitoring", "runRetries"))
    assert monitoring["startTimeoutSeconds"] == own["run_monitoring"]["start_timeout_seconds"]
    assert retries["maxRetries"] == own["run_retries"]["max_retries"]
    logs = VALUES["computeLogManager"]["config"]["customComputeLogManager"]
    assert logs == own["compute_logs"]
