"""Work pools of deployments/: jobs that workers build from the templates, without a cluster."""

import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from docker.models.containers import _create_container_args
from kubernetes_asyncio.client import ApiClient
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes import KubernetesWorker
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from pets.cli import main as cli
from pets.cli import serve
from pets.cli.deployments import read_files
from pets.cli.parser import command_parser
from pets_core.config.pipeline import PipelineConfig
from pets_core.runtime import launcher, signals

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deployments"
POOLS = {name: FILES / name / "pools.yaml" for name in ("docker", "kubernetes")}
POOLS["process"] = FILES / "pools.yaml"
CONFIGURATIONS = {
    "process": (ProcessWorker, ProcessJobConfiguration),
    "docker": (DockerWorker, DockerWorkerJobConfiguration),
    "kubernetes": (KubernetesWorker, KubernetesWorkerJobConfiguration),
}
KUBERNETES_VERSIONS = ("1.31", "1.33")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, prefect_server):
    monkeypatch.setenv("PETS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PETS_SOURCE__URL", str(tmp_path / "photos"))


@pytest.fixture
def refused(capsys):
    def check(*options, file: Path = FILES / "prefect.yaml") -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(["deploy", str(file), "--check", *map(str, options)])
        assert caught.value.code == 2
        return capsys.readouterr().err

    return check


def configuration(kind: str, pool: str, **variables):
    """Return the job that the worker of a pool builds from its template for a flow run."""
    pools = read_files(FILES / "prefect.yaml", POOLS[kind]).pools
    template = pools[pool].template
    job = run_coro_as_sync(
        CONFIGURATIONS[kind][1].from_template_and_values(
            base_job_template=template, values=variables
        )
    )
    run = FlowRun.model_construct(id="5" * 32, name="brisk-otter", flow_id=None, labels={})
    job.prepare_for_flow_run(
        run, work_pool=WorkPool(name=pool, type=kind, base_job_template=template)
    )
    return job


@pytest.mark.parametrize("kind", POOLS)
def test_every_pool_type_supports_the_deployments(kind, capsys) -> None:
    cli.main(["deploy", str(FILES / "prefect.yaml"), "--check", "--pools", str(POOLS[kind])])
    assert "2 pools" in capsys.readouterr().out


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_templates_match_their_worker_type(kind, pool) -> None:
    worker, record = CONFIGURATIONS[kind]
    assert worker.type == kind
    template = read_files(FILES / "prefect.yaml", POOLS[kind]).pools[pool].template
    assert template["job_configuration"].keys() <= record.model_fields.keys()
    standard = worker.get_default_base_job_template()["variables"]["properties"]
    for name, variable in template["variables"]["properties"].items():
        if name in standard and "type" in standard[name]:
            assert variable["type"] == standard[name]["type"], name
    job = configuration(kind, pool, env={"PETS_X": "1"})
    assert job.stream_output is False, "runs would end with a killed worker"
    variables = job.env
    if isinstance(variables, list):
        variables = {entry["name"]: entry["value"] for entry in variables}
    assert variables["PETS_X"] == "1"
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_job_manifests_are_valid_in_kubernetes(pool, version) -> None:
    manifest = configuration("kubernetes", pool, env={"PETS_X": "1"}).job_manifest
    # Prefect's worker requires them in the pod's spec, where the API server ignores them.
    for key in ("completions", "parallelism"):
        assert manifest["spec"]["template"]["spec"].pop(key) == 1
    kubernetes_validate.validate(manifest, version, strict=True)


def pod(pool: str, **variables) -> dict:
    return configuration("kubernetes", pool, **variables).job_manifest["spec"]["template"]["spec"]


