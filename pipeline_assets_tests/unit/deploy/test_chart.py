"""The Helm chart as helm renders it for each environment, judged by Kubernetes' own schemas."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from dagster._config import process_config

from pipeline_assets.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm"
ENVIRONMENTS = ("staging", "production")
IMAGE = "registry.example.com/pipeline-assets@sha256:" + "a" * 64
SECRETS = "/etc/pipeline-assets/secrets"
NO_LOGIN = {
    "enabled": True,
    "host": "dagster.example.com",
    "tlsSecret": "tls",
    "annotations": {"cert-manager.io/cluster-issuer": "letsencrypt"},
}
"""An ingress that asks nobody who he is."""
KUBERNETES = ("1.29", "1.34")
"""The oldest version that the chart supports, and a recent one."""


def values(environment: str, **others: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / f"values-{environment}.yaml").read_text())
    return {**found, "image": {"reference": IMAGE}, **others}


def render(given: dict[str, Any]) -> list[dict[str, Any]]:
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(given, name="pipeline-assets", namespace="pipeline-assets")
    return [found for text in files.values() for found in yaml.safe_load_all(text) if found]


def judge(manifest: dict[str, Any], version: str) -> None:
    """Fail if the schema of a Kubernetes version doesn't allow the manifest."""
    import kubernetes_validate  # 3 s

    kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod templates by the name of the Deployment or Job that creates the pods."""
    makers = {**of_kind(manifests, "Deployment"), **of_kind(manifests, "Job")}
    return {name: one["spec"]["template"] for name, one in makers.items()}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_is_what_kubernetes_knows(environment: str, version: str) -> None:
    manifests = render(values(environment))
    judged = [
        one for one in manifests if one["kind"] != "ExternalSecret"
    ]  # a custom resource, not Kubernetes' own
    assert len(judged) >= 15
    for one in judged:
        judge(one, version)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_helm_lint_finds_nothing_but_that_there_is_no_icon(environment: str) -> None:
    found = helm_python.lint(str(CHART), values(environment), strict=True)
    assert [said["error"] for said in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"webservr": {"replicas": 3}}, "webservr"),
        ({"webserver": {"replica": 3}}, "replica"),
        ({"image": {"reference": "pipeline-assets:latest"}}, "reference"),
        ({"settings": {"WAREHOUSE_DATABASE_URL": "postgresql://me:secret@db/x"}}, "WAREHOUSE_D"),
        ({"ingress": {"enabled": True, "host": "", "tlsSecret": "tls"}}, "host"),
        ({"ingress": NO_LOGIN}, "ingress"),
        *(
            ({"settings": {name.upper(): "x"}}, name.upper())
            for name, field in Settings.model_fields.items()
            if "SecretStr" in str(field.annotation) and name != "mlflow_tracking_uri"
        ),
    ],
)
def test_a_misspelt_or_dangerous_value_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        render(values("staging", **wrong))


def test_secrets_come_from_one_place() -> None:
    both = {"external": {"store": "s", "key": "k"}, "vault": {"role": "r", "path": "p"}}
    for secrets in (both, {}):
        with pytest.raises(helm_python.HelmError, match="exactly one"):
            render(values("staging", secrets=secrets))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_pod_is_hardened_bounded_and_probed(environment: str) -> None:
    for name, pod in pods(render(values(environment))).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        # The daemon starts runs; the webserver terminates them when an operator asks for it.
        launches = name.endswith(("-daemon", "-webserver"))
        assert spec["automountServiceAccountToken"] is launches
        assert spec["serviceAccountName"].endswith("-launcher") is launches
        for container in spec["containers"]:
            assert container["image"] == IMAGE
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            # The migration ends; the watch has to report what a probe would restart it for.
            assert "livenessProbe" in container or name.endswith(("-migrate", "-watch"))
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert writable == {"/tmp", "/data"}  # noqa: S108 - paths of the container


def test_what_runs_how_often_and_how_it_is_replaced() -> None:
    manifests = render(values("production"))
    deployments = of_kind(manifests, "Deployment")
    daemon = deployments["pipeline-assets-daemon"]["spec"]
    assert (daemon["replicas"], daemon["strategy"]) == (1, {"type": "Recreate"})
    assert deployments["pipeline-assets-webserver"]["spec"]["replicas"] == 2
    assert deployments["pipeline-assets-worker"]["spec"]["replicas"] == 2
    code = deployments["pipeline-assets-code"]["spec"]["strategy"]
    assert code["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (budget,) = of_kind(manifests, "PodDisruptionBudget").values()
    assert budget["spec"]["minAvailable"] == 1
    (ingress,) = of_kind(manifests, "Ingress").values()
    assert ingress["spec"]["tls"][0]["hosts"] == ["dagster.example.com"]
    policies = of_kind(manifests, "NetworkPolicy")
    # All pods are closed; the webserver, which has no login, is open to the ingress alone.
    assert policies["pipeline-assets"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["pipeline-assets"]["spec"]
    # Only the two with an account's token reach Kubernetes' API, wherever that is.
    (way_out,) = policies["pipeline-assets-launcher"]["spec"]["egress"]
    assert [port["port"] for port in way_out["ports"]] == [443, 6443]
    assert "to" not in way_out
    (way_in,) = policies["pipeline-assets-webserver"]["spec"]["ingress"]
    assert "namespaceSelector" in way_in["from"][0]


def test_secrets_reach_the_pods_as_files_of_the_settings_names() -> None:
    staging = render(values("staging"))
    settings = of_kind(staging, "ConfigMap")["pipeline-assets-settings"]["data"]
    assert settings["PIPELINE_SECRETS_DIR"] == SECRETS
    external = of_kind(staging, "ExternalSecret")
    for one in external.values():
        assert {secret["secretKey"] for secret in one["spec"]["data"]} == {
            "source_database_url",
            "warehouse_database_url",
            "dagster_database_url",
        }
    for name, pod in pods(staging).items():
        (volume,) = (v for v in pod["spec"]["volumes"] if v["name"] == "secrets")
        own = "pipeline-assets-migrate" if name.endswith("-migrate") else "pipeline-assets-secrets"
        assert volume["secret"]["secretName"] == external[own]["spec"]["target"]["name"]
        (container,) = pod["spec"]["containers"]
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert places["secrets"] == SECRETS
        # Kubernetes makes a folder for the account's token there: /var/run is /run in the image.
        assert not any(place.startswith(("/run", "/var/run")) for place in places.values())
    for name, pod in pods(render(values("production"))).items():
        told = pod["metadata"]["annotations"]
        assert told["vault.hashicorp.com/secret-volume-path"] == SECRETS
        assert (
            "celery_broker_url"
            in told["vault.hashicorp.com/agent-inject-template-celery_broker_url"]
        )
        # The agent logs in by a token that the pod's own containers don't have; its injector refuses a
        # pod without one.
        named = told["vault.hashicorp.com/agent-service-account-token-volume-name"]
        assert "serviceAccountToken" in _token_source(pod["spec"], named)
        for container in pod["spec"]["containers"]:
            assert named not in {mount["name"] for mount in container["volumeMounts"]}
        # A job would never end beside an agent that doesn't.
        once = "vault.hashicorp.com/agent-pre-populate-only" in told
        assert once == name.endswith("-migrate")


def _token_source(spec: dict[str, Any], volume: str) -> dict[str, Any]:
    (found,) = (each for each in spec["volumes"] if each["name"] == volume)
    (source,) = found["projected"]["sources"]
    assert isinstance(source, dict)
    return source


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_tables_are_made_before_anything_else_and_need_nothing_else(environment: str) -> None:
    """At the first install nothing of the release exists yet, except the earlier hooks."""
    manifests = render(values(environment))
    hooks = [one for one in manifests if "helm.sh/hook" in one["metadata"].get("annotations", {})]
    weights = {}
    for one in hooks:
        told = one["metadata"]["annotations"]
        assert told["helm.sh/hook"] == "pre-install,pre-upgrade"
        weights[one["kind"], one["metadata"]["name"]] = int(told["helm.sh/hook-weight"])
    job = of_kind(hooks, "Job")["pipeline-assets-migrate"]
    spec = job["spec"]["template"]["spec"]
    needed = {("ServiceAccount", spec["serviceAccountName"])}
    for volume in spec["volumes"]:
        assert volume.keys() <= {"name", "emptyDir", "secret", "projected"}
        if "secret" in volume:
            needed.add(("ExternalSecret", volume["secret"]["secretName"]))
    (container,) = spec["containers"]
    assert "envFrom" not in container
    assert {one for one, weight in weights.items() if weight < 0} == needed
    assert weights["Job", "pipeline-assets-migrate"] == 0
    # The job has the same settings as all other pods.
    shared = of_kind(manifests, "ConfigMap")["pipeline-assets-settings"]["data"]
    assert {one["name"]: one["value"] for one in container["env"]} == shared


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_dagster_takes_the_configuration_that_the_chart_gives_it(environment: str) -> None:
    from dagster_k8s import K8sRunLauncher  # 3 s

    manifests = render(values(environment))
    config = of_kind(manifests, "ConfigMap")["pipeline-assets-config"]["data"]["dagster.yaml"]
    launcher = yaml.safe_load(config)["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")
    taken = process_config(K8sRunLauncher.config_type(), launcher["config"])
    assert taken.success, taken.errors
    if environment == "production":  # a run's pod has the agent too
        pod = launcher["config"]["run_k8s_config"]["pod_spec_config"]
        assert "serviceAccountToken" in _token_source(pod, "vault-login")
    assert launcher["config"]["job_image"] == IMAGE


def test_the_charts_dagster_yaml_is_the_projects_but_for_the_launcher() -> None:
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    ours.pop("run_launcher", None)
    assert yaml.safe_load((CHART / "files" / "dagster.yaml").read_text()) == ours