def test_only_gpu_pods_request_gpus() -> None:
    (container,) = pod("gpu")["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod("gpu")["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod("gpu")["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod("gpu", gpus=8)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert pod("cpu")["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert not pod("cpu")["tolerations"]
    assert not pod("cpu")["nodeSelector"]


def test_pods_mount_shared_memory_and_the_cache() -> None:
    spec = pod("gpu")
    mounted = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert mounted["shm"] == "/dev/shm"
    assert volumes["shm"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert PipelineConfig().cache_dir.replace("~", "/home/pets").startswith(mounted["cache"])


def test_grace_period_of_a_pod_covers_the_last_checkpoint() -> None:
    seconds = signals.SHUTDOWN_SECONDS + launcher._TERMINATE_SECONDS
    assert pod("gpu")["terminationGracePeriodSeconds"] > seconds


def test_evicted_run_is_rescheduled_by_prefect() -> None:
    job = configuration("kubernetes", "gpu")
    environment = job.job_manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    behaviour = {entry["name"]: entry["value"] for entry in environment}
    assert behaviour["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


def run_container(tmp_path: Path, index: str, **variables) -> str:
    """Run the command of a pod's container with stubs of `prefect` and `pets`."""
    (container,) = pod("gpu", **variables)["containers"]
    for name in ("prefect", "pets"):
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\necho {name} "$@"')
        file.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": index,
        "PETS_STORE": str(tmp_path / "store"),
    }  # fmt: skip
    command = [*container["command"], *container["args"]]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def test_first_machine_executes_the_run_and_the_others_join(tmp_path) -> None:
    assert run_container(tmp_path, "0").startswith("prefect flow-run execute")
    spec = configuration("kubernetes", "gpu", machines=3).job_manifest["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (3, 3, "Indexed")
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    joins = run_container(tmp_path, "2", machines=3, service="gpu-0").split()
    assert joins[:4] == ["pets", "join", "--machine", "2"]
    # The real command accepts these arguments and exits after the idle time.
    assert joins[joins.index("--store") + 1] == str(tmp_path / "store")
    cli.main([*joins[1:], "--idle-seconds", "0"])


def test_services_add_no_variables_to_the_pods_of_runs() -> None:
    """`pets join` rejects an unknown PETS_ variable, such as PETS_SERVE_PORT of pets-serve."""
    assert pod("gpu")["enableServiceLinks"] is False


def test_machines_rendezvous_at_the_service(tmp_path) -> None:
    documents = list(yaml.safe_load_all((FILES / "kubernetes/cluster.yaml").read_text()))
    (service,) = (d for d in documents if d["kind"] == "Service")
    several = {"machines": 2, "service": service["metadata"]["name"]}
    endpoint = run_container(tmp_path, "1", **several).split("--launch.rdzv_endpoint ")[1]
    (port,) = service["spec"]["ports"]
    assert endpoint == f"{service['metadata']['name']}:{port['port']}"
    pods = configuration("kubernetes", "gpu", **several).job_manifest["spec"]["template"]
    alone = configuration("kubernetes", "gpu").job_manifest["spec"]["template"]
    selector = dict(service["spec"]["selector"])
    assert selector.pop("batch.kubernetes.io/job-completion-index") == "0"
    assert selector.items() <= pods["metadata"]["labels"].items()
    assert not selector.items() <= alone["metadata"]["labels"].items(), "matches a single machine"


def test_manifests_of_the_model_server_are_valid_and_refer_to_each_other() -> None:
    documents = list(yaml.safe_load_all((FILES / "kubernetes/serve.yaml").read_text()))
    for document in documents:
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    deployment, service, autoscaler, budget = documents
    pod = deployment["spec"]["template"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels == pod["metadata"]["labels"] == service["spec"]["selector"]
    assert labels == budget["spec"]["selector"]["matchLabels"]
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    _, command, *arguments = container["args"]
    parser = command_parser(command)
    serve.add_arguments(parser)
    given = parser.parse_args(arguments)
    assert container["ports"] == [{"name": "http", "containerPort": given.port}]
    paths = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness")}
    assert paths == {"/ready"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    key = {"name": "pets", "key": serve.TOKEN_VARIABLE}
    assert container["env"] == [
        {"name": serve.TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": key}}
    ], "a secret without the token must not start an open server"


def test_cluster_manifests_are_valid_and_have_a_worker_per_pool() -> None:
    documents = list(yaml.safe_load_all((FILES / "kubernetes/cluster.yaml").read_text()))
    for document in documents:
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    workers = [d for d in documents if d["kind"] == "Deployment"]
    pools = read_files(FILES / "prefect.yaml", POOLS["kubernetes"]).pools
    assert {worker_pool(w) for w in workers} == pools.keys()
    namespace = configuration("kubernetes", "gpu").namespace
    assert {d["metadata"].get("namespace", d["metadata"]["name"]) for d in documents} == {namespace}


def worker_pool(deployment: dict) -> str:
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:3] == ["prefect", "worker", "start"]
    return arguments[arguments.index("--pool") + 1]


def test_kubernetes_client_sends_the_manifest_unchanged() -> None:
    manifest = configuration("kubernetes", "gpu").job_manifest
    sent = ApiClient.sanitize_for_serialization(ApiClient.__new__(ApiClient), manifest)
    assert sent == manifest


def container(pool: str) -> dict:
    """Return the request for a container that docker-py sends for the Docker worker."""
    job = configuration("docker", pool, env={"PREFECT_API_URL": "http://server:4200/api"})
    settings = DockerWorker(work_pool_name=pool)._build_container_settings(None, job)
    settings = {k: v for k, v in settings.items() if k not in ("network", "auto_remove")}
    return _create_container_args(settings | {"version": "1.47"})


def test_gpu_container_has_gpus_shared_memory_and_no_privileges() -> None:
    created = container("gpu")
    host = created["host_config"]
    assert host["DeviceRequests"][0]["Driver"] == "nvidia"
    assert host["DeviceRequests"][0]["Count"] == -1
    assert host["ShmSize"] == 16 * 1024**3
    assert host["CapDrop"] == ["ALL"]
    assert host["Init"] is True
    assert created["user"] == "10001:10001"
    assert created["healthcheck"] == {"test": ["NONE"]}, "the image's health check is for a worker"
    assert not container("cpu")["host_config"].get("DeviceRequests")


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"variables": {"shmsize": "1g"}}, "variables.shmsize: the pool's template has no such"),
        ({"variables": {"shm_size": 5}}, "variables.shm_size = 5: 5 is not of type 'string'"),
        ({"variables": {"image_pull_policy": "Now"}}, "'Now' is not one of"),
        ({"templat": "x"}, "templat"),  # codespell:ignore templat
        ({"template": "none.yaml"}, "none.yaml: cannot be read"),
        ({"template": "pools.yaml"}, "template = pools.yaml: not a base job template"),
    ],
)  # fmt: skip
def test_invalid_pools_are_rejected(tmp_path, refused, pool, message) -> None:
    (tmp_path / "template.yaml").write_text((FILES / "docker/template.yaml").read_text())
    pools = yaml.safe_load(POOLS["docker"].read_text())
    pools["gpu"].update(pool)
    (tmp_path / "pools.yaml").write_text(yaml.safe_dump(pools))
    assert message in refused("--pools", tmp_path / "pools.yaml")


def test_templates_with_missing_variables_are_rejected(tmp_path, refused) -> None:
    template = yaml.safe_load((FILES / "docker/template.yaml").read_text())
    del template["variables"]["properties"]["image"]
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(template))
    (tmp_path / "pools.yaml").write_text(POOLS["docker"].read_text())
    assert "template.yaml: variable image is missing" in refused("--pools", tmp_path / "pools.yaml")


def test_job_variables_of_a_deployment_are_checked(tmp_path, refused) -> None:
    for file in FILES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    content = yaml.safe_load((FILES / "prefect.yaml").read_text())
    variables = {"streem_output": 1}  # codespell:ignore streem
    content["deployments"][0]["work_pool"] = {"name": "cpu", "job_variables": variables}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
    output = refused(file=tmp_path / "prefect.yaml")
    name = "work_pool.job_variables.streem_output"  # codespell:ignore streem
    assert f"{name}: the pool's template has no such variable" in output
    assert "Did you mean stream_output" in output
